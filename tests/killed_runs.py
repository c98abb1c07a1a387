"""Processes for test_faults.py: runs that kill themselves at a chosen point, and processes that share work.

python killed_runs.py all OUT        a whole run in OUT/whole; per point of KILLS one that dies there, in OUT/POINT,
                                     and one that resumes, their fates in OUT/fates.json; then, in OUT/shared, two
                                     processes of the next line
python killed_runs.py reproduce OUT  the command `reproduce` for several seeds, every training noted in OUT/log
"""

import io
import itertools
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import sklearn.datasets  # noqa: F401, here once, so that not every forked process does it (0.5 s)
import torch
import torch._dynamo  # torch's optimisers load it (2 s)

from vae_core.experiments import run as experiment_run
from vae_core.experiments import setups
from vae_core.experiments.command_line import main
from vae_core.experiments.registry import EXPERIMENTS

KEPT = replace(EXPERIMENTS["digits-d2"], name="kept", epochs=3, model=dict(latent_dim=2, hidden=(16,)), weights=True)
SHARED = replace(KEPT, name="shared", epochs=1, more_seeds=(1, 2, 3, 4), weights=False)
STEPS = 23  # of an epoch


def forked(work: Callable[[], int]) -> int:
    """Start a process that does `work()` and ends with its result as exit status; its id."""
    if process := os.fork():
        return process
    status = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background process does not inherit
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def status_of(process: int) -> int:
    """The exit status of a process once it has ended; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


# Death at a chosen point


def die(by: signal.Signals = signal.SIGKILL) -> None:
    os.kill(os.getpid(), by)


def in_step(step: int, by: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """Die in the middle of a training step (1 is the first)."""

    def arm() -> None:
        objective, steps = setups.elbo_terms, itertools.count(1)

        def fatal(*arguments):
            if next(steps) == step:
                die(by)
            return objective(*arguments)

        setups.elbo_terms = fatal

    return arm


def at_replacing(suffix: str, call: int = 1, after: bool = False) -> Callable[[], None]:
    """Die right before or after a finished temporary file takes the place of a file with this suffix."""

    def arm() -> None:
        move, calls = os.replace, itertools.count(1)

        def fatal(source, target):
            hit = str(target).endswith(suffix) and next(calls) == call
            if hit and not after:
                die()
            move(source, target)
            if hit:
                die()

        os.replace = fatal

    return arm


def half_way_through_a_checkpoint() -> None:
    """Die when half of the second checkpoint is on the disk."""
    save, calls = torch.save, itertools.count(1)

    def fatal(state, target):
        whole = io.BytesIO()
        save(state, whole)
        fatal_call = next(calls) == 2
        Path(target).write_bytes(whole.getvalue()[: len(whole.getvalue()) // (2 if fatal_call else 1)])
        if fatal_call:
            die()

    torch.save = fatal


CHANCE = random.Random(0)
KILLS = {
    "in the first epoch": in_step(CHANCE.randint(1, STEPS)),
    "in the last epoch": in_step(2 * STEPS + CHANCE.randint(1, STEPS)),
    "by Ctrl-C": in_step(STEPS + CHANCE.randint(1, STEPS), by=signal.SIGINT),
    "half-way through a checkpoint": half_way_through_a_checkpoint,
    "before a checkpoint takes its place": at_replacing(".checkpoint.pt", call=2),
    "after a checkpoint took its place": at_replacing(".checkpoint.pt", call=2, after=True),
    "before the weights take their place": at_replacing(".safetensors"),
    "after the weights took their place": at_replacing(".safetensors", after=True),
    "before the record takes its place": at_replacing(".json"),
    "after the record took its place": at_replacing(".json", after=True),
}


def run(out: Path, *options: str, arm: Callable[[], None] = lambda: None) -> int:
    arm()
    return main(["run", "kept", "--device", "cpu", "--out", str(out), *options])


def kill(out: Path) -> dict[str, dict]:
    """Every point in turn: killed, then resumed; exit statuses, and the names of what the killed one left."""
    fates = {"whole": {"status": status_of(forked(lambda: run(out / "whole")))}}
    for point, arm in KILLS.items():
        folder = out / point
        status = status_of(forked(lambda folder=folder, arm=arm: run(folder, arm=arm)))
        left = sorted(path.name for path in folder.iterdir())
        resumed = status_of(forked(lambda folder=folder: run(folder, "--resume")))
        fates[point] = {"status": status, "left": left, "resumed": resumed}
    return fates


# Sharing


def reproduce(out: Path) -> int:
    """The command `reproduce`; no process goes on with its first training before another one has begun one too."""
    log, fit = out / "log", experiment_run.fit

    def noted(*arguments, **settings):
        with log.open("a") as file:
            file.write(f"{os.getpid()} {settings['checkpoint'].name}\n")
        while len({line.split()[0] for line in log.read_text().splitlines()}) < 2:
            time.sleep(0.01)
        return fit(*arguments, **settings)

    experiment_run.fit = noted
    return main(["reproduce", "--only", "shared", "--device", "cpu", "--out", str(out)])


def everything(out: Path) -> int:
    fates = kill(out)
    (out / "shared").mkdir()
    processes = [forked(lambda: reproduce(out / "shared")) for _ in range(2)]
    fates["shared"] = {"status": [status_of(process) for process in processes]}
    (out / "fates.json").write_text(json.dumps(fates))
    return 0


if __name__ == "__main__":
    EXPERIMENTS.clear()
    EXPERIMENTS.update(kept=KEPT, shared=SHARED)
    sys.exit({"all": everything, "reproduce": reproduce}[sys.argv[1]](Path(sys.argv[2])))
