"""Models hand back distributions: `prior` is p(z), `posterior(x)` is q(z|x), `likelihood(z)` is p(x|z)."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from vae_core import likelihoods
from vae_core.distributions import diagonal_normal, standard_normal
from vae_core.networks import mlp


class VAE(nn.Module):
    r"""The factorised Gaussian VAE.

    .. math:: p(z) = \mathcal N(0, I_d), \quad p_\theta(x|z) \text{ from the decoder}, \quad
              q_\phi(z|x) = \mathcal N(\mu_\phi(x), \operatorname{diag}\sigma^2_\phi(x))

    `encoder` maps (B, C, H, W) to features (B, feature_dim); two linear heads turn these into μ and
    log σ². `decoder` maps (N, d) to N outputs of C·H·W numbers; `likelihood` makes them p(x|z).
    Source: Chen §3.5, Table 4.1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        feature_dim: int,
        latent_dim: int,
        input_shape: Sequence[int],
        likelihood: str | likelihoods.Likelihood = "bernoulli",
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.mean = nn.Linear(feature_dim, latent_dim)
        self.log_variance = nn.Linear(feature_dim, latent_dim)
        self.latent_dim, self.input_shape = latent_dim, tuple(input_shape)
        self.output_distribution = likelihoods.resolve(likelihood)

    @property
    def prior(self) -> Independent:
        """p(z) = N(0, I): batch (), event (d,)."""
        return standard_normal(self.latent_dim, like=self.mean.bias)

    def posterior(self, x: Tensor) -> Independent:
        """q(z|x), the encoder: x (B, C, H, W) in [0, 1] -> batch (B,), event (d,)."""
        if tuple(x.shape[1:]) != self.input_shape or not x.is_floating_point():
            expected = ", ".join(map(str, self.input_shape))
            raise ValueError(f"x must be float images of shape (B, {expected}), got {x.dtype} {tuple(x.shape)}")
        features = self.encoder(x)
        return diagonal_normal(self.mean(features), self.log_variance(features))

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x|z), the decoder: z (..., d) -> batch (...), event (C, H, W)."""
        if z.shape[-1] != self.latent_dim:
            raise ValueError(f"z must end in the latent dimension {self.latent_dim}, got shape {tuple(z.shape)}")
        output = self.decoder(z.flatten(0, -2) if z.dim() != 1 else z[None])  # (N, C·H·W)
        return self.output_distribution(output.reshape(*z.shape[:-1], *self.input_shape))

    def decode(self, z: Tensor) -> Tensor:
        """The mean image of p(x|z): z (..., d) -> (..., C, H, W)."""
        return self.likelihood(z).mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the mean image at the mean code, (B, C, H, W). No part of any bound."""
        return self.decode(self.posterior(x).mean)

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:
        """Ancestral sampling, z ~ p(z) and then x ~ p(x|z): (num_samples, C, H, W). Source: Chen §2.2."""
        return self.likelihood(self.prior.sample((num_samples,))).sample()


def mlp_vae(
    input_shape: Sequence[int],
    latent_dim: int,
    hidden: Sequence[int] = (512, 256, 128),
    activation: str = "relu",
    batch_norm: bool = True,
    likelihood: str | likelihoods.Likelihood = "bernoulli",
) -> VAE:
    """A VAE of dense layers; the decoder mirrors the encoder. The defaults are the thesis' network.

    For images of D = C·H·W numbers: encoder D-512-256-128-(d, d), decoder d-128-256-512-D.
    Raises ValueError for shapes or widths that are not positive, or unknown names.
    Source: Chen Table 4.1, listing A.1.
    """
    if len(tuple(input_shape)) != 3 or min(input_shape) < 1:
        raise ValueError(f"input_shape must be (C, H, W), all positive, got {tuple(input_shape)}")
    if not isinstance(latent_dim, int) or latent_dim < 1:
        raise ValueError(f"latent_dim must be a positive integer, got {latent_dim!r}")
    if not hidden:
        raise ValueError("hidden must name at least one width, got none")
    n_pixels = prod(input_shape)
    encoder = nn.Sequential(nn.Flatten(), *mlp((n_pixels, *hidden), None, activation, batch_norm))
    decoder = mlp((latent_dim, *reversed(hidden)), n_pixels, activation, batch_norm)
    return VAE(encoder, decoder, hidden[-1], latent_dim, input_shape, likelihood)
