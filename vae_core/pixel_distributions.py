"""Distributions of pixel values and counts that `torch.distributions` lacks or computes inaccurately in float32."""

from math import log, pi
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, constraints
from torch.nn.functional import logsigmoid, softplus
from torch.utils.checkpoint import checkpoint

Shape = torch.Size | list[int] | tuple[int, ...]
IMAGE_DIMS = 3  # C, H, W: the event of an image
CHUNK = 2**20  # probabilities held in memory at once when a mean is computed


def outside_cuda_graph(x: Tensor) -> bool:
    """Return whether the values of `x` can be read: there are none yet while a CUDA graph is being captured."""
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def bounded_scale(log_scale: Tensor) -> Tensor:
    """Return exp(log_scale), clamped so that its fourth power neither over- nor underflows: to exp(±17) in float32.

    Beyond this a squared error divided by the variance, or its gradient, would not be finite.
    """
    limit = -0.2 * log(torch.finfo(log_scale.dtype).tiny)
    return log_scale.clamp(-limit, limit).exp()


class ContinuousBernoulli(Distribution):
    r"""The density on [0, 1] proportional to the Bernoulli formula, given its logit :math:`\ell`.

    .. math:: \log p(x) = x\ell - \log(1+e^\ell) + \log C, \quad C = \frac{\ell}{\tanh(\ell/2)} \ge 2, \qquad
              \mathbb E[x] = \frac1{1-e^{-\ell}} - \frac1\ell

    torch's own class computes with λ = s(ℓ), which rounds to 1 in float32: at ℓ = 20 its constant is lost. The C here
    is the paper's :math:`2\tanh^{-1}(1-2\lambda)/(1-2\lambda)` with :math:`1-2\lambda=-\tanh(\ell/2)` substituted.

    Args:
        logits: ℓ, any shape; that is the batch shape, and the event shape is ().

    Source: Loaiza-Ganem and Cunningham (2019), eq. (5) to (8).
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.unit_interval

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        small = logits.abs() < 1e-2  # near 0, where both formulas are 0/0, their series are used
        self._small, self._safe = small, torch.where(small, torch.ones_like(logits), logits)
        super().__init__(logits.shape, validate_args=False)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats for x in [0, 1], elementwise."""
        square = self.logits.square()
        series = log(2) + square / 12 - 7 * square.square() / 1440
        constant = torch.where(self._small, series, torch.log(self._safe / torch.tanh(self._safe / 2)))
        cross_entropy = x * softplus(-self.logits) + (1 - x) * softplus(self.logits)  # without cancellation
        return constant - cross_entropy

    @property
    def mean(self) -> Tensor:
        """E[x], elementwise."""
        exact = 0.5 + 0.5 / torch.tanh(self._safe / 2) - 1 / self._safe  # its gradient is finite where e^{-ℓ} overflows
        return torch.where(self._small, 0.5 + self.logits / 12 - self.logits**3 / 720, exact)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Return samples by inverting the distribution function, x = log(1 + u(e^ℓ − 1))/ℓ for uniform u."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
            size = self._safe.abs()  # a negative ℓ mirrors the density: 1 − x has the logit −ℓ
            x = 1 + torch.log(u + (1 - u) * torch.exp(-size)) / size
            x = x.clamp(0, 1)  # the logarithm is −∞ where u and the exponential are both 0
            return torch.where(self._small, u, torch.where(self.logits > 0, x, 1 - x))


class LevelConstraint(constraints.Constraint):
    """The constraint that a value is one of k/(L−1), k = 0, …, L−1, up to a thousandth of their spacing."""

    is_discrete = True

    def __init__(self, num_levels: int) -> None:
        self.num_levels = num_levels

    def check(self, value: Tensor) -> Tensor:
        """Return, for each value, whether it is a level."""
        last = self.num_levels - 1
        index = (value * last).round()
        near = torch.isclose(index / last, value, atol=1e-3 / self.num_levels)
        return (index >= 0) & (index <= last) & near


class _Levels(Distribution):
    """Base of distributions over 0, 1/(L−1), …, 1; the last `event_dims` axes of `shape` are one datum."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, shape: torch.Size, num_levels: int, event_dims: int) -> None:
        self.num_levels, self.event_dims = num_levels, event_dims
        batch = len(shape) - event_dims
        super().__init__(shape[:batch], shape[batch:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The constraint on one datum; its `base_constraint` is that on one value."""
        return constraints.independent(LevelConstraint(self.num_levels), self.event_dims)

    def level(self, x: Tensor) -> Tensor:
        """Return the index k of each value k/(L−1) of `x`.

        Inside a CUDA graph the values cannot be checked and are rounded to the nearest level; `training.fit` checks the
        data before it captures a graph.

        Raises:
            ValueError: A value of `x` is not a level.
        """
        last = self.num_levels - 1
        index = (x * last).round()
        if not outside_cuda_graph(x):
            return index.nan_to_num(0).clamp(0, last)  # a valid index for any x
        if not LevelConstraint(self.num_levels).check(x).all():
            raise ValueError(f"x must hold the {self.num_levels} values k/{last}, got others")
        return index

    def _sum(self, values: Tensor) -> Tensor:
        """Return the sum over one datum: (..., *event) -> (...)."""
        return values.flatten(-self.event_dims).sum(-1) if self.event_dims else values


class DiscretizedLogistic(_Levels):
    r"""Logistic variables with mean μ and scale s, rounded to L levels; values beyond the ends become 0 or 1.

    .. math:: P(x) = \operatorname{sigmoid}\big(\tfrac{x+h-\mu}{s}\big)
              - \operatorname{sigmoid}\big(\tfrac{x-h-\mu}{s}\big), \qquad h = \tfrac1{2(L-1)}

    where the first term is 1 for x = 1 and the second is 0 for x = 0. −log P(x)/(D log 2) is in bits per dimension.

    Args:
        mean: μ (..., *event).
        log_scale: log s, same shape; clamped by `bounded_scale`.
        num_levels: L.
        event_dims: The number of last axes that form one datum, 3 for images.

    Source: Kingma et al. (2016) §5.3 and appendix B; Salimans et al. (2017).
    """

    def __init__(self, mean: Tensor, log_scale: Tensor, num_levels: int = 256, event_dims: int = IMAGE_DIMS) -> None:
        super().__init__(mean.shape, num_levels, event_dims)
        self.location, self.half = mean, 0.5 / (num_levels - 1)
        self.scale = bounded_scale(log_scale)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log P(x) in nats, (..., *event) -> (...).

        Raises:
            ValueError: A value of `x` is not a level (not checked inside a CUDA graph).
        """
        level = self.level(x)
        above, below = ((x + side * self.half - self.location) / self.scale for side in (1, -1))
        log_cdf = logsigmoid(above).where(level < self.num_levels - 1, torch.zeros_like(above))
        log_tail = logsigmoid(-below).where(level > 0, torch.zeros_like(below))
        inside = (level > 0) & (level < self.num_levels - 1)  # sigmoid s: s(a) − s(b) = s(a) s(−b) (1 − exp(b − a))
        width = torch.log(-torch.expm1(-2 * self.half / self.scale)).expand_as(log_cdf)
        return self._sum(log_cdf + log_tail + width * inside)

    @property
    def mean(self) -> Tensor:
        """E[x] (..., *event), the mean of P(x > edge) over the L − 1 edges between levels, in bounded memory."""
        values = CHUNK // self.num_levels
        parts = zip(self.location.flatten().split(values), self.scale.flatten().split(values), strict=True)
        means = [
            checkpoint(self._chunk_of_mean, *part, use_reentrant=False, preserve_rng_state=False) for part in parts
        ]
        return torch.cat(means).reshape(self.location.shape) if means else self.location

    def _chunk_of_mean(self, location: Tensor, scale: Tensor) -> Tensor:
        edges = (torch.arange(self.num_levels - 1, device=location.device) + 0.5) / (self.num_levels - 1)
        return torch.sigmoid((location[:, None] - edges) / scale[:, None]).mean(-1)  # (N, L − 1) -> (N,)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Return samples (*sample_shape, ..., *event): logistic variables, clipped and rounded."""
        with torch.no_grad():
            u = torch.rand(
                self._extended_shape(torch.Size(sample_shape)), device=self.scale.device, dtype=self.scale.dtype
            )
            x = (self.location + self.scale * torch.logit(u, eps=1e-6)).clamp(0, 1)
            return (x * (self.num_levels - 1)).round() / (self.num_levels - 1)


class GreyLevels(_Levels):
    r"""Independent categorical values, each with a free probability for each of L levels.

    .. math:: \log p(x|z) = \sum_j \log\operatorname{softmax}(\ell_j)_{k(x_j)}, \qquad x_j = k/(L-1)

    The model does not use the order of the levels.

    Args:
        logits: ℓ (..., L, *event).
        event_dims: The number of last axes that form one datum, 3 for images.

    Source: Chen §3.5 (categorical); van den Oord et al. (2016).
    """

    def __init__(self, logits: Tensor, event_dims: int = IMAGE_DIMS) -> None:
        levels_last = logits.movedim(-1 - event_dims, -1)  # (..., *event, L)
        super().__init__(levels_last.shape[:-1], levels_last.shape[-1], event_dims)
        self.base = Categorical(logits=levels_last, validate_args=False)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log P(x) in nats, (..., *event) -> (...).

        Raises:
            ValueError: A value of `x` is not a level (not checked inside a CUDA graph).
        """
        return self._sum(self.base.log_prob(self.level(x)))

    @property
    def mean(self) -> Tensor:
        """E[x], (..., *event)."""
        values = torch.linspace(0, 1, self.num_levels, dtype=self.base.probs.dtype, device=self.base.probs.device)
        return (self.base.probs * values).sum(-1)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Return samples (*sample_shape, ..., *event)."""
        level: Tensor = self.base.sample(torch.Size(sample_shape))
        return level / (self.num_levels - 1)


class NegativeBinomial(torch.distributions.NegativeBinomial):
    r"""Counts x = 0, 1, 2, … with dispersion r and mean m, from r and log m.

    .. math:: \log P(x) &= \tfrac12\log\frac{r}{2\pi x(x+r)} + \delta(x+r) - \delta(r) - \delta(x)
              - r\,f(u) - x\,f\big(-\tfrac{ru}x\big), \\
              u &= \frac{x-m}{r+m}, \qquad f(t) = t - \log(1+t) \ge 0,

    and −r log(1 + m/r) at x = 0; δ(n) = log n! − (n + ½) log n + n − ½ log 2π is the error of Stirling's formula. This
    equals the usual :math:`\log\binom{x+r-1}x + r\log\frac r{r+m} + x\log\frac m{r+m}` but has no differences of large
    numbers, which in float32 lose 0.5 nats at r = 10⁷ or at counts of a million. The error here is a few units in the
    last place of log P(x) and of m.

    Args:
        dispersion: r > 0.
        log_mean: log m; same shape, which is the batch shape. The event shape is ().

    Source: Loader (2000), the saddle-point form of the binomial distribution.
    """

    def __init__(self, dispersion: Tensor, log_mean: Tensor) -> None:
        self.log_mean = log_mean
        super().__init__(dispersion, logits=log_mean - dispersion.log(), validate_args=False)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "NegativeBinomial":
        """Return the same distribution with a larger batch shape."""
        return NegativeBinomial(self.total_count.expand(batch_shape), self.log_mean.expand(batch_shape))

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log P(x) in nats, elementwise."""
        r, log_odds = self.total_count, self.logits
        m = self.log_mean.clamp(max=60).exp()  # finite; for larger m the terms below use log m alone
        n = torch.where(x > 0, x, torch.ones_like(x))  # x = 0 has its own formula
        u = (n - m) / (r + m)
        misfit = r * _excess(u, torch.log1p(n / r) - softplus(log_odds))
        misfit = misfit + n * _excess(-r * u / n, torch.log1p(r / n) - softplus(-log_odds))
        peak = 0.5 * (r / (n + r) / n / (2 * pi)).log() + _stirling_error(n + r) - _stirling_error(r)
        return torch.where(x > 0, peak - _stirling_error(n) - misfit, -r * softplus(log_odds))


def _excess(t: Tensor, log_1p: Tensor) -> Tensor:
    """Return t − log(1 + t), given log(1 + t): for small t by the series of log(1 + t) = 2 artanh(t/(2 + t))."""
    small = t.abs() < 0.1
    near = torch.where(small, t, torch.zeros_like(t))
    s = near / (2 + near)
    series = torch.zeros_like(s)
    for k in range(6, 0, -1):
        series = s * s * (series + 2 / (2 * k + 1))
    return torch.where(small, s * (near - series), t - log_1p)


def _stirling_error(n: Tensor) -> Tensor:
    """Return δ(n) = log n! − (n + ½) log n + n − ½ log 2π for n > 0, to 10⁻¹³: by its series for n ≥ 10."""
    ten = torch.full_like(n, 10.0)  # created on the device: a CUDA graph cannot copy it from the host
    few, many = torch.where(n < 10, n, ten), torch.where(n < 10, ten, n)
    exact = torch.lgamma(few + 1) - (few + 0.5) * few.log() + few - 0.5 * log(2 * pi)
    series = torch.zeros_like(many)
    for coefficient in (1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        series = series / many.square() + coefficient
    return torch.where(n < 10, exact, series / many)
