"""Short trainings of a small VAE on the digits, and what tests ask of them."""

import pytest
import torch
from torch import Tensor, nn

from vae_core import data
from vae_core.models import VAE, mlp_vae
from vae_core.objectives import elbo_terms
from vae_core.training import fit


@pytest.fixture
def x() -> Tensor:
    """256 digits, float32."""
    return data.load("digits").x_train[:256]


def network(batch_norm: bool = True, latent_dim: int = 2) -> VAE:
    """The same initial weights each time."""
    torch.manual_seed(1)
    return mlp_vae((1, 8, 8), latent_dim, hidden=(16, 8), activation="tanh", batch_norm=batch_norm)


def train(x: Tensor, objective=elbo_terms, model: VAE | None = None, **settings) -> tuple[VAE, list[dict]]:
    model = network() if model is None else model
    defaults = dict(epochs=2, batch_size=64, learning_rate=1e-2, progress=False)
    return model, fit(model, x, objective, **(defaults | settings))


def same_state(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def timeless(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def squared_error(model: VAE, batch: Tensor) -> Tensor:
    """An objective without noise, (B,)."""
    return -(model.reconstruct(batch) - batch).square().sum((1, 2, 3))


def changed_at(step: int, change):
    """The ELBO, but `change` of it from the given training step (1 is the first) on."""
    steps = iter(range(1, 10**6))

    def objective(model: VAE, batch: Tensor):
        value, terms = elbo_terms(model, batch)
        return (value, terms) if not model.training or next(steps) < step else (change(value), terms)

    return objective


def interrupt(_value: Tensor) -> Tensor:
    raise KeyboardInterrupt
