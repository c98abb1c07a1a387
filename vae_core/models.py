"""Models that return distributions: `prior` is p(z), `posterior(x)` is q(z|x), `likelihood(z)` is p(x|z).

B is the batch, d the latent dimension, *event the shape of one datum: (C, H, W) for images, (D,) for a row of a table.
"""

import copy
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from vae_core import likelihoods
from vae_core._checks.tensors import as_tensor
from vae_core._files.model_files import load as load
from vae_core._files.model_files import remember_arguments
from vae_core._files.model_files import save as save
from vae_core.distributions import diagonal_normal, standard_normal
from vae_core.networks import conv_decoder, conv_encoder, feature_map, mlp, positive_integers, validate_images
from vae_core.runtime import as_int, evaluation_mode, positive_int


class Autoencoder(nn.Module):
    r"""The deterministic autoencoder: a code z = f(x), and p(x|z) around its decoding.

    It has no prior and no posterior, hence no bound; train it with `objectives.reconstruction_log_likelihood`.

    Args:
        encoder: A map (B, *event) -> (B, feature_dim); a linear head turns these features into the code.
        decoder: A map (N, d) -> N outputs of P numbers for each dimension of a datum.
        feature_dim: The number of features that the encoder returns.
        latent_dim: d.
        input_shape: The shape of one datum.
        likelihood: A name in `likelihoods.LIKELIHOODS`, or a callable from the decoder's output to p(x|z).

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
        image = len(self.input_shape) == 3 or not likelihoods.takes_event_dims(self.output_distribution)
        self._event = {} if image else {"event_dims": len(self.input_shape)}
        self._add_heads(feature_dim)

    def _add_heads(self, feature_dim: int) -> None:
        self.mean = nn.Linear(feature_dim, self.latent_dim)

    def forward(self, x: Tensor) -> Any:
        """Return `encode(x)`; for a VAE, `posterior(x)`."""
        return self.encode(x)

    def encode(self, x: Tensor) -> Tensor:
        """Return the code of x, (B, *event) -> (B, d); for a VAE the mean of q(z|x).

        Raises:
            ValueError: x has the wrong shape or dtype, or batch norm in training mode gets a batch of one.
        """
        code: Tensor = self.mean(self._features(x))
        return code

    def likelihood(self, z: Tensor) -> Distribution:
        """Return p(x|z), the decoder: z (..., d), a tensor or an array -> batch (...), event (*event).

        Raises:
            TypeError: z does not hold real numbers, or is masked.
            ValueError: z does not end in d, batch norm in training mode gets a single code, or the likelihood returns
                another event shape than that of one datum.
        """
        z = (z if isinstance(z, Tensor) else as_tensor(z, "z")).to(self.mean.weight)
        if z.shape[-1:] != (self.latent_dim,):
            raise ValueError(f"z must end in the latent dimension {self.latent_dim}, got shape {tuple(z.shape)}")
        codes = self._decoder_input(z)
        output = _apply(self.decoder, codes.reshape(-1, codes.shape[-1]))  # (N, P·D)
        numbers = likelihoods.parameters_per_dimension(self.output_distribution)
        shape = self.input_shape if numbers == 1 else (numbers, *self.input_shape)
        p: Distribution = self.output_distribution(output.reshape(*z.shape[:-1], *shape), **self._event)
        if tuple(p.event_shape) != self.input_shape:
            cure = (
                f"; wrap it in torch.distributions.Independent(..., {len(self.input_shape)})"
                if not p.event_shape
                else ""
            )
            shapes = f"{self.input_shape}, got {tuple(p.event_shape)}"
            raise ValueError(f"the likelihood must have the event shape {shapes}{cure}")
        return p

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of p(x|z), z (..., d) -> (..., *event), computed in evaluation mode.

        A single code is enough, therefore, and batch norm's running averages do not change. To train through the mean,
        use `likelihood(z).mean`.
        """
        with evaluation_mode(self):
            return self.likelihood(z).mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the mean of p(x|z) at the code of x, (B, *event), in evaluation mode; it is not a term of a bound."""
        with evaluation_mode(self):
            return self.decode(self.encode(x))

    def _decoder_input(self, z: Tensor) -> Tensor:
        return z

    def _data(self, x: Tensor) -> Tensor:
        """Return x, checked, in the precision of the weights."""
        return validate_images(x, self.input_shape).to(self.mean.weight.dtype)

    def _features(self, x: Tensor) -> Tensor:
        return _apply(self.encoder, self._data(x))


class VAE(Autoencoder):
    r"""The factorised Gaussian VAE.

    .. math:: p(z) = \mathcal N(0, I_d), \quad p_\theta(x|z) \text{ from the decoder}, \quad
              q_\phi(z|x) = \mathcal N(\mu_\phi(x), \operatorname{diag}\sigma^2_\phi(x))

    Beyond the `Autoencoder` it has a second linear head, for log σ², and a prior; the arguments are the same.

    Source: Chen §3.5, Table 4.1.
    """

    def _add_heads(self, feature_dim: int) -> None:
        super()._add_heads(feature_dim)
        self.log_variance = nn.Linear(feature_dim, self.latent_dim)

    @property
    def prior(self) -> Independent:
        """The prior p(z) = N(0, I), with batch () and event (d,)."""
        return standard_normal(self.latent_dim, like=self.mean.bias)

    def forward(self, x: Tensor) -> Independent:
        """Return `posterior(x)`."""
        return self.posterior(x)

    def posterior(self, x: Tensor) -> Independent:
        """Return q(z|x), the encoder: x (B, *event) -> batch (B,), event (d,). Errors as in `encode`."""
        features = self._features(x)
        return diagonal_normal(self.mean(features), self.log_variance(features))

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:
        """Return samples x ~ p(x|z) for z ~ p(z), (num_samples, *event), computed in evaluation mode.

        Raises:
            ValueError: `num_samples` is not a positive integer.

        Source: Chen §2.2.
        """
        with evaluation_mode(self):
            z = self.prior.sample(torch.Size([positive_int("num_samples", num_samples)]))
            return self.likelihood(z).sample()


class ConditionalVAE(VAE):
    r"""A VAE whose decoder, and whose encoder unless it is `blind`, also takes a condition y: a label, or numbers.

    .. math:: p(x|y) = \int p(z)\,p_\theta(x|z,y)\,dz, \qquad q_\phi(z|x,y) \text{ or, blind, } q_\phi(z|x)

    `model.given(y)` is a latent variable model like any other: `elbo(model.given(y), x)` bounds log p(x|y), and
    `model.given(y).sample(n)` draws from it. Without conditions, or with conditions of another number of data, the
    model raises a ValueError. For data of D = prod(input_shape) numbers the encoder takes (B, D + c), or (B, D) if it
    is blind.

    Args:
        arguments: Those of `Autoencoder`.
        condition_dim: c, the length of a condition.
        blind: Whether the encoder works without the condition.
        keywords: Those of `Autoencoder`.

    Source: lecture notes §1.4; Sohn et al. (2015).
    """

    def __init__(self, *arguments: Any, condition_dim: int, blind: bool = False, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.condition_dim, self.blind = condition_dim, blind
        self.condition: Tensor | None = None

    def given(self, y: Tensor) -> "ConditionalVAE":
        """Return this model under the condition y, with the same parameters; y is float (B, c), or (c,) for all data.

        Raises:
            ValueError: y has the wrong shape or dtype; labels must be one-hot.
        """
        y, c = y if isinstance(y, Tensor) else as_tensor(y, "y"), self.condition_dim
        if y.dim() not in (1, 2) or y.shape[-1] != c or not y.is_floating_point():
            labels = f"; make labels one-hot: torch.nn.functional.one_hot(y, {c}).float()"
            cure = labels if y.dim() < 2 else "; use y.float()" if y.shape[-1] == c else ""
            expected = f"float conditions of shape (B, {c}) or ({c},)"
            raise ValueError(f"y must be {expected}, got {y.dtype} {tuple(y.shape)}{cure}")
        view = copy.copy(self)
        view.condition = y.to(self.mean.bias)
        return view

    def _with_condition(self, values: Tensor) -> Tensor:
        """(..., m) -> (..., m + c)."""
        if self.condition is None:
            raise ValueError("a conditional model needs its condition: call model.given(y) first")
        alike = self.condition.dim() == 1 or len(self.condition) == 1
        if not alike and (values.dim() < 2 or values.shape[-2] != len(self.condition)):
            theirs = f"the condition is that of {len(self.condition)} data, got {tuple(values.shape[:-1])}"
            raise ValueError(f"{theirs}; give each batch its own y")
        condition = self.condition.to(values)
        return torch.cat((values, condition.expand(*values.shape[:-1], self.condition_dim)), -1)

    def _decoder_input(self, z: Tensor) -> Tensor:
        return self._with_condition(z)

    def _features(self, x: Tensor) -> Tensor:
        flat = self._data(x).flatten(1)
        return _apply(self.encoder, flat if self.blind else self._with_condition(flat))


@remember_arguments
def mlp_vae(
    input_shape: Sequence[int],
    latent_dim: int,
    hidden: Sequence[int] = (512, 256, 128),
    activation: str = "relu",
    batch_norm: bool = True,
    likelihood: str | likelihoods.Likelihood = "bernoulli",
) -> VAE:
    """Return a VAE of dense layers, whose decoder mirrors the encoder; the defaults are the thesis's network.

    For data of D numbers: encoder D-512-256-128-(d, d), decoder d-128-256-512-P·D.

    Args:
        input_shape: The shape of one datum: (C, H, W) for images, (D,) for rows of a table.
        latent_dim: d.
        hidden: The widths of the encoder's hidden layers.
        activation: "relu", "tanh", "sigmoid" or "elu".
        batch_norm: Whether each hidden layer normalises over the batch.
        likelihood: A name in `likelihoods.LIKELIHOODS` or a callable.

    Raises:
        ValueError: A shape or width is not positive, or a name is unknown.

    Source: Chen Table 4.1, listing A.1.
    """
    maps = _dense(input_shape, latent_dim, hidden, activation, batch_norm, likelihood)
    return VAE(*maps, hidden[-1], as_int(latent_dim), input_shape, likelihood)


@remember_arguments
def mlp_autoencoder(
    input_shape: Sequence[int],
    latent_dim: int,
    hidden: Sequence[int] = (512, 256, 128),
    activation: str = "relu",
    batch_norm: bool = True,
    likelihood: str | likelihoods.Likelihood = "bernoulli",
) -> Autoencoder:
    """Return a deterministic autoencoder with the layers and arguments of `mlp_vae`, without the head for log σ².

    Source: Saleh §4.1.4 (its "traditional autoencoder").
    """
    maps = _dense(input_shape, latent_dim, hidden, activation, batch_norm, likelihood)
    return Autoencoder(*maps, hidden[-1], as_int(latent_dim), input_shape, likelihood)


@remember_arguments
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
    """Return a `ConditionalVAE` with the layers of `mlp_vae`; the condition is appended to the inputs.

    Args:
        condition_dim: c, the length of a condition.
        blind: Whether the encoder works without the condition.
        input_shape, latent_dim, hidden, activation, batch_norm, likelihood: As for `mlp_vae`.

    Raises:
        ValueError: As `mlp_vae` does, or `condition_dim` is not a positive integer.

    Source: lecture notes §1.4; Sohn et al. (2015).
    """
    d, c = positive_int("latent_dim", latent_dim), positive_int("condition_dim", condition_dim)
    _, decoder = _dense(input_shape, d + c, hidden, activation, batch_norm, likelihood)
    encoder = mlp((prod(input_shape) + (0 if blind else c), *hidden), None, activation, batch_norm)
    sizes = (hidden[-1], d, input_shape, likelihood)
    return ConditionalVAE(encoder, decoder, *sizes, condition_dim=c, blind=blind)


@remember_arguments
def conv_vae(
    input_shape: Sequence[int],
    latent_dim: int,
    channels: Sequence[int] = (32, 64, 128),
    likelihood: str | likelihoods.Likelihood = "bernoulli",
) -> VAE:
    """Return a convolutional VAE, whose decoder mirrors the encoder; the defaults are the thesis's network.

    Args:
        input_shape: (C, H, W); each entry of `channels` halves H and W.
        latent_dim: d.
        channels: The number of channels of each feature map of the encoder.
        likelihood: A name in `likelihoods.LIKELIHOODS` or a callable.

    Raises:
        ValueError: `latent_dim` is not a positive integer, and as `networks.feature_map` does.

    Source: Chen Table 4.2, listing A.1 (`VAE_CNN`).
    """
    d, encoder = positive_int("latent_dim", latent_dim), conv_encoder(input_shape, channels)
    outputs = input_shape[0] * likelihoods.parameters_per_dimension(likelihoods.resolve(likelihood))
    decoder = conv_decoder(d, (outputs, *input_shape[1:]), channels[::-1])
    return VAE(encoder, decoder, prod(feature_map(input_shape, channels)), d, input_shape, likelihood)


def _dense(
    input_shape: Sequence[int],
    latent_dim: int,
    hidden: Sequence[int],
    activation: str,
    batch_norm: bool,
    likelihood: str | likelihoods.Likelihood,
) -> tuple[nn.Sequential, nn.Sequential]:
    """Return the encoder D-hidden and the decoder d-reversed hidden-P·D of the dense models."""
    d = positive_int("latent_dim", latent_dim)
    size = prod(positive_integers("input_shape", input_shape, "the positive sizes of one datum, (C, H, W) or (D,)"))
    widths = positive_integers("hidden", hidden, "at least one positive width")
    encoder = nn.Sequential(nn.Flatten(), *mlp((size, *widths), None, activation, batch_norm))
    outputs = size * likelihoods.parameters_per_dimension(likelihoods.resolve(likelihood))
    return encoder, mlp((d, *widths[::-1]), outputs, activation, batch_norm)


def _apply(network: nn.Module, batch: Tensor) -> Tensor:
    """Return network(batch). Raise ValueError with a remedy where batch norm needs more data than one."""
    try:
        output: Tensor = network(batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        least = f"batch norm in training mode needs at least two data in a batch, got {len(batch)}"
        raise ValueError(f"{least}; call model.eval() first") from None
    return output
