"""`fit` against the thesis' way of training, which shares no code with vae_core."""

import copy

import pytest
import thesis_oracle
import torch
from torch import Tensor, nn
from training_runs import train, x

from vae_core.evaluation import evaluate
from vae_core.models import VAE, mlp_vae
from vae_core.objectives import elbo_terms
from vae_core.training import fit, training_seed

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def thesis_and_ours() -> tuple[nn.Module, VAE]:
    """Identical weights, float64, d = 2, on 8×8 images."""
    theirs, ours = thesis_oracle.ThesisVAE(64, 2).double(), mlp_vae((1, 8, 8), 2).double()
    parts = (ours.encoder, ours.mean, ours.log_variance, ours.decoder)
    values = [value for part in parts for value in part.state_dict().values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), copy.deepcopy(values), strict=True)))
    return theirs, ours


def thesis_parameters(ours: VAE) -> list[Tensor]:
    return [p for part in (ours.encoder, ours.mean, ours.log_variance, ours.decoder) for p in part.parameters()]


def thesis_steps(net: nn.Module, x: Tensor, seed: int, batch_size: int) -> list[float]:
    """One epoch of summed losses, on the batches and with the noise that `fit` draws from this seed."""
    optimizer = torch.optim.Adam(net.train().parameters(), lr=1e-3, weight_decay=1e-5)
    torch.manual_seed(training_seed(seed))
    losses = []
    for index in torch.randperm(len(x)).split(batch_size):
        noise = torch.randn(len(index), 2, dtype=x.dtype)
        loss = sum(thesis_oracle.summed_losses(x[index], *net(x[index], noise)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_like_the_thesis(ours: VAE, x: Tensor, seed: int, batch_size: int) -> list[float]:
    losses = []

    def objective(model: VAE, batch: Tensor):
        value, terms = elbo_terms(model, batch)
        losses.append(-value.sum().item())
        return value, terms

    settings = dict(epochs=1, learning_rate=1e-3, weight_decay=1e-5, reduction="sum")
    train(x, objective, ours, seed=seed, batch_size=batch_size, **settings)
    return losses


def test_fit_three_steps_are_those_of_the_thesis(x, thesis_and_ours):
    theirs, ours = thesis_and_ours
    images = x[:96].double()
    expected = thesis_steps(theirs, images, seed=7, batch_size=32)
    assert train_like_the_thesis(ours, images, seed=7, batch_size=32) == pytest.approx(expected, rel=1e-9)
    assert len(expected) == 3
    idle = 0
    for p, q in zip(thesis_parameters(ours), theirs.parameters(), strict=True):
        # A bias before batch norm has no gradient but rounding error, which Adam divides by 1e-8 (its epsilon).
        without_gradient = q.grad.abs().max() < 1e-13
        idle += int(without_gradient)
        torch.testing.assert_close(p, q, rtol=0, atol=1e-8 if without_gradient else 1e-13)
    assert idle == 6


def test_fit_figures_on_held_out_images_are_those_of_the_thesis(x, thesis_and_ours):
    theirs, ours = thesis_and_ours
    thesis_steps(theirs, x[:96].double(), seed=7, batch_size=32)
    train_like_the_thesis(ours, x[:96].double(), seed=7, batch_size=32)
    held_out = x[96:].double()
    torch.manual_seed(3)
    expected = thesis_oracle.test_losses(theirs, [(batch, None) for batch in held_out.split(50)])
    assert evaluate(ours, held_out, seed=3, batch_size=50) == pytest.approx(expected, rel=1e-9)
