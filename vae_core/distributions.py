"""Gaussians and their Kullback-Leibler divergences. All values are in nats, and no constants are dropped.

Every distribution here is a `torch.distributions` object with event shape (d,).
"""

from math import log, pi
from typing import Any, TypeGuard, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, register_kl

from vae_core.runtime import positive_int


class LogVarianceNormal(Normal):
    r"""A Normal that keeps log σ² beside σ, so that densities and divergences stay exact where σ underflows.

    .. math:: \log p(x) = -\tfrac12\big[(x-\mu)^2 e^{-\log\sigma^2} + \log\sigma^2 + \log 2\pi\big]

    In float32, σ itself is 0 below log σ² = −206; `log_prob`, `entropy` and the divergences between factorised
    Gaussians, and their gradients, are accurate down to about −350.

    Args:
        loc: μ, any shape.
        log_variance: log σ², a shape that broadcasts to that of μ.
    """

    def __init__(self, loc: Tensor, log_variance: Tensor) -> None:
        super().__init__(loc, (0.5 * log_variance).exp(), validate_args=False)
        same = log_variance.shape == self.loc.shape
        self.log_variance = log_variance if same else log_variance.expand_as(self.loc)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LogVarianceNormal":
        """Return the same distribution with batch shape `batch_shape`; nothing is copied."""
        expanded = super().expand(batch_shape, _instance or self.__new__(type(self)))
        expanded.log_variance = self.log_variance.expand(batch_shape)
        return cast(LogVarianceNormal, expanded)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value), nats."""
        return -0.5 * (_standardized(value - self.loc, self.log_variance).square() + self.log_variance + log(2 * pi))

    def entropy(self) -> Tensor:
        """Return ½ (1 + log 2πσ²), nats."""
        return 0.5 * (self.log_variance + 1 + log(2 * pi))


def diagonal_normal(mean: Float[Tensor, "*#batch #d"], log_variance: Float[Tensor, "*#batch #d"]) -> Independent:
    r"""Return the factorised Gaussian :math:`\mathcal N(\mu, \operatorname{diag}\sigma^2)`.

    Args:
        mean: μ, shape (..., d).
        log_variance: log σ², shape (..., d). A network outputs this, so that σ > 0 needs no constraint.

    Returns:
        a distribution with batch (...) and event (d,).

    Raises:
        TypeError: unless both are tensors.
        ValueError: if they are single numbers or their shapes do not fit.

    Source: Chen §3.5.
    """
    if not (isinstance(mean, Tensor) and isinstance(log_variance, Tensor)):
        kinds = f"{type(mean).__name__} and {type(log_variance).__name__}"
        raise TypeError(f"mean and log_variance must be tensors of shape (..., d), got {kinds}")
    if mean.dim() == 0 or not shapes_broadcast(mean.shape, log_variance.shape):
        shapes = f"{tuple(mean.shape)} and {tuple(log_variance.shape)}"
        raise ValueError(f"mean and log_variance must have one shape (..., d), got {shapes}")
    return Independent(LogVarianceNormal(mean, log_variance), 1, validate_args=False)


def standard_normal(latent_dim: int, like: Float[Tensor, "..."] | None = None) -> Independent:
    r"""Return the prior :math:`\mathcal N(0, I_d)`: batch (), event (d,).

    Args:
        latent_dim: d.
        like: a tensor whose device and dtype are used; torch's defaults if None.

    Raises:
        ValueError: unless latent_dim is a positive integer.

    Source: Chen §3.5.
    """
    size = positive_int("latent_dim", latent_dim)
    zero = torch.zeros(size) if like is None else like.new_zeros(size)
    return diagonal_normal(zero, zero)


def kl_divergence(q: Distribution, p: Distribution) -> Float[Tensor, "*batch"]:
    r"""Return KL(q ‖ p) in closed form for two Gaussians with event shape (d,).

    .. math:: \mathrm{KL}(q\|p) = \tfrac12\Big[\log\frac{|\Sigma_p|}{|\Sigma_q|} - d
              + (\mu_p-\mu_q)^\top\Sigma_p^{-1}(\mu_p-\mu_q) + \operatorname{tr}(\Sigma_p^{-1}\Sigma_q)\Big]

    For two factorised Gaussians it is a sum over coordinates, and no matrix is formed. For p = N(0, I) that
    sum is :math:`-\tfrac12\sum_j(1+\log\sigma_j^2-\mu_j^2-\sigma_j^2)`. `torch.distributions.kl_divergence` returns
    the same value: the pairs that it lacks, a factorised and a full Gaussian, are registered here.

    Args:
        q: a `diagonal_normal` or a `MultivariateNormal`, batch (...), event (d,).
        p: another one, whose batch broadcasts with that of q.

    Returns:
        nats, with the broadcast batch as shape.

    Raises:
        TypeError: if q or p is not a Gaussian.
        ValueError: if their event shapes differ or their batches do not broadcast.

    Source: Chen §3.5; lecture notes (14)-(16).
    """
    for name, r in (("q", q), ("p", p)):
        if not (_is_diagonal(r) or isinstance(r, MultivariateNormal)):
            raise TypeError(f"{name} must be a diagonal_normal or a MultivariateNormal, got {type(r).__name__}")
    if q.event_shape != p.event_shape:
        shapes = f"{tuple(q.event_shape)} and {tuple(p.event_shape)}"
        raise ValueError(f"q and p must have the same event shape, got {shapes}")
    if not shapes_broadcast(q.batch_shape, p.batch_shape):
        shapes = f"{tuple(q.batch_shape)} and {tuple(p.batch_shape)}"
        raise ValueError(f"the batch shapes of q and p must broadcast, got {shapes}")
    if _is_diagonal(q) and _is_diagonal(p):
        return _kl_normal(marginals(q), marginals(p)).sum(-1)
    return torch.distributions.kl_divergence(q, p)


def kl_monte_carlo(q: Distribution, p: Distribution, num_samples: int = 1) -> Float[Tensor, "*batch"]:
    r"""Return an unbiased estimate of KL(q ‖ p) for any two densities.

    .. math:: \frac1K\sum_k \log q(z_k) - \log p(z_k), \qquad z_k \sim q

    A single estimate can be negative; the KL cannot. If q has no `rsample` (a mixture, for example), no gradient flows
    through z, and autograd's gradient in the parameters of q is not that of the KL.

    Args:
        q: any distribution that can be sampled.
        p: one with the same event shape, whose batch broadcasts to that of q.
        num_samples: K.

    Returns:
        nats, with the batch of q as shape.

    Raises:
        ValueError: unless num_samples is a positive integer and the shapes of q and p agree.
    """
    size = torch.Size([positive_int("num_samples", num_samples)])
    if q.event_shape != p.event_shape or not shapes_broadcast(q.batch_shape, p.batch_shape, onto=q.batch_shape):
        shapes = " and ".join(f"batch {tuple(r.batch_shape)}, event {tuple(r.event_shape)}" for r in (q, p))
        wrap = "wrap one without its event shape: torch.distributions.Independent(q, 1)"
        raise ValueError(f"q and p must have the same event shape, and p no batch that q lacks, got {shapes}; {wrap}")
    z = (q.rsample if q.has_rsample else q.sample)(size)  # (K, B, d)
    return (q.log_prob(z) - p.log_prob(z)).mean(0)


def log_prob_reparameterized(
    epsilon: Float[Tensor, "*sample d"], log_variance: Float[Tensor, "*batch d"]
) -> Float[Tensor, "*sample"]:
    r"""Return log q(z|x) at z = μ + σ ⊙ ε from ε alone, by the change of variables.

    .. math:: \log q(z|x) = \log p(\epsilon) - \log\left|\det\frac{\partial z}{\partial\epsilon}\right|
              = \sum_j \log\mathcal N(\epsilon_j; 0, 1) - \log\sigma_j

    Args:
        epsilon: ε, shape (..., d).
        log_variance: log σ², a shape that broadcasts to that of ε.

    Returns:
        nats, shape (...).

    Source: Chen §3.6.
    """
    return standard_normal(epsilon.shape[-1], like=epsilon).log_prob(epsilon) - 0.5 * log_variance.sum(-1)


def marginals(q: Distribution, name: str = "q") -> Normal:
    """Return the normals of a factorised Gaussian, batch (..., d), event (). Raise TypeError for anything else.

    Args:
        q: a `diagonal_normal`.
        name: what the message calls it.
    """
    if not _is_diagonal(q):
        raise TypeError(f"{name} must be a diagonal_normal, got {type(q).__name__}")
    return cast(Normal, q.base_dist)


def log_variance(q: Distribution) -> Float[Tensor, "*batch d"]:
    """Return log σ² of each coordinate; for a `diagonal_normal` as it was passed, even where σ underflows."""
    if _is_diagonal(q):
        return _log_variance(marginals(q))
    return q.variance.log()


def shapes_broadcast(one: torch.Size, other: torch.Size, onto: torch.Size | None = None) -> bool:
    """Return whether the shapes `one` and `other` broadcast, and to the shape `onto` if it is given."""
    if len(other) == 0 or one == other:  # the common case, without torch's slower check
        return onto is None or one == onto
    try:
        together = torch.broadcast_shapes(one, other)
    except RuntimeError:
        return False
    return onto is None or together == onto


def _is_diagonal(r: Distribution) -> TypeGuard[Independent]:
    return isinstance(r, Independent) and isinstance(r.base_dist, Normal) and r.reinterpreted_batch_ndims == 1


def _log_variance(r: Normal) -> Tensor:
    return r.log_variance if isinstance(r, LogVarianceNormal) else 2 * r.scale.log()


def _standardized(difference: Tensor, log_variance: Tensor) -> Tensor:
    """difference / σ in two steps, because 1/σ overflows long before the quotient does."""
    inverse_root = (-0.25 * log_variance).exp()
    return difference * inverse_root * inverse_root


# torch's own formula for two Normals computes with σ, which underflows.
@register_kl(LogVarianceNormal, LogVarianceNormal)
@register_kl(LogVarianceNormal, Normal)
@register_kl(Normal, LogVarianceNormal)
def _kl_normal(q: Normal, p: Normal) -> Tensor:
    """½ [(μ_p − μ_q)²/σ_p² + σ_q²/σ_p² − 1 − log σ_q²/σ_p²], coordinate by coordinate."""
    log_variance = _log_variance(p)
    log_ratio = _log_variance(q) - log_variance
    shift = _standardized(q.loc - p.loc, log_variance)
    return 0.5 * (shift.square() + log_ratio.expm1() - log_ratio)


# torch registers no pair of a factorised and a full Gaussian.
@register_kl(Independent, MultivariateNormal)
@register_kl(MultivariateNormal, Independent)
def _kl_mixed(q: Distribution, p: Distribution) -> Tensor:
    return torch.distributions.kl_divergence(_as_full(q), _as_full(p))


def _as_full(r: Distribution) -> MultivariateNormal:
    """Return a factorised Gaussian with a covariance matrix. Raise NotImplementedError for others, as torch does."""
    if isinstance(r, MultivariateNormal):
        return r
    if not _is_diagonal(r):
        raise NotImplementedError(f"no closed form for {r} and a MultivariateNormal")
    return MultivariateNormal(r.mean, scale_tril=torch.diag_embed(r.stddev), validate_args=False)
