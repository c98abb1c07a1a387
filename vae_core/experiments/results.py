"""Recorded results, for the chapters. With VAE_CORE_FULL=1 in the environment, all are made again instead.

Then everything is made in `book/results/full/`, each with a time estimate first and a progress bar: networks by
`run.run`, and what the programs in book/ measure by these programs, which are given the networks of that folder alone.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from vae_core.experiments.records import Record, default_out, load_trained, read_record, record_path
from vae_core.experiments.registry import find
from vae_core.experiments.run import run
from vae_core.models import Autoencoder
from vae_core.runtime import project_folder


@dataclass(frozen=True)
class Program:
    """A program in book/ with its arguments, and what it takes: recorded networks, records of other programs."""

    command: str
    networks: tuple[str, ...] = ()
    records: tuple[str, ...] = ()


EXPLORED = ("chen-mnist-d2", "chen-mnist-d20", "chen-fashion-d2", "saleh-boots-k2")
THESIS = ("chen-mnist-d20", "chen-fashion-d20", "chen-cifar10-cnn")
SAMPLED = (
    *("chen-mnist-d2", "chen-mnist-d20", "conditional-mnist-d2"),
    *("chen-fashion-d2", "chen-fashion-d20", "iwae-mnist-k1"),
)
BOUNDED = ("iwae-mnist-k1", "iwae-mnist-k5", "iwae-mnist-k50")
PROGRAMS = {  # by the name of what it writes, without its ending
    "measured-mnist": Program("measurements.py mnist", ("chen-mnist-d2", "chen-mnist-d20")),
    "measured-fashion": Program("measurements.py fashion", ("chen-fashion-d2", "chen-fashion-d20")),
    "measured-cifar10": Program("measurements.py cifar10", ("chen-cifar10-cnn",)),
    "measured-irvin": Program("measurements.py irvin", ("irvin-z2",)),
    "measured-saleh": Program("measurements.py saleh", ("saleh-mnist-k2", "saleh-fashion-k2")),
    "measured-boots": Program("measurements.py boots", ("saleh-boots-k2", "saleh-boots-k20")),
    "measured-bounds": Program("bounds.py", BOUNDED),
    "measured-representations": Program(
        "representations.py", THESIS, ("measured-mnist", "measured-fashion", "measured-cifar10")
    ),
    "measured-variational-em": Program("variational_em.py"),
    "measured-full-covariance": Program("full_covariance.py"),
    "measured-contrastive-canvas": Program("contrastive_canvas.py"),
    "measured-frechet": Program("frechet.py", SAMPLED),
    "linear-mnist": Program("linear_mnist.py"),
    "disentanglement": Program("disentanglement.py"),
    **{f"{name}.codes": Program("explorer_codes.py", EXPLORED) for name in EXPLORED},
}


def recorded(name: str, seed: int | None = None) -> Record:
    """Return the record of an experiment's complete run, with its own seed or another one.

    With VAE_CORE_FULL=1 the run is made or continued now, and its record kept, in `book/results/full/`.

    Raises:
        ValueError: for an unknown name.
        FileNotFoundError: if the run is not recorded; the message names the command.
    """
    experiment = find(name)
    seed = experiment.seed if seed is None else seed
    record = read_record(experiment, seed, _folder())
    if _full():
        if record is None:
            _announce(name, record_path(experiment, seed, default_out()))
        return run(name, seed=seed, out=_folder(), resume=True)[0]
    if record is None:
        path, command = record_path(experiment, seed, _folder()), f"python -m vae_core run {name} --seed {seed}"
        raise FileNotFoundError(f"{path} is no record of {name} as it is defined now; `{command}` makes it")
    return record


def recorded_seeds(name: str) -> list[Record]:
    """Return `recorded` for every seed of the experiment, its own first."""
    return [recorded(name, seed) for seed in find(name).seeds]


def recorded_model(name: str) -> Autoencoder:
    """Return the trained model that belongs to `recorded(name)`; errors as in `records.load_trained`."""
    if _full():
        _remake(name)
    return load_trained(name, _folder())


def measured(name: str) -> tuple[dict, dict[str, Tensor], str]:
    """Return what a program in book/ measured (`make reproduce` runs them all): figures, tensors, command and device.

    With VAE_CORE_FULL=1 it is measured now, on networks that are trained now; errors as in `result_file`.
    """
    path = result_file(f"measured-{name}.json")
    record = json.loads(path.read_text())
    return record["figures"], load_file(path.with_suffix(".safetensors")), f"{record['command']} ({record['device']})"


def result_file(name: str) -> Path:
    """The path of a file that a program in book/ wrote: `linear-mnist.json`, `chen-mnist-d2.codes.safetensors`.

    With VAE_CORE_FULL=1 it lies in `book/results/full/`, and is made first, unless it is there and younger than all
    networks that it is about. Raises FileNotFoundError, naming the command, where there is no such file; ValueError
    where its record names other weights than those that lie beside it; RuntimeError if the program fails.
    """
    path = _folder() / name
    stem = name.removesuffix(".json").removesuffix(".safetensors")
    if _full() and stem in PROGRAMS:
        _make(stem, path)
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; `make reproduce` makes it")
    _check_weights(path.with_name(f"{stem}.json"))
    return path


def _make(stem: str, path: Path) -> None:
    """Run the program that writes `path`, after all that it takes, unless the file is younger than these."""
    program = PROGRAMS[stem]
    for needed in program.records:
        result_file(f"{needed}.json")
    inputs = [_remake(name) for name in program.networks] + [_folder() / f"{needed}.json" for needed in program.records]
    if path.exists() and all(path.stat().st_mtime_ns >= file.stat().st_mtime_ns for file in inputs):
        return
    _announce(stem, default_out() / f"{stem}.json")
    path.unlink(missing_ok=True)  # some programs go on with what they find
    _folder().mkdir(parents=True, exist_ok=True)
    _call(stem, program.command.split(), _seconds(default_out() / f"{stem}.json"))


def _remake(name: str) -> Path:
    """Train the network of `recorded(name)`, unless it and its weights are there; the path of the weights."""
    path = record_path(find(name), find(name).seed, _folder())
    weights = path.with_suffix(".safetensors")
    if not weights.exists():
        path.unlink(missing_ok=True)  # a record alone would be taken for a finished run
    recorded(name)
    return weights


def _call(stem: str, command: list[str], seconds: float | None) -> None:
    """Run a program of book/ on the folder of new results, with a bar of its seconds beside those expected."""
    root = project_folder()
    environment = os.environ | {"VAE_CORE_RESULTS": str(_folder().resolve()), "VAE_CORE_FULL": "0"}
    arguments = [sys.executable, str(root / "book" / command[0]), *command[1:]]
    total = None if seconds is None else round(seconds)
    with tempfile.TemporaryFile("w+") as printed, tqdm(total=total, unit="s", desc=stem) as bar:
        process = subprocess.Popen(arguments, cwd=root, env=environment, stdout=printed, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                try:
                    process.wait(1)
                except subprocess.TimeoutExpired:
                    bar.update()
        finally:
            process.kill()
        if process.returncode:
            printed.seek(0)
            raise RuntimeError(f"`python book/{' '.join(command)}` failed: {printed.read()[-1000:]}")


def _announce(what: str, path: Path) -> None:
    """Say how long what comes now will take, by the committed record at `path`."""
    seconds = _seconds(path)
    if seconds is None:
        told = "how long that takes is not recorded"
    else:
        told = f"that took {_time(seconds)} on {json.loads(path.read_text())['device']}"
    print(f"{what} is made now in {_folder()}; {told}", file=sys.stderr, flush=True)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _seconds(path: Path) -> float | None:
    """The seconds in a record, of all its parts; None where there is no record, or none of its time."""
    found = json.loads(path.read_text()).get("wall_seconds") if path.exists() else None
    return sum(found.values()) if isinstance(found, dict) else found


def _check_weights(path: Path) -> None:
    """Raise ValueError if the record at `path` was measured on other weights than those that lie beside it."""
    used = (
        json.loads(path.read_text()).get("weights_sha256")
        if path.name.startswith("measured-") and path.exists()
        else None
    )
    for name, sha256 in (used or {}).items():
        weights = path.with_name(f"{name}.safetensors")
        if weights.exists() and hashlib.sha256(weights.read_bytes()).hexdigest() != sha256:
            raise ValueError(
                f"{path} was measured on other weights than {weights}; delete it and call `make reproduce`"
            )


def _full() -> bool:
    return os.environ.get("VAE_CORE_FULL", "0") == "1"


def _folder() -> Path:
    return default_out() / "full" if _full() else default_out()
