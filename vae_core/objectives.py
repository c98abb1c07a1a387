"""Bounds on log p(x): one value per datum, shape (B,), in nats, to be maximised, unreduced.

They work on any object with `prior`, `posterior(x)` and `likelihood(z)` that hand back distributions.
"""

from collections.abc import Callable
from math import log
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_core.distributions import kl_divergence, marginals


class LatentVariableModel(Protocol):
    """What an objective needs of a model; no base class."""

    @property
    def prior(self) -> Distribution: ...  # p(z), batch (), event (d,)

    def posterior(self, x: Tensor) -> Distribution: ...  # q(z|x), batch (B,), event (d,)

    def likelihood(self, z: Tensor) -> Distribution: ...  # p(x|z), batch (K, B)


class Codec(Protocol):
    """What a code and its decoding need of a model."""

    def encode(self, x: Tensor) -> Tensor: ...  # z (B, d)

    def likelihood(self, z: Tensor) -> Distribution: ...  # p(x|z), batch (B,)


def log_weights(model: LatentVariableModel, x: Tensor, num_samples: int = 1) -> Tensor:
    r"""The log importance weights of K draws from q, shape (K, B), nats.

    .. math:: \log w_k = \log p(z_k) + \log p(x|z_k) - \log q(z_k|x), \qquad z_k \sim q(z|x)

    Their mean over K estimates the ELBO (Chen (3.2)), their logsumexp − log K is the IWAE bound, and
    E[w] = p(x) exactly. Raises ValueError unless num_samples is a positive integer.
    """
    q, z, log_likelihood = _draw(model, x, num_samples)
    return model.prior.log_prob(z) + log_likelihood - q.log_prob(z)


def elbo_terms(
    model: LatentVariableModel, x: Tensor, num_samples: int = 1, kl: str = "analytic"
) -> tuple[Tensor, dict[str, Tensor]]:
    """The ELBO and its two terms: (elbo, {"reconstruction", "kl"}), each (B,), elbo = −reconstruction − kl.

    `reconstruction` estimates −E_q[log p(x|z)], and `kl` is KL(q(z|x) ‖ p(z)), in closed form or estimated
    from the same draws. Arguments and errors as in `elbo`.
    """
    if kl not in ("analytic", "monte_carlo"):
        raise ValueError(f"kl must be 'analytic' or 'monte_carlo', got {kl!r}")
    q, z, log_likelihood = _draw(model, x, num_samples)
    if kl == "analytic":
        divergence = kl_divergence(q, model.prior)
    else:
        divergence = (q.log_prob(z) - model.prior.log_prob(z)).mean(0)
    reconstruction = -log_likelihood.mean(0)
    return -reconstruction - divergence, {"reconstruction": reconstruction, "kl": divergence}


def elbo(model: LatentVariableModel, x: Tensor, num_samples: int = 1, kl: str = "analytic") -> Tensor:
    r"""The evidence lower bound, estimated with L = num_samples reparameterized draws; (B,), nats.

    .. math:: \mathcal L(x) = \mathbb E_{q(z|x)}[\log p(x|z)] - \mathrm{KL}(q(z|x)\,\|\,p(z)) \le \log p(x)

    `kl="analytic"` takes the divergence in closed form (Gaussians only) and samples the first term
    (Chen (3.3)); `kl="monte_carlo"` samples both from the same draws (Chen (3.2)). The two have the same
    mean and different variances. Both are differentiable in θ and φ.

    Raises ValueError for another `kl`, or unless num_samples is a positive integer.
    """
    return elbo_terms(model, x, num_samples, kl)[0]


def beta_elbo_terms(
    model: LatentVariableModel, x: Tensor, beta: float | Tensor, num_samples: int = 1, kl: str = "analytic"
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""The ELBO with its KL weighted by β, and the two terms themselves: each (B,), nats.

    .. math:: \mathcal L_\beta(x) = \mathbb E_{q(z|x)}[\log p(x|z)] - \beta\,\mathrm{KL}(q(z|x)\,\|\,p(z))

    For β ≥ 1 it is a lower bound on log p(x), for β < 1 it is none. Errors as in `elbo`; ValueError for a negative
    number as β (a tensor, which `training.fit` anneals, is not looked at).
    Source: Higgins et al. (2017); with a rising β, Bowman et al. (2016).
    """
    if not isinstance(beta, Tensor) and not beta >= 0:
        raise ValueError(f"beta must not be negative, got {beta!r}")
    _, terms = elbo_terms(model, x, num_samples, kl)
    return -terms["reconstruction"] - beta * terms["kl"], terms


def linear_warm_up(share: float) -> Callable[[float], float]:
    """β as training goes on: from 0 to 1 over the first `share` of it, then 1. `progress` runs from 0 to 1.

    Raises ValueError unless 0 < share ≤ 1. Source: Sønderby et al. (2016) §2.2.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share!r}")
    return lambda progress: min(1.0, progress / share)


def cyclical(cycles: int, share: float = 0.5) -> Callable[[float], float]:
    """β as training goes on: in each of the cycles it rises from 0 to 1 over the first `share`, and stays there.

    Raises ValueError unless cycles is a positive integer and 0 < share ≤ 1. Source: Fu et al. (2019) §3.2.
    """
    if not isinstance(cycles, int) or cycles < 1:
        raise ValueError(f"cycles must be a positive integer, got {cycles!r}")
    rise = linear_warm_up(share)
    return lambda progress: 1.0 if progress >= 1 else rise(progress * cycles % 1)


def free_bits_terms(
    model: LatentVariableModel, x: Tensor, floor: float, num_samples: int = 1
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""The ELBO in which a latent unit's KL, averaged over the batch, counts for no less than `floor` nats; (B,).

    .. math:: \mathbb E_q[\log p(x|z)] - \sum_j \max\Big(\kappa,\ \frac1B\sum_n \mathrm{KL}_j(x_n)\Big)

    Up to κ = `floor` a unit is free, so nothing pushes it to collapse; it is never more than the ELBO's own batch mean,
    so its mean is still a lower bound. The second result holds the true terms. For factorised Gaussian q and prior.
    Raises ValueError unless floor ≥ 0; other errors as in `elbo`. Source: Kingma et al. (2016) §2.4, (15).
    """
    if not floor >= 0:
        raise ValueError(f"floor must not be negative, got {floor!r}")
    q, _, log_likelihood = _draw(model, x, num_samples)
    per_unit = torch.distributions.kl_divergence(marginals(q), marginals(model.prior, "prior"))  # (B, d)
    reconstruction = -log_likelihood.mean(0)
    value = -reconstruction - per_unit.mean(0).clamp_min(floor).sum()
    return value, {"reconstruction": reconstruction, "kl": per_unit.sum(-1)}


def iwae_bound(model: LatentVariableModel, x: Tensor, num_samples: int) -> Tensor:
    r"""The importance-weighted bound with K = num_samples draws; (B,), nats.

    .. math:: \mathcal L_K(x) = \mathbb E\Big[\log\frac1K\sum_{k=1}^K w_k\Big],
              \qquad \mathcal L_1 \le \mathcal L_K \le \mathcal L_{K+1} \le \log p(x)

    K = 1 is the ELBO in its Monte Carlo form. Source: Burda, Grosse and Salakhutdinov (2016), eq. (8).
    """
    return log_weights(model, x, num_samples).logsumexp(0) - log(num_samples)


def reconstruction_log_likelihood(model: Codec, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    r"""What a deterministic auto-encoder maximises, and its one term: both (B,), nats. No bound on log p(x).

    .. math:: \log p(x\,|\,z = f(x)), \qquad \text{reconstruction} = -\log p(x\,|\,z = f(x))

    It is the ELBO's first term for a q without width, and without the KL, which would then be infinite.
    Source: Saleh §4.1.4.
    """
    log_likelihood = model.likelihood(model.encode(x)).log_prob(x)
    return log_likelihood, {"reconstruction": -log_likelihood}


def _draw(model: LatentVariableModel, x: Tensor, num_samples: int) -> tuple[Distribution, Tensor, Tensor]:
    """q(z|x), K reparameterized draws z (K, B, d) from it, and log p(x|z) (K, B)."""
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be a positive integer, got {num_samples!r}")
    q = model.posterior(x)
    z = q.rsample(torch.Size([num_samples]))  # (K, B, d)
    return q, z, model.likelihood(z).log_prob(x)
