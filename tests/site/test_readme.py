"""The README's programs run as they stand, its commands exist, and what it claims is so."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import nbformat
import pytest
from image_folders import write_images
from ledger import ROOT
from matplotlib.image import imread
from nbclient import NotebookClient

from vae_core.experiments.command_line import parser
from vae_core.experiments.registry import find

README = (ROOT / "README.md").read_text()
BLOCKS = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", README, re.M | re.S))


def run(heading: str, then: str, folder: Path, epochs: int) -> list:
    """What the program prints when it is run with that many of its 60 epochs, and then asked for more; as JSON."""
    program = folder / "program.py"
    code = BLOCKS[heading].replace("epochs=60", f"epochs={epochs}, progress=False").replace("print(", "figures = (")
    program.write_text(f"import json\nimport torch\ntorch.manual_seed(0)\n{code}\nprint(json.dumps({then}))\n")
    environment = {name: value for name, value in os.environ.items() if name != "VAE_CORE_DATA"} | {"MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, program], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_module_is_used_as_the_readme_says(tmp_path):
    assert run("Use the module", "[list(bound.shape), list(q.mean.shape)]", tmp_path, 3) == [[360], [360, 2]]


def test_a_folder_of_forty_images_is_trained_on_judged_saved_loaded_and_drawn(tmp_path):
    write_images(tmp_path / "photos", 40)
    then = "[figures, evaluate(model, photos.x_test), history, stop.best_loss, len(x) + 8 + len(photos.x_test)]"
    before, after, history, best, n = run("Your own images", then, tmp_path, 20)
    losses = [row["validation_loss"] for row in history]
    assert n == 40
    assert best == min(losses) < 0.9 * losses[0]
    assert after == before  # saved and loaded, the model gives the same figures
    assert before["loss"] == pytest.approx(best, rel=0.1)
    height, width, _ = imread(tmp_path / "photos.png").shape
    assert width > 2 * height > 500
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"photos", "data", "photos.safetensors", "photos.png", "program.py"}


def test_a_model_of_ones_own_trains_and_is_judged(tmp_path):
    """With the mixture it must get below what the digits cost before training by a wide margin, as the VAE does."""
    then = "[history[0]['loss'], history[-1]['loss'], figures['loss'], model.log_variances.abs().max().item()]"
    first, last, test, moved = run("Your own model", then, tmp_path, 30)
    assert last < 0.75 * first
    assert test == pytest.approx(last, rel=0.1)
    assert moved > 0.1  # the prior has learned, too


def test_the_program_for_ones_own_images_has_at_most_thirty_lines():
    assert len([line for line in BLOCKS["Your own images"].splitlines() if line.strip()]) <= 30


def test_the_model_of_ones_own_has_about_thirty_lines():
    code = BLOCKS["Your own model"]
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith(("from", "import"))]) <= 30


def test_every_make_target_that_the_readme_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)|`make (\w+)`", README, re.M):
        assert re.search(rf"^{''.join(target)}:", makefile, re.M), target


RESULTS = "VAE_CORE_RESULTS"
WIDGET = "application/vnd.jupyter.widget-view+json"
VIEWS = {WIDGET, "image/png", "image/svg+xml"}
COMMANDS = re.findall(r"^\S*(?:python|torchrun [^\n]*?)\s+-m vae_core ([^\n]+)$", README, re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_line_that_the_readme_shows_can_be_read(command):
    options = parser().parse_args(shlex.split(command))
    assert not hasattr(options, "name") or find(options.name)


def test_the_readme_shows_each_command_and_a_folder_of_ones_own():
    assert {command.split()[0] for command in COMMANDS} == {"list", "data", "run", "reproduce", "table"}
    assert any("--data folder:" in command for command in COMMANDS)


def test_every_file_that_the_readme_links_to_exists():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) > 15
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_number_that_a_cell_prints_is_compared():
    """nbval compares each output, unless a tag says otherwise: those cells print nothing, and show widgets alone."""
    left_out = {"nbval-ignore-output", "nbval-skip", "raises-exception"}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            assert "NBVAL" not in cell.source.upper(), path.name
            if left_out & set(cell.metadata.get("tags", [])):
                shown = [
                    set(output.get("data", {})) & {WIDGET, "image/png", "image/svg+xml"} for output in cell.outputs
                ]
                assert all(shown), (path.name, cell.outputs)
                assert {WIDGET} in shown


def test_the_kernel_that_ran_the_colab_cell_finds_the_clone(tmp_path):
    """The cell as it stands, but for the clone and the installation, of which a copy of the sources takes the place."""
    clone, change = re.search(r"```\n\s+!(git clone[^\n]+)\n\s+(%cd [^\n]+)\n\s+```", README).groups()
    folder = clone.split(" && ")[0].split()[-1]
    assert clone.endswith(f'pip install --quiet "./{folder}[widgets]"')
    for name in ("vae_core", "book/_toc.yml"):
        (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / folder / name)
    asked = "import vae_core; from vae_core.experiments.records import default_out"
    cells = map(nbformat.v4.new_code_cell, (change, asked, "vae_core.__file__, str(default_out())"))
    notebook = nbformat.v4.new_notebook(cells=list(cells))
    client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env={name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", RESULTS)})
    module, records = literal_eval(notebook.cells[-1].outputs[0].data["text/plain"])
    assert Path(module).resolve() == (tmp_path / folder / "vae_core" / "__init__.py").resolve()
    assert Path(records).resolve() == (tmp_path / folder / "book" / "results").resolve()


def test_a_notebook_is_a_test_in_any_working_folder(tmp_path):
    cell = f"{ROOT / 'notebooks' / '05_gaussian_kl.ipynb'}::Cell 0"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cell]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1].startswith("1 passed"), done.stdout
