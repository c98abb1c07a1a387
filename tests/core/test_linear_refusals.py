"""What the linear models refuse or warn of: one clear sentence each."""

import pytest
import torch
from sklearn.exceptions import NotFittedError
from test_linear import DATA, models, standardised

from vae_core._linear_gaussian import ConvergenceWarning
from vae_core.linear import PCA, PPCA, FactorAnalysis

REFUSED = [
    (torch.zeros(5), 1, r"X must have shape \(n, p\)"),
    (torch.zeros(0, 3), 1, r"X must have shape \(n, p\)"),
    (torch.randn(1, 3), 1, "X must have at least two rows, got 1"),
    (torch.tensor([[1.0, torch.nan, 0.0]] * 4), 1, "X must be finite, got 4 values"),
    (torch.tensor([[1.0, torch.inf, 0.0]] * 4), 1, "X must be finite, got 4 values"),
    *((torch.randn(6, 4), d, "n_components must be an integer from 1 to") for d in (0, -1, 5, 2.0, "2", True, None)),
    (torch.randn(3, 9), 4, r"n_components must be an integer from 1 to min\(n, p.*\) = 3, got 4"),
]


@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize(("X", "d", "message"), REFUSED)
def test_bad_data_and_numbers_of_components_are_refused(k, X, d, message):
    with pytest.raises(ValueError, match=message):
        models(d)[k].fit(X)


def test_two_points_are_enough_for_a_line():
    assert PCA(1).fit(torch.tensor([[0.0, 0.0], [3.0, 4.0]])).explained_variance_.tolist() == pytest.approx(
        [6.25]
    )  # with 1/n


@pytest.mark.parametrize("k", [2, 3, 4])
def test_data_in_a_subspace_of_that_many_dimensions_have_no_density(k):
    flat = torch.randn(50, 2) @ torch.randn(2, 6) + 5
    line = torch.randn(50, 1) @ torch.randn(1, 6)
    for X, d in ((flat, 2), (flat, 4), (line, 1), (torch.randn(60, 60), 59), (torch.ones(5, 3), 1)):
        if k == 4 and X.std() == 0:
            continue  # constant columns are factor analysis' own case
        with pytest.raises(ValueError, match="leaves no variance for the noise"):
            models(d)[k].fit(X)


@pytest.mark.parametrize("large", [slice(3), slice(3, None)])
def test_columns_in_other_units_are_not_taken_for_a_subspace(large):
    X, units = torch.as_tensor(standardised("wine")), torch.ones(13)
    units[large] = 1e7
    expected = FactorAnalysis(3).fit(X).score(X) - units.log().sum()
    assert FactorAnalysis(3).fit(X * units).score(X * units) == pytest.approx(expected.item(), abs=1e-6)


def test_a_column_that_is_there_twice_has_no_density_under_factor_analysis():
    X = torch.randn(50, 4)
    with pytest.raises(ValueError, match="each column once"):
        FactorAnalysis(1).fit(X[:, [0, 1, 2, 3, 0]])


@pytest.mark.parametrize("k", range(5))
def test_other_columns_than_those_of_the_fit_are_refused(k):
    model = models(2)[k].fit(standardised("wine"))
    for call in (model.transform, *([model.score, model.posterior] if k > 1 else [])):
        with pytest.raises(ValueError, match=r"X must have 13 columns, .* got 4"):
            call(DATA["iris"])
    if hasattr(model, "inverse_transform"):
        with pytest.raises(ValueError, match=r"Z must have 2 columns, .* got 4"):
            model.inverse_transform(DATA["iris"])


@pytest.mark.parametrize("k", range(5))
def test_a_model_that_is_not_fitted_says_so_as_scikit_learns_do(k):
    model = models(2)[k]
    asked = [lambda: model.transform(DATA["iris"])]
    asked += [lambda: model.inverse_transform(torch.zeros(1, 2))] if k < 2 else [lambda: model.score(DATA["iris"])]
    asked += [lambda: model.sample(3), lambda: model.posterior(DATA["iris"])] if k > 1 else []
    for ask in asked:
        with pytest.raises(NotFittedError, match=f"this {type(model).__name__} is not fitted yet"):
            ask()


@pytest.mark.parametrize("k", range(5))
def test_labels_are_not_looked_at(k):
    X = standardised("wine")
    with_labels, without = (models(2)[k].fit(X, *y).transform(X) for y in (([0] * len(X),), ()))
    assert torch.equal(with_labels, without)


@pytest.mark.parametrize("kind", [PCA, PPCA])
def test_another_method_is_refused(kind):
    with pytest.raises(ValueError, match=r"method must be .* got 'newton'"):
        kind(2, "newton")


@pytest.mark.parametrize("k", [1, 3, 4])
def test_too_few_steps_are_warned_of_and_counted(k):
    model = models(2)[k]
    model.max_iter = 3
    with pytest.warns(ConvergenceWarning, match=f"{type(model).__name__} stopped after max_iter=3 steps") as caught:
        model.fit(DATA["digits"])
    assert caught[0].filename == __file__
    assert k == 1 or len(model.log_likelihoods_) == 4


@pytest.mark.parametrize("k", [3, 4])
def test_any_gain_ends_the_fit_where_every_gain_is_too_small(k):
    model = models(2)[k]
    model.tol = float("inf")
    assert len(model.fit(standardised("wine")).log_likelihoods_) == 2
