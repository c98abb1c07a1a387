"""Nonlinear models with one latent number, for which quadrature gives the exact answers.

z ~ N(0, 1), x = f(z) + noise of variance σ². The marginal, the posterior, any ELBO and any gap are integrals over a
line. The trapezoid rule on a fine grid computes them to about 1e-10, because the integrands are smooth and vanish at
both ends. The posterior (and q) must lie within the grid and be wider than its step; otherwise an error is raised.
Linear models, which have formulas instead, are in `linear`.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from vae_core.distributions import standard_normal
from vae_core.runtime import positive_int

EDGE = -6.0  # how far below its peak a log density must be at the ends of the grid: 3.5 standard deviations


def two_modes(z: Tensor) -> Tensor:
    """Return f(z) = z², (..., 1) -> (..., 1): two codes explain the same x > 0, so the posterior has two modes."""
    return z.square()


def curve(z: Tensor) -> Tensor:
    """Return a point of a smooth curve in the plane, f(z) = (z, sin 2z): (..., 1) -> (..., 2)."""
    return torch.cat([z, (2 * z).sin()], -1)


class QuadratureModel:
    r"""The model :math:`p(z) = \mathcal N(0,1)`, :math:`p(x|z) = \mathcal N(f(z), \sigma^2 I)`, with exact answers.

    It has the `prior` and `likelihood(z)` that objectives need; users choose a `posterior(x)`, exact or approximate. In
    all methods x is (B, p), and q has batch (B,) and event (1,).

    Args:
        f: maps codes (..., 1) to means (..., p).
        sigma: σ > 0.
        limit: the grid covers [−limit, limit].
        points: the number of grid points.

    Raises:
        ValueError: for settings out of range, for x or q of another shape, and where a posterior or a q does not fit
            the grid.

    Source: Chen §2.2 and lecture notes §1.2, which only state that these integrals exist.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], sigma: float, limit: float = 9.0, points: int = 8001) -> None:
        for name, value in (("sigma", sigma), ("limit", limit)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value!r}")
        self.f, self.sigma = f, sigma
        self.grid = torch.linspace(-limit, limit, positive_int("points", points, least=3), dtype=torch.float64)

    @property
    def prior(self) -> Independent:
        """The prior p(z), with batch () and event (1,)."""
        return standard_normal(1, like=self.grid)

    def likelihood(self, z: Tensor) -> Independent:
        """Return p(x|z): z (..., 1) -> batch (...), event (p,)."""
        return Independent(Normal(self.f(z), self.sigma, validate_args=False), 1, validate_args=False)

    def log_joint(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B points"]:
        """Return log p(x, z) for each x at each point of the grid, nats."""
        z = self.grid[:, None]
        likelihood = self.likelihood(z)
        if x.shape[1:] != likelihood.event_shape:
            wanted = ", ".join(map(str, ("B", *likelihood.event_shape)))
            raise ValueError(f"x must have shape ({wanted}), got {tuple(x.shape)}")
        return self.prior.log_prob(z) + likelihood.log_prob(x[:, None])

    def log_prob(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, " B"]:
        r"""Return log p(x) = log ∫ p(z) p(x|z) dz, nats."""
        log_joint = self.log_joint(x)
        total = log_joint.logsumexp(1)
        self._check_fit(log_joint, log_joint[:, ::2].logsumexp(1) + math.log(2) - total, 0.5, "the posterior of x")
        return total + self._log_step

    def posterior_density(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B points"]:
        """Return p(z|x) on the grid; each row integrates to 1."""
        return (self.log_joint(x) - self.log_prob(x)[:, None]).exp()

    def expectation(self, density: Float[Tensor, "B P"], values: Float[Tensor, "*_ P"]) -> Float[Tensor, " _"]:
        """Return ∫ density(z) values(z) dz over the grid, for both at the grid's points."""
        return (density * values).sum(-1) * self._log_step.exp()

    def posterior_moments(self, x: Shaped[Tensor, "B ..."]) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Return the mean and the standard deviation of p(z|x), (B,) each."""
        density = self.posterior_density(x)
        mean = self.expectation(density, self.grid)
        return mean, (self.expectation(density, self.grid.square()) - mean.square()).sqrt()

    def elbo(self, x: Shaped[Tensor, "B ..."], q: Distribution) -> Float[Tensor, " B"]:
        r"""Return the ELBO for any density q over z, exactly, nats.

        .. math:: \int q(z)\,[\log p(x,z) - \log q(z)]\,dz = \log p(x) - \mathrm{KL}(q\,\|\,p(z|x))
        """
        log_q = self._log_density(q, len(x))
        return self.expectation(log_q.exp(), self.log_joint(x) - log_q)

    def gap(self, x: Shaped[Tensor, "B ..."], q: Distribution) -> Float[Tensor, " B"]:
        """Return KL(q ‖ p(z|x)), which is log p(x) minus the ELBO, from an integral of its own, nats."""
        log_q = self._log_density(q, len(x))
        return self.expectation(log_q.exp(), log_q - (self.log_joint(x) - self.log_prob(x)[:, None]))

    def forward_kl(self, x: Shaped[Tensor, "B ..."], q: Distribution) -> Float[Tensor, " B"]:
        """Return KL(p(z|x) ‖ q), the forward (inclusive) direction, nats."""
        log_p = self.log_joint(x) - self.log_prob(x)[:, None]
        return self.expectation(log_p.exp(), log_p - self._log_density(q, len(x)))

    def _log_density(self, q: Distribution, n: int) -> Tensor:
        """Return log q on the grid, (B, points); finite even where q is 0, so that 0 log 0 = 0."""
        values = q.log_prob(self.grid[:, None, None])  # (points, B)
        if values.shape not in ((len(self.grid), n), (len(self.grid), 1)) or getattr(q, "event_shape", (1,)) != (1,):
            shapes = f"batch shape {tuple(q.batch_shape)} and event shape {tuple(q.event_shape)}"
            wrap = "wrap it: torch.distributions.Independent(q, 1)"
            raise ValueError(f"q must have batch shape ({n},) and event shape (1,), got {shapes}; {wrap}")
        log_q = values.T.double().clamp(min=-1e300)
        self._check_fit(log_q, log_q.logsumexp(1) + self._log_step, 0.1, "q")
        return log_q

    def _check_fit(self, log_density: Tensor, error: Tensor, tolerance: float, what: str) -> None:
        """Raise ValueError if a density does not vanish at both ends, or the log of its integral is inaccurate."""
        edge = log_density[:, [0, -1]].amax(1) - log_density.amax(1)
        bad = ~((edge < EDGE) & (error.abs() < tolerance))
        if bad.any():
            raise ValueError(
                f"{what} does not fit the grid (datum {int(bad.nonzero()[0])}): it must vanish before z = "
                f"±{self.grid[-1]:g} and be wider than the grid's step {self._log_step.exp():.2g}; "
                "choose a larger limit or more points"
            )

    @property
    def _log_step(self) -> Tensor:
        return torch.tensor(math.log((self.grid[-1] - self.grid[0]).item() / (len(self.grid) - 1)), dtype=torch.float64)
