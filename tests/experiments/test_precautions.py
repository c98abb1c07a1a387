"""Before a run begins: room on the disk, leftovers and finished runs; and files that would execute what they hold."""

import ast
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from checks import files_below
from command_line_runs import assert_one_error, names_in, read, run

from vae_core.experiments import registry
from vae_core.experiments import run as experiment_run

pytestmark = pytest.mark.usefixtures("float32")

ROOT = Path(__file__).resolve().parents[2]


# What is there already


def test_a_run_removes_what_was_left_of_its_own_record_alone(tmp_path):
    others = [".digits-d2-s5.json-x", ".digits-d20.json-x", "digits-d2.json-x"]
    for name in (".digits-d2.json-x", ".digits-d2.checkpoint.pt-x", *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("half")
    assert run(tmp_path, "--epochs", 0) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "digits-d2.json"])


@pytest.fixture
def interrupted(interrupted_at) -> Path:
    """The checkpoint of a run that was interrupted in its second epoch."""
    return interrupted_at(31)


def test_a_checkpoint_of_the_experiment_as_it_was_defined_before_is_refused(interrupted, capsys, monkeypatch):
    before = interrupted.read_bytes()
    redefined = replace(registry.find("digits-d2"), track_test=True)
    monkeypatch.setitem(registry.EXPERIMENTS, "digits-d2", redefined)
    assert_one_error(run(interrupted.parent, "--epochs", 3, "--resume"), capsys, interrupted, "another run")
    assert files_below(interrupted.parent) == {interrupted.name: before}


def test_a_record_that_another_process_has_just_finished_is_not_made_again(tmp_path, monkeypatch):
    first, path = experiment_run.run("digits-d2", epochs=1, device="cpu", out=tmp_path, progress=False)
    before = files_below(tmp_path)
    monkeypatch.setattr(experiment_run, "fit", lambda *_args, **_kwargs: pytest.fail("trained again"))
    again, _ = experiment_run.run("digits-d2", epochs=1, device="cpu", out=tmp_path, resume=True)
    assert again == read(path) == first
    assert files_below(tmp_path) == before


def test_no_process_of_torchrun_trains_a_finished_run_again(tmp_path, monkeypatch):
    """Or it would wait for the first one, which has nothing to do."""
    first, path = experiment_run.run("digits-d2", epochs=1, device="cpu", out=tmp_path, progress=False)
    monkeypatch.setattr(experiment_run, "fit", lambda *_args, **_kwargs: pytest.fail("trained again"))
    settings = dict(epochs=1, device="cpu", out=tmp_path, resume=True, together=True)
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        again, _ = experiment_run.run("digits-d2", **settings)
        assert again == (first if rank == 0 else {key: first[key] for key in first if key != "test"})
    assert files_below(tmp_path) == {path.name: path.read_bytes()}


def test_a_record_of_other_epochs_is_not_taken_for_a_finished_run(tmp_path):
    assert run(tmp_path, "--epochs", 1) == 0
    assert run(tmp_path, "--epochs", 2, "--resume") == 0
    assert len(read(tmp_path / "digits-d2.json")["history"]) == 2


# Full disks


def bytes_needed(checkpoints: int) -> int:
    """A checkpoint holds the weights and two moments of each; the next is written beside it; 1 MiB for the rest."""
    state = registry.find("digits-d2").network().state_dict().values()
    return checkpoints * 3 * sum(value.numel() * value.element_size() for value in state) + 2**20


def set_free(monkeypatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=free))


def test_a_run_without_room_for_its_files_is_refused_before_training(tmp_path, capsys, monkeypatch):
    needed = bytes_needed(checkpoints=2)
    set_free(monkeypatch, needed - 1)
    monkeypatch.setattr(experiment_run, "fit", lambda *_args, **_kwargs: pytest.fail("trained before it looked"))
    assert_one_error(run(tmp_path), capsys, tmp_path, "MB free", f"need {needed / 1e6:.1f} MB", "--out")
    assert names_in(tmp_path) == []


def test_a_run_with_room_for_its_files_is_begun_and_resuming_needs_one_checkpoint_less(interrupted, monkeypatch):
    set_free(monkeypatch, bytes_needed(checkpoints=1))
    assert run(interrupted.parent, "--epochs", 3, "--resume") == 0
    set_free(monkeypatch, bytes_needed(checkpoints=2))
    assert run(interrupted.parent, "--epochs", 1) == 0


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[int], Path]]:
    """Makes a real file system of so many bytes, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = [shutil.which("mount") or "mount-is-missing", "-t", "tmpfs", "-o"]

    def make(size: int) -> Path:
        made = shutil.which("mount") and subprocess.run([*mount, f"size={size}", "tmpfs", folder], capture_output=True)
        if not made or made.returncode:
            pytest.skip("a small tmpfs cannot be mounted here (only root can)")
        return folder

    yield make
    subprocess.run(["umount", folder], capture_output=True) if os.path.ismount(folder) else None


def test_a_run_on_a_real_disk_that_is_too_small_is_refused_before_training(disk, capsys, monkeypatch):
    monkeypatch.setattr(experiment_run, "fit", lambda *_args, **_kwargs: pytest.fail("trained before it looked"))
    out = disk(2**20)
    assert_one_error(run(out), capsys, out, "MB free", "--out")
    assert names_in(out) == []


def test_a_real_disk_with_just_the_room_asked_for_is_large_enough(disk):
    out = disk(bytes_needed(checkpoints=2))
    assert run(out, "--epochs", 2) == 0
    assert names_in(out) == ["digits-d2.json"]


# Files that would execute what they hold


def unsafe(source: str) -> list[str]:
    """Calls that would execute what a file or a string holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "pickle", "marshal", "shelve"):
            found += [f"from {node.module} import {a.name}" for a in node.names if a.name in ("*", "load", "loads")]
        if not isinstance(node, ast.Call):
            continue
        name, safe = ast.unparse(node.func), {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        forbidden = name in ("eval", "exec", "torch.hub.load") or safe.get("allow_pickle", False) is not False
        forbidden |= name == "torch.load" and safe.get("weights_only") is not True
        forbidden |= name.split(".")[0] in ("pickle", "dill", "joblib", "marshal", "shelve") and "dump" not in name
        found += [name] if forbidden else []
    return found


@pytest.mark.parametrize("folder", ["vae_core", "tests", "book"])
def test_no_file_of_ours_executes_what_it_loads(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    assert {path.name: calls for path in files if (calls := unsafe(path.read_text()))} == {}


@pytest.mark.parametrize(
    "source",
    [
        *("torch.load(p)", "torch.load(p, weights_only=False)", "torch.load(p, None, flag)", "from torch import load"),
        *("pickle.loads(b)", "from pickle import load", "shelve.open(p)", "joblib.load(p)", "eval(text)", "exec(text)"),
        *("np.load(p, allow_pickle=True)", "numpy.load(p, allow_pickle=flag)"),
    ],
)
def test_what_executes_what_it_loads_is_found(source):
    assert unsafe(source)


@pytest.mark.parametrize("source", ["torch.load(p, weights_only=True)", "np.load(p)", "model.eval()", "json.load(f)"])
def test_what_only_reads_is_not(source):
    assert not unsafe(source)
