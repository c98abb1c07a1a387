"""What a run needs to go on after its last whole epoch: written at once or not at all, refused if it is another's."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vae_core.runtime import replacing

KEYS = {"model", "optimizer", "history", "rng", "settings"}


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, history: list, settings: dict) -> None:
    """Write weights, optimiser, history (so the epoch and the place in the schedule), random state and settings.

    Raises OSError if it cannot be written; the checkpoint before it stays.
    """
    rng = {"cpu": torch.get_rng_state()}
    device = next(model.parameters()).device
    if device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(device)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
    try:
        with replacing(path) as part:
            torch.save({**state, "rng": rng, "settings": settings}, part)
    except RuntimeError as error:  # torch's way of saying that the disk is full
        raise OSError(f"{path} cannot be written ({error}); make room, then go on with --resume") from error


def restore(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, settings: dict, epochs: int, resume: bool
) -> list:
    """Load the checkpoint into model, optimizer and random state; the history so far, [] where there is none.

    Raises FileExistsError if there is one and `resume` is False, ValueError if it is of another run.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return []
    if not resume:
        raise FileExistsError(f"{path} holds an unfinished run; go on with --resume (resume=True), or delete it")
    state = _read(path)
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
    for group in optimizer.param_groups:
        group["capturable"] = device.type == "cuda"  # whatever device the run was begun on
    if device.type == "cuda" and "cuda" in state["rng"]:
        torch.cuda.set_rng_state(state["rng"]["cuda"], device)
    return state["history"]


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign or truncated file fails in as many ways as there are files
        kind = type(error).__name__
        raise ValueError(f"{path} is no complete checkpoint ({kind}); delete it to start anew") from error
    if not isinstance(state, dict) or set(state) != KEYS:
        raise ValueError(f"{path} is no checkpoint of this loop; delete it to start anew")
    return state
