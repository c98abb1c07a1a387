"""What the linear models of `linear` share: data, covariance, and everything that follows once W and ψ are known."""

import math
import warnings
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from vae_core.distributions import kl_divergence, standard_normal

FLOOR = 1e-12  # the least noise variance of a column, so that a constant column has a density


class ConvergenceWarning(UserWarning):
    """EM stopped at `max_iter` before the tolerance was reached."""


def as_data(X: Any, like: int | None = None, name: str = "X") -> Tensor:
    """X as a float64 tensor (n, p) on the CPU. Raises ValueError for another shape, no rows, or nan and infinities."""
    X = X if isinstance(X, Tensor) else torch.as_tensor(np.require(X, np.float64, ["C", "W"]))
    X = X.to("cpu", torch.float64)
    if X.dim() != 2 or 0 in X.shape:
        raise ValueError(f"{name} must have shape (n, p) with n and p at least 1, got {tuple(X.shape)}")
    if like is not None and X.shape[1] != like:
        raise ValueError(f"{name} must have {like} columns, as the fitted model has, got {X.shape[1]}")
    if not X.isfinite().all():
        raise ValueError(f"{name} must be finite, got {int((~X.isfinite()).sum())} values that are nan or infinite")
    return X


def refuse_unfitted(model: object) -> None:
    """Raise scikit-learn's NotFittedError, which is a ValueError and an AttributeError, unless `fit` was called."""
    if not hasattr(model, "components_"):
        from sklearn.exceptions import NotFittedError  # not at start-up

        raise NotFittedError(f"this {type(model).__name__} is not fitted yet: call fit(X) first")


class Covariance:
    """The sample covariance S = XᶜᵀXᶜ/n as an operator: S @ W costs O(npd), or O(p²d) where p < n."""

    def __init__(self, X: Tensor) -> None:
        self.n, self.p = X.shape
        self.mean = X.mean(0)
        self.centred = X - self.mean
        self.matrix = self.centred.T @ self.centred / self.n if self.p < self.n else None
        self.diagonal = self.centred.square().mean(0)

    def __matmul__(self, W: Tensor) -> Tensor:
        return self.matrix @ W if self.matrix is not None else self.centred.T @ (self.centred @ W) / self.n

    def eigen(self) -> tuple[Tensor, Tensor]:
        """All eigenvalues that can differ from 0, largest first, and the eigenvectors in columns."""
        if self.matrix is not None:
            values, vectors = torch.linalg.eigh(self.matrix)
            return values.flip(0).clamp(min=0), vectors.flip(1)
        _, singular, vectors = torch.linalg.svd(self.centred, full_matrices=False)
        return singular.square() / self.n, vectors.T


def checked(X: Any, n_components: int, most: str) -> Tensor:
    """X, if that many components can be had of it; `most` is "p" or "p - 1"."""
    X = as_data(X)
    n, p = X.shape
    if n < 2:
        raise ValueError(f"X must have at least two rows, got {n}: one point has no covariance")
    limit = min(n, p if most == "p" else p - 1)
    if isinstance(n_components, bool) or not isinstance(n_components, Integral) or not 1 <= n_components <= limit:
        raise ValueError(f"n_components must be an integer from 1 to min(n, {most}) = {limit}, got {n_components!r}")
    return X


def with_signs(columns: Tensor) -> Tensor:
    """Each column times ±1, so that its entry of largest size is positive (scikit-learn's choice)."""
    largest = columns.gather(0, columns.abs().argmax(0, keepdim=True))
    return columns * largest.sign()


def log_normal(p: int, log_det: Tensor, distance: Tensor | float) -> Tensor:
    """The log density of a Gaussian in p dimensions, nats, from log |Σ| and (x − μ)ᵀΣ⁻¹(x − μ)."""
    return -0.5 * (p * math.log(2 * math.pi) + log_det + distance)


class LinearGaussian:
    """What PPCA and factor analysis share: everything once W = components_ᵀ and ψ are known."""

    mean_: Tensor  # (p,)
    components_: Tensor  # (d, p)
    noise_variance_: Tensor  # () or (p,)
    log_likelihoods_: list[float]  # after each step of EM, nats

    def __init__(self, n_components: int, tol: float = 1e-8, max_iter: int = 1000) -> None:
        self.n_components, self.tol, self.max_iter = n_components, tol, max_iter

    def _refuse_subspace(self, S: Covariance) -> None:
        """ValueError if S has rank d or less: then S times d + 1 random columns has, too. (Variances scaled to 1.)"""
        scale = S.diagonal.clamp(min=FLOOR).sqrt()[:, None]
        sizes = torch.linalg.svdvals(S @ (random_start(S.p, self.n_components + 1) / scale) / scale)
        self._refuse_zero(sizes[-1], sizes[0])

    def _refuse_zero(self, psi: Tensor, variance: Tensor) -> None:
        """ValueError where the factors leave nothing to the noise: the likelihood has no maximum then."""
        if (psi <= FLOOR * variance).any():
            raise ValueError(
                f"n_components = {self.n_components} leaves no variance for the noise: these rows, or one of their "
                "columns, lie in a subspace of that many dimensions, and their density would be infinite; take fewer "
                "components, more rows, or each column once"
            )

    def _finished(self, values: list[float], stacklevel: int = 4) -> bool:
        """Whether EM stops: the last step gained less than `tol`, or (with a warning) `max_iter` steps are done."""
        if len(values) > 1 and values[-1] - values[-2] < self.tol:
            return True
        if len(values) > self.max_iter:
            warn_not_converged(type(self).__name__, self.max_iter, stacklevel)
        return len(values) > self.max_iter

    @property
    def _noise(self) -> Tensor:
        return self.noise_variance_.expand(self.mean_.numel())

    def _centred(self, X: Any) -> Tensor:
        return as_data(X, self.mean_.numel()) - self.mean_

    def _posterior_parts(self) -> tuple[Tensor, Tensor]:
        """Ψ⁻¹W (p, d) and the Cholesky factor of M = I + WᵀΨ⁻¹W (d, d), the posterior's precision."""
        refuse_unfitted(self)
        W = self.components_.T
        scaled = W / self._noise[:, None]
        return scaled, torch.linalg.cholesky(torch.eye(self.n_components, dtype=W.dtype) + W.T @ scaled)

    def posterior(self, X: Any) -> MultivariateNormal:
        r"""p(z|x), exactly: batch (n,), event (d,).

        .. math:: \mathcal N\big(M^{-1}W^\top\Psi^{-1}(x-\mu),\ M^{-1}\big), \qquad M = I + W^\top\Psi^{-1}W
        """
        scaled, factor = self._posterior_parts()
        mean = torch.cholesky_solve((self._centred(X) @ scaled).T, factor).T
        return MultivariateNormal(mean, covariance_matrix=torch.cholesky_inverse(factor))

    def transform(self, X: Any) -> Tensor:
        """The posterior means, (n, d)."""
        return self.posterior(X).mean

    def score_samples(self, X: Any) -> Tensor:
        r"""log p(x) of each row, (n,), nats, without a p×p matrix.

        .. math:: x \sim \mathcal N(\mu, WW^\top+\Psi), \qquad |WW^\top+\Psi| = |\Psi||M|, \qquad
                  (WW^\top+\Psi)^{-1} = \Psi^{-1}-\Psi^{-1}WM^{-1}W^\top\Psi^{-1}
        """
        (scaled, factor), centred = self._posterior_parts(), self._centred(X)
        whitened = torch.linalg.solve_triangular(factor, (centred @ scaled).T, upper=False)
        distance = (centred.square() / self._noise).sum(1) - whitened.square().sum(0)
        log_det = self._noise.log().sum() + 2 * factor.diagonal().log().sum()
        return log_normal(self.mean_.numel(), log_det, distance)

    def score(self, X: Any) -> float:
        """The mean log p(x), nats."""
        return self.score_samples(X).mean().item()

    def sample(self, n_samples: int, seed: int = 0) -> Tensor:
        """Ancestral samples: z ~ N(0, I), then x ~ N(Wz + μ, Ψ); (n_samples, p)."""
        refuse_unfitted(self)
        draws = torch.Generator().manual_seed(seed)
        z, noise = (
            torch.randn(n_samples, size, generator=draws, dtype=torch.float64)
            for size in (self.n_components, self.mean_.numel())
        )
        return z @ self.components_ + self.mean_ + noise * self._noise.sqrt()

    def elbo(self, X: Any, q: Distribution) -> Tensor:
        r"""The ELBO of each row for any Gaussian q(z), batch (n,), event (d,); (n,), nats, exactly.

        .. math:: \mathbb E_q[\log p(x|z)] - \mathrm{KL}(q\|p(z)) = \log p(x) - \mathrm{KL}(q\|p(z|x))
        """
        kl = kl_divergence(q, standard_normal(self.n_components, like=q.mean)).double()
        scaled, centred, mean = self._posterior_parts()[0], self._centred(X), q.mean.double()
        covariance = q.covariance_matrix if isinstance(q, MultivariateNormal) else torch.diag_embed(q.variance)
        residual = ((centred - mean @ self.components_).square() / self._noise).sum(1)
        spread = ((self.components_ @ scaled) * covariance.double()).sum((-2, -1))  # trace(WᵀΨ⁻¹W Σ)
        return log_normal(self.mean_.numel(), self._noise.log().sum(), residual + spread) - kl


def random_start(p: int, d: int) -> Tensor:
    """A fixed random start: the same data give the same fit."""
    return torch.randn(p, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def warn_not_converged(name: str, max_iter: int, stacklevel: int = 4) -> None:
    """A ConvergenceWarning, in the name of the model, for the caller of its `fit`, that many calls up from here."""
    text = f"{name} stopped after max_iter={max_iter} steps of EM before tol was reached; raise one of the two"
    warnings.warn(text, ConvergenceWarning, stacklevel=stacklevel)
