"""Chapter 14: what the laws of pixels are, each against an independent computation; and its recorded figures."""

from math import e, log, pi

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from torch.distributions import ContinuousBernoulli, Independent, Normal, Poisson

from vae_core.experiments.figures import bits_per_dimension
from vae_core.experiments.results import measured, recorded
from vae_core.likelihoods import (
    SharedGaussian,
    bernoulli,
    categorical,
    continuous_bernoulli,
    gaussian,
    learned_gaussian,
)
from vae_core.models import mlp_autoencoder, mlp_vae
from vae_core.objectives import beta_elbo_terms, elbo_terms, reconstruction_log_likelihood

LEVELS = torch.linspace(0, 1, 17, dtype=torch.float64)
NODES, WEIGHTS = np.polynomial.legendre.leggauss(60)
NODES, WEIGHTS = torch.tensor((NODES + 1) / 2), torch.tensor(WEIGHTS / 2)


def network(sigma, build=mlp_vae):
    torch.manual_seed(0)
    return build((1, 4, 4), 2, hidden=(7,), batch_norm=False, likelihood=lambda mean: gaussian(mean, sigma))


@given(st.floats(-30, 30).filter(lambda logit: abs(logit) > 1e-6))
def test_the_bernoulli_formula_has_the_mass_of_a_hyperbolic_tangent_and_at_most_one_half(logit):
    law = bernoulli(torch.tensor(logit).reshape(1, 1, 1))
    mass = (WEIGHTS * law.log_prob(NODES.reshape(-1, 1, 1, 1)).exp()).sum().item()
    assert mass == pytest.approx(np.tanh(logit / 2) / logit, abs=1e-10)
    assert mass <= 0.5 + 1e-10


def test_the_formula_is_its_own_average_over_coins():
    logits, x = torch.randn(1, 1, 3), torch.rand(1, 1, 3)
    coins = torch.cartesian_prod(*3 * [torch.tensor([0.0, 1.0])]).reshape(8, 1, 1, 3)
    chance = (coins * x + (1 - coins) * (1 - x)).flatten(1).prod(1)
    average = (chance * bernoulli(logits).log_prob(coins)).sum()
    assert average.item() == pytest.approx(bernoulli(logits).log_prob(x).item(), rel=1e-12)


@pytest.mark.parametrize("n", [1, 16, 255])
def test_n_times_the_formula_is_a_binomial_but_for_a_constant(n):
    logits, k = torch.randn(1, 3, 4), torch.randint(0, n + 1, (1, 3, 4)).double()
    expected = stats.binom.logpmf(k, n, torch.sigmoid(logits)).sum()
    ways = (stats.binom.logpmf(k, n, 0.5) + n * log(2)).sum()
    assert ways + n * bernoulli(logits).log_prob(k / n).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0, 2.0])
def test_a_gaussian_reconstruction_is_a_squared_error_and_a_constant(sigma):
    """Lecture notes (31), with its constant, and what it makes of the KL: β = 2σ² beside a plain sum of squares."""
    model, x = network(sigma), torch.rand(5, 1, 4, 4)
    torch.manual_seed(1)
    value, terms = elbo_terms(model, x)
    torch.manual_seed(1)
    z = model.posterior(x).rsample()
    squares = (x - model.decode(z)).square().flatten(1).sum(1)
    constant = 8 * log(2 * pi * sigma**2)
    assert torch.allclose(terms["reconstruction"], squares / (2 * sigma**2) + constant, rtol=1e-10)
    parts = list(model.parameters())
    ours = torch.autograd.grad(-2 * sigma**2 * value.sum(), parts, retain_graph=True)
    typed = torch.autograd.grad((squares + 2 * sigma**2 * terms["kl"]).sum(), parts)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(ours, typed, strict=True))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 3.0])
def test_an_autoencoder_with_a_gaussian_minimises_the_squared_error_whatever_sigma(sigma):
    """Lecture notes (32)."""
    model, x = network(sigma, mlp_autoencoder), torch.rand(5, 1, 4, 4)
    squares = (x - model.reconstruct(x)).square().flatten(1).sum(1)
    value, _ = reconstruction_log_likelihood(model, x)
    assert torch.allclose(value, -squares / (2 * sigma**2) - 8 * log(2 * pi * sigma**2), rtol=1e-10)
    parts = list(model.parameters())
    slopes = [torch.autograd.grad(v.sum(), parts, retain_graph=True) for v in (-2 * sigma**2 * value, squares)]
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*slopes, strict=True))


def test_a_fixed_width_is_the_best_one_with_another_weight_of_the_kl():
    """−ELBO at σ is, times σ²/s² and but for a constant, the objective at s with β = σ²/s²."""
    sigma, s, x = 1.0, 0.2, torch.rand(5, 1, 4, 4)
    torch.manual_seed(1)
    at_sigma = elbo_terms(network(sigma), x)[0]
    torch.manual_seed(1)
    at_s, _ = beta_elbo_terms(network(s), x, beta=sigma**2 / s**2)
    difference = at_sigma * sigma**2 / s**2 - at_s
    assert torch.allclose(difference, difference[0].expand(5), rtol=1e-9)


def test_the_loss_in_the_shared_variance_has_its_minimum_at_the_mean_squared_error():
    x, mean = torch.rand(6, 1, 3, 4), torch.rand(6, 1, 3, 4)
    law = SharedGaussian()

    def nats(log_variance):
        law.log_variance.data.fill_(log_variance)
        return -law(mean).log_prob(x).sum().item()

    best = optimize.minimize_scalar(nats, bracket=(-4, 1)).x
    assert np.exp(best) == pytest.approx((x - mean).square().mean().item(), rel=1e-6)


@given(st.floats(-20, 20), st.sampled_from([2, 17, 256]))
def test_a_density_of_noisy_levels_bounds_their_probability(logit, num_levels):
    v = (torch.arange(num_levels)[:, None] + NODES) / num_levels
    law = continuous_bernoulli(torch.tensor(logit).reshape(1, 1, 1))
    bound = law.log_prob(v.reshape(num_levels, 60, 1, 1, 1)) @ WEIGHTS - log(num_levels)
    interval = (law.log_prob(v.reshape(num_levels, 60, 1, 1, 1)).exp() @ WEIGHTS / num_levels).log()
    assert (bound <= interval + 1e-9).all()
    if 0.01 < abs(logit) < 8:  # nearer to 0 torch takes the uniform law
        cdf = ContinuousBernoulli(logits=torch.tensor(logit)).cdf(torch.linspace(0, 1, num_levels + 1))
        assert torch.allclose(interval.exp(), cdf.diff(), atol=1e-9)


@pytest.mark.parametrize("num_levels", [17, 256])
def test_no_gaussian_makes_a_constant_pixel_cheaper_than_a_quarter_bit(num_levels):
    width = 1 / num_levels

    def price(parameters):
        mean, log_sigma = parameters
        log_p = stats.norm.logpdf(NODES.numpy(), mean, np.exp(log_sigma))  # in units of the interval
        return -(WEIGHTS.numpy() * log_p).sum()

    best = optimize.minimize(price, [0.3, 0.0]).fun
    assert best == pytest.approx(0.5 * log(2 * pi * e / 12), abs=1e-7)
    assert best / log(2) == pytest.approx(0.2546, abs=1e-4)
    at_best = Normal(width / 2, width / 12**0.5).log_prob(width * NODES) @ WEIGHTS
    assert bits_per_dimension(-at_best.item(), 1, dequantised=True) - 8 + np.log2(num_levels) == pytest.approx(
        best / log(2), abs=1e-7
    )


def poisson(log_mean):
    return Independent(Poisson(log_mean.exp(), validate_args=False), 3)


FAMILIES = {
    "bernoulli": (bernoulli, 1),
    "continuous bernoulli": (continuous_bernoulli, 1),
    "gaussian": (gaussian, 1),
    "learned gaussian": (learned_gaussian, 2),
    "poisson": (poisson, 1),
    "levels": (categorical(17), 17),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_best_factorised_law_shows_the_average(name):
    """Pictures that share a code: the mean of the law that fits them best is their mean. No KL is involved."""
    law, number = FAMILIES[name]
    x = LEVELS[torch.randint(0, 17, (40, 1, 2, 3), generator=torch.Generator().manual_seed(3))]
    output = torch.zeros((number, 1, 2, 3) if number > 1 else (1, 2, 3), requires_grad=True)
    climber = torch.optim.LBFGS(
        [output], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def gradient_step():
        climber.zero_grad()
        value = -law(output).log_prob(x).mean()
        value.backward()
        return value

    climber.step(gradient_step)
    assert torch.allclose(law(output).mean.detach(), x.mean(0), atol=1e-4)


def test_a_continuous_bernoullis_lambda_has_more_contrast_than_its_mean():
    logits = torch.linspace(-40, 40, 801)
    mean = continuous_bernoulli(logits.reshape(-1, 1, 1, 1)).mean.flatten()
    assert ((torch.sigmoid(logits) - 0.5).abs() >= (mean - 0.5).abs() - 1e-12).all()


def test_a_poisson_with_sixteen_on_average_wastes_what_the_chapter_says():
    assert stats.poisson.sf(16, 16) == pytest.approx(0.434, abs=5e-4)


def test_recorded_digits_are_as_blurred_as_the_verdict_says():
    table = measured("mnist")[0]["sharpness"]
    shares = {d: [table[f"d = {d}, seed {s}"] / table["originals"] for s in (723, 0, 1)] for d in (2, 20)}
    assert [f"{100 * f(shares[2]):.0f}" for f in (min, max)] == ["13", "14"]
    assert [f"{100 * f(shares[20]):.0f}" for f in (min, max)] == ["45", "46"]


def test_the_grey_loss_and_that_of_coins_are_as_stated():
    grey, coins = (recorded(name)["test"] for name in ("chen-mnist-d20", "binary-mnist-d20"))
    assert grey["loss"] > coins["loss"] > -coins["log_likelihood"]
    assert f"{grey['loss'] - coins['loss']:.1f}" == "1.7"


ORDER = [f"bits-mnist-{law}" for law in ("discretized-logistic", "continuous-bernoulli", "learned-gaussian")]
ORDER.append("bits-mnist-shared-gaussian")


@pytest.mark.parametrize("name", ORDER)
def test_recorded_bits_are_those_of_their_loss_and_less_than_knowing_nothing(name):
    record = recorded(name)
    test, noisy = record["test"], name != ORDER[0]
    assert ("dequantise" in record["config"]) == noisy
    expected = (test["loss"] + noisy * 784 * log(256)) / (784 * log(2))
    assert test["bits_per_dimension"] == pytest.approx(expected, rel=1e-9)
    assert 0 < test["bits_per_dimension"] < 8


def test_the_order_of_the_laws_on_mnist_is_the_stated_one():
    bits = [recorded(name)["test"]["bits_per_dimension"] for name in ORDER]
    assert bits == sorted(bits)
    assert [f"{bits[k]:.2f}" for k in (0, -1)] == ["1.52", "7.06"]
