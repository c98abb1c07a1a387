"""Rows of which only a part is observed: p(z | observed part), log p(observed part), and EM's step for them.

The entries of e in x = Wz + μ + e are independent, so a missing entry integrates out: its row of W and its ψ_j are left
out of all formulas. With O the observed columns of a row,

.. math:: z|x_O \\sim \\mathcal N\\big(M_O^{-1}W_O^\\top\\Psi_O^{-1}(x_O-\\mu_O),\\ M_O^{-1}\\big), \\qquad
          M_O = I + W_O^\\top\\Psi_O^{-1}W_O

M depends on a row only through O, its pattern: there is one M for each pattern, and a single one for complete data.
Whether a value is missing must not depend on what it would have been (missing at random).

Source: Rubin and Thayer (1982); Little and Rubin (2002), chapters 7 and 8.
"""

import math
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

FLOOR = 1e-12  # the smallest noise variance of a column, so that a constant column has a density


class Imputation(NamedTuple):
    """Conditional means and variances of all entries, (n, p): an observed entry is its own mean, with variance 0."""

    mean: Any
    variance: Any


def has_nan(X: Float64[Tensor, "n p"]) -> bool:
    """Return whether X, which is free of infinities, holds NaN; the sum takes a fifth of the time of `isnan`."""
    return bool(X.sum().isnan()) and bool(X.isnan().any())


class Rows(NamedTuple):
    """Rows of data, and their patterns of observed columns."""

    values: Float64[Tensor, "n p"]  # 0 where missing
    observed: Float64[Tensor, "patterns p"]  # 1 where observed, 0 where missing
    pattern: Int64[Tensor, " n"]  # the index of each row's pattern

    @classmethod
    def of(cls, X: Float64[Tensor, "n p"]) -> Self:
        """Return the rows of X, in which NaN marks a missing value, grouped by pattern."""
        if not has_nan(X):
            return cls(X, torch.ones_like(X[:1]), X.new_zeros(len(X), dtype=torch.int64))
        missing = X.isnan()
        observed, pattern = torch.unique(~missing, dim=0, return_inverse=True)
        return cls(X.masked_fill(missing, 0.0), observed.double(), pattern)

    def less(self, mean: Float64[Tensor, " p"]) -> Self:
        """Return the rows of x − mean, 0 where missing."""
        return self._replace(values=self.values - self.per_row(self.observed * mean))

    def per_row(self, of_patterns: Float64[Tensor, "patterns ..."]) -> Float64[Tensor, "..."]:
        """Return the entry for each row's pattern, (n, …), or (1, …) if there is a single pattern."""
        return of_patterns if len(of_patterns) == 1 else of_patterns[self.pattern]

    def counts(self) -> Float64[Tensor, " p"]:
        """Return in how many rows each column is observed. Raise ValueError for a column that never is."""
        counts = torch.bincount(self.pattern).double() @ self.observed
        if not counts.all():
            empty = (counts == 0).nonzero().flatten().tolist()
            raise ValueError(f"X must have a value in every column, got none in columns {empty}: leave these out")
        return counts

    def variance(self) -> Float64[Tensor, " p"]:
        """Return the mean squares of the observed values of each column."""
        return self.values.square().sum(0) / self.counts()


class Conditional:
    """p(z | observed part) of each row, batch (n,), event (d,).

    Attributes:
        gain: M − I = WᵀΨ⁻¹W of the observed columns, (patterns, d, d).
        factor: L with M = LLᵀ, (patterns, d, d).
        whitened: L⁻¹WᵀΨ⁻¹(x − μ), (n, d).
    """

    def __init__(self, centred: Rows, W: Float64[Tensor, "p d"], psi: Float64[Tensor, " p"]) -> None:
        self.rows, self.psi, scaled = centred, psi, W / psi[:, None]
        self.gain = torch.stack([centred.observed @ (scaled * w[:, None]) for w in W.T], -1)
        self.factor = torch.linalg.cholesky(torch.eye(W.shape[1], dtype=W.dtype, device=W.device) + self.gain)
        self.whitened = self._solve(self.factor, centred.values @ scaled, upper=False)

    def _solve(self, factor: Tensor, right: Float64[Tensor, "n d"], upper: bool) -> Float64[Tensor, "n d"]:
        """Return each row's solution with its pattern's factor; all rows at once if there is a single pattern."""
        if len(factor) == 1:
            return torch.linalg.solve_triangular(factor[0], right.T, upper=upper).T
        return torch.linalg.solve_triangular(self.rows.per_row(factor), right[..., None], upper=upper)[..., 0]

    def mean(self) -> Float64[Tensor, "n d"]:
        """Return M⁻¹WᵀΨ⁻¹(x − μ) = L⁻ᵀ whitened."""
        return self._solve(self.factor.mT, self.whitened, upper=True)

    def covariance(self) -> Float64[Tensor, "patterns d d"]:
        """Return M⁻¹."""
        return torch.cholesky_inverse(self.factor)

    def log_prob(self) -> Float64[Tensor, " n"]:
        r"""Return log p(observed part), nats; 0 for a row in which nothing is observed.

        .. math:: |WW^\top+\Psi| = |\Psi||M|, \qquad
                  (WW^\top+\Psi)^{-1} = \Psi^{-1}-\Psi^{-1}WM^{-1}W^\top\Psi^{-1}
        """
        log_det = self.rows.observed @ self.psi.log() + 2 * self.factor.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = self.rows.observed.sum(1) * math.log(2 * math.pi) + log_det  # (patterns,)
        distance = (self.rows.values.square() / self.psi).sum(1) - self.whitened.square().sum(1)
        return -0.5 * (self.rows.per_row(constant) + distance)


def regress(rows: Rows, given: Conditional) -> tuple[Float64[Tensor, "p _"], Float64[Tensor, " p"]]:
    r"""Return EM's M step: each column of x regressed on z and 1, over the rows n in which it is observed.

    .. math:: (w_j, \mu_j) = \Big(\sum_n\mathbb E[\tilde z_n\tilde z_n^\top]\Big)^{-1}
              \sum_n x_{nj}\,\mathbb E[\tilde z_n], \qquad \tilde z = (z, 1)

    Args:
        rows: x, not x − μ.
        given: p(z | observed part) of the same rows.

    Returns:
        (w_j, μ_j) of each column, (p, d + 1), and the sum over n of 𝔼[(x_nj − w_jᵀz − μ_j)²].
    """
    mean = given.mean()
    z = torch.cat([mean, torch.ones_like(mean[:, :1])], 1)
    zeros = z.new_zeros(len(rows.observed), z.shape[1])
    second = torch.stack([zeros.index_add(0, rows.pattern, z * column[:, None]) for column in z.T], -1)
    second[:, :-1, :-1] += torch.bincount(rows.pattern)[:, None, None] * given.covariance()  # (patterns, d + 1, d + 1)
    moments = (rows.observed.T @ second.flatten(1)).view(-1, *second.shape[1:])  # (p, d + 1, d + 1)
    products = rows.values.T @ z
    solution = torch.linalg.solve(moments, products)
    return solution, rows.values.square().sum(0) - (solution * products).sum(1)


def em_step(
    rows: Rows, W: Float64[Tensor, "p d"], psi: Float64[Tensor, "..."], mean: Float64[Tensor, " p"]
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return the mean log p(observed part), nats, and W, ψ and μ after a step of EM; a scalar ψ stays a scalar."""
    given = Conditional(rows.less(mean), W, psi.expand(len(mean)))
    solution, residual = regress(rows, given)
    if psi.dim():
        psi = torch.where(rows.variance() > FLOOR, residual / rows.counts(), FLOOR)
    else:
        psi = residual.sum() / rows.counts().sum()
    return given.log_prob().mean(), (solution[:, :-1], psi, solution[:, -1])
