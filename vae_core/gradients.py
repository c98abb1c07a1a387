r"""Estimators of :math:`\nabla_\lambda\,\mathbb E_{q_\lambda(z)}[f(z)]`, each as a surrogate to differentiate.

`estimator(f, q, num_samples, …)` draws z (K, B, d) from q, batch (B,), event (d,), calls `f(z)` for (K, B) values, and
returns one number per batch element, (B,). Its value estimates E_q[f(z)] (for `doubly_reparameterized` the bound that
it is about); its autograd gradient is the estimator, for the parameters of q and for those that f depends on besides.

With f(z) = log p(x,z) − log q(z) that is the ELBO, in nats. All raise ValueError unless `num_samples` is a positive
integer.
"""

import copy
from collections.abc import Callable, Sequence
from math import log
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Transform
from torch.distributions.transforms import _InverseTransform

Function = Callable[[Tensor], Tensor]


def score_function(
    f: Function,
    q: Distribution,
    num_samples: int = 1,
    baseline: float | Tensor | str = 0.0,
    control_variate: tuple[Function, Tensor] | None = None,
) -> Tensor:
    r"""The score-function estimator (REINFORCE): f may be anything, also a step, and z discrete. (B,)

    .. math:: \frac1K\sum_k\big(f(z_k)-c\big)\nabla_\lambda\log q_\lambda(z_k) + \nabla_\lambda f(z_k)|_{z_k},
              \qquad z_k\sim q_\lambda

    The baseline c does not move the mean, because the score has mean 0: a number, a tensor (B,), which may depend on
    the input x but not on z, or `"leave-one-out"`, the mean of the other K − 1 values of f.
    A `control_variate` (h, E_q[h]) first subtracts h(z) from f(z), and adds the gradient of its mean, a tensor (B,)
    that is differentiable in λ; see `taylor_control_variate`. If f contains log q itself, the last term is the famous
    −1 times the score, of mean 0; put `stop_gradient(q)` into f to be rid of it.

    Raises ValueError for another baseline, or for leave-one-out with one sample. Source: Chen §3.3 (without its
    misprint); Williams (1992); baselines: Mnih and Gregor (2014), Kool et al. (2019); Paisley et al. (2012).
    """
    z = q.sample(_size(num_samples))
    values, log_q = f(z), q.log_prob(z)
    if not values.is_floating_point():  # a step's are whole numbers, or true and false
        values = values.to(log_q.dtype)
    weight, mean = values.detach(), torch.zeros_like(values[0])
    if control_variate is not None:
        h, mean = control_variate
        weight, mean = weight - h(z).detach(), mean - mean.detach()
    weight = weight - _baseline(weight, baseline)
    return (values + weight * (log_q - log_q.detach())).mean(0) + mean


def pathwise(
    f: Function, q: Distribution, num_samples: int = 1, draw: Callable[[Distribution, int], Tensor] | None = None
) -> Tensor:
    r"""The pathwise (reparameterized) estimator, for an f that is differentiable, or nearly everywhere so. (B,)

    .. math:: \frac1K\sum_k\nabla_\lambda f\big(g_\lambda(\epsilon_k)\big), \qquad z=g_\lambda(\epsilon)\sim q_\lambda

    `draw(q, K)` makes z a function of λ: `location_scale` (the default), `inverse_cdf`, `implicit`.
    Wrong without a warning where f jumps: a step function's derivative is 0 almost everywhere.
    Raises ValueError if q has no such path. Source: Chen §3.4; Kingma and Welling (2014) §2.4.
    """
    return f((draw or location_scale)(q, num_samples)).mean(0)


def location_scale(q: Distribution, num_samples: int) -> Tensor:
    r"""z = μ + σ ⊙ ε or z = μ + Lε with Σ = LLᵀ, and whatever else torch's own `rsample` knows: (K, B, d).

    Raises ValueError if q has no `rsample`. Source: Chen §3.4.
    """
    if not q.has_rsample:
        raise ValueError(f"{_name(q)} has no reparameterized samples; use score_function, or another draw")
    return q.rsample(_size(num_samples))


def inverse_cdf(q: Distribution, num_samples: int) -> Tensor:
    r"""z = F⁻¹(u) with u uniform on the unit cube, coordinate by coordinate: (K, B, d).

    Raises ValueError if q has no `icdf`. Source: Chen §3.4.
    """
    base, size = _factors(q), _size(num_samples)
    like = _one_of(base)
    u = torch.rand(size + base.batch_shape + base.event_shape, dtype=like.dtype, device=like.device)
    try:
        return base.icdf(u.clamp(min=torch.finfo(u.dtype).eps / 2))  # 0 can be drawn, 1 cannot: its place is infinite
    except NotImplementedError:
        raise ValueError(f"{_name(q)} has no inverse distribution function; use another draw") from None


def implicit(q: Distribution, num_samples: int) -> Tensor:
    r"""A plain sample whose derivative comes from its distribution function, coordinate by coordinate: (K, B, d).

    .. math:: F_\lambda(z) = u \text{ for fixed } u \quad\Rightarrow\quad
              \frac{\partial z}{\partial\lambda} = -\frac{\partial F_\lambda(z)/\partial\lambda}{q_\lambda(z)}

    Raises ValueError if q has no `cdf`; torch raises NotImplementedError, at the backward pass, for a parameter in
    which its cdf has no derivative (a Gamma's concentration: `location_scale` knows that one). Source: Figurnov,
    Mohamed and Mnih (2018) eq. (6).
    """
    base = _factors(q)
    z = base.sample(_size(num_samples))
    try:
        u = base.cdf(z)
    except NotImplementedError:
        raise ValueError(f"{_name(q)} has no distribution function; use another draw") from None
    return z - (u - u.detach()) / base.log_prob(z).detach().exp()


def sticking_the_landing(f: Function, q: Distribution, num_samples: int = 1) -> Tensor:
    r"""The path gradient of the ELBO without the score term, for f(z) = log p(x, z). (B,), nats.

    .. math:: \frac1K\sum_k\nabla_z\big[\log p(x,z_k)-\log q_\lambda(z_k)\big]\,\nabla_\lambda z_k

    What is left out, −∇_λ log q_λ(z) at fixed z, has mean 0. At q = p(z|x) the gradient is 0 for every single draw.
    Source: Roeder, Wu and Duvenaud (2017) eq. (8).
    """
    fixed = stop_gradient(q)
    return pathwise(lambda z: f(z) - fixed.log_prob(z), q, num_samples)


def doubly_reparameterized(f: Function, q: Distribution, num_samples: int) -> Tensor:
    r"""The importance-weighted bound with K draws, for f(z) = log p(x, z), by the doubly reparameterized gradient. (B,)

    .. math:: \sum_k \tilde w_k^2\,\nabla_z\log w_k\,\nabla_\lambda z_k, \qquad w_k=\frac{p(x,z_k)}{q_\lambda(z_k)},
              \quad \tilde w_k=\frac{w_k}{\sum_l w_l}

    The parameters of p get Σ w̃ ∇ log w, as usual. K = 1 is `sticking_the_landing`. The value is the bound, in nats.
    Source: Tucker, Lawson, Gu and Maddison (2019) eq. (8); the bound: Burda et al. (2016).
    """
    z = location_scale(q, num_samples)
    log_w = f(z) - stop_gradient(q).log_prob(z)
    share = log_w.detach().softmax(0)  # w̃
    if z.requires_grad:
        z.register_hook(lambda gradient: share.unsqueeze(-1) * gradient)  # the second w̃, for what comes through z
    surrogate = (share * log_w).sum(0)
    return surrogate - surrogate.detach() + log_w.detach().logsumexp(0) - log(num_samples)


def taylor_control_variate(f: Function, q: Independent) -> tuple[Function, Tensor]:
    r"""A control variate for `score_function`: f's second-order expansion about the mean m of q, diagonal terms only.

    .. math:: h(z)=\sum_j f_j'(m)(z_j-m_j)+\tfrac12 f_{jj}''(m)(z_j-m_j)^2, \qquad
              \mathbb E_q[h]=\sum_j f_j'(m)(\mu_j-m_j)+\tfrac12 f_{jj}''(m)\big((\mu_j-m_j)^2+\sigma_j^2\big)

    m is μ, held fixed. Returns (h, E_q[h]); f must be twice differentiable, q a factorised Gaussian. Costs d + 1
    derivatives of f. Source: Paisley, Blei and Jordan (2012) §3; Miller et al. (2017).
    """
    m = q.mean.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = _derivatives(f(m[None]), [m], create_graph=True)
        columns = [_derivatives(slope[..., j], [m], retain_graph=True)[0][..., j] for j in range(m.shape[-1])]
    m, slope, curvature = m.detach(), slope.detach(), torch.stack(columns, -1)

    def h(z: Tensor) -> Tensor:
        return (slope * (z - m) + 0.5 * curvature * (z - m).square()).sum(-1)

    return h, (slope * (q.mean - m) + 0.5 * curvature * ((q.mean - m).square() + q.variance)).sum(-1)


def stop_gradient(q: Distribution) -> Distribution:
    """The same distribution with parameters that gradients do not flow into; as plain as a constant."""
    return _detached(q)


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, list):
        return [_detached(part) for part in value]
    if isinstance(value, _InverseTransform):
        return _detached(value.inv).inv
    if isinstance(value, Distribution | Transform):
        fixed = copy.copy(value)  # of a Transform: without the inverse that it knows
        if isinstance(fixed, Transform):
            fixed._cached_x_y = None, None  # and without its last pair of values, which hang in their graph
        for name, part in vars(fixed).items():
            setattr(fixed, name, _detached(part))
        return fixed
    return value


def replicates(surrogate: Callable[..., Tensor], parameters: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """`count` independent estimates of the gradient in each parameter, (count, *shape): for bias, variance, error.

    `surrogate(*parameters)` gets `count` copies of each parameter stacked in front, its batch, and returns (count,),
    one estimator per copy: `lambda mean, log_variance: pathwise(f, diagonal_normal(mean, log_variance))`.
    """
    copies = [value.detach().expand(count, *value.shape).clone().requires_grad_() for value in parameters]
    return _derivatives(surrogate(*copies), copies)


def _size(num_samples: int) -> torch.Size:
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be a positive integer, got {num_samples!r}")
    return torch.Size([num_samples])


def _derivatives(value: Tensor, of: Sequence[Tensor], **options) -> tuple[Tensor, ...]:
    """The gradients of value.sum(); zeros where `value` does not depend on one."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(each) for each in of)
    slopes = torch.autograd.grad(value.sum(), of, allow_unused=True, **options)
    return tuple(torch.zeros_like(each) if slope is None else slope for each, slope in zip(of, slopes, strict=True))


def _baseline(values: Tensor, baseline: float | Tensor | str) -> float | Tensor:
    if isinstance(baseline, Tensor):
        return baseline.detach()
    if isinstance(baseline, Real) and not isinstance(baseline, bool):
        return float(baseline)
    if not isinstance(baseline, str) or baseline != "leave-one-out":
        raise ValueError(f"baseline must be a number, a tensor or 'leave-one-out', got {baseline!r}")
    if len(values) < 2:
        raise ValueError("baseline 'leave-one-out' needs num_samples of at least 2, got 1")
    return (values.sum(0) - values) / (len(values) - 1)


def _factors(q: Distribution) -> Distribution:
    """The law of the single coordinates."""
    return q.base_dist if isinstance(q, Independent) else q


def _one_of(q: Distribution) -> Tensor:
    """A tensor of the precision and on the device of its draws; none is made where the law knows its mean."""
    try:
        return q.mean
    except NotImplementedError:
        return q.sample()


def _name(q: Distribution) -> str:
    return type(_factors(q)).__name__
