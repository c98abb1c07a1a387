"""The one training loop: maximise any objective on a CPU, a CUDA device or several processes."""

import copy
import os
import time
from collections.abc import Callable
from math import ceil, cos, inf, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from vae_core import _checkpoints
from vae_core._steps import GraphedStep, Step
from vae_core.runtime import Runtime, as_int, check_seed, evaluation_mode, random_state, unit_interval

Objective = Callable[..., Tensor | tuple[Tensor, dict[str, Tensor]]]  # of the model, a batch, and what `fit` adds
History = list[dict[str, float]]


class NonFiniteLossError(ArithmeticError):
    """The loss or a parameter became nan or infinite; the model holds the parameters of the last good epoch."""


def fit(
    model: nn.Module,
    x: Tensor,
    objective: Objective,
    *,
    epochs: int,
    y: Tensor | None = None,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    reduction: str = "mean",
    schedule: str = "constant",
    anneal: Callable[[float], float] | None = None,
    seed: int = 0,
    runtime: Runtime | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    after_epoch: Callable[[nn.Module], dict[str, float]] | None = None,
    identity: str = "",
) -> History:
    r"""Train `model` on the images `x` by Adam (`betas` are its decay rates) on minus the objective; one row per epoch.

    .. math:: \text{loss} = -\frac1{|B|}\sum_{n\in B}\mathcal L(x_n)
              \quad(\texttt{reduction="sum"}: \text{ without } 1/|B|)

    `x` (N, C, H, W) is uint8 or float in [0, 1]; it moves to the device once and stays there, batches are
    gathered by index. `objective(model, batch)` gives (B,) values to be maximised, or a pair of these and
    a dict of further (B,) terms to record, as `objectives.elbo_terms` does. A row of the history holds
    `epoch`, `loss` and the terms (training means per datum, nats) and `seconds`.

    `reduction="sum"` with weight decay w is what the thesis' listing does; it equals `"mean"` with w/|B|.
    `schedule="one-cycle"` lets the learning rate rise twenty-five-fold over the first 30 % of all steps and fall
    to nothing by the last one; `learning_rate` is its peak. With `y` (N, ...), a label or condition for each image,
    the objective is called with its batch too, after that of x. With `anneal` it is called with one more argument,
    a tensor that holds `anneal(progress)`, progress from 0 to 1 over all steps: a β for
    `beta_elbo_terms`. The same seed on the same machine gives the same parameters, bit for bit on a CPU; the
    caller's random state is left as it was. The model comes back in evaluation mode.

    With `checkpoint`, everything needed to go on is written there after each epoch; `resume=True` goes on
    from it; `identity` is kept there too, for what else makes a run what it is (a hash of its config, say).
    The numbers that `after_epoch(model)` returns, called in evaluation mode, are added to the epoch's row as floats: a
    test loss, for a curve. It may draw random numbers; training goes on as if it had not. Interrupted (Ctrl-C, a
    notebook's stop button), the model keeps what it has learnt so far and stands in evaluation mode; the next cell may
    use it.

    Without a `runtime` the model trains where it is. On a CUDA device whole steps are captured in a graph and
    nothing leaves the device within an epoch. If the `runtime` is one of several processes (`torchrun`), each
    takes its part of every batch, and their gradients are averaged (torch's DistributedDataParallel): the same
    loss as in one process, but each draws noise of its own, and batch norm sees only its own part.

    Raises ValueError for settings out of range, a checkpoint of another run, or an objective of another shape than
    (B,), TypeError for images of another dtype, FileExistsError if the checkpoint exists and `resume` is False, and
    NonFiniteLossError.
    Source: Chen Algorithm 1, listing A.2 (`train`); one cycle: Smith and Topin (2019).
    """
    epochs, batch_size, seed = as_int(epochs), as_int(batch_size), as_int(seed)
    settings: dict[str, Any] = dict(batch_size=batch_size, learning_rate=learning_rate, weight_decay=weight_decay)
    settings |= dict(betas=tuple(betas), reduction=reduction, schedule=schedule, seed=seed, n=len(x), identity=identity)
    settings |= dict(epochs=epochs) if anneal or schedule != "constant" else {}
    runtime = runtime or Runtime(next(model.parameters()).device)
    _check(epochs, settings | dict(y=y), model, runtime.world_size)
    unit_interval(x[:1])  # refuse a wrong dtype before anything moves
    rates: dict[str, Any] = dict(weight_decay=float(weight_decay), betas=tuple(map(float, settings["betas"])))
    settings |= dict(learning_rate=float(learning_rate), **rates)  # a checkpoint is read with Python's own alone
    x, model, on_cuda = x.to(runtime.device), model.to(runtime.device), runtime.device.type == "cuda"
    optimizer = torch.optim.Adam(model.parameters(), settings["learning_rate"], fused=True, capturable=on_cuda, **rates)
    runtime.join()
    with random_state(training_seed(seed)):
        history = _restore(checkpoint, model, optimizer, settings, epochs, resume)
        parts = (model, x, objective, optimizer, reduction, runtime, anneal is not None, y)
        step = GraphedStep(*parts) if on_cuda else Step(*parts)
        pace = _Schedule(settings, epochs, anneal)
        model.train()
        try:
            with _progress_bar(epochs * len(x), len(history) * len(x), progress and runtime.rank == 0) as bar:
                while len(history) < epochs:
                    history.append(_row(step, model, batch_size, pace, len(history), bar))
                    history[-1] |= _undisturbed(after_epoch, model) if after_epoch else {}
                    if checkpoint and runtime.rank == 0:
                        _checkpoints.save(Path(checkpoint), model, optimizer, history, settings)
        finally:
            model.eval()
    return history


def _check(epochs: int, settings: dict, model: nn.Module, processes: int) -> None:
    n, batch_size = settings["n"], settings["batch_size"]
    check_seed(settings["seed"])
    if type(epochs) is not int or epochs < 0:
        raise ValueError(f"epochs must be a non-negative integer, got {epochs!r}")
    if n == 0:
        raise ValueError("x must hold at least one image, got none")
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
    if settings["y"] is not None and len(settings["y"]) != n:
        raise ValueError(f"y must hold one entry for each image, got {len(settings['y'])} for {n}")
    smallest = (n % batch_size or batch_size) // processes
    if smallest < 1:
        raise ValueError(f"batch_size {batch_size} leaves one of {processes} processes without any of {n} images")
    if smallest < 2 and any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules()):
        raise ValueError(f"batch_size {batch_size} leaves a batch of one among {n} images, and batch norm needs two")
    if not 0 < settings["learning_rate"] < inf:
        raise ValueError(f"learning_rate must be positive and finite, got {settings['learning_rate']!r}")
    if not 0 <= settings["weight_decay"] < inf:
        raise ValueError(f"weight_decay must not be negative or infinite, got {settings['weight_decay']!r}")
    if len(settings["betas"]) != 2 or not all(0 <= beta < 1 for beta in settings["betas"]):
        raise ValueError(f"betas must be two numbers in [0, 1), got {settings['betas']!r}")
    for name, known in (("reduction", ("mean", "sum")), ("schedule", ("constant", "one-cycle"))):
        if settings[name] not in known:
            raise ValueError(f"{name} must be {known[0]!r} or {known[1]!r}, got {settings[name]!r}")


def _restore(checkpoint, model, optimizer, settings, epochs, resume) -> History:
    return _checkpoints.restore(Path(checkpoint), model, optimizer, settings, epochs, resume) if checkpoint else []


class _Schedule:
    """The learning rate, and the weight for an annealed objective, of the k-th step of an epoch."""

    def __init__(self, settings: dict, epochs: int, anneal: Callable[[float], float] | None) -> None:
        self.seed, self.peak = settings["seed"], settings["learning_rate"]
        self.steps = ceil(settings["n"] / settings["batch_size"])
        self.total = max(epochs * self.steps, 1)
        self.rate = one_cycle if settings["schedule"] == "one-cycle" else lambda progress: 1.0
        self.anneal = anneal or (lambda progress: 1.0)

    def __call__(self, epoch: int, k: int) -> tuple[float, float]:
        progress = (epoch * self.steps + k + 0.5) / self.total
        return self.peak * self.rate(progress), self.anneal(progress)


def training_seed(seed: int) -> int:
    """The seed of shuffling and noise in training, which must not be that of the initialisation.

    With the same one the noise of the first epoch would be made of the very random numbers that made the weights.
    """
    return (seed + 1) * 0x9E3779B97F4A7C15 % 2**63


def one_cycle(progress: float, warm_up: float = 0.3, start: float = 0.04) -> float:
    """The share of the peak rate at `progress` in [0, 1]: half a cosine up from `start`, then one down to 0."""
    if progress < warm_up:
        return start + (1 - start) * (0.5 - 0.5 * cos(pi * progress / warm_up))
    return 0.5 + 0.5 * cos(pi * (progress - warm_up) / (1 - warm_up))


def _progress_bar(total: int, done: int, progress: bool) -> tqdm:
    switched_off = os.environ.get("TQDM_DISABLE", "0") not in ("", "0")  # tqdm's notebook bar does not look there
    disable = switched_off or not progress
    return tqdm(total=total, initial=done, unit=" images", disable=disable)


def _row(step: Step, model: nn.Module, batch_size: int, pace: _Schedule, epoch: int, bar: tqdm) -> dict[str, float]:
    """Train for one epoch; its row of the history. Raises NonFiniteLossError, the model being as it was before."""
    start, good = time.perf_counter(), copy.deepcopy(model.state_dict())
    sums, names = _epoch(step, batch_size, pace, epoch, bar)
    _check_finite(step, sums, model, good, epoch + 1)
    means = dict(zip(names, (sums.double().sum(0) / len(step.x)).tolist(), strict=True))
    bar.set_postfix({name: f"{mean:.2f}" for name, mean in means.items() if name in ("loss", "kl")})
    return {"epoch": epoch + 1, **means, "seconds": time.perf_counter() - start}


def _epoch(step: Step, batch_size: int, pace: _Schedule, epoch: int, bar) -> tuple[Tensor, list[str]]:
    """One pass over the data in random order; the sums of loss and terms of every step, (steps, 1 + terms)."""
    sums = []
    order = torch.randperm(len(step.x))  # the same in every process
    with step.own_noise(pace.seed, epoch):
        for k, index in enumerate(order.split(batch_size)):
            sums.append(step(index, *pace(epoch, k)))
            bar.update(len(index))
    return step.sum_over_processes(torch.stack(sums)), ["loss", *step.names]  # nothing left the device until here


def _undisturbed(function: Callable[[nn.Module], dict[str, float]], model: nn.Module) -> dict[str, float]:
    """What `function(model)` returns in evaluation mode; random state and each module's mode are left as they were."""
    with evaluation_mode(model), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        return {name: float(value) for name, value in function(model).items()}


def _check_finite(step: Step, sums: Tensor, model: nn.Module, good: dict[str, Tensor], epoch: int) -> None:
    """Unless each step's loss and the state it led to are finite, put the state `good` back and say what is not."""
    bad = (~sums.isfinite().all(1)).nonzero()
    if len(bad):
        what = f"the loss became {sums[bad[0, 0], 0]:.0f} in epoch {epoch}, step {bad[0, 0] + 1} of {len(sums)}"
    elif step.sum_over_processes(_spoilt(model.state_dict(), good)):
        what = f"a gradient of epoch {epoch} made a parameter nan or infinite"
    else:
        return
    model.load_state_dict(good)
    raise NonFiniteLossError(
        f"{what}; the model is back at the end of epoch {epoch - 1}. A smaller learning_rate often helps; "
        "check that the images are in [0, 1] and that no logarithm is taken of a probability"
    )


def _spoilt(state: dict[str, Tensor], good: dict[str, Tensor]) -> Tensor:
    """How many tensors are no longer finite, on their device (a mask of -inf, say, never was)."""
    names = [name for name, value in state.items() if value.is_floating_point()]
    return torch.stack([good[name].isfinite().all() & ~state[name].isfinite().all() for name in names]).sum()
