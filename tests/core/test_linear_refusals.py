"""What the linear models refuse or warn of: one clear sentence each."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from linear_data import DATA, models, standardised
from scipy import sparse
from sklearn.exceptions import NotFittedError

from vae_core._linear_gaussian import LinearGaussian
from vae_core.distributions import standard_normal
from vae_core.linear import PCA, PPCA, ConvergenceWarning, FactorAnalysis

SHAPES = [
    (torch.zeros(5), "Expected 2D array, got 1D array"),
    (torch.tensor(5.0), "Expected 2D array, got scalar array"),
    (torch.zeros(0, 3), r"Found array with 0 sample\(s\)"),
    (torch.zeros(3, 0), r"Found array with 0 feature\(s\)"),
    (torch.randn(7, 1, 8, 8), r"X must have shape \(n, p\), got \(7, 1, 8, 8\): give X.reshape\(7, -1\)"),
    (np.zeros((7, 8, 8)), r"X must have shape \(n, p\), got \(7, 8, 8\): give X.reshape\(7, -1\)"),
    (None, "Expected 2D array, got scalar array"),
    ("ab", "X must hold numbers, got dtype <U2"),
]
REFUSED = [
    *((X, 1, message) for X, message in SHAPES),
    (torch.randn(1, 3), 1, r"Found array with 1 sample\(s\) .* while a minimum of 2 is required"),
    (torch.tensor([[1.0, torch.inf, 0.0]] * 4), 1, "X must be finite, .*got 4 values"),
    (torch.tensor([[1.0, -torch.inf, torch.inf]] * 4), 1, "X must be finite, .*got 8 values"),
    *((torch.randn(6, 4), d, "n_components must be an integer from 1 to") for d in (0, -1, 5, 2.0, "2", True, np.nan)),
    (torch.randn(3, 9), 4, r"n_components must be an integer from 1 to min\(n, p.*\) = 3 \(n_samples = 3, .*, got 4"),
]
CONTAINERS = [  # what a conversion to float64 would change without a word
    (np.ones((4, 3)) * 1j, ValueError, "Complex data not supported"),
    (torch.ones(4, 3) * 1j, ValueError, "Complex data not supported"),
    (np.ma.array(np.ones((4, 3)) * 1j, mask=True), ValueError, "Complex data not supported"),
    ([[1j, 2], [3, 4]], ValueError, "Complex data not supported"),
    (np.array([[1j, 2], [3, 4]], object), TypeError, "X must be rows of real numbers, .* not 'complex'"),
    (np.array([["1", "2"], ["3", "4"]]), ValueError, "X must hold numbers, got dtype <U1"),
    (np.array([[b"1", b"2"], [b"3", b"4"]]), ValueError, r"X must hold numbers, got dtype \|S1"),
    (np.array([["2020-01-01", "2021-01-01"]] * 3, "M8[D]"), ValueError, r"X must hold numbers, got dtype datetime64"),
    (np.array([[1, 2], [3, 5]], "m8[s]"), ValueError, r"X must hold numbers, got dtype timedelta64"),
    (np.array([[(1, 2.0)]], "i4,f8"), ValueError, "X must hold numbers, got dtype"),
    (sparse.csr_matrix(np.eye(4)), TypeError, "Sparse data was passed"),
    (sparse.coo_array(np.eye(4)), TypeError, "Sparse data was passed"),
    (torch.eye(4).to_sparse(), TypeError, r"X must be an ordinary dense tensor, .*torch.sparse_coo.* X.to_dense\(\)"),
    (torch.empty(4, 2, device="meta"), TypeError, "X must be an ordinary dense tensor, .* device meta"),
    (torch.ones(4, 2, dtype=torch.complex128).conj(), ValueError, "X must hold real numbers, got dtype complex128"),
    ([[1, 2], [3]], ValueError, "X must be rows of real numbers, each as long as the others"),
    ([[10**400, 2], [3, 4]], ValueError, "X must be rows of real numbers, .*too large"),
    (np.array([["a", 1], ["b", 2]], object), ValueError, "X must be rows of real numbers, .*could not convert string"),
    ((row for row in [[1, 2], [3, 4]]), TypeError, "X must be rows of real numbers, .* not 'generator'"),
    ({"a": [1, 2]}, TypeError, "X must be rows of real numbers, .* not 'dict'"),
]
TOO_LARGE_OR_SMALL = [(1e200, "inf"), (1e300, "inf"), (1e-160, "e-3")]


@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize(("X", "d", "message"), REFUSED)
def test_fit_refuses_bad_data_and_numbers_of_components(k, X, d, message):
    with pytest.raises(ValueError, match=message):
        models(d)[k].fit(X)


@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize(("X", "error", "message"), CONTAINERS)
def test_fit_and_transform_refuse_containers_that_lose_their_meaning_as_float64(k, X, error, message):
    with pytest.raises(error, match=message):
        models(1)[k].fit(X)
    fitted = models(1)[k].fit(torch.randn(6, 2))
    with pytest.raises(error, match=message):
        fitted.transform(X)


@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize(("size", "sum_of_squares"), TOO_LARGE_OR_SMALL)
def test_fit_refuses_values_whose_squares_float64_cannot_hold(k, size, sum_of_squares):
    with pytest.raises(ValueError, match=f"variances that float64 can hold, got .* sum .*{sum_of_squares}"):
        models(1)[k].fit(torch.randn(6, 3) * size)


@pytest.mark.parametrize("k", range(3))
@pytest.mark.parametrize("masked", [False, True])
def test_fit_refuses_missing_values_and_names_the_models_that_take_them(k, masked):
    X = torch.randn(6, 3)
    X[1, 2] = X[3, 0] = torch.nan
    X = np.ma.masked_invalid(X.numpy()) if masked else X
    with pytest.raises(ValueError, match=r"X must be finite, got 2 values .*PPCA\(method='em'\) and FactorAnalysis"):
        models(1)[k].fit(X)
    rows = list(X) if masked else X.tolist()  # a list of masked rows is masked, too
    with pytest.raises(ValueError, match="X must be finite, got 2 values"):
        models(1)[k].fit(rows)
    if k < 2:
        with pytest.raises(ValueError, match="X must be finite, got 2 values"):
            models(1)[k].fit(torch.randn(6, 3)).transform(X)


def test_inverse_transform_wants_finite_codes_with_one_column_for_each_component():
    pca = PCA(2).fit(DATA["iris"])
    for Z, message in (
        (torch.tensor([[0.0, torch.nan]]), "X must be finite, got 1 values"),
        (torch.zeros(2, 3, 4), r"X must have shape \(n, p\), got \(2, 3, 4\)"),
        (torch.zeros(2, 3), "X must have 2 columns, one for each component, got 3"),
        ([[1j, 2]], "Complex data not supported"),
    ):
        with pytest.raises(ValueError, match=message):
            pca.inverse_transform(Z)


@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *(("tol", value, "tol must be a number, got") for value in ("1", None, True, float("nan"), 1j)),
        *(("max_iter", value, "max_iter must be an integer of 0 or more, got") for value in (-1, 2.0, "2", None, True)),
    ],
)
def test_fit_checks_the_parameters(k, name, value, message):
    model = models(2)[k].set_params(**{name: value})
    with pytest.raises(ValueError, match=message):
        model.fit(DATA["iris"])


@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True, None])
def test_sample_wants_an_integer_number_of_one_or_more(value):
    with pytest.raises(ValueError, match="n_samples must be an integer of 1 or more, got"):
        PPCA(1).fit(DATA["iris"]).sample(value)


@pytest.mark.parametrize("value", [-1, 2**63, 1.5, "a", None])
def test_sample_wants_a_seed_that_torch_takes(value):
    with pytest.raises(ValueError, match="seed must be an integer from 0 to 9223372036854775807, got"):
        PPCA(1).fit(DATA["iris"]).sample(2, seed=value)


def test_elbo_wants_a_gaussian_for_each_row():
    model = PPCA(1).fit(DATA["iris"])
    with pytest.raises(ValueError, match=r"q must have batch shape \(150,\), .* got \(7,\)"):
        model.elbo(DATA["iris"], standard_normal(1).expand((7,)))
    for q in (None, torch.zeros(150, 1), "normal"):
        with pytest.raises(TypeError, match="q must be a diagonal_normal or a MultivariateNormal, got"):
            model.elbo(DATA["iris"], q)


def test_pca_needs_two_points_for_a_line():
    assert PCA(1).fit(torch.tensor([[0.0, 0.0], [3.0, 4.0]])).explained_variance_.tolist() == pytest.approx(
        [6.25]
    )  # with 1/n


@pytest.mark.parametrize("k", [2, 3, 4])
def test_fit_refuses_a_density_of_data_in_a_subspace_of_that_many_dimensions(k):
    flat = torch.randn(50, 2) @ torch.randn(2, 6) + 5
    line = torch.randn(50, 1) @ torch.randn(1, 6)
    for X, d in ((flat, 2), (flat, 4), (line, 1), (torch.randn(60, 60), 59), (torch.ones(5, 3), 1)):
        if k == 4 and X.std() == 0:
            continue  # constant columns are factor analysis' own case
        with pytest.raises(ValueError, match="leaves no variance for the noise"):
            models(d)[k].fit(X)


@pytest.mark.parametrize("large", [slice(3), slice(3, None)])
def test_factor_analysis_does_not_take_columns_in_other_units_for_a_subspace(large):
    X, units = torch.as_tensor(standardised("wine")), torch.ones(13)
    units[large] = 1e7
    expected = FactorAnalysis(3).fit(X).score(X) - units.log().sum()
    assert FactorAnalysis(3).fit(X * units).score(X * units) == pytest.approx(expected.item(), abs=1e-6)


def test_factor_analysis_refuses_a_column_that_is_there_twice():
    X = torch.randn(50, 4)
    with pytest.raises(ValueError, match="each column once"):
        FactorAnalysis(1).fit(X[:, [0, 1, 2, 3, 0]])


@pytest.mark.parametrize("k", range(5))
def test_transform_score_and_posterior_refuse_other_columns_than_those_of_fit(k):
    model = models(2)[k].fit(standardised("wine"))
    for call in (model.transform, *([model.score, model.posterior] if k > 1 else [])):
        with pytest.raises(ValueError, match=r"X has 4 features, but \w+ is expecting 13 features"):
            call(DATA["iris"])
    if hasattr(model, "inverse_transform"):
        with pytest.raises(ValueError, match=r"X must have 2 columns, .* got 4"):
            model.inverse_transform(DATA["iris"])


@pytest.mark.parametrize("k", range(5))
def test_transform_and_the_others_say_that_a_model_is_not_fitted_as_scikit_learns_do(k):
    model = models(2)[k]
    asked = [lambda: model.transform(DATA["iris"])]
    asked += [lambda: model.inverse_transform(torch.zeros(1, 2))] if k < 2 else [lambda: model.score(DATA["iris"])]
    if k > 1:
        asked += [model.sample, model.get_covariance, model.get_precision]
        asked += [lambda: model.posterior(DATA["iris"]), lambda: model.impute(DATA["iris"])]
    for ask in asked:
        with pytest.raises(NotFittedError, match=f"This {type(model).__name__} instance is not fitted yet"):
            ask()


@pytest.mark.parametrize("k", range(5))
def test_fit_that_failed_leaves_no_model_and_a_refit_that_failed_leaves_the_model(k):
    model, X = models(99)[k], DATA["iris"]
    with pytest.raises(ValueError, match="n_components must be"):
        model.fit(X)
    with pytest.raises(NotFittedError):
        model.transform(X)
    before = model.set_params(n_components=2, tol=1e-3).fit(X).transform(X)
    for change in (dict(n_components=99), dict(tol=None), dict(max_iter=-1)):
        with pytest.raises(ValueError, match="must be"):
            model.set_params(**change).fit(X)
        assert torch.equal(model.set_params(n_components=2, tol=1e-3, max_iter=9).transform(X), before)


def test_linear_gaussian_only_holds_parameters_and_cannot_be_fitted():
    with pytest.raises(NotImplementedError, match="fit a PPCA or a FactorAnalysis"):
        LinearGaussian(1).fit(DATA["iris"])
    with pytest.raises(NotFittedError):
        LinearGaussian(1).score(DATA["iris"])


@pytest.mark.parametrize("k", range(5))
def test_fit_does_not_look_at_labels(k):
    X = standardised("wine")
    with_labels, without = (models(2)[k].fit(X, *y).transform(X) for y in (([0] * len(X),), ()))
    assert np.array_equal(with_labels, without)


@pytest.mark.parametrize("kind", [PCA, PPCA])
@pytest.mark.parametrize("method", ["newton", None, 3, ["em"], np.array(["em", "svd"])])
def test_fit_refuses_another_method(kind, method):
    with pytest.raises(ValueError, match=r"method must be '\w+' or 'em', got"):
        kind(2, method).fit(DATA["iris"])


@pytest.mark.parametrize("k", [1, 3, 4])
def test_fit_warns_of_too_few_steps_and_counts_them(k):
    model = models(2)[k]
    model.max_iter = 3
    with pytest.warns(ConvergenceWarning, match=f"{type(model).__name__} stopped after max_iter=3 steps"):
        model.fit(DATA["digits"])
    assert model.n_iter_ == 3
    assert k == 1 or len(model.log_likelihoods_) == 4


WARNED = """
import warnings
import torch
from linear_data import DATA, models

X = DATA["wine"].clone()
X[::7, 3] = torch.nan
for k, data in ((1, DATA["digits"]), (3, DATA["digits"]), (4, DATA["digits"]), (3, X), (4, X)):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        models(2)[k].set_params(max_iter=3).fit(data)
    print(caught[0].filename, caught[0].message)
"""


def test_fit_warns_of_too_few_steps_at_the_line_that_calls_it():
    """In a process of its own: the checks of shapes in this one put their own calls between `fit` and the warning."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", WARNED], capture_output=True, text=True, check=True, env=environment)
    lines = run.stdout.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("<string> ") and "stopped after max_iter=3 steps" in line for line in lines), lines


@pytest.mark.parametrize("k", [3, 4])
def test_fit_ends_at_any_gain_where_every_gain_is_too_small(k):
    model = models(2)[k]
    model.tol = float("inf")
    assert len(model.fit(standardised("wine")).log_likelihoods_) == 2
