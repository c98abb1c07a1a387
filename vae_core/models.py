"""Models hand back distributions: `prior` is p(z), `posterior(x)` is q(z|x), `likelihood(z)` is p(x|z)."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from vae_core import likelihoods
from vae_core.distributions import diagonal_normal, standard_normal
from vae_core.networks import conv_decoder, conv_encoder, feature_map, mlp


class Autoencoder(nn.Module):
    r"""The deterministic auto-encoder: a code z = f(x), and p(x|z) around its decoding.

    `encoder` maps (B, C, H, W) to features (B, feature_dim), a linear head turns these into the code.
    `decoder` maps (N, d) to N outputs of C·H·W numbers; `likelihood` makes them p(x|z). It has no prior and
    no posterior, so it has no bound either: train it with `objectives.code_log_likelihood`.
    Source: Chen §3.1; Saleh §3.1, §4.1.4.
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
        self.latent_dim, self.input_shape = latent_dim, tuple(input_shape)
        self.output_distribution = likelihoods.resolve(likelihood)
        self._add_heads(feature_dim)

    def _add_heads(self, feature_dim: int) -> None:
        self.mean = nn.Linear(feature_dim, self.latent_dim)

    def encode(self, x: Tensor) -> Tensor:
        """The code of x, (B, C, H, W) in [0, 1] -> (B, d); for a VAE the mean of q(z|x)."""
        return self.mean(self._features(x))

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
        """x (B, C, H, W) -> the mean image at the code of x, (B, C, H, W). No part of any bound."""
        return self.decode(self.encode(x))

    def _features(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.input_shape or not x.is_floating_point():
            expected = ", ".join(map(str, self.input_shape))
            raise ValueError(f"x must be float images of shape (B, {expected}), got {x.dtype} {tuple(x.shape)}")
        return self.encoder(x)


class VAE(Autoencoder):
    r"""The factorised Gaussian VAE.

    .. math:: p(z) = \mathcal N(0, I_d), \quad p_\theta(x|z) \text{ from the decoder}, \quad
              q_\phi(z|x) = \mathcal N(\mu_\phi(x), \operatorname{diag}\sigma^2_\phi(x))

    What it adds to the auto-encoder is a second linear head for log σ², and the prior.
    Source: Chen §3.5, Table 4.1.
    """

    def _add_heads(self, feature_dim: int) -> None:
        super()._add_heads(feature_dim)
        self.log_variance = nn.Linear(feature_dim, self.latent_dim)

    @property
    def prior(self) -> Independent:
        """p(z) = N(0, I): batch (), event (d,)."""
        return standard_normal(self.latent_dim, like=self.mean.bias)

    def posterior(self, x: Tensor) -> Independent:
        """q(z|x), the encoder: x (B, C, H, W) in [0, 1] -> batch (B,), event (d,)."""
        features = self._features(x)
        return diagonal_normal(self.mean(features), self.log_variance(features))

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
    maps = _dense(input_shape, latent_dim, hidden, activation, batch_norm)
    return VAE(*maps, hidden[-1], latent_dim, input_shape, likelihood)


def mlp_autoencoder(
    input_shape: Sequence[int],
    latent_dim: int,
    hidden: Sequence[int] = (512, 256, 128),
    activation: str = "relu",
    batch_norm: bool = True,
    likelihood: str | likelihoods.Likelihood = "bernoulli",
) -> Autoencoder:
    """The deterministic auto-encoder with the layers of `mlp_vae`, but for the head of log σ²; same errors.

    Source: Saleh §4.1.4 (its "traditional autoencoder").
    """
    maps = _dense(input_shape, latent_dim, hidden, activation, batch_norm)
    return Autoencoder(*maps, hidden[-1], latent_dim, input_shape, likelihood)


def conv_vae(
    input_shape: Sequence[int],
    latent_dim: int,
    channels: Sequence[int] = (32, 64, 128),
    likelihood: str | likelihoods.Likelihood = "bernoulli",
) -> VAE:
    """A convolutional VAE; the decoder mirrors the encoder. The defaults are the thesis' network.

    Raises ValueError for a latent dimension that is not positive, and as `networks.conv_encoder` does.
    Source: Chen Table 4.2, listing A.1 (`VAE_CNN`).
    """
    _check_latent_dim(latent_dim)
    encoder = conv_encoder(input_shape, channels)
    decoder = conv_decoder(latent_dim, input_shape, tuple(reversed(channels)))
    return VAE(encoder, decoder, prod(feature_map(input_shape, channels)), latent_dim, input_shape, likelihood)


def _dense(input_shape, latent_dim, hidden, activation, batch_norm) -> tuple[nn.Sequential, nn.Sequential]:
    """The encoder D-hidden and the decoder d-hidden reversed-D of the dense models."""
    if len(tuple(input_shape)) != 3 or min(input_shape) < 1:
        raise ValueError(f"input_shape must be (C, H, W), all positive, got {tuple(input_shape)}")
    _check_latent_dim(latent_dim)
    if not hidden:
        raise ValueError("hidden must name at least one width, got none")
    n_pixels = prod(input_shape)
    encoder = nn.Sequential(nn.Flatten(), *mlp((n_pixels, *hidden), None, activation, batch_norm))
    return encoder, mlp((latent_dim, *reversed(hidden)), n_pixels, activation, batch_norm)


def _check_latent_dim(latent_dim: int) -> None:
    if not isinstance(latent_dim, int) or latent_dim < 1:
        raise ValueError(f"latent_dim must be a positive integer, got {latent_dim!r}")
