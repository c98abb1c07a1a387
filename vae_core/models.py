"""Models hand back distributions: `prior` is p(z), `posterior(x)` is q(z|x), `likelihood(z)` is p(x|z)."""

import copy
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from vae_core import likelihoods
from vae_core.distributions import diagonal_normal, standard_normal
from vae_core.networks import conv_decoder, conv_encoder, feature_map, mlp, validate_images


class Autoencoder(nn.Module):
    r"""The deterministic auto-encoder: a code z = f(x), and p(x|z) around its decoding.

    `encoder` maps (B, C, H, W) to features (B, feature_dim), a linear head turns these into the code.
    `decoder` maps (N, d) to N outputs of P·C·H·W numbers, P for each pixel; `likelihood` makes them p(x|z).
    It has no prior and no posterior, so no bound either: train it with `objectives.reconstruction_log_likelihood`.
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
        codes = self._decoder_input(z)
        output = self.decoder(codes.flatten(0, -2) if codes.dim() != 1 else codes[None])  # (N, P·C·H·W)
        per_pixel = likelihoods.num_parameters(self.output_distribution)
        shape = self.input_shape if per_pixel == 1 else (per_pixel, *self.input_shape)
        return self.output_distribution(output.reshape(*z.shape[:-1], *shape))

    def decode(self, z: Tensor) -> Tensor:
        """The mean image of p(x|z): z (..., d) -> (..., C, H, W)."""
        return self.likelihood(z).mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the mean image at the code of x, (B, C, H, W). No part of any bound."""
        return self.decode(self.encode(x))

    def _decoder_input(self, z: Tensor) -> Tensor:
        return z

    def _images(self, x: Tensor) -> Tensor:
        """x, checked, in the precision of the weights."""
        return validate_images(x, self.input_shape).to(self.mean.weight.dtype)

    def _features(self, x: Tensor) -> Tensor:
        return self.encoder(self._images(x))


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


class ConditionalVAE(VAE):
    r"""A VAE whose decoder, and whose encoder unless it is `blind`, are told a condition y: a label, or numbers.

    .. math:: p(x|y) = \int p(z)\,p_\theta(x|z,y)\,dz, \qquad q_\phi(z|x,y) \text{ or, blind, } q_\phi(z|x)

    `model.given(y)` is a latent variable model like any other: `elbo(model.given(y), x)` bounds log p(x|y), and
    `model.given(y).sample(n)` draws from it. y is float, (B, c) or (c,) for all alike; make labels one-hot. Without a
    condition, or with those of another number of data, the model refuses to do anything (ValueError). The encoder is a
    map of (B, C·H·W + c), or blind of (B, C·H·W). Source: lecture notes §1.4; Sohn et al. (2015).
    """

    def __init__(self, *arguments, condition_dim: int, blind: bool = False, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        self.condition_dim, self.blind = condition_dim, blind
        self.condition: Tensor | None = None

    def given(self, y: Tensor) -> "ConditionalVAE":
        """This model, with the same parameters, under the condition y. Raises ValueError for another size of y."""
        if y.dim() not in (1, 2) or y.shape[-1] != self.condition_dim or not y.is_floating_point():
            expected = f"float conditions of shape (B, {self.condition_dim}) or ({self.condition_dim},)"
            raise ValueError(f"y must be {expected}, got {y.dtype} {tuple(y.shape)}")
        view = copy.copy(self)
        view.condition = y.to(self.mean.bias)
        return view

    def _with_condition(self, values: Tensor) -> Tensor:
        """(..., m) -> (..., m + c)."""
        if self.condition is None:
            raise ValueError("a conditional model needs its condition: call model.given(y) first")
        alike = self.condition.dim() == 1 or len(self.condition) == 1
        if not alike and (values.dim() < 2 or values.shape[-2] != len(self.condition)):
            told = f"the condition is that of {len(self.condition)} data, got {tuple(values.shape[:-1])}"
            raise ValueError(f"{told}; give each batch its own y")
        return torch.cat((values, self.condition.expand(*values.shape[:-1], self.condition_dim)), -1)

    def _decoder_input(self, z: Tensor) -> Tensor:
        return self._with_condition(z)

    def _features(self, x: Tensor) -> Tensor:
        flat = self._images(x).flatten(1)
        return self.encoder(flat if self.blind else self._with_condition(flat))


def mlp_conditional_vae(
    input_shape: Sequence[int],
    latent_dim: int,
    condition_dim: int,
    hidden: Sequence[int] = (512, 256, 128),
    activation: str = "relu",
    batch_norm: bool = True,
    likelihood: str | likelihoods.Likelihood = "bernoulli",
    blind: bool = False,
) -> ConditionalVAE:
    """A `ConditionalVAE` with the layers of `mlp_vae`, the condition beside their inputs; errors as there."""
    _check_latent_dim(latent_dim)
    if not isinstance(condition_dim, int) or condition_dim < 1:
        raise ValueError(f"condition_dim must be a positive integer, got {condition_dim!r}")
    _, decoder = _dense(input_shape, latent_dim + condition_dim, hidden, activation, batch_norm, likelihood)
    encoder = mlp((prod(input_shape) + (0 if blind else condition_dim), *hidden), None, activation, batch_norm)
    sizes = (hidden[-1], latent_dim, input_shape, likelihood)
    return ConditionalVAE(encoder, decoder, *sizes, condition_dim=condition_dim, blind=blind)


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
    maps = _dense(input_shape, latent_dim, hidden, activation, batch_norm, likelihood)
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
    maps = _dense(input_shape, latent_dim, hidden, activation, batch_norm, likelihood)
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
    outputs = input_shape[0] * likelihoods.num_parameters(likelihoods.resolve(likelihood))
    decoder = conv_decoder(latent_dim, (outputs, *input_shape[1:]), tuple(reversed(channels)))
    return VAE(encoder, decoder, prod(feature_map(input_shape, channels)), latent_dim, input_shape, likelihood)


def _dense(input_shape, latent_dim, hidden, activation, batch_norm, likelihood) -> tuple[nn.Sequential, nn.Sequential]:
    """The encoder D-hidden and the decoder d-hidden reversed-D of the dense models."""
    if len(tuple(input_shape)) != 3 or min(input_shape) < 1:
        raise ValueError(f"input_shape must be (C, H, W), all positive, got {tuple(input_shape)}")
    _check_latent_dim(latent_dim)
    if not hidden:
        raise ValueError("hidden must name at least one width, got none")
    n_pixels = prod(input_shape)
    encoder = nn.Sequential(nn.Flatten(), *mlp((n_pixels, *hidden), None, activation, batch_norm))
    outputs = n_pixels * likelihoods.num_parameters(likelihoods.resolve(likelihood))
    return encoder, mlp((latent_dim, *reversed(hidden)), outputs, activation, batch_norm)


def _check_latent_dim(latent_dim: int) -> None:
    if not isinstance(latent_dim, int) or latent_dim < 1:
        raise ValueError(f"latent_dim must be a positive integer, got {latent_dim!r}")
