"""What the linear models of `linear` share: the covariance, and everything that follows once W, μ and ψ are known."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from jaxtyping import Float64
from sklearn.utils.extmath import svd_flip
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from vae_core._checks.tables import LinearModel, as_tensor, like, whole_number
from vae_core._missing import FLOOR, Conditional, Imputation, Rows, em_step, has_nan
from vae_core.distributions import kl_divergence, standard_normal

Step = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]


def centre(X: Float64[Tensor, "n p"]) -> tuple[Float64[Tensor, " p"], Float64[Tensor, "n p"]]:
    """Return the mean of each column without NaN, and X − mean. Raise ValueError if squares leave float64."""
    missing = has_nan(X)
    mean = X.nanmean(0) if missing else X.mean(0)
    centred = X - mean
    total = sum_of_squares(centred[~X.isnan()] if missing else centred).item()
    if not math.isfinite(total) or 0 < total < 1e-290:
        text = f"X must have variances that float64 can hold, got squared deviations with the sum {total}"
        raise ValueError(f"{text}: divide X by the size of its values first")
    return mean, centred


def sum_of_squares(X: Tensor) -> Tensor:
    """Return the sum of the squares of all entries, without storing the squares."""
    return torch.dot(X.flatten(), X.flatten())


class Covariance:
    """The sample covariance S = XᵀX/n of centred rows as an operator: S @ W costs O(npd), or O(p²d) where p < n."""

    def __init__(self, centred: Float64[Tensor, "n p"]) -> None:
        self.centred, (self.n, self.p) = centred, centred.shape
        self.matrix = centred.T @ centred / self.n if self.p < self.n else None
        self.diagonal = centred.square().mean(0)

    def __matmul__(self, W: Float64[Tensor, "p d"]) -> Float64[Tensor, "p d"]:
        return self.matrix @ W if self.matrix is not None else self.centred.T @ (self.centred @ W) / self.n

    def eigen(self) -> tuple[Float64[Tensor, " k"], Float64[Tensor, "p k"]]:
        """Return all eigenvalues that can differ from 0, largest first, and the eigenvectors in columns."""
        if self.matrix is None:
            return principal_axes(self.centred)
        values, vectors = torch.linalg.eigh(self.matrix)
        return values.flip(0).clamp(min=0), vectors.flip(1)


def principal_axes(centred: Float64[Tensor, "n p"]) -> tuple[Float64[Tensor, " k"], Float64[Tensor, "p k"]]:
    """Return the min(n, p) eigenvalues of S, largest first, and the eigenvectors in columns, from the SVD of X.

    X = QR and the small matrix R have the same singular values and right singular vectors. A standard deviation has an
    error of about 1e-16 times the largest one this way, and of 1e-8 times the largest from an eigendecomposition of S.
    """
    _, singular, vectors = torch.linalg.svd(torch.linalg.qr(centred, mode="r").R, full_matrices=False)
    return singular.square() / len(centred), vectors.T


def fix_signs(columns: Float64[Tensor, "p d"]) -> Float64[Tensor, "p d"]:
    """Return each column times ±1, such that its entry of largest size is positive, as scikit-learn does."""
    rows = columns.T.clone(memory_format=torch.contiguous_format)  # a copy, since svd_flip works in place
    return torch.from_numpy(svd_flip(None, rows.numpy(), u_based_decision=False)[1]).T


def initial_loadings(p: int, d: int) -> Float64[Tensor, "p d"]:
    """Return the same standard normal numbers in each call, so that the same data give the same fit."""
    return standard_normals(torch.Generator().manual_seed(0), p, d)


def standard_normals(draws: torch.Generator, *shape: int) -> Tensor:
    """Return draws on the CPU, whatever the default device is."""
    return torch.randn(shape, generator=draws, dtype=torch.float64, device="cpu")


def log_normal(p: int, log_det: Tensor, distance: Tensor | float) -> Tensor:
    """Return the log density of a Gaussian in p dimensions, nats, from log |Σ| and (x − μ)ᵀΣ⁻¹(x − μ)."""
    return -0.5 * (p * math.log(2 * math.pi) + log_det + distance)


class LinearGaussian(LinearModel):
    """What PPCA and factor analysis share: EM, and everything once W (`components_.T`), μ and ψ are known.

    Data may hold NaN for missing values: x then stands for the observed part of a row.
    """

    noise_variance_: Any  # () or (p,)
    log_likelihoods_: list[float]  # the mean log p(x) before the first step of EM and after each, nats

    _spare_rows = 2

    def __init__(self, n_components: int | None = None, tol: float = 1e-8, max_iter: int = 1000) -> None:
        self.n_components, self.tol, self.max_iter = n_components, tol, max_iter

    def fit(self, X: Any, y: object = None) -> Self:
        """Raise an error: the parameters of a `LinearGaussian` itself are set by hand."""
        raise NotImplementedError("LinearGaussian has no fit: set its parameters, or fit a PPCA or a FactorAnalysis")

    def _start(self, variance: Float64[Tensor, " p"], d: int) -> tuple[Tensor, Tensor]:
        """Return the W and ψ that EM starts from, for columns of these variances."""
        raise NotImplementedError

    def _step(self, S: Covariance, W: Tensor, psi: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the mean log p(x), nats, and the W and ψ after a step of EM."""
        raise NotImplementedError

    def _fit_by_em(self, X: Any, table: Float64[Tensor, "n p"], d: int) -> Self:
        """Find W, μ and ψ. For complete data μ is the mean, and EM needs only the covariance."""
        mean, centred = centre(table)
        step: Step
        start: tuple[Tensor, ...]
        if has_nan(centred):
            rows = Rows.of(centred)
            step, start = (
                partial(self._incomplete_step, rows),
                (*self._start(rows.variance(), d), torch.zeros_like(mean)),
            )
        else:
            S = Covariance(centred)
            self._refuse_subspace(S, d)
            step, start = partial(self._step, S), self._start(S.diagonal, d)
        W, psi, *shift = self._run_em(step, start)
        return self._keep(X, mean_=sum(shift, mean), components_=W.T.contiguous(), noise_variance_=psi)

    def _incomplete_step(self, rows: Rows, W: Tensor, psi: Tensor, shift: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return what `_step` does for rows with missing values, and the shift of μ from the observed means."""
        variance = rows.variance()
        self._refuse_zero(psi, variance if psi.dim() else variance.sum())
        return em_step(rows, W, psi, shift)

    def _run_em(self, step: Step, start: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the parameters after which a step gains less than `tol`, or those after `max_iter` steps.

        Args:
            step: from parameters to their mean log p(x), and to the next parameters.
            start: the first parameters.
        """
        parameters, values = start, []
        while True:
            value, following = step(*parameters)
            values.append(value.item())
            arrived = len(values) > 1 and values[-1] - values[-2] < self.tol
            if arrived or len(values) > self.max_iter:
                break
            parameters = following
        if not arrived:
            self._warn_not_converged(stacklevel=5)
        self.log_likelihoods_, self.n_iter_ = values, len(values) - 1
        return parameters

    def _refuse_subspace(self, S: Covariance, d: int) -> None:
        """Raise ValueError if S, scaled to variances of 1, has rank d or less, as S @ random columns shows."""
        scale = S.diagonal.clamp(min=FLOOR).sqrt()[:, None]
        sizes = torch.linalg.svdvals(S @ (initial_loadings(S.p, d + 1) / scale) / scale)
        self._refuse_zero(sizes[-1], sizes[0])

    def _refuse_zero(self, psi: Tensor, variance: Tensor) -> None:
        """Raise ValueError where a noise variance is 0, because the likelihood then has no maximum."""
        if (psi <= FLOOR * variance).any():
            raise ValueError(
                f"n_components = {self.n_components} leaves no variance for the noise: these rows, or one of their "
                "columns, lie in a subspace of that many dimensions, and their density would be infinite; take fewer "
                "components, more rows, or each column once"
            )

    @property
    def _noise(self) -> Float64[Tensor, " p"]:
        return as_tensor(self.noise_variance_).expand(len(self.mean_))

    def _condition(self, X: Any) -> tuple[Rows, Conditional]:
        """Return x − μ and p(z|x)."""
        centred = Rows.of(self._read(X, missing=True) - self._mean)
        return centred, Conditional(centred, self._W, self._noise)

    def posterior(self, X: Any) -> MultivariateNormal:
        r"""Return p(z|x), exactly: batch (n,), event (d,). It is the prior for a row in which nothing is observed.

        .. math:: \mathcal N\big(M^{-1}W^\top\Psi^{-1}(x-\mu),\ M^{-1}\big), \qquad M = I + W^\top\Psi^{-1}W
        """
        rows, given = self._condition(X)
        return MultivariateNormal(given.mean(), covariance_matrix=rows.per_row(given.covariance()))

    def transform(self, X: Any) -> Any:
        """Return the posterior means, (n, d)."""
        return like(self._condition(X)[1].mean(), X)

    def score_samples(self, X: Any) -> Any:
        r"""Return log p(x) of each row, (n,), nats, without a p×p matrix.

        .. math:: x \sim \mathcal N(\mu, WW^\top+\Psi)
        """
        return like(self._condition(X)[1].log_prob(), X)

    def score(self, X: Any, y: object = None) -> float:
        """Return the mean log p(x), nats. `y` is ignored."""
        return self._condition(X)[1].log_prob().mean().item()

    def impute(self, X: Any) -> Imputation:
        r"""Return the conditional mean and variance of each missing value given the observed part of its row.

        .. math:: \mathbb E[x_j|x_O] = \mu_j + w_j^\top\mathbb E[z|x_O], \qquad
                  \operatorname{Var}(x_j|x_O) = w_j^\top M_O^{-1}w_j + \psi_j

        Returns:
            `mean` and `variance`, both (n, p). An observed value is its own mean, with variance 0.
        """
        table, (rows, given) = self._read(X, missing=True), self._condition(X)
        covariance, W = given.covariance(), self._W
        spread = torch.stack([(covariance[:, k] @ W.T) * w for k, w in enumerate(W.T)]).sum(0)  # wᵀM⁻¹w, (patterns, p)
        mean = torch.where(table.isnan(), given.mean() @ W.T + self._mean, table)
        variance = torch.where(table.isnan(), rows.per_row(spread) + self._noise, 0.0)
        return Imputation(like(mean, X), like(variance, X))

    def get_covariance(self) -> Any:
        """Return the covariance of x, WWᵀ + Ψ, (p, p)."""
        check_is_fitted(self)
        return like(self._W @ self._W.T + self._noise.diag(), self.components_)

    def get_precision(self) -> Any:
        """Return the inverse of the covariance of x, Ψ⁻¹ − Ψ⁻¹WM⁻¹WᵀΨ⁻¹, (p, p)."""
        check_is_fitted(self)
        complete = Rows.of(torch.zeros_like(self._mean)[None])
        factor = Conditional(complete, self._W, self._noise).factor[0]
        half = torch.linalg.solve_triangular(factor, self._W.T / self._noise, upper=False)
        return like((1 / self._noise).diag() - half.T @ half, self.components_)

    def sample(self, n_samples: int = 1, seed: int = 0) -> Any:
        """Return ancestral samples, z ~ N(0, I), then x ~ N(Wz + μ, Ψ); (n_samples, p)."""
        check_is_fitted(self)
        n = whole_number("n_samples", n_samples, 1)
        draws = torch.Generator().manual_seed(whole_number("seed", seed, 0, 2**63 - 1))
        z, noise = (standard_normals(draws, n, size) for size in self._W.T.shape)
        return like(z @ self._W.T + self._mean + noise * self._noise.sqrt(), self.components_)

    def elbo(self, X: Any, q: Distribution) -> Any:
        r"""Return the ELBO of each row for any Gaussian q(z), batch (n,), event (d,); (n,), nats, exactly.

        .. math:: \mathbb E_q[\log p(x|z)] - \mathrm{KL}(q\|p(z)) = \log p(x) - \mathrm{KL}(q\|p(z|x))

        Raises:
            TypeError: if q is not a Gaussian.
            ValueError: if its batch or event shape is another one.
        """
        if not isinstance(q, Distribution):
            raise TypeError(f"q must be a diagonal_normal or a MultivariateNormal, got {q!r}")
        rows, given = self._condition(X)
        n, batch = len(rows.values), tuple(q.batch_shape)
        if n > 1 and batch not in ((), (1,), (n,)):
            raise ValueError(f"q must have batch shape ({n},), one Gaussian for each row of X, got {batch}")
        kl = kl_divergence(q, standard_normal(len(self.components_), like=q.mean)).double()
        covariance = q.covariance_matrix if isinstance(q, MultivariateNormal) else torch.diag_embed(q.variance)
        observed = rows.per_row(rows.observed)
        residual = (rows.values - observed * (q.mean.double() @ self._W.T)).square() / self._noise
        spread = (rows.per_row(given.gain) * covariance.double()).sum((-2, -1))  # trace(WᵀΨ⁻¹W Σ)
        log_det = (observed * self._noise.log()).sum(1)
        expected = -0.5 * (observed.sum(1) * math.log(2 * math.pi) + log_det + residual.sum(1) + spread)
        return like(expected - kl, X)
