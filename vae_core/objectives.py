"""Bounds on log p(x): one value per datum, shape (B,), in nats, to be maximised, unreduced.

They work on any object with `prior`, `posterior(x)` and `likelihood(z)` that return distributions. An error says in one
sentence where these have other batch or event shapes than `LatentVariableModel` states, or where x is outside the
support of p(x|z). Inside `training.fit` values are not checked again, because `fit` has checked all data once.
"""

from collections.abc import Callable
from math import inf, log
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from vae_core._checks.model_outputs import check_latent, log_likelihood_of
from vae_core.distributions import kl_divergence, marginals
from vae_core.runtime import can_read_values, positive_int


class LatentVariableModel(Protocol):
    """What an objective needs from a model, which needs no base class."""

    @property
    def prior(self) -> Distribution: ...  # p(z), batch (), event (d,)

    def posterior(self, x: Tensor) -> Distribution: ...  # q(z|x), batch (B,), event (d,)

    def likelihood(self, z: Tensor) -> Distribution: ...  # p(x|z), batch (K, B), event: the shape of one datum


class Codec(Protocol):
    """What a deterministic autoencoder provides: a code, and its decoding."""

    def encode(self, x: Tensor) -> Tensor: ...  # z (B, d)

    def likelihood(self, z: Tensor) -> Distribution: ...  # p(x|z), batch (B,)


class ValueAndTerms(NamedTuple):
    """What an objective returns to `training.fit`: the value to maximise, and terms to record, (B,) each, in nats."""

    value: Float[Tensor, "*stack B"]
    terms: dict[str, Float[Tensor, "*stack B"]]


def log_weights(
    model: LatentVariableModel, x: Float[Tensor, "B ..."], num_samples: int = 1
) -> Float[Tensor, "K *stack B"]:
    r"""Return the log importance weights of K draws from q.

    .. math:: \log w_k = \log p(z_k) + \log p(x|z_k) - \log q(z_k|x), \qquad z_k \sim q(z|x)

    Their mean over K estimates the ELBO (Chen (3.2)), their logsumexp − log K is the IWAE bound, and
    E[w] = p(x) exactly.

    Args:
        model: what `LatentVariableModel` describes.
        x: data, (B, …).
        num_samples: K.

    Returns:
        nats, shape (K, B).

    Raises:
        ValueError: unless num_samples is a positive integer, the distributions of the model have the promised shapes, x
            lies in the support of p(x|z), and q has reparameterized samples wherever a gradient is recorded.
    """
    q, prior, z, log_likelihood = _draw(model, x, num_samples)
    return prior.log_prob(z) + log_likelihood - q.log_prob(z)


def elbo_terms(
    model: LatentVariableModel, x: Float[Tensor, "B ..."], num_samples: int = 1, kl: str = "analytic"
) -> ValueAndTerms:
    """Return the ELBO and its two terms: (elbo, {"reconstruction", "kl"}), each (B,), elbo = −reconstruction − kl.

    `reconstruction` estimates −E_q[log p(x|z)], and `kl` is KL(q(z|x) ‖ p(z)), in closed form or estimated
    from the same draws. Arguments and errors are those of `elbo`.
    """
    if kl not in ("analytic", "monte_carlo"):
        raise ValueError(f"kl must be 'analytic' or 'monte_carlo', got {kl!r}")
    q, prior, z, log_likelihood = _draw(model, x, num_samples)
    divergence = kl_divergence(q, prior) if kl == "analytic" else (q.log_prob(z) - prior.log_prob(z)).mean(0)
    reconstruction = -log_likelihood.mean(0)
    return ValueAndTerms(-reconstruction - divergence, {"reconstruction": reconstruction, "kl": divergence})


def elbo(
    model: LatentVariableModel, x: Float[Tensor, "B ..."], num_samples: int = 1, kl: str = "analytic"
) -> Float[Tensor, "*stack B"]:
    r"""Return the evidence lower bound, estimated with L = num_samples reparameterized draws.

    .. math:: \mathcal L(x) = \mathbb E_{q(z|x)}[\log p(x|z)] - \mathrm{KL}(q(z|x)\,\|\,p(z)) \le \log p(x)

    Both estimators are differentiable in θ and φ; they have the same mean and different variances.

    Args:
        model: what `LatentVariableModel` describes.
        x: data, (B, …).
        num_samples: L.
        kl: `"analytic"` takes the divergence in closed form (Gaussians only) and samples the first term
            (Chen (3.3)); `"monte_carlo"` samples both from the same draws (Chen (3.2)).

    Returns:
        nats, shape (B,).

    Raises:
        ValueError: for another `kl`, and as `log_weights` does.
        TypeError: for `"analytic"` without Gaussians.
    """
    return elbo_terms(model, x, num_samples, kl).value


def beta_elbo_terms(
    model: LatentVariableModel,
    x: Float[Tensor, "B ..."],
    beta: float | Tensor,
    num_samples: int = 1,
    kl: str = "analytic",
) -> ValueAndTerms:
    r"""Return the ELBO with its KL weighted by β, and the two terms themselves: each (B,), nats.

    .. math:: \mathcal L_\beta(x) = \mathbb E_{q(z|x)}[\log p(x|z)] - \beta\,\mathrm{KL}(q(z|x)\,\|\,p(z))

    For β ≥ 1 it is a lower bound on log p(x), for β < 1 it is not.

    Args:
        model, x, num_samples, kl: as in `elbo`.
        beta: β ≥ 0, finite: a number, or a tensor of shape (), (1,) or (B,).

    Raises:
        ValueError: for another β, and as `elbo` does. The values of a tensor are not checked inside `training.fit`,
            which anneals β.

    Source: Higgins et al. (2017); with a rising β, Bowman et al. (2016).
    """
    _check_beta(beta, len(x))
    _, terms = elbo_terms(model, x, num_samples, kl)
    return ValueAndTerms(-terms["reconstruction"] - beta * terms["kl"], terms)


def linear_warm_up(share: float) -> Callable[[float], float]:
    """Return β as a function of progress, 0 to 1: it rises from 0 to 1 over the first `share` of training, then is 1.

    Args:
        share: the fraction of training over which β rises.

    Raises:
        ValueError: unless 0 < share ≤ 1.

    Source: Sønderby et al. (2016) §2.2.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share!r}")
    return lambda progress: min(1.0, progress / share)


def cyclical(cycles: int, share: float = 0.5) -> Callable[[float], float]:
    """Return β as a function of progress, 0 to 1: in each cycle it rises from 0 to 1 over the first `share`, then is 1.

    Args:
        cycles: the number of cycles in all of training.
        share: the fraction of a cycle over which β rises.

    Raises:
        ValueError: unless cycles is a positive integer and 0 < share ≤ 1.

    Source: Fu et al. (2019) §3.2.
    """
    count, rise = positive_int("cycles", cycles), linear_warm_up(share)
    return lambda progress: 1.0 if progress >= 1 else rise(progress * count % 1)


def free_bits_terms(
    model: LatentVariableModel, x: Float[Tensor, "B ..."], floor: float, num_samples: int = 1
) -> ValueAndTerms:
    r"""Return the ELBO in which a latent unit's KL, averaged over the batch, counts for no less than `floor` nats.

    .. math:: \mathbb E_q[\log p(x|z)] - \sum_j \max\Big(\kappa,\ \frac1B\sum_n \mathrm{KL}_j(x_n)\Big)

    Up to κ = `floor` a unit's KL costs nothing, so nothing pushes the unit to collapse. The objective is never above
    the batch mean of the ELBO, so its mean is still a lower bound. The terms are those of the ELBO.

    Args:
        model: with a factorised Gaussian q and prior.
        x, num_samples: as in `elbo`.
        floor: κ, nats, finite and not negative.

    Raises:
        ValueError: for another floor.
        TypeError: for another q or prior; other errors as in `elbo`.

    Source: Kingma et al. (2016) §2.4, (15).
    """
    if not 0 <= floor < inf:
        raise ValueError(f"floor must be finite and not negative, got {floor!r}")
    q, prior, _, log_likelihood = _draw(model, x, num_samples)
    per_unit = torch.distributions.kl_divergence(marginals(q), marginals(prior, "prior"))  # (B, d)
    reconstruction = -log_likelihood.mean(0)
    value = -reconstruction - per_unit.mean(0).clamp_min(floor).sum()
    return ValueAndTerms(value, {"reconstruction": reconstruction, "kl": per_unit.sum(-1)})


def iwae_bound(model: LatentVariableModel, x: Float[Tensor, "B ..."], num_samples: int) -> Float[Tensor, "*stack B"]:
    r"""Return the importance-weighted bound with K = num_samples draws.

    .. math:: \mathcal L_K(x) = \mathbb E\Big[\log\frac1K\sum_{k=1}^K w_k\Big],
              \qquad \mathcal L_1 \le \mathcal L_K \le \mathcal L_{K+1} \le \log p(x)

    K = 1 is the ELBO in its Monte Carlo form. Arguments and errors are those of `log_weights`; nats, shape (B,).

    Source: Burda, Grosse and Salakhutdinov (2016), eq. (8).
    """
    log_w = log_weights(model, x, num_samples)
    return log_w.logsumexp(0) - log(len(log_w))


def reconstruction_log_likelihood(model: Codec, x: Float[Tensor, "B ..."]) -> ValueAndTerms:
    r"""Return what a deterministic autoencoder maximises, and its one term: (B,) each, nats; not a bound on log p(x).

    .. math:: \log p(x\,|\,z = f(x)), \qquad \text{reconstruction} = -\log p(x\,|\,z = f(x))

    It is the ELBO's first term for a q of zero variance. The KL, which would be infinite, is left out.

    Args:
        model: what `Codec` describes.
        x: data, (B, …).

    Raises:
        ValueError: where p(x|z) has another shape than that of x, or x is outside of its support.

    Source: Saleh §4.1.4.
    """
    log_likelihood = log_likelihood_of(model.likelihood(model.encode(x)), x.shape[:1], x)
    return ValueAndTerms(log_likelihood, {"reconstruction": -log_likelihood})


def _draw(model: LatentVariableModel, x: Tensor, num_samples: int) -> tuple[Distribution, Distribution, Tensor, Tensor]:
    """Return q(z|x), p(z), K draws z (K, B, d) from q, and log p(x|z) (K, B)."""
    size = torch.Size([positive_int("num_samples", num_samples)])
    q, prior = model.posterior(x), model.prior
    check_latent(q, prior, len(x))
    z = _samples(q, size)  # (K, B, d)
    return q, prior, z, log_likelihood_of(model.likelihood(z), size + q.batch_shape, x)


def _samples(q: Distribution, size: torch.Size) -> Tensor:
    """Return reparameterized samples, or any samples where no gradient is recorded."""
    try:
        return q.rsample(size)
    except NotImplementedError:
        if not torch.is_grad_enabled():
            return q.sample(size)
    kind = type(getattr(q, "base_dist", q)).__name__
    raise ValueError(
        f"posterior(x) is a {kind}, which has no reparameterized samples (rsample), so no gradient would reach it; "
        "train it with gradients.score_function, or evaluate it within torch.no_grad()"
    )


def _check_beta(beta: float | Tensor, n: int) -> None:
    if isinstance(beta, Tensor):
        if beta.shape not in ((), (1,), (n,)):
            raise ValueError(f"beta must be a number or a tensor of shape () or ({n},), got {tuple(beta.shape)}")
        bad = can_read_values(beta) and not ((beta >= 0) & (beta < inf)).all()
    else:
        bad = not 0 <= beta < inf
    if bad:
        raise ValueError(f"beta must be finite and not negative, got {beta!r}".replace("\n", ""))
