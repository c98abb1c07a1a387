"""Linear models of rows with missing values, against the density of the observed part and numerical optimisation."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn import datasets
from sklearn.base import clone
from torch.distributions import MultivariateNormal

from vae_core.distributions import diagonal_normal, kl_divergence, standard_normal
from vae_core.linear import PPCA, FactorAnalysis

WINE = torch.as_tensor(datasets.load_wine().data)[:, [0, 1, *range(4, 13)]]
WINE = (WINE - WINE.mean(0)) / WINE.std(0) + torch.arange(11)
KINDS = {"PPCA": lambda d, **k: PPCA(d, "em", **k), "factor analysis": FactorAnalysis}
both = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
may_stop_early = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def holes(X: torch.Tensor, share: float, seed: int = 0) -> torch.Tensor:
    """X with NaN for that share of its entries; row 0 is complete and row 1 empty."""
    missing = torch.rand(X.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) < share
    missing[0], missing[1] = False, True
    return X.masked_fill(missing, torch.nan)


INCOMPLETE = holes(WINE, 0.3)


def direct(mean, covariance, row) -> float:
    """log p(observed part) by scipy's Gaussian of the observed columns alone."""
    seen = ~np.isnan(row)
    if not seen.any():
        return 0.0
    return multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)]).logpdf(row[seen])


def mean_log_p(mean, W, psi, X) -> torch.Tensor:
    """The same with gradients: the mean over rows."""
    C, total = W @ W.T + psi.diag(), 0.0
    for row in X:
        seen = ~row.isnan()
        if seen.any():
            total = total + MultivariateNormal(mean[seen], C[seen][:, seen]).log_prob(row[seen])
    return total / len(X)


@st.composite
def problems(draw):
    """Data of any shape, covariance and pattern, with a value in every column."""
    n, p = draw(st.integers(4, 15)), draw(st.integers(2, 7))
    d, seed = draw(st.integers(1, min(n - 2, p - 1))), draw(st.integers(0, 2**31))
    draws = torch.Generator().manual_seed(seed)
    X = torch.randn(n, p, generator=draws) * torch.randn(p, generator=draws).exp()
    X = X @ torch.randn(p, p, generator=draws) + 10 * torch.randn(p, generator=draws)
    return holes(X, draw(st.floats(0, 0.7)), seed), d


@may_stop_early
@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from(list(KINDS)), st.integers(0, 100))
def test_ppca_and_factor_analysis_never_lower_the_likelihood_of_what_is_observed(problem, kind, max_iter):
    X, d = problem
    try:
        model = KINDS[kind](d, max_iter=max_iter).fit(X)
    except ValueError as error:
        assume("leaves no variance for the noise" not in str(error))
        raise
    values, variance = np.array(model.log_likelihoods_), X.square().nansum(0)
    rounding = 1e-12 + 1e-14 * (variance / model.noise_variance_).sum().item()
    assert len(values) == model.n_iter_ + 1 <= max_iter + 1
    assert (np.diff(values) >= -rounding).all()
    assert values[-1] == pytest.approx(model.score(X), abs=rounding)


@settings(max_examples=40, deadline=None)
@given(problems(), st.booleans())
def test_score_samples_is_the_density_of_the_observed_columns(problem, isotropic):
    X, d = problem
    model = PPCA() if isotropic else FactorAnalysis()
    model.mean_, model.components_ = X.nanmean(0), torch.randn(d, X.shape[1])
    model.noise_variance_ = torch.randn(() if isotropic else X.shape[1]).exp()
    expected = [direct(model.mean_.numpy(), model.get_covariance().numpy(), row) for row in X.numpy()]
    np.testing.assert_allclose(model.score_samples(X), expected, rtol=1e-9, atol=1e-9)
    assert model.score(X) == pytest.approx(np.mean(expected), rel=1e-9, abs=1e-9)


@both
def test_fit_ends_where_the_gradient_of_the_observed_likelihood_vanishes(kind):
    model = kind(2, tol=1e-14, max_iter=5000).fit(INCOMPLETE)
    W, log_psi, mean = model.components_.T.clone(), model.noise_variance_.log(), model.mean_.clone()
    parameters = [part.requires_grad_() for part in (W, log_psi, mean)]
    value = mean_log_p(mean, W, log_psi.exp().expand(11), INCOMPLETE)
    assert value.item() == pytest.approx(model.log_likelihoods_[-1], abs=1e-10)
    assert max(slope.abs().max() for slope in torch.autograd.grad(value, parameters)) < 1e-5


@pytest.mark.slow
@both
def test_fit_finds_the_maximum_that_numerical_optimisation_finds(kind):
    X = INCOMPLETE[:60]
    model = kind(1, tol=1e-13, max_iter=5000).fit(X)
    size = () if model.noise_variance_.dim() == 0 else (11,)
    W, log_psi, mean = torch.full((11, 1), 0.3), torch.zeros(size), X.nanmean(0)
    parameters = [part.requires_grad_() for part in (W, log_psi, mean)]
    descent = torch.optim.LBFGS(parameters, max_iter=200, tolerance_change=1e-13, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        descent.zero_grad()
        value = -mean_log_p(mean, W, log_psi.exp().expand(11), X)
        value.backward()
        return value

    descent.step(loss)
    assert -loss().item() == pytest.approx(model.score(X), abs=1e-8)
    assert torch.allclose(mean, model.mean_, atol=1e-4)
    assert torch.allclose(W @ W.T, model.components_.T @ model.components_, atol=1e-3)


@both
@may_stop_early
def test_fit_with_an_empty_row_takes_the_path_of_complete_data(kind):
    """With it the steps are those for missing values, without it those for a covariance."""
    n, more = len(WINE), torch.cat([WINE, torch.full((1, 11), torch.nan)])
    complete, with_empty = (kind(2, max_iter=50, tol=-1).fit(data) for data in (WINE, more))
    values = torch.tensor(with_empty.log_likelihoods_) * (n + 1) / n
    assert torch.allclose(values, torch.tensor(complete.log_likelihoods_), rtol=0, atol=1e-11)
    for name in ("mean_", "components_", "noise_variance_"):
        assert torch.allclose(getattr(with_empty, name), getattr(complete, name), atol=1e-10)
    assert with_empty.score_samples(more)[-1] == 0
    assert torch.allclose(with_empty.score_samples(more)[:-1], complete.score_samples(WINE), atol=1e-9)


@both
def test_posterior_and_impute_are_the_joint_gaussian_conditioned(kind):
    model = kind(2).fit(INCOMPLETE)
    q, imputed, codes = model.posterior(INCOMPLETE), model.impute(INCOMPLETE), model.transform(INCOMPLETE)
    W, mean, C = model.components_.T, model.mean_, model.get_covariance()
    assert q.batch_shape == (len(WINE),)
    assert torch.equal(codes, q.mean)
    for n, row in enumerate(INCOMPLETE[:40]):
        seen = ~row.isnan()
        gain = torch.linalg.solve(C[seen][:, seen], torch.cat([W[seen], C[seen]], 1)).T  # of z, then of x
        prior = torch.block_diag(torch.eye(2), C)
        prior[:2, 2:], prior[2:, :2] = W.T, W
        given = torch.cat([torch.zeros(2), mean]) + gain @ (row - mean)[seen]
        left = prior - gain @ torch.cat([W[seen], C[seen]], 1)
        assert torch.allclose(q.mean[n], given[:2], atol=1e-10)
        assert torch.allclose(q.covariance_matrix[n], left[:2, :2], atol=1e-10)
        assert torch.allclose(imputed.mean[n], given[2:], atol=1e-9)
        assert torch.allclose(imputed.variance[n], left[2:, 2:].diagonal(), atol=1e-9)
        assert torch.equal(imputed.mean[n][seen], row[seen])
        assert (imputed.variance[n][seen] == 0).all()


@both
def test_posterior_and_impute_of_nothing_observed_are_the_prior_and_the_marginal(kind):
    model, empty = kind(2).fit(INCOMPLETE), torch.full((3, 11), torch.nan)
    assert torch.equal(model.posterior(empty).mean, torch.zeros(3, 2))
    assert torch.allclose(model.posterior(empty).covariance_matrix, torch.eye(2).expand(3, 2, 2))
    assert torch.equal(model.score_samples(empty), torch.zeros(3))
    assert torch.allclose(model.impute(empty).mean, model.mean_.expand(3, 11))
    assert torch.allclose(model.impute(empty).variance, model.get_covariance().diagonal().expand(3, 11))


@both
def test_elbo_of_the_observed_part_is_its_log_p_less_the_divergence(kind):
    model, n = kind(2).fit(INCOMPLETE), len(WINE)
    log_p, p = model.score_samples(INCOMPLETE), model.posterior(INCOMPLETE)
    A = torch.randn(n, 2, 2)
    full = MultivariateNormal(torch.randn(n, 2), A @ A.mT + 0.1 * torch.eye(2))
    for q in (full, diagonal_normal(torch.randn(n, 2), torch.randn(n, 2)), standard_normal(2).expand((n,))):
        assert torch.allclose(model.elbo(INCOMPLETE, q), log_p - kl_divergence(q, p), atol=1e-9)
    assert torch.allclose(model.elbo(INCOMPLETE, p), log_p, atol=1e-10)


def test_ppca_in_closed_form_conditions_on_a_part_as_well():
    closed, em = PPCA(2).fit(WINE), PPCA(2, "em", tol=1e-14, max_iter=5000).fit(WINE)
    assert torch.allclose(closed.score_samples(INCOMPLETE), em.score_samples(INCOMPLETE), atol=1e-5)
    assert torch.allclose(closed.impute(INCOMPLETE).mean, em.impute(INCOMPLETE).mean, atol=1e-4)


@both
def test_fit_is_not_biased_by_values_that_go_missing_by_what_is_seen(kind):
    """The second column is missing where the first is large: its own mean is far off, the fitted one is not."""
    n, W, mean = 20_000, torch.tensor([[1.0], [0.8], [0.9]]), torch.tensor([1.0, -2.0, 0.5])
    truth = FactorAnalysis(1)
    truth.mean_, truth.components_, truth.noise_variance_ = mean, W.T, torch.full((3,), 0.3)
    X = truth.sample(n, seed=1)
    X[:, 1] = X[:, 1].masked_fill(X[:, 0] > 1.0, torch.nan)
    model = kind(1).fit(X)
    error = (truth.get_covariance().diagonal() / n).sqrt()
    assert abs(X[:, 1].nanmean() - mean[1]) > 50 * error[1]
    assert ((model.mean_ - mean).abs() < 6 * 2 * error).all()  # half of the column is missing: twice the error at most
    assert torch.allclose(model.get_covariance(), truth.get_covariance(), atol=0.06)


@both
def test_impute_errs_by_the_variance_that_it_states(kind):
    model = kind(2).fit(WINE)
    X = model.sample(4000, seed=3)
    hidden = holes(X, 0.4, seed=4)
    imputed, missing = model.impute(hidden), hidden.isnan()
    scaled = ((X - imputed.mean) / imputed.variance.sqrt())[missing].square()
    assert (scaled.mean() - 1).abs() < 6 * scaled.std() / (len(X) ** 0.5)  # errors within a row are correlated


@both
def test_fit_and_impute_take_missing_values_under_several_names(kind):
    rows, model = INCOMPLETE, kind(2, tol=1e-3)
    expected = clone(model).fit(rows.numpy())
    masked = np.ma.masked_invalid(rows.numpy())
    nones = [[None if np.isnan(value) else value for value in row] for row in rows.tolist()]
    whole = np.ma.array(np.nan_to_num(rows.numpy() * 1000).astype(int), mask=rows.isnan().numpy())
    for same in (masked, list(masked), nones, rows.tolist(), rows.numpy().astype(object)):
        np.testing.assert_array_equal(clone(model).fit(same).components_, expected.components_)
        np.testing.assert_array_equal(expected.impute(same), expected.impute(rows.numpy()))
    thousands = clone(model).fit(whole)
    np.testing.assert_allclose(thousands.mean_ / 1000, expected.mean_, atol=2e-3)


@both
def test_fit_and_impute_do_not_depend_on_the_order_of_rows(kind):
    order = torch.randperm(len(WINE))
    model, shuffled = kind(2).fit(INCOMPLETE), kind(2).fit(INCOMPLETE[order])
    assert torch.allclose(model.components_, shuffled.components_, atol=1e-9)
    assert torch.allclose(model.impute(INCOMPLETE).mean[order], shuffled.impute(INCOMPLETE[order]).mean, atol=1e-9)


@both
def test_fit_refuses_a_column_without_values_and_infinities_beside_nan(kind):
    X = INCOMPLETE.clone()
    X[:, [1, 4]] = torch.nan
    with pytest.raises(ValueError, match=r"X must have a value in every column, got none in columns \[1, 4\]"):
        kind(1).fit(X)
    with pytest.raises(
        ValueError, match="X must be finite, or NaN where a value is missing, got 1 values that are inf"
    ):
        kind(1).fit(INCOMPLETE.index_put((torch.tensor(0), torch.tensor(2)), torch.tensor(torch.inf)))
    model = kind(1).fit(INCOMPLETE)
    for method in (model.transform, model.score, model.posterior, model.impute, model.score_samples):
        with pytest.raises(ValueError, match="got 11 values that are inf"):
            method(torch.full((1, 11), torch.inf))


@both
def test_fit_refuses_data_in_a_subspace_with_holes_too(kind):
    flat = torch.randn(60, 1) @ torch.randn(1, 5)
    with pytest.raises(ValueError, match="leaves no variance for the noise"):
        kind(1, max_iter=100_000, tol=-1).fit(holes(flat, 0.2))


def test_factor_analysis_takes_a_column_with_one_value_for_a_constant_column():
    X = INCOMPLETE.clone()
    X[1:, 10] = torch.nan
    model, without = FactorAnalysis(1).fit(X), FactorAnalysis(1).fit(X[:, :10])
    assert model.noise_variance_[10] == 1e-12
    assert model.mean_[10] == X[0, 10]
    assert torch.allclose(model.components_[:, 10], torch.zeros(1), atol=1e-12)
    assert torch.allclose(model.components_[:, :10], without.components_, atol=1e-3)
