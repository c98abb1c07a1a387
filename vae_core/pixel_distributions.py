"""Laws of pixels, grey values or counts, that `torch.distributions` does not have, or not in 32 bits."""

from math import log
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, constraints
from torch.nn.functional import logsigmoid, softplus

Shape = torch.Size | list[int] | tuple[int, ...]
IMAGE_DIMS = 3  # C, H, W: the event of every likelihood


def outside_cuda_graph(x: Tensor) -> bool:
    """Whether the host may ask for the values of x now: not while a CUDA graph is captured, which has none yet."""
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


class ContinuousBernoulli(Distribution):
    r"""The density on [0, 1] that is proportional to the Bernoulli formula, from its logit :math:`\ell`.

    .. math:: \log p(x) = x\ell - \log(1+e^\ell) + \log C, \quad C = \frac{\ell}{\tanh(\ell/2)} \ge 2, \qquad
              \mathbb E[x] = \frac1{1-e^{-\ell}} - \frac1\ell

    torch's own works from λ = s(ℓ), of which 32 bits keep nothing near 1: at ℓ = 20 its constant is lost. This C is
    the paper's, :math:`2\tanh^{-1}(1-2\lambda)/(1-2\lambda)`, with :math:`1-2\lambda=-\tanh(\ell/2)` put in.
    Source: Loaiza-Ganem and Cunningham (2019), eq. (5) to (8).
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.unit_interval

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        small = logits.abs() < 1e-2  # where both formulas are 0/0, their series take over
        self._small, self._safe = small, torch.where(small, torch.ones_like(logits), logits)
        super().__init__(logits.shape, validate_args=False)

    def log_prob(self, x: Tensor) -> Tensor:
        square = self.logits.square()
        series = log(2) + square / 12 - 7 * square.square() / 1440
        constant = torch.where(self._small, series, torch.log(self._safe / torch.tanh(self._safe / 2)))
        return x * self.logits - softplus(self.logits) + constant

    @property
    def mean(self) -> Tensor:
        exact = 0.5 + 0.5 / torch.tanh(self._safe / 2) - 1 / self._safe  # has a slope where e^{-ℓ} is infinite
        return torch.where(self._small, 0.5 + self.logits / 12 - self.logits**3 / 720, exact)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """By the inverse of its distribution function, x = log(1 + u(e^ℓ − 1))/ℓ."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
            size = self._safe.abs()  # for a negative ℓ turn the picture round: 1 − x has the logit −ℓ
            x = 1 + torch.log(u + (1 - u) * torch.exp(-size)) / size
            x = x.clamp(0, 1)  # u = 0 can be drawn, and the exponential be 0
            return torch.where(self._small, u, torch.where(self.logits > 0, x, 1 - x))


class LevelConstraint(constraints.Constraint):
    """Values k/(L−1) for k = 0, …, L−1, up to a thousandth of their distance."""

    is_discrete = True

    def __init__(self, num_levels: int) -> None:
        self.num_levels = num_levels

    def check(self, value: Tensor) -> Tensor:
        last = self.num_levels - 1
        index = (value * last).round()
        near = torch.isclose(index / last, value, atol=1e-3 / self.num_levels)
        return (index >= 0) & (index <= last) & near


class _Levels(Distribution):
    """Pixels with the values 0, 1/(L−1), …, 1; event (C, H, W). `values` are these, for the mean."""

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, shape: torch.Size, num_levels: int) -> None:
        self.num_levels = num_levels
        super().__init__(shape[:-IMAGE_DIMS], shape[-IMAGE_DIMS:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Images of these levels; `base_constraint` is that of one value."""
        return constraints.independent(LevelConstraint(self.num_levels), IMAGE_DIMS)

    def level(self, x: Tensor) -> Tensor:
        """The index of the value x; ValueError for any other x, but within a CUDA graph its nearest level.

        There nobody can ask; the first steps of `training.fit`, which are none of a graph, have asked.
        """
        last = self.num_levels - 1
        index = (x * last).round()
        if not outside_cuda_graph(x):
            return index.nan_to_num(0).clamp(0, last)  # whatever x is, not beyond what it is an index of
        if not LevelConstraint(self.num_levels).check(x).all():
            raise ValueError(f"x must hold the {self.num_levels} values k/{last}, got others")
        return index


class DiscretizedLogistic(_Levels):
    r"""Logistic variables with mean μ and scale s, rounded to the L levels of a pixel; what falls outside, to 0 or 1.

    .. math:: P(x) = s\big(\tfrac{x+h-\mu}{s}\big) - s\big(\tfrac{x-h-\mu}{s}\big), \qquad h = \tfrac1{2(L-1)}

    where the first term is 1 for x = 1 and the second 0 for x = 0. `log_prob` is a log-probability in nats;
    divided by −D log 2 it is bits per dimension. Raises ValueError for x off the levels, except within a CUDA graph.
    Source: Kingma et al. (2016) §5.3 and appendix B; Salimans et al. (2017).
    """

    def __init__(self, mean: Tensor, log_scale: Tensor, num_levels: int = 256) -> None:
        super().__init__(mean.shape, num_levels)
        self.location, self.scale, self.half = mean, log_scale.exp(), 0.5 / (num_levels - 1)

    def log_prob(self, x: Tensor) -> Tensor:
        level = self.level(x)
        above, below = ((x + side * self.half - self.location) / self.scale for side in (1, -1))
        log_cdf = logsigmoid(above).where(level < self.num_levels - 1, torch.zeros_like(above))
        log_tail = logsigmoid(-below).where(level > 0, torch.zeros_like(below))
        inside = (level > 0) & (level < self.num_levels - 1)  # s(a) − s(b) = s(a) s(−b) (1 − exp(b − a))
        width = torch.log(-torch.expm1(-2 * self.half / self.scale)).expand_as(log_cdf)
        return (log_cdf + log_tail + width * inside).flatten(-IMAGE_DIMS).sum(-1)

    @property
    def mean(self) -> Tensor:
        """Its expectation, from P(x > value) over the levels."""
        edges = (torch.arange(self.num_levels - 1, device=self.location.device) + 0.5) / (self.num_levels - 1)
        return torch.sigmoid((self.location[..., None] - edges) / self.scale[..., None]).mean(-1)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with torch.no_grad():
            u = torch.rand(
                self._extended_shape(torch.Size(sample_shape)), device=self.scale.device, dtype=self.scale.dtype
            )
            x = (self.location + self.scale * torch.logit(u, eps=1e-6)).clamp(0, 1)
            return (x * (self.num_levels - 1)).round() / (self.num_levels - 1)


class GreyLevels(_Levels):
    r"""Independent pixels with a probability of its own for each of the L levels: `logits` is (..., L, C, H, W).

    .. math:: \log p(x|z) = \sum_j \log\operatorname{softmax}(\ell_j)_{k(x_j)}, \qquad x_j = k/(L-1)

    The levels' order is not known to it. A log-probability in nats; ValueError for x off the levels, except within a
    CUDA graph. Source: Chen §3.5 (categorical); van den Oord et al. (2016).
    """

    def __init__(self, logits: Tensor) -> None:
        along = logits.movedim(-1 - IMAGE_DIMS, -1)  # (..., C, H, W, L)
        super().__init__(along.shape[:-1], along.shape[-1])
        self.base = Categorical(logits=along, validate_args=False)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.base.log_prob(self.level(x)).flatten(-IMAGE_DIMS).sum(-1)

    @property
    def mean(self) -> Tensor:
        values = torch.linspace(0, 1, self.num_levels, dtype=self.base.probs.dtype, device=self.base.probs.device)
        return (self.base.probs * values).sum(-1)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        return self.base.sample(torch.Size(sample_shape)) / (self.num_levels - 1)


class NegativeBinomial(torch.distributions.NegativeBinomial):
    r"""Counts x = 0, 1, 2, … from their dispersion r and the logarithm of their mean m.

    .. math:: \log P(x) = \log\frac{\Gamma(x+r)}{\Gamma(r)\,r^x} - \log x! + x\log m - (r+x)\log\Big(1+\frac mr\Big)

    torch's own takes the first term and log m from differences of numbers as large as r log r, of which 32 bits keep
    nothing: at r = 10⁷ its error is half a nat. Here, from r = 100 on, Stirling's series for log Γ is subtracted term
    by term; what it leaves out is below 10⁻¹².
    """

    def __init__(self, dispersion: Tensor, log_mean: Tensor) -> None:
        self.log_mean = log_mean
        super().__init__(dispersion, logits=log_mean - dispersion.log(), validate_args=False)

    def expand(self, batch_shape: Shape, _instance: Distribution | None = None) -> "NegativeBinomial":
        return NegativeBinomial(self.total_count.expand(batch_shape), self.log_mean.expand(batch_shape))

    def log_prob(self, x: Tensor) -> Tensor:
        r = self.total_count
        constant = _log_rising(x, r) - torch.lgamma(x + 1.0)
        return constant + x * self.log_mean - (r + x) * torch.log1p(self.log_mean.exp() / r)


def _log_rising(x: Tensor, r: Tensor) -> Tensor:
    """log Γ(x + r)/(Γ(r) rˣ), which goes to 0 as r grows."""
    big = r.clamp(min=100)  # for less the series is not taken, but must be finite

    def rest(s: Tensor) -> Tensor:
        return (1 - 1 / (30 * s.square())) / (12 * s)  # of Stirling's log Γ(s) = (s − ½) log s − s + ½ log 2π + …

    series = (x + big - 0.5) * torch.log1p(x / big) - x + rest(x + big) - rest(big)
    return torch.where(r < 100, torch.lgamma(x + r) - torch.lgamma(r) - x * r.log(), series)
