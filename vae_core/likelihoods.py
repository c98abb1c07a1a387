"""From a decoder's output to p(x|z), whose event is one datum: an image (C, H, W), or a row of a table (D,).

A likelihood is any callable `(output) -> torch.distributions.Distribution`: a plain function where nothing is learned,
an `nn.Module` where something is. `output` has shape (..., *event), or (..., P, *event) where the likelihood needs
P > 1 numbers for each dimension of a datum and states this in its attribute `parameters_per_dimension`. Those of this
module also take `event_dims`, the number of last axes that form one datum: 3, an image, unless the model sets another.
Every log-probability is in nats and keeps all constants.
"""

import inspect
from collections.abc import Callable
from functools import partial
from math import inf
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal

from vae_core._checks.support import check_support as check_support
from vae_core.pixel_distributions import (
    IMAGE_DIMS,
    ContinuousBernoulli,
    DiscretizedLogistic,
    GreyLevels,
    NegativeBinomial,
    bounded_scale,
    outside_cuda_graph,
)
from vae_core.runtime import as_int

Likelihood = Callable[..., Distribution]


def _independent(distribution: Distribution, event_dims: int) -> Independent:
    return Independent(distribution, event_dims, validate_args=False)


def bernoulli(logits: Tensor, event_dims: int = IMAGE_DIMS) -> Independent:
    r"""Return independent Bernoulli variables given their logits :math:`\ell`.

    .. math:: \log p(x|z) = \sum_j x_j\log s(\ell_j) + (1-x_j)\log(1-s(\ell_j)), \qquad s(\ell)=1/(1+e^{-\ell})

    The logarithms are computed from the logits, so they and their gradients stay finite where a sigmoid followed by a
    logarithm saturates. For x in {0, 1} this is a log-likelihood. For grey x in [0, 1] it is minus the cross-entropy,
    which is not a log-density; there it is called the reconstruction error.

    Args:
        logits: ℓ (..., *event).
        event_dims: The number of last axes that form one datum.

    Source: Saleh (15); Chen listing A.2 (there: sigmoid, then BCE).
    """
    return _independent(Bernoulli(logits=logits, validate_args=False), event_dims)


def continuous_bernoulli(logits: Tensor, event_dims: int = IMAGE_DIMS) -> Independent:
    r"""Return independent continuous Bernoulli variables: the Bernoulli formula on [0, 1], normalised to a density.

    .. math:: p(x) = C(\lambda)\,\lambda^x(1-\lambda)^{1-x}, \qquad
              C(\lambda) = \frac{2\tanh^{-1}(1-2\lambda)}{1-2\lambda} \ge 2, \qquad \lambda = s(\ell)

    This is a log-density for grey x in [0, 1]: that of `bernoulli` plus log C, at least log 2 for each dimension. Its
    mean is not λ.

    Args:
        logits: ℓ (..., *event).
        event_dims: The number of last axes that form one datum.

    Source: Loaiza-Ganem and Cunningham (2019), the remedy for Chen's improper likelihood (§4).
    """
    return _independent(ContinuousBernoulli(logits), event_dims)


def gaussian(mean: Tensor, sigma: float | Tensor = 1.0, event_dims: int = IMAGE_DIMS) -> Independent:
    r"""Return independent Gaussians around the decoder's output, with a fixed standard deviation.

    .. math:: \log p(x|z) = -\tfrac D2\log 2\pi\sigma^2 - \tfrac1{2\sigma^2}\|x-\mu(z)\|^2

    This is a log-density, which may be positive for small σ.

    Args:
        mean: μ (..., *event).
        sigma: σ > 0, a number or a tensor that broadcasts to one datum.
        event_dims: The number of last axes that form one datum.

    Raises:
        ValueError: σ is not positive (not checked inside a CUDA graph), or does not broadcast to one datum.

    Source: lecture notes (8), (31); Saleh (16).
    """
    if outside_cuda_graph(mean) and not (least := torch.as_tensor(sigma).min().item()) > 0:
        raise ValueError(f"sigma must be positive, got {least:g}")
    # a number becomes a tensor on the device itself: a CUDA graph cannot copy it from the host
    width = mean.new_full((), sigma) if isinstance(sigma, Real) else torch.as_tensor(sigma).to(mean)
    sizes = zip(width.shape[::-1], mean.shape[::-1], strict=False)
    if width.dim() > mean.dim() or any(size not in (1, wanted) for size, wanted in sizes):
        raise ValueError(f"sigma must broadcast to one datum, {tuple(mean.shape)}, got shape {tuple(width.shape)}")
    return _independent(Normal(mean, width.expand_as(mean), validate_args=False), event_dims)


class SharedGaussian(nn.Module):
    r"""Gaussians with one learned variance σ² for all dimensions.

    At the best fit of the mean, σ² is the mean squared error. This is a log-density, and it grows without bound if the
    mean can fit the training data exactly, up to the clamp of `bounded_scale`.

    Args:
        sigma: The initial standard deviation, > 0.

    Raises:
        ValueError: `sigma` is not positive and finite.

    Source: lecture notes (31) with σ learned; Rybkin et al. (2021).
    """

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        if not 0 < sigma < inf:
            raise ValueError(f"sigma must be positive and finite, got {sigma}")
        self.log_variance = nn.Parameter(2 * torch.as_tensor(float(sigma)).log())

    def forward(self, mean: Tensor, event_dims: int = IMAGE_DIMS) -> Independent:
        """Return p(x|z) around `mean` (..., *event)."""
        sigma = bounded_scale(0.5 * self.log_variance).expand_as(mean)
        return _independent(Normal(mean, sigma, validate_args=False), event_dims)


def learned_gaussian(output: Tensor, min_sigma: float = 0.0, event_dims: int = IMAGE_DIMS) -> Independent:
    r"""Return independent Gaussians whose mean and log σ² both come from the decoder.

    .. math:: \log p(x|z) = -\tfrac12\sum_j \log 2\pi\sigma_j^2(z) + (x_j-\mu_j(z))^2/\sigma_j^2(z)

    This is a log-density without an upper bound: σ goes to 0 in dimensions that never vary, unless `min_sigma` is
    positive. `bounded_scale` clamps log σ² to ±35 in float32, where value and gradient are finite.

    Args:
        output: (..., 2, *event), the means and the log-variances.
        min_sigma: The smallest standard deviation.
        event_dims: The number of last axes that form one datum.

    Source: Saleh (16); Irvin §2.
    """
    mean, log_variance = output.unbind(-1 - event_dims)
    sigma = bounded_scale(0.5 * log_variance).clamp_min(min_sigma)
    return _independent(Normal(mean, sigma, validate_args=False), event_dims)


learned_gaussian.parameters_per_dimension = 2  # type: ignore[attr-defined]


def discretized_logistic(output: Tensor, num_levels: int = 256, event_dims: int = IMAGE_DIMS) -> DiscretizedLogistic:
    """Return a `DiscretizedLogistic` with mean output + ½ and log-scale output − 2, so that zeros are a good start.

    Args:
        output: (..., 2, *event).
        num_levels: L, the number of levels of a value.
        event_dims: The number of last axes that form one datum.

    Source: Salimans et al. (2017).
    """
    mean, log_scale = output.unbind(-1 - event_dims)
    return DiscretizedLogistic(mean + 0.5, log_scale - 2.0, num_levels, event_dims)


discretized_logistic.parameters_per_dimension = 2  # type: ignore[attr-defined]


def categorical(num_levels: int) -> Likelihood:
    """Return the likelihood `GreyLevels` for values with L levels, 0, 1/(L−1), …, 1.

    Args:
        num_levels: L, at least 2.

    Raises:
        ValueError: `num_levels` is not an integer of at least 2.
    """
    count = as_int(num_levels)
    if type(count) is not int or count < 2:
        raise ValueError(f"num_levels must be an integer of at least 2, got {num_levels!r}")
    likelihood = partial(GreyLevels)  # unlike a closure it can be pickled
    likelihood.parameters_per_dimension = count  # type: ignore[attr-defined]
    return likelihood


class NegativeBinomialCounts(nn.Module):
    r"""Counts x = 0, 1, 2, … with mean m(z) from the decoder and one learned dispersion r for all dimensions.

    .. math:: P(x) = \binom{x+r-1}{x}\Big(\frac{r}{r+m}\Big)^r\Big(\frac{m}{r+m}\Big)^x, \qquad
              \operatorname{Var}x = m + \frac{m^2}{r}

    This is a log-probability; for r → ∞ it is that of the Poisson distribution.

    Args:
        dispersion: The initial r, > 0.

    Raises:
        ValueError: `dispersion` is not positive and finite.

    Source: Chen §3.5 (negative binomial); Lopez et al. (2018).
    """

    def __init__(self, dispersion: float = 1.0) -> None:
        super().__init__()
        if not 0 < dispersion < inf:
            raise ValueError(f"dispersion must be positive and finite, got {dispersion}")
        self.log_dispersion = nn.Parameter(torch.as_tensor(float(dispersion)).log())

    def forward(self, log_mean: Tensor, event_dims: int = IMAGE_DIMS) -> Independent:
        """Return p(x|z) with the means exp(`log_mean`), (..., *event)."""
        r = self.log_dispersion.exp().expand_as(log_mean)
        return _independent(NegativeBinomial(r, log_mean), event_dims)


LIKELIHOODS: dict[str, Likelihood | type[nn.Module]] = {  # each model gets a new instance of a class
    "bernoulli": bernoulli,
    "continuous_bernoulli": continuous_bernoulli,
    "gaussian": gaussian,
    "shared_gaussian": SharedGaussian,
    "learned_gaussian": learned_gaussian,
    "discretized_logistic": discretized_logistic,
    "negative_binomial": NegativeBinomialCounts,
}


def parameters_per_dimension(likelihood: Likelihood) -> int:
    """Return how many outputs of the decoder a likelihood, or a partial of one, needs per dimension of a datum."""
    while isinstance(likelihood, partial) and not hasattr(likelihood, "parameters_per_dimension"):
        likelihood = likelihood.func
    return int(getattr(likelihood, "parameters_per_dimension", 1))


def takes_event_dims(likelihood: Likelihood) -> bool:
    """Return whether a likelihood has a parameter `event_dims`, as those of this module do; others need not."""
    try:
        return "event_dims" in inspect.signature(getattr(likelihood, "forward", likelihood)).parameters
    except ValueError:  # a builtin function has no signature
        return False


def resolve(likelihood: str | Likelihood) -> Likelihood:
    """Return the likelihood with this name, or the callable itself; for an `nn.Module` class, a new instance.

    Raises:
        ValueError: The name is unknown.
    """
    if not callable(likelihood) and (not isinstance(likelihood, str) or likelihood not in LIKELIHOODS):
        raise ValueError(f"likelihood must be a callable or one of {sorted(LIKELIHOODS)}, got {likelihood!r}")
    found: Any = LIKELIHOODS[likelihood] if isinstance(likelihood, str) else likelihood
    return found() if isinstance(found, type) and issubclass(found, nn.Module) else found


def to_config(likelihood: str | Likelihood) -> dict[str, Any]:
    """Return the name and options of a likelihood of this module, for JSON; learned parameters are not included.

    Raises:
        ValueError: It is another function or module, or has an option that is not a number.
    """
    levels = getattr(likelihood, "parameters_per_dimension", None)
    if isinstance(likelihood, partial) and likelihood.func is GreyLevels and levels:
        return {"name": "categorical", "num_levels": levels}
    options = likelihood.keywords if isinstance(likelihood, partial) and not likelihood.args else {}
    base = likelihood.func if options else likelihood  # type: ignore[union-attr]
    names = [name for name, known in LIKELIHOODS.items() if base in (name, known) or type(base) is known]
    if not names or not all(isinstance(value, Real) for value in options.values()):
        known = f"one of {sorted(LIKELIHOODS)}, categorical(n), or a partial of these with numbers as options"
        raise ValueError(f"likelihood must be {known} to be saved, got {_name(likelihood)}")
    return {"name": names[0], **{name: as_int(value) for name, value in options.items()}}


def _name(likelihood: Any) -> str:
    return (
        repr(likelihood) if isinstance(likelihood, str) else getattr(likelihood, "__name__", type(likelihood).__name__)
    )


def from_config(config: dict[str, Any]) -> str | Likelihood:
    """Return the likelihood that `to_config` described.

    Raises:
        ValueError: The name is unknown.
    """
    options = {name: value for name, value in config.items() if name != "name"}
    if config["name"] == "categorical":
        return categorical(**options)
    return partial(resolve(config["name"]), **options) if options else str(config["name"])
