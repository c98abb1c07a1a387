"""What a run writes: its record and its weights; whether they belong to an experiment as it is defined now."""

import contextlib
import hashlib
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from vae_core import __version__
from vae_core.data import Dataset
from vae_core.experiments.definition import Experiment
from vae_core.experiments.registry import find
from vae_core.runtime import Runtime, project_folder, random_state, replacing, save_tensors

if TYPE_CHECKING:
    from vae_core.models import Autoencoder

LOSSES = ("loss", "reconstruction", "kl")  # nats per datum; the first is the sum of the others
Record = dict[str, Any]


def default_out() -> Path:
    """Return the folder of records: `VAE_CORE_RESULTS` if set, else `book/results/` in `runtime.project_folder()`."""
    return Path(os.environ.get("VAE_CORE_RESULTS") or project_folder() / "book" / "results")


def record_path(experiment: Experiment, seed: int, out: Path) -> Path:
    """Return `OUT/NAME.json`, or `OUT/NAME-sSEED.json` for a seed that is not the experiment's own.

    On the images of a folder (`setups.on_folder`) NAME is followed by `-folder-` and the folder's name.
    """
    images = f"-{experiment.dataset.replace(':', '-')}" if experiment.image_shape else ""
    return out / f"{experiment.name}{images}{'' if seed == experiment.seed else f'-s{seed}'}.json"


def read_record(experiment: Experiment, seed: int, out: Path) -> Record | None:
    """Return the record of a complete run of the experiment as it is defined now, or None."""
    try:
        record = json.loads(record_path(experiment, seed, out).read_text())
        wanted = record["config"] == experiment.config(experiment.epochs, seed)
        return record if wanted and len(record["history"]) == experiment.epochs else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def valid_records(experiment: Experiment, out: Path) -> list[Record]:
    """Return the valid records of an experiment, over its seeds."""
    return [record for seed in experiment.seeds if (record := read_record(experiment, seed, out))]


def format_mean_std(values: Iterable[float], digits: int = 2) -> str:
    """Return mean ± standard deviation, to `digits` decimals; of a single value, the value."""
    values = list(values)
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def write_record(record: Record, path: Path) -> None:
    """Write a record as JSON, whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(record, indent=1) + "\n")


def run_hash(record: Record) -> str:
    """Return the SHA-256 of a record's config and data; a checkpoint of others raises an error."""
    return hashlib.sha256(json.dumps([record["config"], record["data_sha256"]], sort_keys=True).encode()).hexdigest()


class RunInProgressError(OSError):
    """Another process works on this record."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of one record inside the block; the operating system releases it if this process is killed.

    Raises:
        RunInProgressError: at once, if another process holds it.
    """
    lock = FileLock(path.with_suffix(".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunInProgressError(
            f"another process is at work on {path}; wait for it, or choose another --out"
        ) from error
    try:
        yield
    finally:
        path.with_suffix(".lock").unlink(missing_ok=True)
        lock.release()


def save_weights(model: nn.Module, path: Path) -> str:
    """Save all parameters and running averages as 16-bit floats, in safetensors; return the file's SHA-256."""
    half = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_tensors(half, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_trained(name: str, out: str | Path | None = None) -> "Autoencoder":
    """Return the recorded model of an experiment, in evaluation mode. The caller's random state is unchanged.

    Args:
        name: of the experiment.
        out: the folder of records; `default_out()` if None.

    Raises:
        ValueError: for an unknown name or an experiment that keeps no weights; for a record that is not of a complete
            run of the experiment as it is defined now; for weights of another network or run than the record's.
        FileNotFoundError: if either file does not exist. The message names the command that makes it.
    """
    experiment, folder = find(name), Path(out) if out is not None else default_out()
    if not experiment.weights:
        raise ValueError(f"the experiment {name} keeps no weights")
    makes = f"`python -m vae_core run {name}{f' --out {folder}' if out is not None else ''}` makes it"
    path = record_path(experiment, experiment.seed, folder)
    content = _recorded_weights(experiment, path, makes)
    with random_state(0):  # the initial weights are overwritten; this keeps the caller's random state
        model = experiment.network()
    try:
        model.load_state_dict(load(content))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{path.with_suffix('.safetensors')} does not hold the weights of {name}; {makes} anew"
        ) from error
    return model.eval()


def _recorded_weights(experiment: Experiment, path: Path, makes: str) -> bytes:
    """Return the weights beside the record at `path`, if they are those of the run that wrote it."""
    weights = path.with_suffix(".safetensors")
    for file in (weights, path):
        if not file.exists():
            raise FileNotFoundError(f"{file} is not there; {makes}")
    record, content = read_record(experiment, experiment.seed, path.parent), weights.read_bytes()
    if record is None:
        raise ValueError(f"{path} is no record of a whole run of {experiment.name} as it is defined now; {makes} anew")
    if "weights_sha256" in record and record["weights_sha256"] != hashlib.sha256(content).hexdigest():
        raise ValueError(f"{weights} is of another run than {path} (its SHA-256 differs); {makes} anew")
    return content


def describe(experiment: Experiment, dataset: Dataset, epochs: int, seed: int, runtime: Runtime) -> Record:
    """Return the part of a record that is known before training."""
    several = runtime.world_size > 1
    launcher = f"torchrun --nproc-per-node {runtime.world_size}" if several else "python"
    command = f"{launcher} -m vae_core run {experiment.name}"
    command += f" --epochs {epochs}" if epochs != experiment.epochs else ""
    command += f" --seed {seed}" if seed != experiment.seed else ""
    command += f" --data {shlex.quote(dataset.name)}" if experiment.image_shape else ""
    record = provenance(experiment.name, command, runtime)
    return record | {"seed": seed, "data_sha256": dataset.sha256, "config": experiment.config(epochs, seed)}


def provenance(name: str, command: str, runtime: Runtime) -> Record:
    """Return the part of every record, of a run or of another measurement, that says what made it."""
    made = {"name": name, "command": command, "commit": commit()}
    return made | {"device": runtime.describe(), "versions": versions()}


def versions() -> dict[str, str]:
    """Return the versions of everything that a result depends on."""
    found = {name: metadata.version(name) for name in ("torchvision", "numpy")}
    return {"vae_core": __version__, "python": platform.python_version(), "torch": torch.__version__, **found}


def commit() -> str | None:
    """Return the commit of this checkout, with `-dirty` if `vae_core` differs from it; None outside of git.

    The variable VAE_CORE_COMMIT sets it where the files were copied to a machine without their history.
    """
    if named := os.environ.get("VAE_CORE_COMMIT"):
        return named
    here = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # fails where vae_core is only installed
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
