"""Faults, in real processes: killed at any point and resumed, two at one record, several that share the work."""

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from checks import files_below
from command_line_runs import names_in, read, run, timeless

pytestmark = pytest.mark.usefixtures("float32")
processes = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork or SIGKILL on this system")

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
PATIENCE = 400  # seconds after which a process counts as stuck; none waits for a time
EPOCHS = ("--epochs", 12)
POINTS = (
    *("in the first epoch", "in the last epoch", "by Ctrl-C", "half-way through a checkpoint"),
    *("before a checkpoint takes its place", "after a checkpoint took its place"),
    *("before the weights take their place", "after the weights took their place"),
    *("before the record takes its place", "after the record took its place"),
)


@contextlib.contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen]:
    """`python ARGUMENTS…` in a process group of its own, none of which outlives the block."""
    command = [sys.executable, *map(str, arguments)]
    settings = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONPATH": ROOT})
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **settings) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def program(out: Path, *options: object) -> contextlib.AbstractContextManager[subprocess.Popen]:
    return started("-m", "vae_core", "run", "digits-d2", *EPOCHS, "--device", "cpu", "--out", out, *options)


def finished(process: subprocess.Popen) -> str:
    """What a process has printed, once it has ended well."""
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def workers(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """What takes longest, begun first: `killed_runs.py all`, and `torchrun` with two processes of `reproduce`."""
    doomed, shared, script = tmp_path_factory.mktemp("doomed"), tmp_path_factory.mktemp("torchrun"), "killed_runs.py"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    with (
        started(TESTS / script, "all", doomed) as first,
        started(*torchrun, TESTS / script, "reproduce", shared) as second,
    ):
        yield SimpleNamespace(doomed=doomed, doomed_process=first, shared=shared, shared_process=second)


@pytest.fixture(scope="module")
def doomed(workers) -> Path:
    finished(workers.doomed_process)
    return workers.doomed


@pytest.fixture(scope="module")
def torchrun(workers) -> Path:
    finished(workers.shared_process)
    return workers.shared


# The program, killed wherever it happens to be


def wait_for_writes(process: subprocess.Popen, path: Path, count: int) -> None:
    """Return when the file at `path` has been written `count` times."""

    def stamp() -> int | None:
        return path.stat().st_mtime_ns if path.exists() else None

    seen, deadline = {stamp()}, time.monotonic() + PATIENCE
    while len(seen) <= count:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.001)
        seen.add(stamp())


@pytest.fixture(scope="module")
def story(workers, tmp_path_factory) -> SimpleNamespace:
    """A run that is halted, disturbed by a second one, killed, and resumed to its end."""
    out, chance = tmp_path_factory.mktemp("story"), random.Random(0)
    checkpoint = out / "digits-d2.checkpoint.pt"
    with program(out) as first:
        wait_for_writes(first, checkpoint, chance.randint(1, 4))
        time.sleep(chance.uniform(0, 0.2))  # to be anywhere in an epoch; nothing depends on its length
        os.kill(first.pid, signal.SIGSTOP)
        os.waitpid(first.pid, os.WUNTRACED)
        before = files_below(out)
        with contextlib.redirect_stderr(io.StringIO()) as error, contextlib.redirect_stdout(io.StringIO()) as printed:
            code = run(out, *EPOCHS, "--resume")
        refused = (code, printed.getvalue(), error.getvalue())
        untouched = files_below(out) == before
        first.kill()
        left = names_in(out)
    with program(out, "--resume") as second:
        finished(second)
    codes = (first.returncode, second.returncode)
    return SimpleNamespace(out=out, codes=codes, left=left, refused=refused, untouched=untouched)


@processes
def test_a_killed_program_that_is_resumed_ends_with_the_figures_of_one_that_was_not(story, tmp_path):
    assert story.codes == (-signal.SIGKILL, 0)
    assert run(tmp_path, *EPOCHS) == 0
    resumed, whole = read(story.out / "digits-d2.json"), read(tmp_path / "digits-d2.json")
    assert timeless(resumed["history"]) == timeless(whole["history"])
    assert resumed["test"] == whole["test"]


@processes
def test_a_killed_program_leaves_a_lock_that_blocks_nobody_and_goes_with_the_next(story):
    assert {"digits-d2.lock", "digits-d2.checkpoint.pt"} <= set(story.left)
    assert names_in(story.out) == ["digits-d2.json"]


@processes
def test_a_second_process_at_a_record_is_refused_in_one_sentence_and_touches_nothing(story):
    code, printed, error = story.refused
    assert (code, printed, error.count("\n")) == (1, "", 1)
    assert error.startswith(f"error: another process is at work on {story.out / 'digits-d2.json'}; ")
    assert story.untouched


# Runs that kill themselves at a chosen point


@processes
@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_anywhere_ends_bit_identical_to_one_that_was_not(point, doomed):
    fates = json.loads((doomed / "fates.json").read_text())
    assert set(fates) == {*POINTS, "whole", "shared"}
    assert fates["whole"]["status"] == 0
    assert fates[point]["status"] == (130 if point == "by Ctrl-C" else -signal.SIGKILL)
    assert fates[point]["resumed"] == 0
    assert names_in(doomed / point) == names_in(doomed / "whole") == ["kept.json", "kept.safetensors"]
    weights = [(folder / "kept.safetensors").read_bytes() for folder in (doomed / point, doomed / "whole")]
    assert weights[0] == weights[1]
    resumed, whole = read(doomed / point / "kept.json"), read(doomed / "whole" / "kept.json")
    assert timeless(resumed.pop("history")) == timeless(whole.pop("history"))
    assert [key for key in whole if resumed[key] != whole[key]] == ["wall_seconds"]


@processes
def test_ctrl_c_keeps_the_last_epoch_and_leaves_no_lock(doomed):
    left = json.loads((doomed / "fates.json").read_text())["by Ctrl-C"]["left"]
    assert left == ["kept.checkpoint.pt"]


@processes
def test_a_killed_write_leaves_a_folder_which_the_next_run_removes(doomed):
    left = json.loads((doomed / "fates.json").read_text())["half-way through a checkpoint"]["left"]
    assert [name.rsplit("-", 1)[0] for name in left] == [".kept.checkpoint.pt", "kept.checkpoint.pt", "kept.lock"]


# Sharing


def assert_shared(folder: Path) -> None:
    log = [line.split() for line in (folder / "log").read_text().splitlines()]
    stems = ["shared", *(f"shared-s{seed}" for seed in (1, 2, 3, 4))]
    assert sorted(name for _, name in log) == sorted(f"{stem}.checkpoint.pt" for stem in stems)
    assert len({process for process, _ in log}) == 2
    assert names_in(folder) == sorted(["log", *(f"{stem}.json" for stem in stems)])
    assert [read(folder / f"{stem}.json")["seed"] for stem in stems] == [0, 1, 2, 3, 4]


@processes
def test_two_processes_of_reproduce_make_every_record_once(doomed):
    assert json.loads((doomed / "fates.json").read_text())["shared"]["status"] == [0, 0]
    assert_shared(doomed / "shared")


@processes
def test_the_processes_of_torchrun_make_every_record_once(torchrun):
    assert_shared(torchrun)
