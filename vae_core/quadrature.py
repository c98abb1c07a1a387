"""Nonlinear latent variable models with one latent number, small enough for the exact answer by quadrature.

z ~ N(0, 1), x = f(z) + noise of variance σ². Marginal, posterior, any ELBO and any gap are integrals over a line;
the trapezoid rule on a fine grid gives them to about 1e-10, because the integrands are smooth and vanish at both ends.
That asks for a posterior (and a q) that lies within the grid and is wider than its step; another is refused.
Linear models, which have formulas instead, are in `linear`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from vae_core.distributions import standard_normal

EDGE = -6.0  # how far below its peak a log density must have fallen at the ends of the grid: 3.5 standard deviations


def two_modes(z: Tensor) -> Tensor:
    """f(z) = z²: of an x > 0 one cannot say which of two codes made it, so the posterior has two humps. (..., 1)"""
    return z.square()


def curve(z: Tensor) -> Tensor:
    """A smooth curve in the plane, f(z) = (z, sin 2z): (..., 1) -> (..., 2)."""
    return torch.cat([z, (2 * z).sin()], -1)


class QuadratureModel:
    r"""The model :math:`p(z) = \mathcal N(0,1)`, :math:`p(x|z) = \mathcal N(f(z), \sigma^2 I)`, with exact answers.

    `f` maps codes (..., 1) to means (..., p). It has the `prior` and `likelihood(z)` that objectives ask for; a
    `posterior(x)`, exact or not, is for the reader to choose. The grid covers [−limit, limit] with `points` points.
    Raises ValueError unless σ > 0, and where a posterior or a q does not fit that grid. Source: Chen §2.2 and
    lecture notes §1.2, which only say that these integrals exist.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], sigma: float, limit: float = 9.0, points: int = 8001) -> None:
        if not sigma > 0:
            raise ValueError(f"sigma must be positive, got {sigma!r}")
        self.f, self.sigma = f, sigma
        self.grid = torch.linspace(-limit, limit, points, dtype=torch.float64)

    @property
    def prior(self) -> Independent:
        """p(z): batch (), event (1,)."""
        return standard_normal(1, like=self.grid)

    def likelihood(self, z: Tensor) -> Independent:
        """p(x|z): z (..., 1) -> batch (...), event (p,)."""
        return Independent(Normal(self.f(z), self.sigma, validate_args=False), 1, validate_args=False)

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, z) for each x (B, p) at each point of the grid: (B, points), nats."""
        z = self.grid[:, None]
        return self.prior.log_prob(z) + self.likelihood(z).log_prob(x[:, None])

    def log_prob(self, x: Tensor) -> Tensor:
        r"""log p(x) = log ∫ p(z) p(x|z) dz for x (B, p): (B,), nats."""
        log_joint = self.log_joint(x)
        total = log_joint.logsumexp(1)
        self._check_fit(log_joint, log_joint[:, ::2].logsumexp(1) + math.log(2) - total, 0.5, "the posterior of x")
        return total + self._log_step

    def posterior_density(self, x: Tensor) -> Tensor:
        """p(z|x) on the grid: (B, points); each row integrates to 1."""
        return (self.log_joint(x) - self.log_prob(x)[:, None]).exp()

    def expectation(self, density: Tensor, values: Tensor) -> Tensor:
        """∫ density(z) values(z) dz over the grid: (B, points) each -> (B,)."""
        return (density * values).sum(-1) * self._log_step.exp()

    def posterior_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of p(z|x): (B,) each."""
        density = self.posterior_density(x)
        mean = self.expectation(density, self.grid)
        return mean, (self.expectation(density, self.grid.square()) - mean.square()).sqrt()

    def elbo(self, x: Tensor, q: Distribution) -> Tensor:
        r"""The ELBO of x (B, p) for any density q over z with batch (B,) and event (1,), exactly: (B,), nats.

        .. math:: \int q(z)\,[\log p(x,z) - \log q(z)]\,dz = \log p(x) - \mathrm{KL}(q\,\|\,p(z|x))
        """
        log_q = self._log_density(q)
        return self.expectation(log_q.exp(), self.log_joint(x) - log_q)

    def gap(self, x: Tensor, q: Distribution) -> Tensor:
        """KL(q ‖ p(z|x)), by its own integral: (B,), nats."""
        log_q = self._log_density(q)
        return self.expectation(log_q.exp(), log_q - (self.log_joint(x) - self.log_prob(x)[:, None]))

    def forward_kl(self, x: Tensor, q: Distribution) -> Tensor:
        """KL(p(z|x) ‖ q), the other direction: (B,), nats."""
        log_p = self.log_joint(x) - self.log_prob(x)[:, None]
        return self.expectation(log_p.exp(), log_p - self._log_density(q))

    def _log_density(self, q: Distribution) -> Tensor:
        """log q on the grid, (B, points); finite, so that 0 log 0 = 0, also where q is 0."""
        log_q = q.log_prob(self.grid[:, None, None]).T.double().clamp(min=-1e300)
        self._check_fit(log_q, log_q.logsumexp(1) + self._log_step, 0.1, "q")
        return log_q

    def _check_fit(self, log_density: Tensor, error: Tensor, tolerance: float, what: str) -> None:
        """ValueError where a density has not vanished at both ends, or the log of its integral has such an error."""
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
