"""The layout of the module: imports point one way, the core stays small, and nothing heavy is loaded early."""

import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from layout import ABOVE, BELOW, CORE, FOLDERS, MODULES, PACKAGE, PRIVATE, code_lines, imported, path_of


def test_the_docstrings_list_every_file():
    files = {path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")}
    modules = {".".join(file.parts) for file in files if file.name not in ("__init__", "__main__")}
    assert modules == set(MODULES)
    assert len(MODULES) == len(set(MODULES))


@pytest.mark.parametrize("module", CORE)
def test_a_file_of_the_core_imports_only_files_listed_before_it(module):
    assert imported(path_of(module)) <= {*CORE[: CORE.index(module)], *BELOW}


@pytest.mark.parametrize("module", ABOVE)
def test_a_file_of_the_two_folders_imports_the_core_and_files_listed_before_it(module):
    assert imported(path_of(module)) <= {*CORE, *BELOW, *ABOVE[: ABOVE.index(module)]}


def test_imports_never_go_round_in_a_circle():
    order = TopologicalSorter({module: imported(path_of(module)) for module in MODULES}).static_order()
    assert {*order} == {*MODULES}


@pytest.mark.parametrize("folder", ["", *PRIVATE, *FOLDERS])
def test_importing_a_package_imports_no_module_of_ours(folder):
    assert not imported(PACKAGE / folder / "__init__.py")


def test_the_core_is_below_2200_lines_of_code():
    assert sum(code_lines(path_of(module)) for module in CORE) < 2200


def says(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_no_figures_or_widgets_are_loaded_before_they_are_used():
    """Not by any of these: one process imports them all."""
    loaded = "sorted({'matplotlib', 'ipywidgets', 'torchvision'} & set(sys.modules))"
    code = "import sys; from vae_core import training, __main__; from vae_core.experiments import run; "
    assert says(f"{code} from vae_core.interactive import sliders; print({loaded})") == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(
    "modules",
    [
        "vae_core.training, vae_core.models, vae_core.evaluation, vae_core.data, vae_core.experiments.run",
        "vae_core.interactive.explorer, vae_core.plots",
    ],
)
def test_the_start_takes_less_than_two_seconds_beyond_torchs_own(modules):
    """In seconds of the processor, which other work on the machine hardly lengthens; the best of up to three."""
    code = "from time import process_time; import torch; begin = process_time(); "
    code += f"import {modules}; print(process_time() - begin)"
    assert any(float(says(code)) < 2 for _ in range(3))
