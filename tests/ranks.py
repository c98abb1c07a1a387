"""What each of several processes is left with after training together; started by `torchrun`, one file for each.

torchrun --nproc-per-node=2 tests/ranks.py OUT   writes OUT/RANK.json
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from vae_core.data import load
from vae_core.models import VAE, mlp_vae
from vae_core.objectives import elbo, elbo_terms
from vae_core.runtime import Runtime
from vae_core.training import EarlyStopping, fit

SETTINGS = dict(epochs=3, batch_size=32, learning_rate=1e-2, progress=False)


def images() -> Tensor:
    return load("digits").x_train[:128]


def network(batch_norm: bool = True) -> VAE:
    torch.manual_seed(0)
    return mlp_vae((1, 8, 8), 2, hidden=(16,), batch_norm=batch_norm)


def state(model: nn.Module) -> dict[str, list[float]]:
    return {name: value.flatten().tolist() for name, value in model.state_dict().items()}


def with_batch_norm(runtime: Runtime) -> dict:
    model = network()
    history = fit(model, images(), elbo_terms, device=runtime, **SETTINGS)
    return {"state": state(model), "losses": [row["loss"] for row in history]}


class Idle(nn.Module):
    """A model with a parameter that its objective does not use, and one that only a recorded term uses."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = network(batch_norm=False).double()
        self.unused, self.recorded = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))


def reconstruction(model: Idle, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Without noise, so that one process and several compute the same."""
    value = -(model.vae.reconstruct(batch) - batch).square().sum((1, 2, 3))
    return value, {"other": value * model.recorded.sum()}


def with_idle_parameters(runtime: Runtime, weight_decay: float = 0.1) -> dict:
    model = Idle()
    history = fit(model, images().double(), reconstruction, device=runtime, weight_decay=weight_decay, **SETTINGS)
    return {"state": state(model), "others": [row["other"] for row in history]}


def early_stopping(runtime: Runtime) -> dict:
    stop, model = EarlyStopping(load("digits").x_train[500:600], patience=2), network()
    history = fit(model, images()[:64], elbo, device=runtime, after_epoch=stop, **SETTINGS | dict(epochs=300))
    losses = [row["validation_loss"] for row in history]
    return {"state": state(model), "losses": losses, "best": [stop.best_epoch, stop.best_loss]}


def refusal(runtime: Runtime, x: Tensor, **settings) -> str:
    try:
        fit(network(), x, elbo, device=runtime, **SETTINGS | settings)
    except ValueError as error:
        return str(error)
    return ""


def everything(runtime: Runtime) -> dict:
    rank, x = runtime.rank, images()
    return {
        "batch norm": with_batch_norm(runtime),
        "idle": with_idle_parameters(runtime),
        "early": early_stopping(runtime),
        "other images": refusal(runtime, x.flip(0) if rank else x),
        "other numbers of images": refusal(runtime, x[: 128 - 32 * rank]),
        "other epochs": refusal(runtime, x, epochs=2 + rank),
        "other seeds": refusal(runtime, x, seed=rank),
        "other objectives": refusal(runtime, x, fingerprint=f"objective {rank}"),
    }


if __name__ == "__main__":
    runtime = Runtime.detect("cpu")
    (Path(sys.argv[1]) / f"{runtime.rank}.json").write_text(json.dumps(everything(runtime)))
