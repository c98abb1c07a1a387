"""What makes the linear models scikit-learn estimators: tables in and out, and parameters that `fit` checks."""

import math
import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float64
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor


def like(result: Tensor, X: Any) -> Any:
    """Return the result as a tensor if X is one, and as an array (a NumPy number, if it has no axes) otherwise."""
    return result if isinstance(X, Tensor) else result.numpy()[()]


def as_tensor(values: Any) -> Tensor:
    """Return a tensor as it is, and numbers as a float64 tensor that may share their memory."""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.require(values, np.float64, ["C", "W"]))


def read_table(
    X: Any, missing: bool = False, model: BaseEstimator | None = None, fit: bool = False
) -> Float64[Tensor, "n p"]:
    """Return X as a float64 tensor on the CPU; a tensor keeps its gradients.

    Args:
        X: numbers in n rows and p columns: a tensor, an array, a list, a data frame. Masked entries become NaN.
        missing: whether NaN is allowed, as a missing value.
        model: the estimator that remembers (`fit`) or compares the number and the names of the columns.

    Raises:
        ValueError, TypeError: for other shapes, containers and kinds of numbers, infinities, NaN unless allowed.
    """
    array = _as_array(X)
    options = dict(dtype=np.float64, order="C", ensure_all_finite=False)
    if model is None:
        array = check_array(array, **options)
    else:
        array = validate_data(model, array, reset=fit, ensure_min_samples=2 if fit else 1, **options)
    table = X.to("cpu", torch.float64) if isinstance(X, Tensor) else as_tensor(array)
    if not table.sum().isfinite():  # much faster than checking every entry
        _refuse_infinite(table, missing)
    return table


def _refuse_infinite(table: Float64[Tensor, "n p"], missing: bool) -> None:
    """Raise ValueError for infinities, and for NaN unless it is allowed."""
    count = int((table.isinf() if missing else ~table.isfinite()).sum())
    if count and missing:
        raise ValueError(f"X must be finite, or NaN where a value is missing, got {count} values that are inf")
    if count:
        text = f"X must be finite, got {count} values that are NaN (or masked) or infinite"
        raise ValueError(text + "; PPCA(method='em') and FactorAnalysis can be fitted to data with NaN as missing")


def _as_array(X: Any) -> Any:
    """Return X as scikit-learn reads it. Raise an error where a conversion to float64 would lose information."""
    if isinstance(X, Tensor):
        return _tensor_as_array(X)
    if sparse.issparse(X):
        return X  # scikit-learn raises the error
    if np.ma.isMaskedArray(X) or (isinstance(X, Sequence) and any(map(np.ma.isMaskedArray, X))):
        X = np.ma.array(X)
        X = X.astype(object if X.dtype.kind == "O" else np.float64).filled(np.nan) if X.dtype.kind in "biufO" else X
    try:
        values = np.asarray(X)
        values = values.astype(np.float64) if values.dtype == object else values
    except (TypeError, ValueError, OverflowError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"X must be rows of real numbers, each as long as the others: {error}") from error
    if values.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: X must hold real numbers, got dtype {values.dtype}")
    if values.dtype.kind in "USVmM":
        raise ValueError(f"X must hold numbers, got dtype {values.dtype}: convert its columns to numbers first")
    if values.ndim > 2:
        shape = values.shape
        raise ValueError(f"X must have shape (n, p), got {shape}: give X.reshape({shape[0]}, -1)")
    return X if hasattr(X, "columns") else values  # a data frame keeps the names of its columns


def _tensor_as_array(X: Tensor) -> Any:
    """Return a tensor's numbers in an array, without a copy if they are float64 already."""
    if X.layout is not torch.strided or X.is_nested or X.is_quantized or X.is_meta:
        kind = f"layout {X.layout} and device {X.device}"
        raise TypeError(f"X must be an ordinary dense tensor, got {kind}: X.to_dense() makes a sparse one dense")
    X = X.detach().cpu()
    if X.is_complex():
        return _as_array(X.resolve_conj().numpy())
    return _as_array(X.double().resolve_neg().numpy())


def whole_number(name: str, value: Any, least: int, most: int | None = None, most_is: str = "") -> int:
    """Return the value as an int. Raise ValueError unless it is an integer in the range."""
    whole = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if whole is not None and least <= whole and (most is None or whole <= most):
        return whole
    allowed = f"of {least} or more" if most is None else f"from {least} to {most_is or most}"
    raise ValueError(f"{name} must be an integer {allowed}, got {value!r}")


class LinearModel(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Base of all linear models: their parameters and data. As in scikit-learn, `fit` checks, not the constructor."""

    n_components: int | None
    method: str
    tol: float
    max_iter: int
    mean_: Any  # (p,), a tensor or an array, as is every attribute
    components_: Any  # (d, p)
    n_iter_: int  # steps of EM; 1 for a closed form

    _methods: tuple[str, ...] = ()  # what `method` may be
    _spare_columns, _spare_rows = 0, 0  # columns that must be left to the noise, and rows that None leaves to it

    def _read_for_fit(self, X: Any, missing: bool = False) -> tuple[Float64[Tensor, "n p"], int]:
        """Return the data and the number of components. Raise ValueError for a parameter that cannot be used."""
        if self._methods and not (isinstance(self.method, str) and self.method in self._methods):
            raise ValueError(f"method must be {' or '.join(map(repr, self._methods))}, got {self.method!r}")
        if isinstance(self.tol, bool) or not isinstance(self.tol, Real) or math.isnan(self.tol):
            raise ValueError(f"tol must be a number, got {self.tol!r}")
        whole_number("max_iter", self.max_iter, 0)
        table = read_table(X, missing, model=self, fit=True).detach()
        return table, self._number_of_components(*table.shape)

    def _number_of_components(self, n: int, p: int) -> int:
        """Return `n_components`, or the most that n rows and p columns allow if it is None."""
        most = min(n, p - self._spare_columns)
        if self.n_components is None and most > 0:
            return max(1, min(most, n - self._spare_rows))
        spare = f" - {self._spare_columns}" if self._spare_columns else ""
        where = f"min(n, p{spare}) = {most} (n_samples = {n}, n_features = {p})"
        return whole_number("n_components", self.n_components, 1, most, where)

    def _read(self, X: Any, missing: bool = False) -> Float64[Tensor, "n p"]:
        """Return data for the fitted model."""
        check_is_fitted(self)
        table, p = read_table(X, missing, model=self), len(self.mean_)
        if table.shape[1] != p:  # the parameters were set by hand, without `fit`
            raise ValueError(f"X has {table.shape[1]} features, but {type(self).__name__} is expecting {p} features")
        return table

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether there are parameters, fitted or set by hand; a failed `fit` leaves `n_features_in_` alone."""
        return hasattr(self, "components_")

    def _keep(self, X: Any, **fitted: Tensor) -> Self:
        """Set attributes, tensors if X is one and arrays otherwise."""
        for name, value in fitted.items():
            setattr(self, name, like(value, X))
        return self

    @property
    def _mean(self) -> Float64[Tensor, " p"]:
        return as_tensor(self.mean_)

    @property
    def _W(self) -> Float64[Tensor, "p d"]:
        return as_tensor(self.components_).T

    @property
    def _n_features_out(self) -> int:
        """The number of names that `get_feature_names_out` returns."""
        return len(self.components_)

    def _warn_not_converged(self, stacklevel: int) -> None:
        """Warn the caller of `fit`, that many calls up from here."""
        text = f"{type(self).__name__} stopped after max_iter={self.max_iter} steps of EM before tol was reached"
        warnings.warn(f"{text}; raise one of the two", ConvergenceWarning, stacklevel=stacklevel)
