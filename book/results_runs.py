"""The records as the table of results asks for them: of one device, with all their seeds."""

import json
from collections.abc import Iterable

from reproduction import on_device

from vae_core.experiments.records import Record, default_out, format_mean_std
from vae_core.experiments.registry import EXPERIMENTS, find

KINDS = ("vae", "autoencoder")  # of the robustness experiments


def records(name: str, device: str) -> list[Record]:
    """The valid records of an experiment that were made on "cuda" or on "cpu", its own seed first."""
    return on_device(find(name), device)


def runs(name: str) -> list[Record]:
    """The records that speak for an experiment: those of the device that has more seeds, the card's if as many."""
    return max((records(name, device) for device in ("cuda", "cpu")), key=len)


def spread(values: Iterable[float], digits: int = 2) -> str:
    """`format_mean_std` with a typographic minus."""
    return format_mean_std(values, digits).replace("-", "−")


def figures(found: list[Record], name: str) -> list[float]:
    return [record["test"][name] for record in found]


def overfitting(found: list[Record]) -> list[float]:
    """Test loss minus the loss of the training images, both in evaluation mode, after the last epoch."""
    last = (record["history"][-1] for record in found)
    return [row["test_loss"] - row["train_eval_loss"] for row in last if "train_eval_loss" in row]


def beginning(*names: str) -> list[str]:
    """The experiments whose names begin like these, except those that are not recorded."""
    return [name for name in EXPERIMENTS if name.startswith(names) and runs(name)]


def degradation(kind: str, size: int, percent: int, figure: str = "mse") -> list[float]:
    """Over seeds: an error with noise in training over the same seed's error without."""
    noisy, clean = (runs(f"saleh-robustness-{kind}-k{size}-n{p}") for p in (percent, 0))
    base = {record["seed"]: record["test"]["mse"] for record in clean}
    return [record["test"][figure] / base[record["seed"]] for record in noisy if record["seed"] in base]


def read(name: str) -> dict:
    """A record of something else than a run, by its file's name."""
    record: dict = json.loads((default_out() / f"{name}.json").read_text())
    return record
