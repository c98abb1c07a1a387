"""Likelihoods p(x|z): each is a law of the pixels it is for, and agrees with an independent computation."""

from math import log, pi

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vae_core import likelihoods
from vae_core.likelihoods import (
    NegativeBinomialCounts,
    SharedGaussian,
    bernoulli,
    categorical,
    continuous_bernoulli,
    gaussian,
    learned_gaussian,
)
from vae_core.models import conv_vae, mlp_autoencoder, mlp_vae
from vae_core.objectives import elbo
from vae_core.pixels import ContinuousBernoulli, DiscretizedLogistic, GreyLevels

SHAPE = (2, 1, 3, 4)


def one_pixel(value: float) -> torch.Tensor:
    return torch.tensor(value).reshape(1, 1, 1)


LOGITS = [-30.0, -5.0, -0.5, 0.0, 1e-4, 9.99e-3, 0.0101, 2.0, 30.0]


@pytest.mark.parametrize("logit", LOGITS)
def test_a_continuous_bernoulli_is_a_density_and_a_bernoulli_is_none(logit):
    x, weights = np.polynomial.legendre.leggauss(200)
    x, weights = torch.tensor((x + 1) / 2).reshape(-1, 1, 1, 1), torch.tensor(weights / 2)
    density = continuous_bernoulli(one_pixel(logit)).log_prob(x).exp()
    mean = (weights * density * x.flatten()).sum()
    assert (weights * density).sum() == pytest.approx(1, abs=1e-12)
    assert continuous_bernoulli(one_pixel(logit)).mean.item() == pytest.approx(mean.item(), abs=1e-9)
    assert (weights * bernoulli(one_pixel(logit)).log_prob(x).exp()).sum() <= 0.5 + 1e-9


def test_its_constant_is_the_papers_and_at_least_two():
    logits, x = torch.linspace(-8, 8, 12).reshape(1, 3, 4), torch.rand(1, 3, 4)
    rate = torch.sigmoid(logits)
    constant = 2 * torch.atanh(1 - 2 * rate) / (1 - 2 * rate)
    difference = continuous_bernoulli(logits).log_prob(x) - bernoulli(logits).log_prob(x)
    assert difference == pytest.approx(constant.log().sum().item(), rel=1e-5)
    assert (constant >= 2).all()


@pytest.mark.parametrize("logit", LOGITS)
def test_draws_of_a_continuous_bernoulli_have_its_mean_and_torchs_law(logit):
    law, torchs = ContinuousBernoulli(torch.tensor(logit)), torch.distributions.ContinuousBernoulli
    drawn = law.sample((20_000,))
    assert drawn.mean() == pytest.approx(law.mean.item(), abs=6 * drawn.std().item() / 20_000**0.5)
    assert 0 <= drawn.min() <= drawn.max() <= 1
    if abs(logit) < 10:
        assert (
            stats.kstest(drawn.numpy(), lambda x: torchs(logits=law.logits).cdf(torch.tensor(x)).numpy()).pvalue > 1e-6
        )


def test_in_32_bits_the_constant_survives_where_torchs_does_not():
    logit = torch.tensor(20.0, dtype=torch.float32)
    exact = ContinuousBernoulli(logit.double()).log_prob(torch.tensor(0.5))
    assert ContinuousBernoulli(logit).log_prob(torch.tensor(0.5)) == pytest.approx(exact.item(), abs=1e-5)
    torchs = torch.distributions.ContinuousBernoulli(logits=logit)
    assert abs(torchs.log_prob(torch.tensor(0.5, dtype=torch.float32)) - exact) > 0.1


def test_a_continuous_bernoulli_has_a_slope_everywhere():
    logits = torch.tensor(LOGITS, requires_grad=True)
    torch.autograd.gradcheck(lambda each: ContinuousBernoulli(each).log_prob(torch.tensor(0.3)), (logits,))


def test_the_shared_variance_that_fits_best_is_the_squared_error():
    x, mean, likelihood = torch.rand(SHAPE), torch.rand(SHAPE), SharedGaussian()
    with torch.no_grad():
        likelihood.log_variance.copy_((x - mean).square().mean().log())
    value = likelihood(mean).log_prob(x).sum()
    value.backward()
    assert likelihood.log_variance.grad == pytest.approx(0, abs=1e-10)
    fixed = gaussian(mean, (x - mean).square().mean().sqrt()).log_prob(x).sum()
    assert value.item() == pytest.approx(fixed.item(), rel=1e-12)


def test_a_learned_variance_is_that_of_scipy():
    output, x = torch.randn(2, 2, 1, 3, 4), torch.rand(SHAPE)
    expected = stats.norm.logpdf(x, output[:, 0], (0.5 * output[:, 1]).exp()).sum((1, 2, 3))
    assert learned_gaussian(output).log_prob(x).numpy() == pytest.approx(expected, rel=1e-12)


def test_a_variance_runs_away_at_a_pixel_that_never_changes_unless_it_is_held():
    never, widths = torch.zeros(1, 1, 1), [-2.0, -20.0, -60.0]
    outputs = [torch.tensor([0.0, width]).reshape(2, 1, 1, 1) for width in widths]
    free = [learned_gaussian(output).log_prob(never).item() for output in outputs]
    held = [learned_gaussian(output, min_sigma=0.1).log_prob(never).item() for output in outputs]
    assert free == pytest.approx([-width / 2 - 0.5 * log(2 * pi) for width in widths])
    assert held[1] == held[2] == pytest.approx(-log(0.1) - 0.5 * log(2 * pi))


@given(st.floats(-1, 2), st.floats(-8, 1), st.sampled_from([2, 17, 256]))
def test_a_discretized_logistic_gives_its_levels_probability_one(mean, log_scale, num_levels):
    x = torch.linspace(0, 1, num_levels).reshape(-1, 1, 1, 1)
    law = DiscretizedLogistic(one_pixel(mean), one_pixel(log_scale), num_levels)
    probability = law.log_prob(x).exp()
    assert probability.sum() == pytest.approx(1, abs=1e-9)
    assert law.mean.item() == pytest.approx((probability * x.flatten()).sum().item(), abs=1e-9)
    edges = np.append((np.arange(num_levels - 1) + 0.5) / (num_levels - 1), np.inf)
    cdf = stats.logistic.cdf(edges, mean, np.exp(log_scale))
    assert probability.numpy() == pytest.approx(np.diff(cdf, prepend=0), abs=1e-12)


@pytest.mark.parametrize("distance", [0.0, 0.5, 1.0])
def test_a_narrow_logistic_far_away_still_has_a_finite_slope(distance):
    mean, log_scale = one_pixel(distance).requires_grad_(), one_pixel(-9.0).requires_grad_()
    value = DiscretizedLogistic(mean, log_scale).log_prob(one_pixel(0.0))
    value.sum().backward()
    assert value.isfinite()
    assert mean.grad.isfinite()
    assert log_scale.grad.isfinite()


def test_draws_of_a_discretized_logistic_fall_as_often_as_they_should():
    law, n = DiscretizedLogistic(one_pixel(0.3), one_pixel(-2.0), 5), 20_000
    drawn = law.sample((n,)).flatten()
    for value in torch.linspace(0, 1, 5):
        p = law.log_prob(value.reshape(1, 1, 1)).exp().item()
        share = torch.isclose(drawn, value).double().mean().item()
        assert share == pytest.approx(p, abs=6 * (p * (1 - p) / n) ** 0.5)


def test_grey_levels_are_a_softmax_over_levels():
    logits = torch.randn(2, 5, 1, 3, 4)
    index = torch.randint(0, 5, SHAPE)
    law = GreyLevels(logits)
    expected = -torch.nn.functional.cross_entropy(logits, index, reduction="none").sum((1, 2, 3))
    assert torch.allclose(law.log_prob(index / 4), expected)
    assert torch.allclose(law.mean, (logits.softmax(1) * torch.linspace(0, 1, 5).reshape(5, 1, 1, 1)).sum(1))
    assert set(law.sample((100,)).unique().tolist()) <= {0, 0.25, 0.5, 0.75, 1}


@pytest.mark.parametrize("law", [GreyLevels(torch.zeros(4, 1, 1, 1)), DiscretizedLogistic(*torch.zeros(2, 1, 1, 1), 4)])
def test_a_value_between_two_levels_is_refused(law):
    with pytest.raises(ValueError, match="must hold the 4 values k/3"):
        law.log_prob(one_pixel(0.5))


def test_knowing_nothing_costs_eight_bits_a_pixel():
    law = categorical(256)(torch.zeros(256, 1, 3, 4))
    assert law.log_prob(torch.zeros(1, 3, 4)) / -12 / log(2) == pytest.approx(8, rel=1e-12)


@pytest.mark.parametrize("dispersion", [0.3, 1.0, 25.0])
def test_negative_binomial_counts_are_those_of_scipy(dispersion):
    log_mean, counts = torch.randn(SHAPE), torch.randint(0, 17, SHAPE).double()
    law = NegativeBinomialCounts(dispersion)(log_mean)
    chance = dispersion / (dispersion + log_mean.exp().numpy())
    expected = stats.nbinom.logpmf(counts.numpy(), dispersion, chance).sum((1, 2, 3))
    assert law.log_prob(counts).detach().numpy() == pytest.approx(expected, rel=1e-9)
    mean = log_mean.exp()
    assert torch.allclose(law.mean, mean)
    assert torch.allclose(law.variance, mean + mean.square() / dispersion)


def test_without_dispersion_the_counts_are_a_poissons():
    log_mean, counts = torch.randn(SHAPE), torch.randint(0, 9, SHAPE).double()
    expected = stats.poisson.logpmf(counts.numpy(), log_mean.exp().numpy()).sum((1, 2, 3))
    found = NegativeBinomialCounts(1e7)(log_mean).log_prob(counts).detach().numpy()
    assert found == pytest.approx(expected, abs=1e-4)


LIKELIHOODS = {**{name: name for name in likelihoods.LIKELIHOODS}, "levels": categorical(17)}


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("build", [mlp_vae, conv_vae, mlp_autoencoder])
def test_a_model_gives_each_likelihood_the_numbers_it_needs(build, name):
    shape = (2, 4, 4)
    widths = dict(channels=(3,)) if build is conv_vae else dict(hidden=(7,))
    model = build(shape, 3, **widths, likelihood=LIKELIHOODS[name])
    z, x = torch.randn(5, 6, 3), torch.randint(0, 2, (6, *shape)).double()
    law = model.likelihood(z)
    assert law.log_prob(x).shape == (5, 6)
    assert model.decode(z).shape == (5, 6, *shape)
    assert law.log_prob(x).isfinite().all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_parameter_of_a_model_has_a_slope(name):
    model = mlp_vae((1, 4, 4), 2, hidden=(7,), batch_norm=False, likelihood=LIKELIHOODS[name])
    elbo(model, torch.randint(0, 2, (6, 1, 4, 4)).double()).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_each_model_learns_a_variance_of_its_own():
    one, two = (mlp_vae((1, 4, 4), 2, hidden=(7,), likelihood="shared_gaussian") for _ in range(2))
    assert one.output_distribution is not two.output_distribution
    assert "output_distribution.log_variance" in dict(one.named_parameters())


@pytest.mark.parametrize("make", [SharedGaussian, NegativeBinomialCounts, lambda s: gaussian(one_pixel(0.0), s)])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_width_that_is_not_positive_is_refused(make, value):
    with pytest.raises(ValueError, match="must be positive"):
        make(value)


def test_a_shared_width_starts_at_the_one_that_is_named():
    for sigma in (0.3, 1.0, 4.0):
        law = SharedGaussian(sigma)(torch.zeros(2, 1, 3, 3))
        torch.testing.assert_close(law.stddev, torch.full((2, 1, 3, 3), sigma))


def test_two_levels_are_enough_and_make_a_bernoulli_variable():
    logits, x = torch.randn(4, 2, 1, 3, 3), torch.randint(2, (4, 1, 3, 3)).double()
    ours = categorical(2)(logits).log_prob(x)
    theirs = torch.distributions.Bernoulli(logits=logits[:, 1] - logits[:, 0]).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("num_levels", [1, 0, 2.0])
def test_fewer_than_two_levels_are_refused(num_levels):
    with pytest.raises(ValueError, match="num_levels must be an integer of at least 2"):
        categorical(num_levels)


def test_a_discretized_logistic_starts_in_the_middle_with_a_scale_of_an_eighth_or_so():
    """An output of zeros, as an untrained decoder gives: mean one half, scale exp(−2)."""
    law = likelihoods.discretized_logistic(torch.zeros(2, 1, 2, 2), 17)
    assert torch.equal(law.location, torch.full((1, 2, 2), 0.5))
    assert torch.allclose(law.scale, torch.full((1, 2, 2), torch.e**-2))
