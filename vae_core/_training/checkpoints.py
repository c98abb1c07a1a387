"""Checkpoints: what a run needs to continue after its last complete epoch. They are written whole or not at all."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vae_core.runtime import device_of, replacing

KEYS = {"model", "optimizer", "history", "rng", "settings", "best"}
OWN = ("capturable", "fused", "foreach")  # how an optimizer computes on its device, not what


def save(path: Path, model: nn.Module, optimizer: Optimizer, history: list, settings: dict, best: dict) -> None:
    """Write weights, optimizer, history (hence the epoch and the place in the schedule), random state and settings.

    Args:
        path: the file; it is replaced atomically.
        model, optimizer, history: as they are after a complete epoch.
        settings: numbers and strings that a run must share to continue from this file.
        best: what early stopping keeps; empty without it.

    Raises:
        OSError: if it cannot be written; the previous checkpoint then stays.
    """
    rng, device = {"cpu": torch.get_rng_state()}, device_of(model)
    if device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        rng["mps"] = torch.mps.get_rng_state()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history, "best": best}
    try:
        with replacing(path) as part:
            torch.save({**state, "rng": rng, "settings": settings}, part)
    except RuntimeError as error:  # which torch raises if the disk is full
        raise OSError(f"{path} cannot be written ({error}); make room, then go on with --resume") from error


def restore(
    path: Path, model: nn.Module, optimizer: Optimizer, settings: dict, epochs: int, resume: bool
) -> tuple[list, dict]:
    """Load the checkpoint into model, optimizer and random state.

    Args:
        path, model, optimizer, settings: as for `save`.
        epochs: the total number of epochs of the run.
        resume: whether to continue from a checkpoint.

    Returns the history so far and what early stopping had kept, both empty where there is no checkpoint.

    Raises:
        FileExistsError: if there is one and `resume` is False.
        ValueError: if it is of another run or damaged.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return [], {}
    if path.is_dir():
        raise ValueError(f"checkpoint must be a file, got the folder {path}")
    if not resume:
        raise FileExistsError(f"{path} holds an unfinished run; go on with --resume (resume=True), or delete it")
    state = read(path)
    if other := differences(state["settings"], settings):
        raise ValueError(f"{path} is of another run: {other}; delete it to start anew")
    if _shapes(state["model"]) != _shapes(model.state_dict()):
        raise ValueError(f"{path} is of another network than the one to be trained; delete it to start anew")
    if len(state["history"]) > epochs:
        raise ValueError(f"{path} has done {len(state['history'])} epochs already, more than the {epochs} asked for")
    model.load_state_dict(state["model"])
    _load_optimizer(optimizer, state["optimizer"])
    _set_random_state(state["rng"], device_of(model))
    return state["history"], state["best"]


def differences(saved: Any, asked: dict) -> str:
    """Return which settings differ, and how, in one line; an empty string if none does."""
    saved = saved if isinstance(saved, dict) else {}
    names = [name for name in asked | saved if saved.get(name) != asked.get(name)]
    return ", ".join(f"its {name} is {saved.get(name)!r}, asked for was {asked.get(name)!r}" for name in names)


def _load_optimizer(optimizer: Optimizer, state: dict) -> None:
    own = [{name: group[name] for name in OWN if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group |= values  # for this device, not for the one that the run started on


def _set_random_state(rng: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(rng["cpu"])
    if device.type == "cuda" and "cuda" in rng:
        torch.cuda.set_rng_state(rng["cuda"], device)
    elif device.type == "mps" and "mps" in rng:
        torch.mps.set_rng_state(rng["mps"])


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def read(path: Path) -> dict[str, Any]:
    """Return what `save` wrote; raise ValueError for a file that is not such a checkpoint."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a foreign or truncated file
        kind = type(error).__name__
        raise ValueError(f"{path} is no complete checkpoint ({kind}); delete it to start anew") from error
    if not isinstance(state, dict) or set(state) != KEYS:
        raise ValueError(f"{path} is no checkpoint of this loop; delete it to start anew")
    return state
