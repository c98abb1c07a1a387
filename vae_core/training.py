"""The one training loop: maximise any objective, on any device, with a checkpoint per epoch."""

import copy
import os
import time
from collections.abc import Callable
from math import inf
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from vae_core.runtime import Runtime, check_seed, replacing, unit_interval

Objective = Callable[[nn.Module, Tensor], Tensor | tuple[Tensor, dict[str, Tensor]]]
History = list[dict[str, float]]
CHECKPOINT_KEYS = {"model", "optimizer", "history", "rng", "settings"}


class NonFiniteLossError(ArithmeticError):
    """The loss became nan or infinite; the model holds the parameters of the last good epoch."""


def fit(
    model: nn.Module,
    x: Tensor,
    objective: Objective,
    *,
    epochs: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    reduction: str = "mean",
    seed: int = 0,
    runtime: Runtime | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    after_epoch: Callable[[nn.Module], dict[str, float]] | None = None,
    identity: str = "",
) -> History:
    r"""Train `model` on the images `x` by Adam on minus the objective; returns one row per epoch.

    .. math:: \text{loss} = -\frac1{|B|}\sum_{n\in B}\mathcal L(x_n)
              \quad(\texttt{reduction="sum"}: \text{ without } 1/|B|)

    `x` (N, C, H, W) is uint8 or float in [0, 1]; it moves to the device once and stays there, batches are
    gathered by index. `objective(model, batch)` gives (B,) values to be maximised, or a pair of these and
    a dict of further (B,) terms to record, as `objectives.elbo_terms` does. A row of the history holds
    `epoch`, `loss` and the terms (training means per datum, nats) and `seconds`.

    `reduction="sum"` with weight decay w is what the thesis' listing does; it equals `"mean"` with w/|B|.
    The same seed on the same machine gives the same parameters, bit for bit on a CPU; the caller's random
    state is left as it was. With `checkpoint`, everything needed to go on is written there after each
    epoch; `resume=True` goes on from it; `identity` is kept there too, for what else makes a run what it is (a
    hash of its config, say). The figures that `after_epoch(model)` returns are added to the epoch's row: a test
    loss, for a curve. It may draw random numbers; training goes on as if it had not. Without a `runtime` the
    model trains where it is. It comes back in evaluation mode.

    Raises ValueError for settings out of range or a checkpoint of another run, TypeError for images of another dtype,
    FileExistsError if the checkpoint exists and `resume` is False, and NonFiniteLossError.
    Source: Chen Algorithm 1, listing A.2 (`train`).
    """
    settings = dict(batch_size=batch_size, learning_rate=learning_rate, weight_decay=weight_decay)
    settings |= dict(reduction=reduction, seed=seed, n=len(x), identity=identity)
    _check(epochs, settings, model)
    unit_interval(x[:1])  # refuse a wrong dtype before anything moves
    device = runtime.device if runtime else next(model.parameters()).device
    x, model = x.to(device), model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        history = _restore(Path(checkpoint), model, optimizer, settings, epochs, resume) if checkpoint else []
        model.train()
        with _progress_bar(epochs * len(x), len(history) * len(x), progress) as bar:
            while len(history) < epochs:
                start, good = time.perf_counter(), copy.deepcopy(model.state_dict())
                sums, names = _epoch(model, x, objective, optimizer, batch_size, reduction, bar)
                _check_finite(sums, model, good, len(history) + 1)
                row = dict(zip(names, (sums.double().sum(0) / len(x)).tolist(), strict=True))
                history.append({"epoch": len(history) + 1, **row, "seconds": time.perf_counter() - start})
                history[-1] |= _undisturbed(after_epoch, model) if after_epoch else {}
                bar.set_postfix({k: f"{v:.2f}" for k, v in row.items() if k in ("loss", "kl")})
                if checkpoint:
                    _save(Path(checkpoint), model, optimizer, history, settings)
    model.eval()
    return history


def _check(epochs: int, settings: dict, model: nn.Module) -> None:
    n, batch_size = settings["n"], settings["batch_size"]
    check_seed(settings["seed"])
    if type(epochs) is not int or epochs < 0:
        raise ValueError(f"epochs must be a non-negative integer, got {epochs!r}")
    if n == 0:
        raise ValueError("x must hold at least one image, got none")
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
    if n % batch_size == 1 % batch_size and any(
        isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules()
    ):
        raise ValueError(f"batch_size {batch_size} leaves a batch of one among {n} images, and batch norm needs two")
    if not 0 < settings["learning_rate"] < inf:
        raise ValueError(f"learning_rate must be positive and finite, got {settings['learning_rate']!r}")
    if not 0 <= settings["weight_decay"] < inf:
        raise ValueError(f"weight_decay must not be negative or infinite, got {settings['weight_decay']!r}")
    if settings["reduction"] not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {settings['reduction']!r}")


def _progress_bar(total: int, done: int, progress: bool) -> tqdm:
    switched_off = os.environ.get("TQDM_DISABLE", "0") not in ("", "0")  # tqdm's notebook bar does not look there
    disable = switched_off or not progress
    return tqdm(total=total, initial=done, unit=" images", disable=disable)


def _epoch(model, x, objective, optimizer, batch_size, reduction, bar) -> tuple[Tensor, list[str]]:
    """One pass over the data in random order; the sums of loss and terms of every step, (steps, 1 + terms)."""
    sums = []
    for index in torch.randperm(len(x)).split(batch_size):
        value, terms = _step(model, unit_interval(x[index.to(x.device)]), objective, optimizer, reduction)
        sums.append(torch.stack([-value.sum(), *(term.sum() for term in terms.values())]).detach())
        bar.update(len(index))
    return torch.stack(sums), ["loss", *terms]  # nothing left the device until here


def _step(model, batch, objective, optimizer, reduction) -> tuple[Tensor, dict[str, Tensor]]:
    result = objective(model, batch)
    value, terms = result if isinstance(result, tuple) else (result, {})
    loss = -(value.mean() if reduction == "mean" else value.sum())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return value, terms


def _undisturbed(function: Callable[[nn.Module], dict[str, float]], model: nn.Module) -> dict[str, float]:
    """What `function(model)` returns, with random state and training mode left as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        figures = function(model)
    model.train()
    return figures


def _check_finite(sums: Tensor, model: nn.Module, good: dict, epoch: int) -> None:
    bad = (~sums.isfinite().all(1)).nonzero()
    if len(bad):
        model.load_state_dict(good)
        raise NonFiniteLossError(
            f"the loss became {sums[bad[0, 0], 0]:.0f} in epoch {epoch}, step {bad[0, 0] + 1} of {len(sums)}; "
            f"the model is back at the end of epoch {epoch - 1}. A smaller learning_rate often helps; "
            "check that the images are in [0, 1] and that no logarithm is taken of a probability"
        )


def _save(path: Path, model, optimizer, history: History, settings: dict) -> None:
    rng = {"cpu": torch.get_rng_state()}
    if next(model.parameters()).is_cuda:
        rng["cuda"] = torch.cuda.get_rng_state(next(model.parameters()).device)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
    with replacing(path) as part:
        torch.save({**state, "rng": rng, "settings": settings}, part)


def _restore(path: Path, model, optimizer, settings: dict, epochs: int, resume: bool) -> History:
    """Load the checkpoint into model, optimizer and random state; the history so far, [] where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return []
    if not resume:
        raise FileExistsError(f"{path} holds an unfinished run; go on with --resume (resume=True), or delete it")
    state = _read_checkpoint(path)
    if state["settings"] != settings:
        raise ValueError(f"{path} is of another run: its settings are {state['settings']}, asked for were {settings}")
    if _shapes(state["model"]) != _shapes(model.state_dict()):
        raise ValueError(f"{path} is of another network than the one to be trained; delete it to start anew")
    if len(state["history"]) > epochs:
        raise ValueError(f"{path} has done {len(state['history'])} epochs already, more than the {epochs} asked for")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"]["cpu"])
    device = next(model.parameters()).device
    if device.type == "cuda" and "cuda" in state["rng"]:
        torch.cuda.set_rng_state(state["rng"]["cuda"], device)
    return state["history"]


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _read_checkpoint(path: Path) -> dict:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign or truncated file fails in as many ways as there are files
        kind = type(error).__name__
        raise ValueError(f"{path} is no complete checkpoint ({kind}); delete it to start anew") from error
    if not isinstance(state, dict) or set(state) != CHECKPOINT_KEYS:
        raise ValueError(f"{path} is no checkpoint of this loop; delete it to start anew")
    return state
