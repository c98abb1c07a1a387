"""Gaussians and their Kullback-Leibler divergences. All values in nats, no constants dropped.

Every distribution here is a `torch.distributions` object with event shape (d,).
"""

from typing import TypeGuard

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal


def diagonal_normal(mean: Tensor, log_variance: Tensor) -> Independent:
    r"""The factorised Gaussian :math:`\mathcal N(\mu, \operatorname{diag}\sigma^2)`.

    `mean` and `log_variance` = log σ² have shape (..., d); the result has batch (...) and event (d,).
    Source: Chen §3.5 (log σ² is the network's output, so that σ > 0 needs no constraint).
    """
    return Independent(Normal(mean, (0.5 * log_variance).exp(), validate_args=False), 1, validate_args=False)


def standard_normal(latent_dim: int, like: Tensor | None = None) -> Independent:
    r"""The prior :math:`\mathcal N(0, I_d)`: batch (), event (d,), on the device and dtype of `like`.

    Source: Chen §3.5.
    """
    zero = torch.zeros(latent_dim) if like is None else like.new_zeros(latent_dim)
    return diagonal_normal(zero, zero)


def kl_divergence(q: Distribution, p: Distribution) -> Tensor:
    r"""KL(q ‖ p) in closed form for two Gaussians with event shape (d,); nats, shape: the broadcast batch.

    .. math:: \mathrm{KL}(q\|p) = \tfrac12\Big[\log\frac{|\Sigma_p|}{|\Sigma_q|} - d
              + (\mu_p-\mu_q)^\top\Sigma_p^{-1}(\mu_p-\mu_q) + \operatorname{tr}(\Sigma_p^{-1}\Sigma_q)\Big]

    Two factorised Gaussians take the sum over coordinates and never form a matrix. For p = N(0, I) that
    sum is :math:`-\tfrac12\sum_j(1+\log\sigma_j^2-\mu_j^2-\sigma_j^2)`.

    Raises TypeError if q or p is no Gaussian, ValueError if their event shapes differ.
    Source: Chen §3.5; lecture notes (14)-(16).
    """
    for name, r in (("q", q), ("p", p)):
        if not (_is_diagonal(r) or isinstance(r, MultivariateNormal)):
            raise TypeError(f"{name} must be a diagonal_normal or a MultivariateNormal, got {type(r).__name__}")
    if q.event_shape != p.event_shape:
        shapes = f"{tuple(q.event_shape)} and {tuple(p.event_shape)}"
        raise ValueError(f"q and p must have the same event shape, got {shapes}")
    if _is_diagonal(q) and _is_diagonal(p):
        return _kl_diagonal(marginals(q), marginals(p))
    return _kl_full(q.mean, _scale_tril(q), p.mean, _scale_tril(p))


def kl_monte_carlo(q: Distribution, p: Distribution, num_samples: int = 1) -> Tensor:
    r"""An unbiased estimate of KL(q ‖ p) for any two densities; nats, shape: the batch of q.

    .. math:: \frac1K\sum_k \log q(z_k) - \log p(z_k), \qquad z_k \sim q

    A single estimate can be negative; the KL cannot. Where q has no `rsample`, a mixture say, no gradient flows
    through z, and the one in q's parameters is not that of the KL. Raises ValueError unless `num_samples` is a positive
    integer.
    """
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be a positive integer, got {num_samples!r}")
    z = (q.rsample if q.has_rsample else q.sample)((num_samples,))  # (K, B, d)
    return (q.log_prob(z) - p.log_prob(z)).mean(0)


def log_prob_reparameterized(epsilon: Tensor, log_variance: Tensor) -> Tensor:
    r"""log q(z|x) at z = μ + σ ⊙ ε, from ε alone, by the change of variables; nats, shape (...).

    .. math:: \log q(z|x) = \log p(\epsilon) - \log\left|\det\frac{\partial z}{\partial\epsilon}\right|
              = \sum_j \log\mathcal N(\epsilon_j; 0, 1) - \log\sigma_j

    `epsilon` and `log_variance` have shape (..., d). Source: Chen §3.6.
    """
    return standard_normal(epsilon.shape[-1], like=epsilon).log_prob(epsilon) - 0.5 * log_variance.sum(-1)


def marginals(q: Distribution, name: str = "q") -> Normal:
    """The Gaussians of a factorised one, batch (..., d), event (). Raises TypeError, with its name, for any other."""
    if not _is_diagonal(q):
        raise TypeError(f"{name} must be a diagonal_normal, got {type(q).__name__}")
    return q.base_dist


def _is_diagonal(r: Distribution) -> TypeGuard[Independent]:
    return isinstance(r, Independent) and isinstance(r.base_dist, Normal) and r.reinterpreted_batch_ndims == 1


def _kl_diagonal(q: Normal, p: Normal) -> Tensor:
    ratio = (q.scale / p.scale).square()
    log_ratio = 2 * (q.scale.log() - p.scale.log())  # finite where the ratio itself has underflowed to 0
    return 0.5 * (((q.loc - p.loc) / p.scale).square() + ratio - 1 - log_ratio).sum(-1)


def _scale_tril(r: Distribution) -> Tensor:
    return r.scale_tril if isinstance(r, MultivariateNormal) else torch.diag_embed(r.stddev)


def _kl_full(mean_q: Tensor, tril_q: Tensor, mean_p: Tensor, tril_p: Tensor) -> Tensor:
    whitened = torch.linalg.solve_triangular(tril_p, tril_q, upper=False)  # trace(Σp⁻¹Σq) = its squared norm
    shift = torch.linalg.solve_triangular(tril_p, (mean_p - mean_q).unsqueeze(-1), upper=False)
    log_ratio = 2 * (_log_diagonal(tril_p) - _log_diagonal(tril_q))
    d = mean_q.shape[-1]
    return 0.5 * (log_ratio - d + shift.square().sum((-2, -1)) + whitened.square().sum((-2, -1)))


def _log_diagonal(tril: Tensor) -> Tensor:
    return tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
