"""From a decoder's output to the distribution p(x|z) over images, event shape (C, H, W).

A likelihood is any callable `(output) -> torch.distributions.Distribution`: a plain function where there
is nothing to learn, an `nn.Module` where there is. `output` has shape (..., C, H, W), or (..., P, C, H, W) where
the likelihood needs P > 1 numbers for each pixel and says so by its attribute `num_parameters`.
"""

from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal

from vae_core._support import check_support
from vae_core.pixel_distributions import (
    IMAGE_DIMS,
    ContinuousBernoulli,
    DiscretizedLogistic,
    GreyLevels,
    NegativeBinomial,
    outside_cuda_graph,
)

__all__ = [
    "LIKELIHOODS",
    "Likelihood",
    "NegativeBinomialCounts",
    "SharedGaussian",
    "bernoulli",
    "categorical",
    "check_support",
    "continuous_bernoulli",
    "discretized_logistic",
    "gaussian",
    "learned_gaussian",
    "num_parameters",
    "resolve",
]

Likelihood = Callable[[Tensor], Distribution]


def bernoulli(logits: Tensor) -> Independent:
    r"""Independent Bernoulli pixels from logits :math:`\ell`, one per pixel.

    .. math:: \log p(x|z) = \sum_j x_j\log s(\ell_j) + (1-x_j)\log(1-s(\ell_j)), \qquad s(\ell)=1/(1+e^{-\ell})

    The logarithms are computed from the logits, so they stay finite, gradient included, where a sigmoid
    followed by a logarithm saturates. For x in {0, 1} this is a log-likelihood in nats. For grey x in
    [0, 1] it is minus the cross entropy, no log-density: call it reconstruction error there.

    Source: Saleh (15); Chen listing A.2 (there: sigmoid, then BCE).
    """
    return Independent(Bernoulli(logits=logits, validate_args=False), IMAGE_DIMS, validate_args=False)


def continuous_bernoulli(logits: Tensor) -> Independent:
    r"""Independent continuous Bernoulli pixels: the Bernoulli formula on [0, 1], normalised so as to be a density.

    .. math:: p(x) = C(\lambda)\,\lambda^x(1-\lambda)^{1-x}, \qquad
              C(\lambda) = \frac{2\tanh^{-1}(1-2\lambda)}{1-2\lambda} \ge 2, \qquad \lambda = s(\ell)

    A log-density in nats for grey x in [0, 1]: `bernoulli`'s cross entropy plus log C, at least log 2 a pixel. Its
    mean is not λ. Source: Loaiza-Ganem and Cunningham (2019), the remedy of Chen's improper likelihood (§4).
    """
    return Independent(ContinuousBernoulli(logits), IMAGE_DIMS, validate_args=False)


def gaussian(mean: Tensor, sigma: float | Tensor = 1.0) -> Independent:
    r"""Independent Gaussian pixels around the decoder's output, with a fixed standard deviation σ > 0.

    .. math:: \log p(x|z) = -\tfrac D2\log 2\pi\sigma^2 - \tfrac1{2\sigma^2}\|x-\mu(z)\|^2

    A log-density in nats, which may be positive for small σ. Raises ValueError unless σ > 0, except within a CUDA
    graph, where nobody can ask. Source: lecture notes (8), (31); Saleh (16).
    """
    if outside_cuda_graph(mean) and not (least := torch.as_tensor(sigma).min().item()) > 0:
        raise ValueError(f"sigma must be positive, got {least:g}")
    # a number is filled in on the device: no graph can copy it there
    width = mean.new_full((), sigma) if isinstance(sigma, Real) else torch.as_tensor(sigma).to(mean)
    return Independent(Normal(mean, width.expand_as(mean), validate_args=False), IMAGE_DIMS, validate_args=False)


class SharedGaussian(nn.Module):
    r"""Gaussian pixels with one learned variance σ² for all of them: the data say how far they are from the mean.

    Where the mean fits best, σ² is the mean squared error. A log-density in nats; it grows without bound if the
    mean can fit the training images exactly. Source: lecture notes (31) with σ learned; Rybkin et al. (2021).
    """

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"sigma must be positive, got {sigma}")
        self.log_variance = nn.Parameter(2 * torch.as_tensor(float(sigma)).log())

    def forward(self, mean: Tensor) -> Independent:
        sigma = (0.5 * self.log_variance).exp().expand_as(mean)
        return Independent(Normal(mean, sigma, validate_args=False), IMAGE_DIMS, validate_args=False)


def learned_gaussian(output: Tensor, min_sigma: float = 0.0) -> Independent:
    r"""Gaussian pixels whose mean and log σ² both come from the decoder: `output` is (..., 2, C, H, W).

    .. math:: \log p(x|z) = -\tfrac12\sum_j \log 2\pi\sigma_j^2(z) + (x_j-\mu_j(z))^2/\sigma_j^2(z)

    A log-density in nats without an upper bound: at pixels that never change σ can go to 0, and it does, unless
    `min_sigma` is positive. Source: Saleh (16); Irvin §2.
    """
    mean, log_variance = output.unbind(-1 - IMAGE_DIMS)
    sigma = (0.5 * log_variance).exp().clamp_min(min_sigma)
    return Independent(Normal(mean, sigma, validate_args=False), IMAGE_DIMS, validate_args=False)


learned_gaussian.num_parameters = 2  # type: ignore[attr-defined]


def discretized_logistic(output: Tensor, num_levels: int = 256) -> DiscretizedLogistic:
    """`DiscretizedLogistic` with mean and log-scale from `output`, (..., 2, C, H, W); the mean starts at one half."""
    mean, log_scale = output.unbind(-1 - IMAGE_DIMS)
    return DiscretizedLogistic(mean + 0.5, log_scale - 2.0, num_levels)


discretized_logistic.num_parameters = 2  # type: ignore[attr-defined]


def categorical(num_levels: int) -> Likelihood:
    """The likelihood `GreyLevels` for that many levels, 2 at least; ValueError for fewer."""
    if not isinstance(num_levels, int) or num_levels < 2:
        raise ValueError(f"num_levels must be an integer of at least 2, got {num_levels!r}")

    def likelihood(logits: Tensor) -> GreyLevels:
        return GreyLevels(logits)

    likelihood.num_parameters = num_levels  # type: ignore[attr-defined]
    return likelihood


class NegativeBinomialCounts(nn.Module):
    r"""Counts x = 0, 1, 2, … with mean m(z) from the decoder and one learned dispersion r for all pixels.

    .. math:: P(x) = \binom{x+r-1}{x}\Big(\frac{r}{r+m}\Big)^r\Big(\frac{m}{r+m}\Big)^x, \qquad
              \operatorname{Var}x = m + \frac{m^2}{r}

    `output` is log m. A log-probability in nats; r → ∞ is the Poisson law. Raises ValueError unless r > 0.
    Source: Chen §3.5 (negative binomial); Lopez et al. (2018).
    """

    def __init__(self, dispersion: float = 1.0) -> None:
        super().__init__()
        if not dispersion > 0:
            raise ValueError(f"dispersion must be positive, got {dispersion}")
        self.log_dispersion = nn.Parameter(torch.as_tensor(float(dispersion)).log())

    def forward(self, log_mean: Tensor) -> Independent:
        r = self.log_dispersion.exp().expand_as(log_mean)
        return Independent(NegativeBinomial(r, log_mean), IMAGE_DIMS, validate_args=False)


LIKELIHOODS: dict[str, Likelihood | type[nn.Module]] = {  # a class is made anew for each model
    "bernoulli": bernoulli,
    "continuous_bernoulli": continuous_bernoulli,
    "gaussian": gaussian,
    "shared_gaussian": SharedGaussian,
    "learned_gaussian": learned_gaussian,
    "discretized_logistic": discretized_logistic,
}


def num_parameters(likelihood: Likelihood) -> int:
    """How many numbers it takes from the decoder for each pixel, also if it stands in a `functools.partial`."""
    while isinstance(likelihood, partial) and not hasattr(likelihood, "num_parameters"):
        likelihood = likelihood.func
    return getattr(likelihood, "num_parameters", 1)


def resolve(likelihood: str | Likelihood | type[nn.Module]) -> Likelihood:
    """A likelihood by its name, or the callable itself; of an `nn.Module`'s class a new instance.

    Raises ValueError for an unknown name.
    """
    if not callable(likelihood) and likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood must be a callable or one of {sorted(LIKELIHOODS)}, got {likelihood!r}")
    found: Any = likelihood if callable(likelihood) else LIKELIHOODS[likelihood]
    return found() if isinstance(found, type) and issubclass(found, nn.Module) else found
