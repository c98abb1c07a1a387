"""Recorded results, for the chapters. With VAE_CORE_FULL=1 in the environment, runs are made again instead."""

import json
import os
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from vae_core.experiments.records import Record, default_out, load_trained, read_record, record_path
from vae_core.experiments.registry import find
from vae_core.experiments.run import run
from vae_core.models import Autoencoder


def recorded(name: str, seed: int | None = None) -> Record:
    """Return the record of an experiment's complete run, with its own seed or another one.

    With VAE_CORE_FULL=1 the run is made or continued now, and its record kept, in `book/results/full/`.

    Raises:
        ValueError: for an unknown name.
        FileNotFoundError: if the run is not recorded; the message names the command.
    """
    experiment = find(name)
    seed = experiment.seed if seed is None else seed
    if _full():
        return run(name, seed=seed, out=_folder(), resume=True)[0]
    record = read_record(experiment, seed, _folder())
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
        recorded(name)
    return load_trained(name, _folder())


def measured(name: str) -> tuple[dict, dict[str, Tensor], str]:
    """Return what a script in book/ measured (`make reproduce` runs them all): figures, tensors, command and device.

    Raises:
        FileNotFoundError: if there is no such measurement; the message names the command.
    """
    path = default_out() / f"measured-{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; `make reproduce` makes it")
    record = json.loads(path.read_text())
    return record["figures"], load_file(path.with_suffix(".safetensors")), f"{record['command']} ({record['device']})"


def _full() -> bool:
    return os.environ.get("VAE_CORE_FULL", "0") == "1"


def _folder() -> Path:
    return default_out() / "full" if _full() else default_out()
