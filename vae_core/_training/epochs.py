"""One epoch: its schedule, its row of the history, and the state that is restored after an error."""

import copy
import time
from collections.abc import Callable, Mapping
from math import ceil, cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from vae_core._training.steps import Step
from vae_core.runtime import evaluation_mode


class NonFiniteLossError(ArithmeticError):
    """The loss, a term or a parameter became nan or infinite; the model holds the state of the last good epoch."""


class Schedule:
    """The learning rate, as a fraction of its peak, and the weight of an annealed objective in each step."""

    def __init__(self, settings: dict, n: int, epochs: int, anneal: Callable[[float], float] | None) -> None:
        self.seed, self.batch_size = settings["seed"], settings["batch_size"]
        self.steps = n // self.batch_size if settings["drop_last"] else ceil(n / self.batch_size)  # of an epoch
        self.images = min(n, self.steps * self.batch_size)
        self.total = max(epochs * self.steps, 1)
        self.rate = one_cycle if settings["schedule"] == "one-cycle" else lambda progress: 1.0
        self.weight = anneal or (lambda progress: 1.0)

    def __call__(self, epoch: int, k: int) -> tuple[float, float]:
        """Return rate and weight in the k-th step of an epoch; both are counted from 0."""
        progress = (epoch * self.steps + k + 0.5) / self.total
        return self.rate(progress), self.weight(progress)


def training_seed(seed: int) -> int:
    """Return the seed of shuffling and noise in training, which differs from the seed of the initialisation.

    With the same seed, the noise of the first epoch would repeat the random numbers that initialised the weights.
    """
    return (seed + 1) * 0x9E3779B97F4A7C15 % 2**63


def one_cycle(progress: float, warm_up: float = 0.3, start: float = 0.04) -> float:
    """Return the rate at `progress` in [0, 1] as a fraction of its peak: half a cosine up from `start`, one down to 0.

    Source: Smith and Topin (2019).
    """
    # Not torch's OneCycleLR: its state would have to be saved, and its rates differ from those of the recorded runs.
    if progress < warm_up:
        return start + (1 - start) * (0.5 - 0.5 * cos(pi * progress / warm_up))
    return 0.5 + 0.5 * cos(pi * (progress - warm_up) / (1 - warm_up))


def train_epoch(step: Step, model: nn.Module, pace: Schedule, epoch: int, bar: tqdm) -> dict[str, float]:
    """Train for one epoch and return its row of the history. After an error the model has its state from before."""
    start, good = time.perf_counter(), copy.deepcopy(model.state_dict())
    try:
        sums, names = _epoch(step, pace, epoch, bar)
        _check_finite(step, sums, names, model, good, epoch + 1)
    except BaseException as error:
        if isinstance(error, Exception) or _spoilt(model.state_dict(), good):  # Ctrl-C keeps what is trained so far
            model.load_state_dict(good)
        raise
    means = dict(zip(names, (sums.cpu().double().sum(0) / pace.images).tolist(), strict=True))
    bar.set_postfix({name: f"{mean:.2f}" for name, mean in means.items() if name in ("loss", "kl")})
    return {"epoch": epoch + 1, **means, "seconds": time.perf_counter() - start}


def _epoch(step: Step, pace: Schedule, epoch: int, bar: tqdm) -> tuple[Tensor, list[str]]:
    """Return the sums of loss and terms of every step of one epoch, (steps, 1 + terms), and the terms' names."""
    sums = []
    order = torch.randperm(len(step.x), device="cpu")  # the same in every process
    with step.own_noise(pace.seed, epoch):
        for k, index in enumerate(order[: pace.images].split(pace.batch_size)):
            sums.append(step(index, *pace(epoch, k)))
            bar.update(len(index))
    step.share_buffers()
    return step.sum_over_processes(torch.stack(sums)), ["loss", *step.names]  # the first transfer from the device


def figures_of(function: Callable, model: nn.Module, row: dict[str, float]) -> dict[str, float]:
    """Return what `function(model)` does in evaluation mode; random state and modes are restored afterwards."""
    with evaluation_mode(model), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        figures = function(model)
    if figures is None:
        return {}
    if not isinstance(figures, Mapping):
        raise TypeError(f"after_epoch must return a dict of numbers or None, got a {type(figures).__name__}")
    for name in row.keys() & figures.keys():
        what = f"after_epoch returned {name!r}, which the row holds already"
        raise ValueError(f"{what}; return it under another name, such as 'test_{name}'")
    return {name: _number(name, value) for name, value in figures.items()}


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = f"an object of type {type(value).__name__}"
        raise TypeError(f"after_epoch must return a number under each name, got {kind} for {name!r}") from error


def _check_finite(
    step: Step, sums: Tensor, names: list[str], model: nn.Module, good: dict[str, Tensor], epoch: int
) -> None:
    """Raise NonFiniteLossError unless each step's loss and terms, and the state that they led to, are finite."""
    bad = (~sums.isfinite()).nonzero()
    if len(bad):
        k, column = bad[0].tolist()
        name = "the loss" if column == 0 else f"the term {names[column]!r}"
        what = f"{name} became {sums[k, column]:.0f} in epoch {epoch}, step {k + 1} of {len(sums)}"
    elif step.sum_over_processes(_spoilt(model.state_dict(), good)):
        what = f"a gradient of epoch {epoch} made a parameter nan or infinite"
    else:
        return
    raise NonFiniteLossError(
        f"{what}; the model is back at the end of epoch {epoch - 1}. A smaller learning_rate often helps; "
        "check that the images are in [0, 1] and that no logarithm is taken of a probability"
    )


def _spoilt(state: dict[str, Tensor], good: dict[str, Tensor]) -> Tensor:
    """Return how many tensors are no longer finite, on their device (a mask of -inf, for example, never was)."""
    names = [name for name, value in state.items() if value.is_floating_point()]
    return torch.stack([good[name].isfinite().all() & ~state[name].isfinite().all() for name in names]).sum()
