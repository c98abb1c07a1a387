"""What follows from a fitted linear model: its density, posterior, bounds and samples, against dense formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import datasets
from torch.distributions import MultivariateNormal

from vae_core._linear_gaussian import LinearGaussian
from vae_core.distributions import diagonal_normal, kl_divergence, standard_normal
from vae_core.linear import PPCA, FactorAnalysis

X = torch.as_tensor(datasets.load_wine().data)
X = (X - X.mean(0)) / X.std(0) + torch.linspace(-3, 3, 13)


@pytest.fixture(params=[PPCA, FactorAnalysis], ids=lambda kind: kind.__name__)
def model(request) -> LinearGaussian:
    return request.param(3, tol=1e-6).fit(X)


def dense(model: LinearGaussian) -> torch.Tensor:
    """The covariance WWᵀ + Ψ of x."""
    return model.components_.T @ model.components_ + model.noise_variance_ * torch.eye(X.shape[1])


def posterior_precision(model: LinearGaussian) -> torch.Tensor:
    return torch.eye(3) + model.components_ / model.noise_variance_ @ model.components_.T


def random_q(n: int, d: int, full: bool, spread: float, seed: int):
    draws = torch.Generator().manual_seed(seed)
    mean = spread * torch.randn(n, d, generator=draws, dtype=torch.float64)
    factor = spread * torch.randn(n, d, d, generator=draws, dtype=torch.float64)
    if full:
        return MultivariateNormal(mean, factor @ factor.mT + 0.01 * torch.eye(d, dtype=torch.float64))
    return diagonal_normal(mean, factor[..., 0])


@settings(max_examples=40, deadline=None)
@given(st.booleans(), st.booleans(), st.floats(0.01, 3), st.integers(0, 2**31))
def test_elbo_is_log_p_less_the_divergence_from_the_posterior(factors, full, spread, seed):
    fitted = FITTED[factors]
    q, log_p = random_q(len(X), 3, full, spread, seed), fitted.score_samples(X)
    elbo = fitted.elbo(X, q)
    assert torch.allclose(elbo, log_p - kl_divergence(q, fitted.posterior(X)), rtol=1e-10, atol=1e-10)
    assert (elbo < log_p).all()


def test_elbo_is_tight_at_the_posterior(model):
    log_p = model.score_samples(X)
    assert (model.elbo(X, model.posterior(X)) - log_p).abs().max() < 1e-12 * log_p.abs().max()


def test_elbo_of_a_q_in_single_precision_is_as_good(model):
    q = random_q(len(X), 3, False, 0.5, 0)
    single = diagonal_normal(q.mean.float(), q.variance.log().float())
    assert torch.allclose(model.elbo(X, single), model.elbo(X, q), rtol=1e-5)
    assert model.elbo(X, single).dtype == torch.float64


def test_elbo_is_the_mean_of_the_log_weights(model):
    q = random_q(1, 3, True, 0.5, 0)
    z = q.sample((20_000,))[:, 0]
    likelihood = diagonal_normal(z @ model.components_ + model.mean_, model._noise.log())
    log_w = likelihood.log_prob(X[0]) + standard_normal(3).log_prob(z)
    log_w -= q.log_prob(z[:, None])[:, 0]
    assert (log_w.mean() - model.elbo(X[:1], q)).abs() < 6 * log_w.std() / len(z) ** 0.5


def test_elbo_of_the_best_diagonal_q_misses_half_the_log_ratio_of_diagonal_to_determinant(model):
    """Its means are exact and its variances are 1/M_jj: KL = ½(Σ log M_jj − log det M), and any other is worse."""
    M, log_p = posterior_precision(model), model.score_samples(X)
    best = diagonal_normal(model.posterior(X).mean, -M.diagonal().log().expand(len(X), 3))
    gap = 0.5 * (M.diagonal().log().sum() - torch.logdet(M))
    assert torch.allclose(log_p - model.elbo(X, best), gap.expand(len(X)), atol=1e-11)
    for shift in torch.randn(20, 2, 3) / 10:
        other = diagonal_normal(best.mean + shift[0], best.variance.log() + shift[1])
        assert (model.elbo(X, other) < model.elbo(X, best)).all()


def test_ppca_in_closed_form_needs_no_more_than_a_diagonal_q():
    model = PPCA(3).fit(X)
    best = diagonal_normal(model.posterior(X).mean, model.posterior(X).variance.log())
    assert torch.allclose(model.elbo(X, best), model.score_samples(X), rtol=1e-12)


def test_score_samples_is_the_density_of_the_full_gaussian(model):
    expected = MultivariateNormal(model.mean_, dense(model)).log_prob(X)
    assert torch.allclose(model.score_samples(X), expected, rtol=1e-11)
    assert model.score(X) == pytest.approx(expected.mean().item(), rel=1e-12)


def test_posterior_is_the_joint_gaussian_conditioned_on_x(model):
    W, C, q = model.components_.T, dense(model), model.posterior(X)
    assert torch.allclose(q.mean, torch.linalg.solve(C, (X - model.mean_).T).T @ W, atol=1e-11)
    assert torch.allclose(q.covariance_matrix[7], torch.eye(3) - W.T @ torch.linalg.solve(C, W), atol=1e-11)
    assert torch.equal(model.transform(X), q.mean)
    assert q.batch_shape == (len(X),)


def test_posterior_satisfies_bayes_rule_at_any_code(model):
    z = torch.randn(len(X), 3)
    joint = diagonal_normal(z @ model.components_ + model.mean_, model._noise.log()).log_prob(X)
    joint += standard_normal(3).log_prob(z)
    assert torch.allclose(model.score_samples(X), joint - model.posterior(X).log_prob(z), rtol=1e-10)


def test_sample_has_the_mean_and_covariance_of_the_model(model):
    n, C = 100_000, dense(model)
    drawn, variance = model.sample(n), C.diagonal()
    assert ((drawn.mean(0) - model.mean_).abs() < 6 * (variance / n).sqrt()).all()
    error = ((variance[:, None] * variance + C.square()) / n).sqrt()
    assert ((torch.cov(drawn.T) - C).abs() < 6 * error).all()


def test_sample_is_fixed_by_its_seed_and_the_caller_keeps_its_random_state(model):
    before = torch.get_rng_state()
    assert torch.equal(model.sample(5), model.sample(5))
    assert not torch.equal(model.sample(5), model.sample(5, seed=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_sample_refitted_gives_the_model_again(model):
    again = type(model)(3).fit(model.sample(50_000))
    assert torch.allclose(dense(again), dense(model), atol=0.05)
    assert again.score(X) == pytest.approx(model.score(X), abs=0.02)


def test_elbo_refuses_a_q_of_another_dimension_or_another_distribution(model):
    with pytest.raises(ValueError, match=r"same event shape, got \(2,\) and \(3,\)"):
        model.elbo(X, random_q(len(X), 2, False, 1.0, 0))
    laplace = torch.distributions.Independent(torch.distributions.Laplace(torch.zeros(3), torch.ones(3)), 1)
    with pytest.raises(TypeError, match="q must be a diagonal_normal or a MultivariateNormal"):
        model.elbo(X, laplace)


FITTED = [PPCA(3).fit(X), FactorAnalysis(3, tol=1e-6).fit(X)]
