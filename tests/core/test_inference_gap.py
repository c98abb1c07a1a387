"""log p(x) by weights and by annealing, and the gaps below it."""

import math

import pytest
import torch
from inference_problems import SKEW, SVI_ERROR, Linear, X, linear
from torch import Tensor

from vae_core.distributions import diagonal_normal
from vae_core.evaluation import inference_gap
from vae_core.inference import (
    WithPosterior,
    annealed_importance_sampling,
    fit_posterior,
    log_mean_exp,
)
from vae_core.models import mlp_vae
from vae_core.objectives import log_weights
from vae_core.quadrature import QuadratureModel, curve, two_modes
from vae_core.runtime import random_state

# log p(x) by weights


@pytest.mark.parametrize(("temperatures", "step_size"), [(1, 0.3), (2, 0.3), (5, 0.6), (5, 2.5)])
def test_annealed_importance_sampling_has_p_of_x_as_mean_weight(linear, temperatures, step_size):
    q = diagonal_normal(torch.zeros(1, 2), torch.zeros(1, 2))
    options = dict(num_samples=40_000, temperatures=temperatures, step_size=step_size)
    estimate, error = log_mean_exp(annealed_importance_sampling(linear, X[:1], q, **options))
    assert error < 0.02
    assert (estimate.exp() - linear.log_prob(X[:1]).exp()).abs() < 6 * error * estimate.exp()


def test_annealed_importance_sampling_with_more_temperatures_varies_less(linear):
    q = diagonal_normal(torch.zeros(6, 2), torch.zeros(6, 2))
    spreads = [
        annealed_importance_sampling(linear, X, q, num_samples=500, temperatures=count).std(0).mean()
        for count in (1, 5, 50)
    ]
    assert spreads[0] > 2 * spreads[1] > 4 * spreads[2]


def test_annealed_importance_sampling_with_one_temperature_is_importance_sampling(linear):
    q = linear.posterior(X)
    with random_state(3):
        expected = log_weights(WithPosterior(linear, q), X, 30)
    assert torch.allclose(annealed_importance_sampling(linear, X, q, num_samples=30, temperatures=1, seed=3), expected)


@pytest.mark.slow
def test_annealed_importance_sampling_finds_the_other_mode():
    """q sits on one of two humps. With as many evaluations of p, plain weights miss the other: half of p(x)."""
    model, x = QuadratureModel(two_modes, 0.7), torch.tensor([[1.5]])
    q, exact = diagonal_normal(torch.tensor([[1.15]]), 2 * torch.tensor([[0.25]]).log()), model.log_prob(x)
    annealed, error = log_mean_exp(annealed_importance_sampling(model, x, q, num_samples=1000, temperatures=300))
    assert error < 0.1
    assert (annealed.exp() - exact.exp()).abs() < 6 * error * annealed.exp()
    plain, claimed = log_mean_exp(log_weights(WithPosterior(model, q), x, 1000 * 300 * 6))
    assert plain < exact - 0.5
    assert claimed < 0.05


def test_annealed_importance_sampling_keeps_no_graph():
    linear = Linear(SKEW.clone())
    annealed_importance_sampling(linear, X, linear.posterior(X), temperatures=3)
    assert not any(linear.grown)


@pytest.mark.parametrize("bad", [{"temperatures": 0}, {"num_samples": 0}, {"temperatures": -1}])
def test_annealed_importance_sampling_refuses_no_chain_or_temperature(bad):
    linear = Linear(SKEW.clone())
    with pytest.raises(ValueError, match=next(iter(bad))):
        annealed_importance_sampling(linear, X, linear.posterior(X), **bad)


def test_log_mean_exp_by_hand():
    weights = torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]])
    estimate, error = log_mean_exp(weights.log())
    assert torch.allclose(estimate, torch.tensor([3.0, 2.0]).log())
    assert torch.allclose(error, torch.tensor([2 / 3 / 3**0.5, 0.0]))
    shifted, same = log_mean_exp(weights.log() - 5000)
    assert torch.allclose(shifted, estimate - 5000)
    assert torch.allclose(same, error)


def test_log_mean_exp_has_the_standard_error_of_repeated_runs():
    estimate, error = log_mean_exp(0.7 * torch.randn(1000, 4000))
    assert (error.mean() / estimate.std() - 1).abs() < 6 / (2 * 4000) ** 0.5
    assert ((estimate.exp().mean() - math.exp(0.245)).abs()) < 6 * estimate.exp().std() / 4000**0.5


# The gaps


def assert_identities(gap: dict[str, Tensor]) -> None:
    whole = gap["log_likelihood"] - gap["elbo"]
    assert torch.allclose(whole, gap["approximation_gap"] + gap["amortization_gap"], rtol=0, atol=1e-10)
    assert torch.allclose(gap["best_elbo"] - gap["elbo"], gap["amortization_gap"], rtol=0, atol=1e-10)


@pytest.mark.slow
def test_inference_gap_of_a_linear_model_is_the_formula(linear):
    gap = inference_gap(linear, X)
    assert_identities(gap)
    assert ((gap["log_likelihood"] - linear.log_prob(X)).abs() < 6 * gap["error"]).all()
    formula = linear.mean_field_gap().detach()
    assert ((gap["approximation_gap"] - formula).abs() < 6 * gap["error"] + SVI_ERROR).all()
    assert (gap["amortization_gap"].abs() < 6 * gap["error"] + SVI_ERROR).all()  # its encoder is optimal
    assert gap["error"].max() < max(formula / 10, 1e-2)


def test_inference_gap_has_an_error_that_covers_the_spread_of_repeated_runs(linear):
    """A thousand runs on the same x; common random numbers make the spread, if anything, smaller than is claimed."""
    gap = inference_gap(linear, X[:1].expand(1000, -1), steps=0, num_samples=500, at_once=500)
    spread, sampling = gap["approximation_gap"].std(), 1 / 2000**0.5
    assert (1 - 6 * sampling) * spread < gap["error"].mean() < 1.5 * spread


def test_inference_gap_has_the_error_of_its_two_means(linear):
    """Of log p(x), from draws of the widened q, and of the bound, from draws of q: variances add."""
    q, n = linear.posterior(X), 500
    log_w = []
    for each in (q, diagonal_normal(q.mean, q.variance.log() + 2 * math.log(1.2))):
        with random_state(3), torch.no_grad():
            log_w.append(log_weights(WithPosterior(linear, each), X, n))
    expected = log_w[0].var(0) / n + log_mean_exp(log_w[1])[1].square()
    gap = inference_gap(linear, X, steps=0, num_samples=n, seed=3, at_once=n)
    assert torch.allclose(gap["error"].square(), expected)


def test_inference_gap_needs_two_draws(linear):
    assert all(figure.isfinite().all() for figure in inference_gap(linear, X, steps=1, num_samples=2).values())


@pytest.mark.slow
@pytest.mark.parametrize("off", [0.3, 1.0])
def test_inference_gap_of_a_worse_encoder_has_the_right_size(off):
    model = Linear(SKEW.clone(), off)
    gap, ideal = inference_gap(model, X), Linear(SKEW.clone())
    exact = (model.exact_elbo(X, ideal.posterior(X)) - model.exact_elbo(X, model.posterior(X))).detach()
    with torch.no_grad():
        error = log_weights(model, X, 5000).std(0) / 5000**0.5
    assert ((gap["amortization_gap"] - exact).abs() < 6 * (error + gap["error"]) + SVI_ERROR).all()
    assert (gap["amortization_gap"] > 0.05).all()
    assert ((gap["approximation_gap"] - model.mean_field_gap()).abs() < 6 * gap["error"] + SVI_ERROR).all()
    assert_identities(gap)


@pytest.mark.slow
def test_inference_gap_of_a_curved_model_is_that_of_quadrature():
    model, x = QuadratureModel(curve, 0.5), X[:5, :2]
    q = diagonal_normal(torch.zeros(5, 1), torch.zeros(5, 1))
    with_q = WithPosterior(model, q)
    gap, best = inference_gap(with_q, x), fit_posterior(with_q, x, q)
    exact = model.log_prob(x) - model.elbo(x, best)
    assert ((gap["approximation_gap"] - exact).abs() < 6 * gap["error"]).all()
    error = log_weights(with_q, x, 5000).std(0) / 5000**0.5
    assert ((gap["amortization_gap"] - model.elbo(x, best) + model.elbo(x, q)).abs() < 6 * (error + gap["error"])).all()


@pytest.mark.parametrize("seed", range(3))
def test_inference_gap_of_a_network_is_not_negative(seed):
    torch.manual_seed(seed)
    model, x = mlp_vae((1, 2, 3), 2, hidden=(8,)).double(), torch.randint(2, (8, 1, 2, 3)).double()
    gap = inference_gap(model, x, steps=200, num_samples=2000, seed=seed)
    assert_identities(gap)
    assert (gap["approximation_gap"] > -6 * gap["error"]).all()
    assert (gap["amortization_gap"] > -6 * gap["error"] - SVI_ERROR).all()
    assert gap["amortization_gap"].max() > 0.01


def test_inference_gap_refuses_no_images(linear):
    with pytest.raises(ValueError, match="x must hold at least one image or row, got none"):
        inference_gap(linear, X[:0])


def test_log_mean_exp_of_weights_that_are_zero():
    """A weight of 0 counts as one; if all are, the logarithm is −∞ and nothing is known about it."""
    log_w = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]])
    estimate, error = log_mean_exp(log_w)
    assert estimate.tolist() == [-math.log(2), -math.inf]
    assert error.tolist() == [pytest.approx(1.0), math.inf]  # weights 1, 0: mean 1/2, deviation 1/√2


def test_log_mean_exp_far_out_in_float32(float32):
    weights = torch.tensor([[3e4, -3e4], [3e4 + 1, -3e4 - 1]])
    estimate, error = log_mean_exp(weights)
    assert estimate.isfinite().all()
    assert torch.allclose(error[0], error[1])


@pytest.mark.parametrize("log_w", [torch.zeros(1, 3), torch.zeros(0, 3)])
def test_log_mean_exp_refuses_fewer_than_two_weights(log_w):
    with pytest.raises(ValueError, match=f"at least two weights for each datum, got {len(log_w)}"):
        log_mean_exp(log_w)
