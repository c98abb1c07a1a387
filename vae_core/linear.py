"""Linear latent variable models: PCA, probabilistic PCA, factor analysis. All in float64; values in nats.

One generative model, three kinds of noise:

.. math:: z \\sim \\mathcal N(0, I_d), \\qquad x = Wz + \\mu + e, \\qquad e \\sim \\mathcal N(0, \\Psi)

Ψ = diag(ψ) for factor analysis, σ²I for probabilistic PCA, and σ² → 0 leaves PCA. All are scikit-learn estimators, with
its names: `fit`, `transform`, `score_samples`, `score`, `sample`, `get_covariance`, `n_components`, `mean_` (p,),
`components_` (d, p), `noise_variance_`, `n_iter_`. They work in pipelines and with `clone` and `cross_val_score`.
scikit-learn's own `PCA` and `FactorAnalysis` are not used, because the book derives each step that is written out here;
the tests compare the results.

X is a tensor, an array, a list or a data frame, (n, p). A method that is given a tensor returns a tensor (on the CPU),
and an array otherwise; attributes, `get_covariance`, `get_precision` and `sample` follow the X of `fit`.

PPCA(method="em") and FactorAnalysis can be fitted to data with NaN (or masked entries) as missing values. A fitted PPCA
or FactorAnalysis takes them in `transform`, `posterior`, `score_samples`, `score`, `impute` and `elbo`.
"""

from typing import Any, Self

import torch
from jaxtyping import Float64
from sklearn.exceptions import ConvergenceWarning as ConvergenceWarning
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from vae_core._checks.tables import LinearModel, like, read_table
from vae_core._linear_gaussian import (
    Covariance,
    LinearGaussian,
    centre,
    fix_signs,
    initial_loadings,
    log_normal,
    principal_axes,
    sum_of_squares,
)
from vae_core._missing import FLOOR


class PCA(LinearModel):
    r"""Principal component analysis: the d directions of largest variance.

    .. math:: S = \tfrac1n\sum_n(x_n-\bar x)(x_n-\bar x)^\top, \quad S u_j = \lambda_j u_j, \quad z = U_d^\top(x-\bar x)

    Args:
        n_components: d; `None` for min(n, p).
        method: "svd" takes the singular value decomposition of the centred data. "em" is Roweis' EM for the zero-noise
            limit: Z = (WᵀW)⁻¹WᵀX, W = XZᵀ(ZZᵀ)⁻¹, O(npd) a step. It finds the subspace; a small singular value
            decomposition within it then finds the axes.
        tol: "em" stops when the projector onto the subspace changes by less (Frobenius norm).
        max_iter: the maximum number of steps of "em"; a ConvergenceWarning is given if they do not suffice.

    Attributes:
        mean_: (p,).
        components_: the u_j, (d, p), with scikit-learn's signs.
        explained_variance_: the λ_j, (d,), with 1/n where scikit-learn has 1/(n − 1).
        explained_variance_ratio_: λ_j / tr S, (d,).
        n_iter_: steps of "em"; 1 for "svd".

    Raises:
        ValueError: in `fit`, for data or parameters that it cannot work with.

    Source: Chen §2.1; lecture notes §1.1; Roweis (1998).
    """

    explained_variance_: Any
    explained_variance_ratio_: Any

    _methods = ("svd", "em")

    def __init__(
        self, n_components: int | None = None, method: str = "svd", tol: float = 1e-12, max_iter: int = 10_000
    ) -> None:
        self.n_components, self.method, self.tol, self.max_iter = n_components, method, tol, max_iter

    def fit(self, X: Any, y: object = None) -> Self:
        """Return the model with mean, components and variances of X (n, p). `y` is ignored, as in scikit-learn."""
        table, d = self._read_for_fit(X)
        mean, centred = centre(table)
        if self.method == "svd":
            self.n_iter_ = 1
            values, vectors = (part[..., :d] for part in principal_axes(centred))
        else:
            basis = self._subspace(Covariance(centred), d)
            values, rotation = principal_axes(centred @ basis)
            vectors = basis @ rotation
        total = sum_of_squares(centred) / len(table)
        ratios = values / total if total > 0 else torch.zeros_like(values)
        self._keep(X, explained_variance_=values, explained_variance_ratio_=ratios)
        return self._keep(X, mean_=mean, components_=fix_signs(vectors).T.contiguous())

    def _subspace(self, S: Covariance, d: int) -> Float64[Tensor, "p d"]:
        """Return an orthonormal basis of the leading subspace, by Roweis' EM."""
        basis = torch.linalg.qr(initial_loadings(S.p, d)).Q
        self.n_iter_ = 0
        while self.n_iter_ < self.max_iter:
            S_basis = S @ basis
            W = S_basis @ torch.linalg.pinv(basis.T @ S_basis)  # both steps at once, for a W with WᵀW = I
            turned = torch.linalg.qr(W).Q
            change = (turned - basis @ (basis.T @ turned)).norm()
            basis = turned
            self.n_iter_ += 1
            if change < self.tol:
                return basis
        self._warn_not_converged(stacklevel=4)
        return basis

    def transform(self, X: Any) -> Any:
        """Return the codes z = Uᵀ(x − x̄) of X (n, p), (n, d)."""
        return like((self._read(X) - self._mean) @ self._W, X)

    def inverse_transform(self, X: Any) -> Any:
        """Return the points x̄ + U z of the subspace, (n, p), for codes z, (n, d). Raise ValueError for another d."""
        check_is_fitted(self)
        codes, d = read_table(X), len(self.components_)
        if codes.shape[1] != d:
            raise ValueError(f"X must have {d} columns, one for each component, got {codes.shape[1]}")
        return like(codes @ self._W.T + self._mean, X)


class PPCA(LinearGaussian):
    r"""Probabilistic PCA: Ψ = σ²I. The maximum-likelihood solution in closed form, or by EM.

    .. math:: W = U_d(\Lambda_d-\sigma^2I)^{1/2}, \qquad \sigma^2 = \frac1{p-d}\sum_{j>d}\lambda_j

    Args:
        n_components: d < p; `None` for min(n − 2, p − 1), the most that leaves a variance to the noise.
        method: "closed", or "em", which takes O(npd) a step, reaches the same subspace and σ², and takes NaN as missing
            (the likelihood is then that of the observed values, and EM finds its maximum over W, σ² and μ). A row of
            only NaN has log p(x) = 0 and changes nothing; a column of only NaN raises an error.
        tol: "em" stops when a step gains less, nats.
        max_iter: the maximum number of steps of "em"; a ConvergenceWarning is given if they do not suffice.

    Attributes:
        mean_, components_, noise_variance_: μ (p,), Wᵀ (d, p), σ² ().
        log_likelihoods_: the mean log p(x) before the first step of EM and after each, which never falls, nats.
        n_iter_: steps of "em"; 1 for "closed".

    Raises:
        ValueError: in `fit`, as `PCA` does, and where the data lie in d dimensions, so that σ² would be 0.

    Source: Chen §2.1; Tipping and Bishop (1999) eqs. (7), (8), (27), (28).
    """

    _methods = ("closed", "em")
    _spare_columns = 1

    def __init__(
        self, n_components: int | None = None, method: str = "closed", tol: float = 1e-8, max_iter: int = 1000
    ) -> None:
        super().__init__(n_components, tol, max_iter)
        self.method = method

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.method == "em"
        return tags

    def fit(self, X: Any, y: object = None) -> Self:
        """Return the model with W, μ and σ² for X (n, p). `y` is ignored."""
        table, d = self._read_for_fit(X, missing=self.method == "em")
        if self.method == "em":
            return self._fit_by_em(X, table, d)
        mean, centred = centre(table)
        S = Covariance(centred)
        (values, vectors), total = S.eigen(), S.diagonal.sum()
        sigma2 = (total - values[:d].sum()) / (S.p - d)
        self._refuse_zero(sigma2, total)
        W = fix_signs(vectors[:, :d]) * (values[:d] - sigma2).clamp(min=0).sqrt()
        log_det = values[:d].log().sum() + (S.p - d) * sigma2.log()
        self.log_likelihoods_, self.n_iter_ = [log_normal(S.p, log_det, S.p).item()], 1
        return self._keep(X, mean_=mean, components_=W.T.contiguous(), noise_variance_=sigma2)

    def _start(self, variance: Float64[Tensor, " p"], d: int) -> tuple[Tensor, Tensor]:
        level = variance.mean()
        return initial_loadings(len(variance), d) * level.sqrt(), level

    def _step(self, S: Covariance, W: Tensor, sigma2: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """W ← SW(σ²I + M⁻¹WᵀSW)⁻¹, σ² ← (tr S − tr(SWM⁻¹Wᵀ))/p, with M = WᵀW + σ²I = LLᵀ and the new W last."""
        eye, total = torch.eye(W.shape[1], dtype=W.dtype, device=W.device), S.diagonal.sum()
        self._refuse_zero(sigma2, total)
        factor = torch.linalg.cholesky(W.T @ W + sigma2 * eye)  # L
        half = torch.linalg.solve_triangular(factor, W.T, upper=False)  # L⁻¹Wᵀ
        S_half = S @ half.T
        log_det = (S.p - W.shape[1]) * sigma2.log() + 2 * factor.diagonal().log().sum()
        trace = (total - (half.T * S_half).sum()) / sigma2
        gain = torch.linalg.solve(sigma2 * eye + half @ S_half, S_half.T).T  # the new W times L⁻ᵀ
        return log_normal(S.p, log_det, trace), (gain @ factor.T, (total - (gain * S_half).sum()) / S.p)


class FactorAnalysis(LinearGaussian):
    r"""Factor analysis: every column has a noise variance of its own, ψ_j. Fitted by EM.

    .. math:: W \leftarrow S B^\top\,(I - BW + B S B^\top)^{-1}, \qquad
              \psi \leftarrow \operatorname{diag}(S - W B S), \qquad B = M^{-1}W^\top\Psi^{-1}

    with M = I + WᵀΨ⁻¹W: O(npd) a step (O(p²d) where p < n), and no p×p inverse. W is found up to a rotation. A constant
    column gets the smallest noise variance allowed, 1e-12, so its share of log p(x) is arbitrary: leave out such
    columns, and scale columns in tiny units to variances of about 1. NaN is a missing value, as in `PPCA(method="em")`.

    Args:
        n_components: d; `None` for min(n − 2, p), which is far more than p columns can identify.
        tol: EM stops when a step gains less, nats.
        max_iter: the maximum number of steps of EM; a ConvergenceWarning is given if they do not suffice.

    Attributes:
        mean_, components_, noise_variance_: μ (p,), Wᵀ (d, p), ψ (p,).
        log_likelihoods_: the mean log p(x) before the first step and after each, which never falls, nats.
        n_iter_: steps of EM.

    Raises:
        ValueError: in `fit`, as `PCA` does, where the data lie in d dimensions, and where the ψ_j of a column that is
            not constant falls to 0, as with a column that is there twice.

    Source: Chen §2.1; lecture notes §1.1; Rubin and Thayer (1982).
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: object = None) -> Self:
        """Return the model with W, μ and ψ for X (n, p). `y` is ignored."""
        return self._fit_by_em(X, *self._read_for_fit(X, missing=True))

    def _start(self, variance: Float64[Tensor, " p"], d: int) -> tuple[Tensor, Tensor]:
        psi = variance.clamp(min=FLOOR)
        return initial_loadings(len(psi), d) * (psi / d).sqrt()[:, None], psi

    def _step(self, S: Covariance, W: Tensor, psi: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        eye, scaled = torch.eye(W.shape[1], dtype=W.dtype, device=W.device), W / psi[:, None]
        self._refuse_zero(psi, S.diagonal)
        factor = torch.linalg.cholesky(eye + W.T @ scaled)  # M = LLᵀ
        half = torch.linalg.solve_triangular(factor, scaled.T, upper=False)  # L⁻¹WᵀΨ⁻¹ = LᵀB
        S_half = S @ half.T
        trace = (S.diagonal / psi).sum() - (half.T * S_half).sum()
        log_det = psi.log().sum() + 2 * factor.diagonal().log().sum()
        gain = torch.linalg.solve(eye + half @ S_half, S_half.T).T  # the new W times L⁻ᵀ
        left = torch.where(S.diagonal > FLOOR, S.diagonal - (gain * S_half).sum(1), FLOOR)
        return log_normal(S.p, log_det, trace), (gain @ factor.T, left)
