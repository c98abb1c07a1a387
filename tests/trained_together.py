"""A small VAE on the digits, trained by however many processes `torchrun` starts; rank 0 prints its history,
a line for each reduction on the command line. So one process trains several times, in the same group.

The noise of the reparameterization travels with each image, in a second channel, so that it does not matter
which process draws it: one process and several then compute the same thing.
"""

import json
import sys

import torch

from vae_core.data import load
from vae_core.distributions import kl_divergence
from vae_core.models import VAE, mlp_vae
from vae_core.runtime import Runtime, seed_everything
from vae_core.training import fit


def elbo_with_given_noise(model: VAE, batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    x, noise = batch[:, :1], batch[:, 1, 0, : model.latent_dim]
    q = model.posterior(x)
    reconstruction = -model.likelihood(q.mean + q.stddev * noise).log_prob(x)
    kl = kl_divergence(q, model.prior)
    return -reconstruction - kl, {"reconstruction": reconstruction, "kl": kl}


def train(runtime: Runtime, reduction: str, epochs: int = 3) -> tuple[list[dict], list[float]]:
    """History, and a few of the trained weights."""
    torch.set_default_dtype(torch.float64)
    seed_everything(0)
    x = load("digits").x_train[:500].double()
    x = torch.cat([x, torch.randn_like(x)], 1)
    model = mlp_vae((1, 8, 8), 2, hidden=(16,), batch_norm=False)
    settings = dict(epochs=epochs, batch_size=32, reduction=reduction, device=runtime, progress=False)
    history = fit(model, x, elbo_with_given_noise, **settings)
    return history, model.mean.weight.flatten().tolist()


if __name__ == "__main__":
    runtime = Runtime.detect("cpu")
    for reduction in sys.argv[1:]:
        result = train(runtime, reduction)
        if runtime.rank == 0:
            print(json.dumps(result))
