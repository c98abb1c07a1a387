r"""Estimators of :math:`\nabla_\lambda\,\mathbb E_{q_\lambda(z)}[f(z)]`, each as a surrogate to differentiate.

`estimator(f, q, num_samples, …)` draws z (K, B, d) from q, batch (B,), event (d,), calls `f(z)` for (K, B) values, and
returns one number per batch element, (B,). Its value estimates E_q[f(z)], or for `doubly_reparameterized` the
importance-weighted bound. Its autograd gradient is the estimator, in the parameters of q and any others of f.

With f(z) = log p(x,z) − log q(z) that is the ELBO, in nats. All raise ValueError unless `num_samples` is a positive
integer and f returns one value for each draw and batch element of q. This also catches a q that lacks its event
dimension, with batch (B, d) instead. Below, f maps z (K, B, d) to (K, B), q has batch (B,) and event (d,), and
`num_samples` is K.
"""

from collections.abc import Callable, Sequence
from math import isfinite, log
from numbers import Real

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent

from vae_core._checks.model_outputs import check_shape, values_of
from vae_core._detached import without_gradients
from vae_core.distributions import shapes_broadcast
from vae_core.runtime import gradients_recorded, positive_int

Function = Callable[[Tensor], Tensor]


def score_function(
    f: Function,
    q: Distribution,
    num_samples: int = 1,
    baseline: float | Tensor | str = 0.0,
    control_variate: tuple[Function, Float[Tensor, "*B"]] | None = None,
) -> Float[Tensor, "*B"]:
    r"""Return the score-function estimator (REINFORCE): f may be any function, even a step, and z may be discrete.

    .. math:: \frac1K\sum_k\big(f(z_k)-c\big)\nabla_\lambda\log q_\lambda(z_k) + \nabla_\lambda f(z_k)|_{z_k},
              \qquad z_k\sim q_\lambda

    If f contains log q itself, the last term is −1 times the score, whose mean is 0; use `stop_gradient(q)` in f to
    remove it.

    Args:
        f: maps z (K, B, d) to (K, B).
        q: batch (B,), event (d,).
        num_samples: K.
        baseline: c, which does not change the mean because the score has mean 0: a finite number, a tensor (B,), which
            may depend on the input x but not on z, or `"leave-one-out"`, the mean of the other K − 1 values of f.
        control_variate: (h, E_q[h]): h(z) is subtracted from f(z), and the gradient of its mean added, a tensor (B,)
            that is differentiable in λ; see `taylor_control_variate`.

    Returns:
        shape (B,).

    Raises:
        ValueError: for another baseline or control variate, or for leave-one-out with one sample.

    Source: Chen §3.3 (without its misprint); Williams (1992); baselines: Mnih and Gregor (2014), Kool et al. (2019);
    Paisley et al. (2012).
    """
    z = q.sample(_size(num_samples))
    values, log_q = values_of(f, z, q), q.log_prob(z)
    if not values.is_floating_point():  # a step function may return integers or booleans
        values = values.to(log_q.dtype)
    weight, mean = values.detach(), torch.zeros_like(values[0])
    if control_variate is not None:
        h, mean = control_variate
        check_shape("the mean of control_variate", mean, q.batch_shape)
        weight, mean = weight - values_of(h, z, q, "control_variate").detach(), mean - mean.detach()
    weight = weight - _baseline(weight, baseline)
    return (values + weight * (log_q - log_q.detach())).mean(0) + mean


def pathwise(
    f: Function, q: Distribution, num_samples: int = 1, draw: Callable[[Distribution, int], Tensor] | None = None
) -> Float[Tensor, "*B"]:
    r"""Return the pathwise (reparameterized) estimator, for an f that is differentiable almost everywhere.

    .. math:: \frac1K\sum_k\nabla_\lambda f\big(g_\lambda(\epsilon_k)\big), \qquad z=g_\lambda(\epsilon)\sim q_\lambda

    If f jumps, the result is wrong without a warning: the derivative of a step function is 0 almost everywhere.

    Args:
        f: maps z (K, B, d) to (K, B).
        q: batch (B,), event (d,).
        num_samples: K.
        draw: `draw(q, K)` returns z as a function of λ: `location_scale` (the default), `inverse_cdf`, `implicit`.

    Raises:
        ValueError: if q has no such path.

    Source: Chen §3.4; Kingma and Welling (2014) §2.4.
    """
    return values_of(f, (draw or location_scale)(q, num_samples), q).mean(0)


def location_scale(q: Distribution, num_samples: int) -> Float[Tensor, " K *z"]:
    r"""Return z = μ + σ ⊙ ε, or z = μ + Lε with Σ = LLᵀ, or another draw by torch's `rsample`: (K, B, d).

    Raises:
        ValueError: if q has no `rsample`.

    Source: Chen §3.4.
    """
    if not q.has_rsample:
        raise ValueError(f"{_name(q)} has no reparameterized samples; use score_function, or another draw")
    return q.rsample(_size(num_samples))


def inverse_cdf(q: Distribution, num_samples: int) -> Float[Tensor, " K *z"]:
    r"""Return z = F⁻¹(u) with u uniform on the unit cube, coordinate by coordinate: (K, B, d).

    Raises:
        ValueError: if q has no `icdf`.

    Source: Chen §3.4.
    """
    base, size = _coordinates(q), _size(num_samples)
    like = _example(base)
    u = torch.rand(size + base.batch_shape + base.event_shape, dtype=like.dtype, device=like.device)
    try:
        return base.icdf(u.clamp(min=torch.finfo(u.dtype).eps / 2))  # u can be 0, where F⁻¹ may be −∞, but never 1
    except NotImplementedError:
        raise ValueError(f"{_name(q)} has no inverse distribution function; use another draw") from None


def implicit(q: Distribution, num_samples: int) -> Float[Tensor, " K *z"]:
    r"""Return a plain sample with a derivative from its distribution function, one coordinate at a time: (K, B, d).

    .. math:: F_\lambda(z) = u \text{ for fixed } u \quad\Rightarrow\quad
              \frac{\partial z}{\partial\lambda} = -\frac{\partial F_\lambda(z)/\partial\lambda}{q_\lambda(z)}

    Raises:
        ValueError: if q has no `cdf`; torch raises NotImplementedError, at the backward pass, for a parameter in which
            its cdf has no derivative (a Gamma's concentration: `location_scale` has that one).

    Source: Figurnov, Mohamed and Mnih (2018) eq. (6).
    """
    base = _coordinates(q)
    z = base.sample(_size(num_samples))
    try:
        u = base.cdf(z)
    except NotImplementedError:
        raise ValueError(f"{_name(q)} has no distribution function; use another draw") from None
    return z - (u - u.detach()) / base.log_prob(z).detach().exp()


def sticking_the_landing(f: Function, q: Distribution, num_samples: int = 1) -> Float[Tensor, "*B"]:
    r"""Return the path gradient of the ELBO without the score term, for f(z) = log p(x, z); nats.

    .. math:: \frac1K\sum_k\nabla_z\big[\log p(x,z_k)-\log q_\lambda(z_k)\big]\,\nabla_\lambda z_k

    What is left out, −∇_λ log q_λ(z) at fixed z, has mean 0. At q = p(z|x) the gradient is 0 for every single draw.

    Raises:
        ValueError: if q has no `rsample`, or cannot be detached (`stop_gradient`).

    Source: Roeder, Wu and Duvenaud (2017) eq. (8).
    """
    z, fixed = location_scale(q, num_samples), stop_gradient(q)
    return (values_of(f, z, q) - fixed.log_prob(z)).mean(0)


def doubly_reparameterized(f: Function, q: Distribution, num_samples: int) -> Float[Tensor, "*B"]:
    r"""Return the importance-weighted bound, for f(z) = log p(x, z), with the doubly reparameterized gradient.

    .. math:: \sum_k \tilde w_k^2\,\nabla_z\log w_k\,\nabla_\lambda z_k, \qquad w_k=\frac{p(x,z_k)}{q_\lambda(z_k)},
              \quad \tilde w_k=\frac{w_k}{\sum_l w_l}

    The gradient in the parameters of p is Σ w̃ ∇ log w, as usual. K = 1 is `sticking_the_landing`. The value is the
    bound, in nats. Arguments and errors are those of `sticking_the_landing`.

    Source: Tucker, Lawson, Gu and Maddison (2019) eq. (8); the bound: Burda et al. (2016).
    """
    z = location_scale(q, num_samples)
    log_w = values_of(f, z, q) - stop_gradient(q).log_prob(z)
    share = log_w.detach().softmax(0)  # w̃
    if z.requires_grad:  # the second factor w̃, for the gradient through z
        each = share.reshape(share.shape + (1,) * len(q.event_shape))
        z.register_hook(lambda gradient: each * gradient)
    surrogate = (share * log_w).sum(0)
    return surrogate - surrogate.detach() + log_w.detach().logsumexp(0) - log(len(z))


def taylor_control_variate(f: Function, q: Independent) -> tuple[Function, Float[Tensor, "*B"]]:
    r"""Return a control variate for `score_function`: f's diagonal second-order Taylor expansion about the mean of q.

    .. math:: h(z)=\sum_j f_j'(m)(z_j-m_j)+\tfrac12 f_{jj}''(m)(z_j-m_j)^2, \qquad
              \mathbb E_q[h]=\sum_j f_j'(m)(\mu_j-m_j)+\tfrac12 f_{jj}''(m)\big((\mu_j-m_j)^2+\sigma_j^2\big)

    m is μ, held fixed. It takes d + 1 derivatives of f, which must be twice differentiable.

    Returns:
        (h, E_q[h]), where h maps (K, B, d) to (K, B) and E_q[h] has shape (B,).

    Source: Paisley, Blei and Jordan (2012) §3; Miller et al. (2017).
    """
    with gradients_recorded():
        m = q.mean.detach().clone().requires_grad_()
        (gradient,) = _derivatives(values_of(f, m[None], q), [m], create_graph=True)
        columns = [_derivatives(gradient[..., j], [m], retain_graph=True)[0][..., j] for j in range(m.shape[-1])]
    m, gradient, curvature = m.detach(), gradient.detach(), torch.stack(columns, -1)

    def h(z: Tensor) -> Tensor:
        return (gradient * (z - m) + 0.5 * curvature * (z - m).square()).sum(-1)

    return h, (gradient * (q.mean - m) + 0.5 * curvature * ((q.mean - m).square() + q.variance)).sum(-1)


def stop_gradient(q: Distribution) -> Distribution:
    """Return the same distribution with parameters through which no gradient flows.

    The parameters of networks inside its transforms (a normalising flow) are detached too.

    Raises:
        ValueError: if the density still carries a gradient, for example of tensors in a function's closure.
    """
    return without_gradients(q)


def replicates(surrogate: Callable[..., Tensor], parameters: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """Return `count` independent estimates of the gradient in each parameter: for bias, variance, error.

    Args:
        surrogate: `surrogate(*parameters)` gets `count` copies of each parameter stacked in front, its batch, and
            returns (count, …), one estimator per copy, or several whose gradients add:
            `lambda mean, log_variance: pathwise(f, diagonal_normal(mean, log_variance))`.
        parameters: tensors of any shapes.
        count: the number of estimates.

    Returns:
        for each parameter a tensor (count, *its shape).

    Raises:
        ValueError: unless count is a positive integer and the surrogate returns that many values.
    """
    n = positive_int("count", count)
    with gradients_recorded():
        copies = [value.detach().expand(n, *value.shape).clone().requires_grad_() for value in parameters]
        value = surrogate(*copies)
        if value.shape[:1] != (n,):
            raise ValueError(f"surrogate must return one value for each of {n} copies, got {tuple(value.shape)}")
        return _derivatives(value, copies)


def _size(num_samples: int) -> torch.Size:
    return torch.Size([positive_int("num_samples", num_samples)])


def _derivatives(
    value: Tensor, of: Sequence[Tensor], retain_graph: bool | None = None, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """The gradients of value.sum(); zeros where `value` does not depend on one."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(each) for each in of)
    return torch.autograd.grad(value.sum(), of, None, retain_graph, create_graph, materialize_grads=True)


def _baseline(values: Tensor, baseline: float | Tensor | str) -> float | Tensor:
    if isinstance(baseline, Tensor):
        batch = values.shape[1:]
        if not shapes_broadcast(batch, baseline.shape, onto=batch):
            shapes = f"{tuple(batch)}, one for each batch element of q, got {tuple(baseline.shape)}"
            raise ValueError(f"baseline must have shape () or {shapes}")
        return baseline.detach()
    if isinstance(baseline, Real) and not isinstance(baseline, bool) and isfinite(baseline):
        return float(baseline)
    if not isinstance(baseline, str) or baseline != "leave-one-out":
        raise ValueError(f"baseline must be a number, a tensor or 'leave-one-out', got {baseline!r}")
    if len(values) < 2:
        raise ValueError("baseline 'leave-one-out' needs num_samples of at least 2, got 1")
    return (values.sum(0) - values) / (len(values) - 1)


def _coordinates(q: Distribution) -> Distribution:
    """Return the distribution of single coordinates, with event ()."""
    return q.base_dist if isinstance(q, Independent) else q


def _example(q: Distribution) -> Tensor:
    """Return a tensor with the dtype and device of q's draws; its mean where torch has it, so that none is drawn."""
    try:
        return q.mean
    except NotImplementedError:
        return q.sample()


def _name(q: Distribution) -> str:
    return type(_coordinates(q)).__name__
