"""How the linear models are fitted: theorems of EM, scikit-learn's fits of the same data, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_data import DATA, models, standardised
from sklearn import datasets
from sklearn import decomposition as scikit
from torch.distributions import MultivariateNormal
from torch.utils._python_dispatch import TorchDispatchMode

from vae_core.linear import PCA, PPCA, FactorAnalysis

EVERYWHERE = pytest.mark.parametrize(("name", "d"), [("digits", 1), ("digits", 10), ("iris", 2), ("wine", 3)])
may_stop_early = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def covariance(X) -> torch.Tensor:
    return torch.cov(torch.as_tensor(X).double().T, correction=0)


def leading_projector(X, d: int) -> torch.Tensor:
    basis = torch.linalg.eigh(covariance(X)).eigenvectors[:, -d:]
    return basis @ basis.T


def rounding(model, X) -> float:
    """What float64 leaves of log p(x), where tr(SΨ⁻¹) is large and most of it cancels: some dozen units of it."""
    return 1e-13 + 1e-14 * (covariance(X).diagonal() / model.noise_variance_).sum().item()


@st.composite
def problems(draw):
    """Data of any shape and covariance, n < p among them, that do not lie in d dimensions."""
    n, p = draw(st.integers(3, 15)), draw(st.integers(2, 9))
    d, seed = draw(st.integers(1, min(n - 2, p - 1))), draw(st.integers(0, 2**31))
    draws = torch.Generator().manual_seed(seed)
    scales = torch.randn(p, generator=draws, dtype=torch.float64).exp()
    X = torch.randn(n, p, generator=draws, dtype=torch.float64) * scales
    return X @ torch.randn(p, p, generator=draws, dtype=torch.float64), d


@may_stop_early
@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from([FactorAnalysis, lambda d, **k: PPCA(d, "em", **k)]), st.integers(0, 100))
def test_ppca_and_factor_analysis_by_em_never_lower_the_likelihood_and_end_with_the_score(problem, kind, max_iter):
    X, d = problem
    model = kind(d, max_iter=max_iter).fit(X)
    values = np.array(model.log_likelihoods_)
    assert len(values) <= max_iter + 1
    assert (np.diff(values) >= -rounding(model, X)).all()
    assert values[-1] == pytest.approx(model.score(X), abs=rounding(model, X))


@may_stop_early
@settings(max_examples=40, deadline=None)
@given(problems())
def test_ppca_in_closed_form_is_a_maximum_that_em_stays_below(problem):
    X, d = problem
    closed, em = PPCA(d).fit(X), PPCA(d, "em", max_iter=100).fit(X)
    assert closed.log_likelihoods_ == [pytest.approx(closed.score(X), abs=rounding(closed, X))]
    assert em.score(X) <= closed.score(X) + rounding(closed, X)


@pytest.mark.parametrize("name", DATA)
def test_ppca_by_em_reaches_the_closed_form(name):
    X = standardised(name)
    closed, em = PPCA(2).fit(X), PPCA(2, "em", tol=1e-15, max_iter=5000).fit(X)
    assert em.score(X) == pytest.approx(closed.score(X), abs=1e-11)
    assert em.noise_variance_.item() == pytest.approx(closed.noise_variance_.item(), rel=1e-7)
    W, V = em.components_.T, closed.components_.T
    assert torch.allclose(W @ W.T, V @ V.T, atol=1e-5)


@EVERYWHERE
def test_pca_by_em_without_noise_reaches_the_leading_eigenvectors(name, d):
    em, svd = PCA(d, "em").fit(DATA[name]), PCA(d).fit(DATA[name])
    assert (em.components_.T @ em.components_ - leading_projector(DATA[name], d)).abs().max() < 1e-10
    assert torch.allclose(em.components_, svd.components_, atol=1e-6)
    assert torch.allclose(em.explained_variance_, svd.explained_variance_, rtol=1e-10)


@EVERYWHERE
def test_pca_is_that_of_scikit_learn(name, d):
    X = DATA[name]
    ours, theirs = PCA(d).fit(X), scikit.PCA(d, svd_solver="full").fit(X)
    codes = ours.transform(X)
    np.testing.assert_allclose(ours.components_, theirs.components_, atol=1e-8)
    np.testing.assert_allclose(ours.explained_variance_, theirs.explained_variance_ * (len(X) - 1) / len(X), rtol=1e-9)
    np.testing.assert_allclose(codes, theirs.transform(X), atol=1e-7)
    np.testing.assert_allclose(ours.inverse_transform(codes), theirs.inverse_transform(codes.numpy()), atol=1e-9)


@EVERYWHERE
def test_ppca_is_that_of_scikit_learn_with_one_over_n_for_one_over_n_minus_one(name, d):
    X = DATA[name]
    ours, theirs = PPCA(d).fit(X), scikit.PCA(d, svd_solver="full").fit(X)
    theirs.explained_variance_ *= (len(X) - 1) / len(X)
    theirs.noise_variance_ *= (len(X) - 1) / len(X)
    assert ours.noise_variance_.item() == pytest.approx(theirs.noise_variance_, rel=1e-9)
    assert ours.score(X) == pytest.approx(theirs.score(X), rel=1e-9)
    np.testing.assert_allclose(ours.score_samples(X), theirs.score_samples(X), rtol=1e-7)


@pytest.mark.parametrize(("name", "d"), [("digits", 1), ("digits", 4), ("wine", 1), ("wine", 2)])
def test_factor_analysis_is_that_of_scikit_learn_up_to_a_rotation(name, d):
    X = standardised(name)
    ours = FactorAnalysis(d, tol=1e-14, max_iter=5000).fit(X)
    theirs = scikit.FactorAnalysis(d, tol=1e-9, max_iter=5000, svd_method="lapack").fit(X)
    assert ours.score(X) == pytest.approx(theirs.score(X), abs=1e-9)
    np.testing.assert_allclose(ours.noise_variance_, theirs.noise_variance_, atol=1e-5)
    np.testing.assert_allclose(
        ours.components_.T @ ours.components_, theirs.components_.T @ theirs.components_, atol=1e-5
    )


@may_stop_early
def test_factor_analysis_with_a_noise_variance_near_zero_is_no_less_likely_than_scikit_learns():
    """A Heywood case: iris with two factors. Neither fit arrives, and both are still climbing, ours no lower."""
    ours, theirs = FactorAnalysis(2, max_iter=2000).fit(DATA["iris"]), scikit.FactorAnalysis(2).fit(DATA["iris"])
    assert (ours.noise_variance_ / covariance(DATA["iris"]).diagonal()).min() < 1e-3
    assert ours.score(DATA["iris"]) >= theirs.score(DATA["iris"])
    assert ours.log_likelihoods_[-1] - ours.log_likelihoods_[-1000] < 1e-2


@pytest.mark.parametrize(("name", "d"), [("digits", 3), ("wine", 1), ("wine", 2)])
def test_factor_analysis_ends_where_the_gradient_vanishes(name, d):
    X = torch.as_tensor(standardised(name))
    model = FactorAnalysis(d, tol=1e-15, max_iter=5000).fit(X)
    W, log_psi = model.components_.T.clone().requires_grad_(), model.noise_variance_.log().requires_grad_()
    density = MultivariateNormal(model.mean_, W @ W.T + log_psi.exp().diag())
    gradients = torch.autograd.grad(density.log_prob(X).mean(), (W, log_psi))
    assert max(gradient.abs().max() for gradient in gradients) < 1e-6


def test_pca_loses_the_discarded_eigenvalues_as_the_best_linear_autoencoder_does():
    X = torch.as_tensor(standardised("iris"))
    centred, discarded = X - X.mean(0), torch.linalg.eigvalsh(covariance(X))[:2].sum().item()
    pca = PCA(2).fit(X)
    assert (X - pca.inverse_transform(pca.transform(X))).square().sum(1).mean().item() == pytest.approx(discarded)
    maps = torch.randn(2, 4, 2).mul(0.5).requires_grad_()
    descent = torch.optim.LBFGS([maps], max_iter=200, tolerance_change=1e-15, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        descent.zero_grad()
        value = (centred - centred @ maps[0] @ maps[1].T).square().sum(1).mean()
        value.backward()
        return value

    descent.step(loss)
    assert loss().item() == pytest.approx(discarded, rel=1e-9)


@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize(("n", "p", "d"), [(4, 9, 2), (5, 30, 3), (40, 3, 1), (40, 3, 2), (3, 2, 1)])
@may_stop_early
def test_fit_takes_any_shape_with_a_dimension_to_spare(k, n, p, d):
    X = torch.randn(n, p)
    model = models(d)[k].fit(X)
    assert model.components_.shape == (d, p)
    assert model.transform(X).shape == (n, d)
    assert model.components_.isfinite().all()


@pytest.mark.parametrize("k", [2, 3, 4])
def test_fit_of_a_constant_column_adds_its_own_density_and_nothing_else(k):
    X = torch.as_tensor(standardised("wine"))
    more = torch.cat([X, torch.full((len(X), 1), 0.1)], 1)
    with_it, without = models(2)[k].fit(more), models(2)[k].fit(X)
    assert torch.allclose(with_it.components_[:, -1], torch.zeros(2), atol=1e-9)
    if k == 4:
        own = -0.5 * np.log(2 * np.pi * 1e-12)
        assert with_it.score(more) - without.score(X) == pytest.approx(own, abs=1e-5)


@may_stop_early
@pytest.mark.parametrize("k", range(5))
def test_fit_takes_arrays_tensors_lists_and_views_for_the_same_data(k):
    X = DATA["digits"][:50, 20:24].numpy()
    locked = X.copy()
    locked.flags.writeable = False
    expected = models(2)[k].fit(X).components_
    whole = (X.astype(kind) for kind in (np.float32, np.float16, np.longdouble, int, np.uint8, object))
    tensors = (torch.tensor(X), torch.tensor(X).bfloat16(), torch.tensor(X).byte(), torch.tensor(X).requires_grad_())
    others = (X.tolist(), locked, np.asfortranarray(X), np.ma.array(X, mask=False), list(torch.tensor(X)))
    for same in (*whole, *tensors, *others):
        assert np.array_equal(models(2)[k].fit(same).components_, expected)
    np.testing.assert_allclose(models(2)[k].fit(X[::-1]).mean_, X.mean(0), rtol=1e-12)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize(("n", "p"), [(500, 3), (60, 10), (8, 30)])
def test_pca_finds_the_small_standard_deviations_of_scikit_learns_svd(n, p, rotated):
    """The eigenvalues of XᵀX lose those below 1e-8 of the largest; the singular values of X do not."""
    draws = np.random.default_rng(0)
    X = draws.normal(size=(n, p)) * np.geomspace(1, 1e-9, p)
    X = X @ np.linalg.qr(draws.normal(size=(p, p)))[0] if rotated else X
    d = min(n - 1, p)
    theirs = scikit.PCA(d, svd_solver="full").fit(X)
    ours = PCA(d).fit(X)
    np.testing.assert_allclose(ours.explained_variance_ * n / (n - 1), theirs.explained_variance_, rtol=2e-6)
    np.testing.assert_allclose(ours.components_[0], theirs.components_[0], atol=1e-12)


def test_pca_keeps_the_standard_deviations_of_columns_of_very_different_size():
    """FINDINGS F16: standard deviations 1, 1e-4, 1e-9, of which the last was returned as 0."""
    Q = torch.linalg.qr(torch.randn(100, 4)).Q
    X = torch.linalg.qr(Q - Q.mean(0)).Q[:, :3] * torch.tensor([1.0, 1e-4, 1e-9]) * 10
    assert torch.allclose(PCA(3).fit(X).explained_variance_.sqrt(), torch.tensor([1.0, 1e-4, 1e-9]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", ["svd", "em"])
def test_explained_variance_ratio_is_that_of_scikit_learn_and_sums_to_one(method):
    X = DATA["wine"]
    ratios = PCA(3, method).fit(X).explained_variance_ratio_
    np.testing.assert_allclose(ratios, scikit.PCA(3).fit(X).explained_variance_ratio_, rtol=1e-6)
    assert PCA().fit(X).explained_variance_ratio_.sum().item() == pytest.approx(1)
    assert PCA(2).fit(np.ones((4, 3))).explained_variance_ratio_.tolist() == [0, 0]


@may_stop_early
@pytest.mark.parametrize("k", range(5))
def test_fit_is_the_same_in_every_state_of_torch_around_it(k):
    X = DATA["wine"].float()
    expected = models(2)[k].fit(X)
    states = [torch.inference_mode(), torch.no_grad(), torch.device("meta"), torch.autocast("cpu", torch.bfloat16)]
    torch.set_default_dtype(torch.float16)
    for state in states:
        with state:
            model = models(2)[k].fit(X)
            assert np.array_equal(model.transform(X), expected.transform(X))
            assert k < 2 or np.array_equal(model.impute(X.clone().fill_(np.nan)), expected.impute(X * np.nan))
            assert k < 2 or np.array_equal(model.sample(3), expected.sample(3))
        assert model.components_.dtype == torch.float64


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        parts = result if isinstance(result, tuple | list) else [result]
        self.numel = max([self.numel, *(part.numel() for part in parts if isinstance(part, torch.Tensor))])
        return result


@may_stop_early
@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize("shape", [(2000, 300), (300, 2000)])
def test_fit_and_transform_form_nothing_larger_than_the_data(k, shape):
    model, X = models(3)[k], torch.randn(shape)
    model.max_iter = 20
    with Largest() as largest:
        model.fit(X).transform(X)
        if k > 1:
            model.score_samples(X), model.impute(X)
    assert largest.numel == X.numel()
