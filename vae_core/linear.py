"""Linear latent variable models: PCA, probabilistic PCA, factor analysis. All in float64; values in nats.

One generative story, three laws of the noise:

.. math:: z \\sim \\mathcal N(0, I_d), \\qquad x = Wz + \\mu + e, \\qquad e \\sim \\mathcal N(0, \\Psi)

Ψ = diag(ψ) for factor analysis, σ²I for probabilistic PCA, and σ² → 0 leaves PCA. They keep scikit-learn's
names: `fit`, `transform`, `score_samples`, `score`, `sample`, `n_components`, `mean_`, `components_` (d, p),
`noise_variance_`; X is an array or a tensor (n, p), attributes are tensors on the CPU. What is asked of a model before
`fit` raises scikit-learn's NotFittedError.
"""

from typing import Any, Self

import torch
from torch import Tensor

from vae_core._linear_gaussian import (
    FLOOR,
    Covariance,
    LinearGaussian,
    as_data,
    checked,
    log_normal,
    random_start,
    refuse_unfitted,
    warn_not_converged,
    with_signs,
)


class PCA:
    r"""Principal component analysis: the d directions of largest variance.

    .. math:: S = \tfrac1n\sum_n(x_n-\bar x)(x_n-\bar x)^\top, \quad S u_j = \lambda_j u_j, \quad z = U_d^\top(x-\bar x)

    `method="svd"` takes the eigenvectors of S, or where n ≤ p the singular vectors of X; S need not have full rank.
    `method="em"` is Roweis' EM for the zero-noise limit: Z = (WᵀW)⁻¹WᵀX, W = XZᵀ(ZZᵀ)⁻¹, O(npd) a step. It finds
    the subspace; a small eigenproblem within it then finds the axes.

    After `fit`: `mean_` (p,), `components_` (d, p), `explained_variance_` (d,) with 1/n, not 1/(n − 1).
    Raises ValueError for data or a number of components that it cannot work with.
    Source: Chen §2.1; lecture notes §1.1; Roweis (1998).
    """

    def __init__(self, n_components: int, method: str = "svd", tol: float = 1e-12, max_iter: int = 10_000) -> None:
        if method not in ("svd", "em"):
            raise ValueError(f"method must be 'svd' or 'em', got {method!r}")
        self.n_components, self.method, self.tol, self.max_iter = n_components, method, tol, max_iter

    def fit(self, X: Any, y: object = None) -> Self:
        """Find mean, components and their variances. `y` is not looked at, as in scikit-learn."""
        S = Covariance(checked(X, self.n_components, "p"))
        self.mean_ = S.mean
        if self.method == "svd":
            values, vectors = (part[..., : self.n_components] for part in S.eigen())
        else:
            basis = self._subspace(S)
            values, turn = torch.linalg.eigh(basis.T @ (S @ basis))
            values, vectors = values.flip(0), basis @ turn.flip(1)
        self.explained_variance_, self.components_ = values, with_signs(vectors).T.contiguous()
        return self

    def _subspace(self, S: Covariance) -> Tensor:
        """An orthonormal basis of the leading subspace, by Roweis' EM."""
        basis = torch.linalg.qr(random_start(S.p, self.n_components)).Q
        for _ in range(self.max_iter):
            S_basis = S @ basis
            W = S_basis @ torch.linalg.pinv(basis.T @ S_basis)  # both steps at once, for a W with WᵀW = I
            turned = torch.linalg.qr(W).Q
            change = (turned - basis @ (basis.T @ turned)).norm()
            basis = turned
            if change < self.tol:
                return basis
        warn_not_converged("PCA", self.max_iter)
        return basis

    def transform(self, X: Any) -> Tensor:
        """The codes z = Uᵀ(x − x̄), (n, d)."""
        refuse_unfitted(self)
        return (as_data(X, self.mean_.numel()) - self.mean_) @ self.components_.T

    def inverse_transform(self, Z: Any) -> Tensor:
        """The points x̄ + U z of the subspace, (n, p)."""
        refuse_unfitted(self)
        return as_data(Z, self.n_components, "Z") @ self.components_ + self.mean_


class PPCA(LinearGaussian):
    r"""Probabilistic PCA: Ψ = σ²I. The maximum of the likelihood in closed form, or by EM.

    .. math:: W = U_d(\Lambda_d-\sigma^2I)^{1/2}, \qquad \sigma^2 = \frac1{p-d}\sum_{j>d}\lambda_j

    `method="em"` takes O(npd) a step and reaches the same subspace and σ²; `log_likelihoods_` holds the mean log p(x)
    before the first step and after each, which never falls. It stops when a step gains less than `tol` nats.

    Raises ValueError as `PCA` does, for d = p, and where the data lie in d dimensions, so that σ² would be 0.
    Source: Chen §2.1; Tipping and Bishop (1999) eqs. (7), (8), (27), (28).
    """

    def __init__(self, n_components: int, method: str = "closed", tol: float = 1e-8, max_iter: int = 1000) -> None:
        if method not in ("closed", "em"):
            raise ValueError(f"method must be 'closed' or 'em', got {method!r}")
        super().__init__(n_components, tol, max_iter)
        self.method = method

    def fit(self, X: Any, y: object = None) -> Self:
        """Find W, μ and σ²; `y` is not looked at."""
        S, d = Covariance(checked(X, self.n_components, "p - 1")), self.n_components
        self.mean_, total = S.mean, S.diagonal.sum()
        if self.method == "em":
            return self._fit_em(S)
        values, vectors = S.eigen()
        sigma2 = (total - values[:d].sum()) / (S.p - d)
        self._refuse_zero(sigma2, total)
        W = with_signs(vectors[:, :d]) * (values[:d] - sigma2).clamp(min=0).sqrt()
        self.components_, self.noise_variance_ = W.T.contiguous(), sigma2
        log_det = values[:d].log().sum() + (S.p - d) * sigma2.log()
        self.log_likelihoods_ = [log_normal(S.p, log_det, S.p).item()]
        return self

    def _fit_em(self, S: Covariance) -> Self:
        """W ← SW(σ²I + M⁻¹WᵀSW)⁻¹, σ² ← (tr S − tr(SWM⁻¹Wᵀ))/p, with M = WᵀW + σ²I = LLᵀ and the new W last."""
        eye, total = torch.eye(self.n_components, dtype=torch.float64), S.diagonal.sum()
        self._refuse_subspace(S)
        W, sigma2, values = random_start(S.p, self.n_components) * (total / S.p).sqrt(), total / S.p, []
        while True:
            self._refuse_zero(sigma2, total)
            factor = torch.linalg.cholesky(W.T @ W + sigma2 * eye)  # L
            half = torch.linalg.solve_triangular(factor, W.T, upper=False)  # L⁻¹Wᵀ
            S_half = S @ half.T
            log_det = (S.p - self.n_components) * sigma2.log() + 2 * factor.diagonal().log().sum()
            trace = (total - (half.T * S_half).sum()) / sigma2
            values.append(log_normal(S.p, log_det, trace).item())
            if self._finished(values, stacklevel=5):
                break
            gain = torch.linalg.solve(sigma2 * eye + half @ S_half, S_half.T).T  # the new W times L⁻ᵀ
            sigma2 = (total - (gain * S_half).sum()) / S.p
            W = gain @ factor.T
        self.components_, self.noise_variance_, self.log_likelihoods_ = W.T.contiguous(), sigma2, values
        return self


class FactorAnalysis(LinearGaussian):
    r"""Factor analysis: every column has a noise variance of its own, ψ_j. Fitted by EM.

    .. math:: W \leftarrow S B^\top\,(I - BW + B S B^\top)^{-1}, \qquad
              \psi \leftarrow \operatorname{diag}(S - W B S), \qquad B = M^{-1}W^\top\Psi^{-1}

    with M = I + WᵀΨ⁻¹W: O(npd) a step (O(p²d) where p < n), and no p×p inverse. `log_likelihoods_` holds the mean
    log p(x) before the first step and after each, which never falls. It stops when a step gains less than `tol` nats,
    and warns with a ConvergenceWarning if `max_iter` steps do not get there. W is found up to a rotation. A constant
    column gets the least variance there is, 1e-12, so its share of log p(x) is arbitrary: leave such columns out, and
    bring columns in tiny units to variances of about 1 first.

    Raises ValueError as `PCA` does, and where the ψ_j of another column falls to 0, as with a column that is there
    twice. Source: Chen §2.1; lecture notes §1.1; Rubin and Thayer (1982).
    """

    def fit(self, X: Any, y: object = None) -> Self:
        """Find W, μ and ψ; `y` is not looked at."""
        S, d = Covariance(checked(X, self.n_components, "p")), self.n_components
        self.mean_, values, eye = S.mean, [], torch.eye(d, dtype=torch.float64)
        self._refuse_subspace(S)
        psi = S.diagonal.clamp(min=FLOOR)
        W = random_start(S.p, d) * (psi / d).sqrt()[:, None]
        while True:
            scaled = W / psi[:, None]
            factor = torch.linalg.cholesky(eye + W.T @ scaled)  # M = LLᵀ
            half = torch.linalg.solve_triangular(factor, scaled.T, upper=False)  # L⁻¹WᵀΨ⁻¹ = LᵀB
            S_half = S @ half.T
            trace = (S.diagonal / psi).sum() - (half.T * S_half).sum()
            log_det = psi.log().sum() + 2 * factor.diagonal().log().sum()
            values.append(log_normal(S.p, log_det, trace).item())
            if self._finished(values):
                break
            gain = torch.linalg.solve(eye + half @ S_half, S_half.T).T  # the new W times L⁻ᵀ
            psi = torch.where(S.diagonal > FLOOR, S.diagonal - (gain * S_half).sum(1), FLOOR)
            self._refuse_zero(psi, S.diagonal)
            W = gain @ factor.T
        self.components_, self.noise_variance_, self.log_likelihoods_ = W.T.contiguous(), psi, values
        return self
