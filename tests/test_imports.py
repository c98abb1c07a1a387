"""The module's structure: imports point one way, and nothing heavy is loaded before it is used."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vae_core

PACKAGE = Path(vae_core.__file__).parent
EVERYTHING_BUT = {"plots", "widgets", "explorer", "flipbook", "__main__"}

# DESIGN's table, top to bottom, with what each file may import from vae_core.
MAY_IMPORT = {
    "runtime": set(),
    "distributions": set(),
    "data": set(),
    "_estimator": set(),  # linear models as scikit-learn estimators
    "_missing": set(),  # rows of which a part is observed
    "linear_gaussian": {"distributions", "_estimator", "_missing"},  # what the models of `linear` share
    "linear": {"linear_gaussian", "_estimator", "_missing"},
    "exact": {"distributions"},
    "pixels": set(),  # the laws of grey pixels behind `likelihoods`
    "likelihoods": {"pixels"},
    "networks": set(),
    "models": {"distributions", "likelihoods", "networks"},
    "objectives": {"distributions"},
    "checkpoints": {"runtime"},  # the parts of training: what a run needs to go on,
    "steps": {"runtime"},  # and one step on each kind of device
    "training": {"runtime", "checkpoints", "steps"},
    "gradients": set(),
    "inference": {"objectives", "distributions", "gradients", "runtime"},
    "probes": set(),  # what a code is good for, judged from outside; part of `evaluation`
    "evaluation": {"objectives", "inference", "distributions", "probes", "runtime"},
    "plots": set(),
    "widgets": {"plots", "runtime"},
    "explorer": {"plots", "runtime", "evaluation"},  # the widget whose decoder runs in the browser
    "flipbook": set(),  # sliders over pictures that are drawn beforehand
}
MAY_IMPORT["contrastive"] = {"networks"}  # chapter 18: what codes are worth that never decode
MAY_IMPORT["catalogue"] = {"models"}  # the definitions of the named experiments
MAY_IMPORT["records"] = {"catalogue", "data", "runtime"}  # what their runs leave behind
MAY_IMPORT["setups"] = {"catalogue", "data", "evaluation", "models", "objectives", "runtime"}  # their parts
MAY_IMPORT["experiments"] = set(MAY_IMPORT) - EVERYTHING_BUT
MAY_IMPORT["results"] = {"catalogue", "records", "experiments", "models"}  # what the chapters load
MAY_IMPORT["__main__"] = MAY_IMPORT["experiments"] | {"experiments"}


def imported(path: Path) -> set[str]:
    """The files of vae_core that one file imports when it runs (annotations under TYPE_CHECKING do not count)."""
    tree, found = ast.parse(path.read_text()), set()
    for node in tree.body:
        if isinstance(node, ast.If):
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.ImportFrom) and inner.module == "vae_core":
                found |= {alias.name for alias in inner.names}
            elif isinstance(inner, ast.ImportFrom) and (inner.module or "").startswith("vae_core."):
                found.add(inner.module.split(".")[1])
    return found - {"__version__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_each_file_imports_only_what_the_design_allows(path):
    if path.stem == "__init__":
        assert not imported(path)
    else:
        assert imported(path) <= MAY_IMPORT[path.stem]


def test_the_map_names_every_file_after_those_that_it_imports():
    named = re.findall(r"^`(\w+)`  ", vae_core.__doc__, re.MULTILINE)
    files = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    assert sorted(named) == sorted(files)
    for name, path in files.items():
        assert imported(path) <= set(named[: named.index(name)]), name


def says(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_no_pictures_or_widgets_are_loaded_before_they_are_used():
    """Not by any of these: one process imports them all."""
    loaded = "sorted({'matplotlib', 'ipywidgets', 'torchvision'} & set(sys.modules))"
    assert says(f"import sys; from vae_core import training, experiments, widgets, __main__; print({loaded})") == "[]"


@pytest.mark.parametrize("modules", ["training, models, objectives, evaluation, data, experiments", "explorer, plots"])
def test_the_start_takes_less_than_two_seconds_beyond_torchs_own(modules):
    """In seconds of the processor, which other work on the machine hardly lengthens; the best of up to three."""
    code = "from time import process_time; import torch; begin = process_time(); "
    code += f"from vae_core import {modules}; print(process_time() - begin)"
    assert any(float(says(code)) < 2 for _ in range(3))
