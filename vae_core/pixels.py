"""Laws of grey pixels that `torch.distributions` does not have, or not in 32 bits."""

from math import log
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution
from torch.nn.functional import logsigmoid, softplus

Shape = torch.Size | list[int] | tuple[int, ...]
IMAGE_DIMS = 3  # C, H, W: the event of every likelihood


class ContinuousBernoulli(Distribution):
    r"""The density on [0, 1] that is proportional to the Bernoulli formula, from its logit :math:`\ell`.

    .. math:: \log p(x) = x\ell - \log(1+e^\ell) + \log C, \quad C = \frac{\ell}{\tanh(\ell/2)} \ge 2, \qquad
              \mathbb E[x] = \frac1{1-e^{-\ell}} - \frac1\ell

    torch's own works from λ = s(ℓ), of which 32 bits keep nothing near 1: at ℓ = 20 its constant is lost. This C is
    the paper's, :math:`2\tanh^{-1}(1-2\lambda)/(1-2\lambda)`, with :math:`1-2\lambda=-\tanh(\ell/2)` put in.
    Source: Loaiza-Ganem and Cunningham (2019), eq. (5) to (8).
    """

    arg_constraints: ClassVar[dict] = {}

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
        exact = -1 / torch.expm1(-self._safe) - 1 / self._safe
        return torch.where(self._small, 0.5 + self.logits / 12 - self.logits**3 / 720, exact)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """By the inverse of its distribution function, x = log(1 + u(e^ℓ − 1))/ℓ."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
            size = self._safe.abs()  # for a negative ℓ turn the picture round: 1 − x has the logit −ℓ
            x = 1 + torch.log(u + (1 - u) * torch.exp(-size)) / size
            return torch.where(self._small, u, torch.where(self.logits > 0, x, 1 - x))


class _Levels(Distribution):
    """Pixels with the values 0, 1/(L−1), …, 1; event (C, H, W). `values` are these, for the mean."""

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, shape: torch.Size, num_levels: int) -> None:
        self.num_levels = num_levels
        super().__init__(shape[:-IMAGE_DIMS], shape[-IMAGE_DIMS:], validate_args=False)

    def level(self, x: Tensor) -> Tensor:
        """The index of the value x; ValueError for an x between two values."""
        index = (x * (self.num_levels - 1)).round()
        if not torch.allclose(index / (self.num_levels - 1), x, atol=1e-3 / self.num_levels):
            raise ValueError(f"x must hold the {self.num_levels} values k/{self.num_levels - 1}, got others")
        return index


class DiscretizedLogistic(_Levels):
    r"""Logistic variables with mean μ and scale s, rounded to the L levels of a pixel; what falls outside, to 0 or 1.

    .. math:: P(x) = s\big(\tfrac{x+h-\mu}{s}\big) - s\big(\tfrac{x-h-\mu}{s}\big), \qquad h = \tfrac1{2(L-1)}

    where the first term is 1 for x = 1 and the second 0 for x = 0. `log_prob` is a log-probability in nats;
    divided by −D log 2 it is bits per dimension. Raises ValueError for x off the levels.
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

    The levels' order is not known to it. A log-probability in nats; ValueError for x off the levels.
    Source: Chen §3.5 (categorical); van den Oord et al. (2016).
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
