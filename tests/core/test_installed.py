"""The module as other people install it: a wheel, in a folder of its own, used from a folder of theirs."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from vae_core.models import load, mlp_vae, save

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float32")]

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("vae_core", "pyproject.toml", "README.md", "LICENSE")
GIT = ("git", "-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")


def done(*command: object, cwd: Path, **environment: str) -> str:
    """What a command prints, run in `cwd`; its own words where it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VAE_CORE", "GIT_", "PYTHON"))}
    result = subprocess.run(
        [*map(str, command)], cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the sources: building leaves files beside them."""
    pytest.importorskip("pip", reason="no pip in this environment to build a wheel with")
    if int(metadata.version("setuptools").split(".")[0]) < 77:  # not imported: it replaces distutils in this process
        pytest.skip("setuptools 77 or newer is needed to build a wheel; pip install -r requirements.txt brings it")
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    done(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        "--disable-pip-version-check", "--wheel-dir", made, source, cwd=source,
    )  # fmt: skip
    (path,) = made.glob("vae_core-*.whl")
    return path


@pytest.fixture(scope="module")
def project(wheel, tmp_path_factory) -> Path:
    """Somebody's own repository, with one commit, and the wheel installed in its folder `site`."""
    folder = tmp_path_factory.mktemp("project")
    done(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
        "--disable-pip-version-check", "--target", folder / "site", wheel, cwd=folder,
    )  # fmt: skip
    if shutil.which("git"):
        done(*GIT, "init", "--quiet", cwd=folder)
        done(*GIT, "commit", "--quiet", "--allow-empty", "--message", "Begin", cwd=folder)
    return folder


def python(project: Path, *arguments: object) -> str:
    """What Python prints in this folder, with the installed wheel, before the checkout that is installed editably."""
    return done(sys.executable, *arguments, cwd=project, PYTHONPATH=str(project / "site"), OMP_NUM_THREADS="1")


@pytest.fixture(scope="module")
def after_run(project) -> Path:
    """The project after `python -m vae_core run digits-d2 --epochs 1 --out results`."""
    python(project, "-m", "vae_core", "run", "digits-d2", "--epochs", 1, "--device", "cpu", "--out", "results")
    return project


def test_the_wheel_holds_every_file_of_the_module_and_no_other(wheel):
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vae_core").rglob("*.*") if path.is_file()}
    expected = {name for name in files if "__pycache__" not in name}
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert held == expected
    assert {"vae_core/py.typed", "vae_core/interactive/explorer.js", "vae_core/interactive/explorer.css"} <= held


def test_the_installed_module_is_the_one_that_runs(project):
    found = python(project, "-c", "import vae_core; print(vae_core.__file__)")
    assert Path(found) == project / "site" / "vae_core" / "__init__.py"


def test_run_makes_a_record_below_the_working_folder_and_names_no_commit_of_others(after_run):
    record = json.loads((after_run / "results" / "digits-d2.json").read_text())
    assert record["commit"] is None
    assert record["command"] == "python -m vae_core run digits-d2 --epochs 1"
    assert record["test"]["n"] == 360
    assert sorted(path.name for path in after_run.iterdir() if path.name != ".git") == ["results", "site"]


def test_run_gives_the_figures_of_the_checkout(after_run, tmp_path):
    done(
        sys.executable, "-m", "vae_core", "run", "digits-d2", "--epochs", 1, "--device", "cpu", "--out", tmp_path,
        cwd=ROOT, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT),
    )  # fmt: skip
    records = [json.loads((folder / "digits-d2.json").read_text()) for folder in (after_run / "results", tmp_path)]
    assert records[0]["test"] == records[1]["test"]


def test_data_and_records_go_below_the_working_folder_by_default(project):
    code = "from vae_core.data import default_root; from vae_core.experiments.records import default_out; "
    found = python(project, "-c", f"{code}print(default_root(), default_out())")
    assert found.split() == [str(project / "data"), str(project / "book" / "results")]


def test_load_returns_a_model_that_the_checkout_saved_and_the_other_way_round(project, tmp_path):
    model, x = mlp_vae((1, 8, 8), 2, hidden=(7,)).eval(), torch.rand(3, 1, 8, 8)
    save(model, tmp_path / "model.safetensors")
    code = "import sys; from vae_core.models import load, save; save(load(sys.argv[1]), sys.argv[2])"
    python(project, "-c", code, tmp_path / "model.safetensors", tmp_path / "again.safetensors")
    again = load(tmp_path / "again.safetensors")
    assert torch.equal(again.posterior(x).mean, model.posterior(x).mean)


def test_the_widgets_find_their_scripts(project):
    pytest.importorskip("anywidget", reason="anywidget is not installed")
    code = "from vae_core.interactive.explorer import LatentExplorer as E; print(len(str(E._esm)), len(str(E._css)))"
    assert all(int(length) > 100 for length in python(project, "-c", code).split())
