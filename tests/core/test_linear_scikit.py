"""The linear models as scikit-learn estimators: its own checks, its tools, arrays and tensors in and out."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from sklearn import datasets
from sklearn import decomposition as scikit
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from vae_core.distributions import standard_normal
from vae_core.linear import PCA, PPCA, FactorAnalysis

X, LABELS = datasets.load_wine(return_X_y=True)
X = (X - X.mean(0)) / X.std(0)
MODELS = [PCA(2), PCA(2, "em"), PPCA(2), PPCA(2, "em"), FactorAnalysis(2)]
DENSITIES = MODELS[2:]
named = pytest.mark.parametrize
EXCEPTIONS = {  # scikit-learn's checks that a model fails, and why it should
    "PPCA closed": {
        "check_estimators_nan_inf": "Where `fit` refuses NaN, `transform` should. The closed form cannot be fitted to "
        "incomplete rows, but the density it finds has a posterior for any part of x."
    }
}
CHECKED = [kind(d, *method) for kind, method in ((PCA, ()), (PCA, ("em",)), (FactorAnalysis, ())) for d in (None, 1, 2)]
CHECKED += [PPCA(d, method) for method in ("closed", "em") for d in (None, 1)]  # the checks have data with two columns


@pytest.mark.slow
@named("model", CHECKED, ids=repr)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_pca_ppca_and_factor_analysis_pass_scikit_learns_own_checks_with_the_exceptions_above(model):
    reasons = EXCEPTIONS.get(f"{type(model).__name__} {getattr(model, 'method', '')}", {})
    results = check_estimator(model, expected_failed_checks=reasons, on_fail=None, on_skip=None)
    assert len(results) > 40
    assert [(r["check_name"], r["exception"]) for r in results if r["status"] == "failed"] == []
    assert {r["check_name"] for r in results if r["status"] == "xfail"} == set(reasons)


@named("model", MODELS, ids=repr)
def test_fit_leaves_nothing_in_a_clone_but_the_parameters(model):
    fitted = clone(model).set_params(n_components=3, tol=1e-6).fit(X)
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params() | {"n_components": 3, "tol": 1e-6}
    assert not any(name.endswith("_") for name in vars(copy))
    assert repr(copy).startswith(f"{type(model).__name__}(")
    assert "n_components=3" in repr(copy)


@named("model", MODELS, ids=repr)
def test_fit_says_how_it_went(model):
    fitted = clone(model).fit(X)
    assert fitted.n_features_in_ == 13
    assert fitted.n_iter_ >= 1
    assert hasattr(model, "score") is False or fitted.n_iter_ == max(1, len(fitted.log_likelihoods_) - 1)
    name = type(model).__name__.lower()
    assert fitted.get_feature_names_out().tolist() == [f"{name}0", f"{name}1"]
    assert np.array_equal(clone(model).fit_transform(X), fitted.transform(X))


@named(("kind", "expected"), [(PCA, 13), (PPCA, 12), (FactorAnalysis, 13)])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_fit_without_a_number_of_components_takes_the_most_that_the_data_allow(kind, expected):
    assert kind(max_iter=3).fit(X).components_.shape == (expected, 13)
    few = kind(max_iter=3).fit(X[:5])
    assert few.components_.shape == (5 if kind is PCA else 3, 13)  # 5 points span 4 dimensions: 3 leave noise


@named("model", MODELS, ids=repr)
def test_fit_and_the_others_return_arrays_for_arrays_and_lists_and_tensors_for_tensors(model):
    for given, kind in ((X, np.ndarray), (X.tolist(), np.ndarray), (torch.tensor(X), torch.Tensor)):
        fitted = clone(model).fit(given)
        attributes = {name: value for name, value in vars(fitted).items() if name.endswith("_")}
        del attributes["n_features_in_"], attributes["n_iter_"]
        attributes.pop("log_likelihoods_", None)
        sigma2 = attributes.pop("noise_variance_") if type(model) is PPCA else None
        assert all(isinstance(value, kind) for value in attributes.values())
        assert sigma2 is None or isinstance(sigma2, np.float64 if kind is np.ndarray else torch.Tensor)
        if hasattr(model, "sample"):
            alone = fitted.sample(3), fitted.get_covariance(), fitted.get_precision()
            assert all(isinstance(value, kind) for value in alone)
        for asked, answer in ((X, np.ndarray), (X.tolist(), np.ndarray), (torch.tensor(X), torch.Tensor)):
            codes = fitted.transform(asked)
            answers = [codes, fitted.inverse_transform(codes)] if hasattr(model, "inverse_transform") else [codes]
            if hasattr(model, "score"):
                q = standard_normal(2, like=torch.tensor(X)).expand((len(X),))
                answers += [fitted.score_samples(asked), *fitted.impute(asked), fitted.elbo(asked, q)]
                assert isinstance(fitted.score(asked), float)
            assert all(isinstance(value, answer) for value in answers)
            np.testing.assert_allclose(codes, clone(model).fit(X).transform(X), rtol=1e-12, atol=1e-12)


@named("model", DENSITIES, ids=repr)
def test_score_of_parameters_set_by_hand_takes_either_kind(model):
    by_hand, fitted = clone(model), clone(model).fit(X)
    by_hand.mean_, by_hand.components_ = fitted.mean_.tolist(), torch.as_tensor(fitted.components_)
    by_hand.noise_variance_ = np.float32(0.5)
    fitted.noise_variance_ = torch.tensor(0.5)
    assert by_hand.score(X) == fitted.score(X)
    with pytest.raises(ValueError, match=r"X has 4 features, but .* is expecting 13 features"):
        by_hand.score(X[:, :4])


def test_score_samples_of_a_tensor_keeps_its_gradient_and_fit_does_not():
    rows = torch.tensor(X).requires_grad_()
    model = FactorAnalysis(2).fit(rows)
    assert not model.components_.requires_grad
    (slope,) = torch.autograd.grad(model.score_samples(rows).sum(), rows)
    expected = (torch.as_tensor(model.mean_) - rows) @ model.get_precision()
    assert torch.allclose(slope, expected, atol=1e-10)


@named("model", DENSITIES, ids=repr)
def test_get_precision_is_the_inverse_of_the_covariance(model):
    fitted = clone(model).fit(X)
    np.testing.assert_allclose(fitted.get_precision() @ fitted.get_covariance(), np.eye(13), atol=1e-12)


def test_get_covariance_and_get_precision_are_scikit_learns():
    ours, theirs = FactorAnalysis(2, tol=1e-13, max_iter=5000).fit(X), scikit.FactorAnalysis(2, tol=1e-9, max_iter=5000)
    np.testing.assert_allclose(ours.get_covariance(), theirs.fit(X).get_covariance(), atol=5e-4)
    np.testing.assert_allclose(ours.get_precision(), theirs.get_precision(), atol=5e-3)
    theirs = scikit.PCA(2).fit(X)  # with 1/(n - 1)
    scale = (len(X) - 1) / len(X)
    np.testing.assert_allclose(PPCA(2).fit(X).get_covariance(), theirs.get_covariance() * scale, atol=1e-12)
    np.testing.assert_allclose(PPCA(2).fit(X).get_precision(), theirs.get_precision() / scale, atol=1e-12)


@named("model", DENSITIES, ids=repr)
def test_score_in_cross_validation_is_the_held_out_log_likelihood(model):
    folds = KFold(4, shuffle=True, random_state=0)
    expected = [clone(model).fit(X[train]).score(X[test]) for train, test in folds.split(X)]
    np.testing.assert_allclose(cross_val_score(model, X, cv=folds), expected)
    np.testing.assert_allclose(cross_val_score(model, X, LABELS, cv=folds), expected)


def test_ppca_in_a_search_over_components_finds_those_that_held_out_data_prefer():
    folds = KFold(4, shuffle=True, random_state=0)
    search = GridSearchCV(PPCA(), {"n_components": [1, 3, 6, 12]}, cv=folds).fit(X)
    scores = {d: cross_val_score(PPCA(d), X, cv=folds).mean() for d in (1, 3, 6, 12)}
    assert search.best_params_ == {"n_components": max(scores, key=scores.get)}


@named("model", MODELS, ids=repr)
def test_transform_stands_at_the_beginning_and_at_the_end_of_pipelines(model):
    classifier = make_pipeline(StandardScaler(), clone(model), LogisticRegression()).fit(X, LABELS)
    assert classifier.score(X, LABELS) > 0.9
    last = make_pipeline(StandardScaler(), clone(model)).fit(X)
    np.testing.assert_allclose(last.transform(X), clone(model).fit(X).transform(X), atol=1e-9)
    assert last[-1].n_features_in_ == 13


@named("model", MODELS, ids=repr)
def test_transform_of_a_copy_of_a_fitted_model_is_the_same(model):
    for data in (X, torch.tensor(X)):
        fitted = clone(model).fit(data)
        assert np.array_equal(deepcopy(fitted).transform(X), fitted.transform(X))


@named("model", MODELS, ids=repr)
def test_fit_keeps_the_names_of_columns_and_transform_compares_them(model):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(X, columns=[f"column {j}" for j in range(13)])
    fitted = clone(model).set_output(transform="pandas").fit(frame)
    assert fitted.feature_names_in_.tolist() == list(frame.columns)
    assert fitted.transform(frame).columns.tolist() == fitted.get_feature_names_out().tolist()
    np.testing.assert_array_equal(fitted.transform(frame), clone(model).fit(X).transform(X))
    with pytest.raises(ValueError, match="feature names should match"):
        fitted.transform(frame[frame.columns[::-1]])
    with pytest.raises(ValueError, match="X must hold numbers, got dtype datetime64"):
        fitted.fit(frame[["column 0", "column 1"]].apply(pandas.to_datetime))
