"""From a decoder's output to the distribution p(x|z) over images, event shape (C, H, W).

A likelihood is any callable `(output) -> torch.distributions.Distribution`: a plain function where there
is nothing to learn, an `nn.Module` where there is. `output` has shape (..., C, H, W).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, Normal

IMAGE_DIMS = 3  # C, H, W: the event of every likelihood

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


def gaussian(mean: Tensor, sigma: float | Tensor = 1.0) -> Independent:
    r"""Independent Gaussian pixels around the decoder's output, with a fixed standard deviation σ > 0.

    .. math:: \log p(x|z) = -\tfrac D2\log 2\pi\sigma^2 - \tfrac1{2\sigma^2}\|x-\mu(z)\|^2

    A log-density in nats, which may be positive for small σ. Raises ValueError unless σ > 0.
    Source: lecture notes (8), (31); Saleh (16).
    """
    if not (sigma > 0 if isinstance(sigma, float | int) else bool((sigma > 0).all())):
        raise ValueError(f"sigma must be positive, got {sigma}")
    sigma = torch.as_tensor(sigma, dtype=mean.dtype, device=mean.device)
    return Independent(Normal(mean, sigma.expand_as(mean), validate_args=False), IMAGE_DIMS, validate_args=False)


LIKELIHOODS: dict[str, Likelihood] = {"bernoulli": bernoulli, "gaussian": gaussian}


def resolve(likelihood: str | Likelihood) -> Likelihood:
    """A likelihood by its name, or the callable itself. Raises ValueError for an unknown name."""
    if callable(likelihood):
        return likelihood
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood must be a callable or one of {sorted(LIKELIHOODS)}, got {likelihood!r}")
    return LIKELIHOODS[likelihood]
