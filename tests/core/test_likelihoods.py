"""Likelihoods p(x|z): each is a law of the pixels it is for, and agrees with an independent computation."""

from functools import partial
from math import log, pi

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from vae_core import likelihoods
from vae_core.likelihoods import (
    NegativeBinomialCounts,
    SharedGaussian,
    bernoulli,
    categorical,
    continuous_bernoulli,
    gaussian,
    learned_gaussian,
    parameters_per_dimension,
    resolve,
)
from vae_core.models import conv_vae, mlp_autoencoder, mlp_vae
from vae_core.objectives import elbo, elbo_terms
from vae_core.pixel_distributions import ContinuousBernoulli, DiscretizedLogistic, GreyLevels, NegativeBinomial
from vae_core.runtime import Runtime
from vae_core.training import fit

SHAPE = (2, 1, 3, 4)


def one_pixel(value: float) -> torch.Tensor:
    return torch.tensor(value).reshape(1, 1, 1)


LOGITS = [-30.0, -5.0, -0.5, 0.0, 1e-4, 9.99e-3, 0.0101, 2.0, 30.0]


@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_is_a_density_and_bernoulli_is_none(logit):
    x, weights = np.polynomial.legendre.leggauss(200)
    x, weights = torch.tensor((x + 1) / 2).reshape(-1, 1, 1, 1), torch.tensor(weights / 2)
    density = continuous_bernoulli(one_pixel(logit)).log_prob(x).exp()
    mean = (weights * density * x.flatten()).sum()
    assert (weights * density).sum() == pytest.approx(1, abs=1e-12)
    assert continuous_bernoulli(one_pixel(logit)).mean.item() == pytest.approx(mean.item(), abs=1e-9)
    assert (weights * bernoulli(one_pixel(logit)).log_prob(x).exp()).sum() <= 0.5 + 1e-9


def test_continuous_bernoulli_has_the_papers_constant_of_at_least_two():
    logits, x = torch.linspace(-8, 8, 12).reshape(1, 3, 4), torch.rand(1, 3, 4)
    rate = torch.sigmoid(logits)
    constant = 2 * torch.atanh(1 - 2 * rate) / (1 - 2 * rate)
    difference = continuous_bernoulli(logits).log_prob(x) - bernoulli(logits).log_prob(x)
    assert difference == pytest.approx(constant.log().sum().item(), rel=1e-5)
    assert (constant >= 2).all()


@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_draws_have_its_mean_and_torchs_distribution(logit):
    law, torchs = ContinuousBernoulli(torch.tensor(logit)), torch.distributions.ContinuousBernoulli
    drawn = law.sample((20_000,))
    assert drawn.mean() == pytest.approx(law.mean.item(), abs=6 * drawn.std().item() / 20_000**0.5)
    assert 0 <= drawn.min() <= drawn.max() <= 1
    if abs(logit) < 10:
        assert (
            stats.kstest(drawn.numpy(), lambda x: torchs(logits=law.logits).cdf(torch.tensor(x)).numpy()).pvalue > 1e-6
        )


def test_continuous_bernoulli_keeps_its_constant_at_32_bits_where_torchs_does_not():
    logit = torch.tensor(20.0, dtype=torch.float32)
    exact = ContinuousBernoulli(logit.double()).log_prob(torch.tensor(0.5))
    assert ContinuousBernoulli(logit).log_prob(torch.tensor(0.5)) == pytest.approx(exact.item(), abs=1e-5)
    torchs = torch.distributions.ContinuousBernoulli(logits=logit)
    assert abs(torchs.log_prob(torch.tensor(0.5, dtype=torch.float32)) - exact) > 0.1


def test_continuous_bernoulli_has_a_gradient_everywhere():
    logits = torch.tensor(LOGITS, requires_grad=True)
    torch.autograd.gradcheck(lambda each: ContinuousBernoulli(each).log_prob(torch.tensor(0.3)), (logits,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_continuous_bernoulli_has_an_accurate_mean_with_a_gradient_everywhere(dtype):
    """Its slope is 1/ℓ² − 1/(2 sinh(ℓ/2))², the variance; the terms of its formula are of size 1/ℓ and 1/ℓ² each."""
    logits = torch.cat([torch.linspace(-200, 200, 4001), torch.tensor([0.02, -0.02, 90.0, -90.0])]).to(dtype)
    mean = ContinuousBernoulli(logits.requires_grad_()).mean
    (slope,) = torch.autograd.grad(mean.sum(), logits)
    exact, eps = logits.detach().double(), torch.finfo(dtype).eps
    safe = torch.where(exact.abs() < 1e-2, 1.0, exact)
    variance = torch.where(exact.abs() < 1e-2, 1 / 12, safe**-2 - (2 * torch.sinh(safe / 2)) ** -2)
    assert ((slope - variance).abs() <= 4 * eps * (1 + safe**-2) + 1e-9).all()
    assert ((mean - ContinuousBernoulli(exact).mean).abs() <= 4 * eps * (1 + 1 / safe.abs())).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [-800.0, -110.0, -5.0, 0.0, 5.0, 110.0, 800.0])
def test_continuous_bernoulli_draws_an_end_of_the_interval_for_a_uniform_number_of_zero(logit, dtype, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.zeros(shape, **options))
    drawn = ContinuousBernoulli(torch.tensor(logit, dtype=dtype)).sample((3,))
    assert drawn == pytest.approx(float(logit < 0), abs=1e-6)
    assert 0 <= drawn.min() <= drawn.max() <= 1


def test_shared_gaussian_fits_best_with_the_squared_error_as_variance():
    x, mean, likelihood = torch.rand(SHAPE), torch.rand(SHAPE), SharedGaussian()
    with torch.no_grad():
        likelihood.log_variance.copy_((x - mean).square().mean().log())
    value = likelihood(mean).log_prob(x).sum()
    value.backward()
    assert likelihood.log_variance.grad == pytest.approx(0, abs=1e-10)
    fixed = gaussian(mean, (x - mean).square().mean().sqrt()).log_prob(x).sum()
    assert value.item() == pytest.approx(fixed.item(), rel=1e-12)


def test_learned_gaussian_is_that_of_scipy():
    output, x = torch.randn(2, 2, 1, 3, 4), torch.rand(SHAPE)
    expected = stats.norm.logpdf(x, output[:, 0], (0.5 * output[:, 1]).exp()).sum((1, 2, 3))
    assert learned_gaussian(output).log_prob(x).numpy() == pytest.approx(expected, rel=1e-12)


def test_learned_gaussian_grows_without_bound_at_a_pixel_that_never_changes_unless_it_is_held():
    never, widths = torch.zeros(1, 1, 1), [-2.0, -20.0, -60.0]
    outputs = [torch.tensor([0.0, width]).reshape(2, 1, 1, 1) for width in widths]
    free = [learned_gaussian(output).log_prob(never).item() for output in outputs]
    held = [learned_gaussian(output, min_sigma=0.1).log_prob(never).item() for output in outputs]
    assert free == pytest.approx([-width / 2 - 0.5 * log(2 * pi) for width in widths])
    assert held[1] == held[2] == pytest.approx(-log(0.1) - 0.5 * log(2 * pi))


@given(st.floats(-1, 2), st.floats(-8, 1), st.sampled_from([2, 17, 256]))
def test_discretized_logistic_gives_its_levels_probability_one(mean, log_scale, num_levels):
    x = torch.linspace(0, 1, num_levels).reshape(-1, 1, 1, 1)
    law = DiscretizedLogistic(one_pixel(mean), one_pixel(log_scale), num_levels)
    probability = law.log_prob(x).exp()
    assert probability.sum() == pytest.approx(1, abs=1e-9)
    assert law.mean.item() == pytest.approx((probability * x.flatten()).sum().item(), abs=1e-9)
    edges = np.append((np.arange(num_levels - 1) + 0.5) / (num_levels - 1), np.inf)
    cdf = stats.logistic.cdf(edges, mean, np.exp(log_scale))
    assert probability.numpy() == pytest.approx(np.diff(cdf, prepend=0), abs=1e-12)


@pytest.mark.parametrize("distance", [0.0, 0.5, 1.0])
def test_discretized_logistic_has_a_finite_gradient_where_it_is_narrow_and_far_away(distance):
    mean, log_scale = one_pixel(distance).requires_grad_(), one_pixel(-9.0).requires_grad_()
    value = DiscretizedLogistic(mean, log_scale).log_prob(one_pixel(0.0))
    value.sum().backward()
    assert value.isfinite()
    assert mean.grad.isfinite()
    assert log_scale.grad.isfinite()


def test_discretized_logistic_draws_have_its_probabilities():
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


FOUR_LEVELS = [GreyLevels(torch.zeros(4, 1, 1, 1)), DiscretizedLogistic(*torch.zeros(2, 1, 1, 1), 4)]


@pytest.mark.parametrize("law", FOUR_LEVELS)
@pytest.mark.parametrize("value", [0.5, 1 / 3 + 1e-3, -1 / 3, 4 / 3, 2.0, 255.0, float("inf"), float("nan")])
def test_grey_levels_and_discretized_logistic_refuse_a_value_that_is_no_level(law, value):
    """Between two of them, at their distance but outside of [0, 1], or of a pixel that goes to 255."""
    with pytest.raises(ValueError, match="must hold the 4 values k/3"):
        law.log_prob(one_pixel(value))
    with pytest.raises(ValueError, match="must hold the 4 values k/3"):
        law.log_prob(torch.tensor([0.0, value, 1.0]).reshape(3, 1, 1, 1))


class Captured(torch.Tensor):
    """A tensor that says that it is on a CUDA device."""

    is_cuda = True


@pytest.fixture
def capturing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


@pytest.mark.parametrize("law", FOUR_LEVELS)
def test_grey_levels_have_a_level_for_every_value_while_a_graph_is_captured(law, capturing):
    x = torch.tensor([-7.0, 0.0, 0.4, 1.0, 255.0, torch.inf, -torch.inf, torch.nan]).reshape(8, 1, 1, 1)
    level = law.level(x.as_subclass(Captured)).flatten()
    assert level.tolist() == [0, 0, 1, 3, 3, 3, 0, 0]
    assert GreyLevels(torch.zeros(4, 1, 1, 1)).log_prob(x.as_subclass(Captured)).tolist() == [-log(4)] * 8
    with pytest.raises(ValueError, match="must hold the 4 values k/3"):
        law.level(x)  # on the processor nothing is captured


def test_gaussian_copies_no_number_to_the_device_while_a_graph_is_captured(capturing, monkeypatch):
    mean, x = torch.rand(SHAPE), torch.rand(SHAPE)
    expected = gaussian(mean, 0.3).log_prob(x)
    monkeypatch.delattr(torch, "as_tensor")
    assert torch.equal(gaussian(mean.as_subclass(Captured), 0.3).log_prob(x), expected)


@pytest.mark.parametrize(
    "sigma", [2, 0.3, np.float32(0.25), np.full(4, 0.5), lambda: torch.rand(()), lambda: torch.rand(3, 4)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_takes_a_width_for_all_pixels_or_each_in_the_precision_of_the_mean(sigma, dtype):
    sigma = sigma() if callable(sigma) else sigma
    mean, x = torch.rand(SHAPE, dtype=dtype), torch.rand(SHAPE, dtype=dtype)
    found = gaussian(mean, sigma).log_prob(x)
    expected = stats.norm.logpdf(x.double(), mean.double(), np.asarray(sigma, dtype=np.float64)).sum((1, 2, 3))
    assert found.dtype == dtype
    assert found.numpy() == pytest.approx(expected, rel=1e-12 if dtype == torch.float64 else 1e-5)


def test_gaussian_sends_a_gradient_to_a_width_that_is_learned_elsewhere():
    sigma, mean, x = torch.tensor(0.7, requires_grad=True), torch.rand(SHAPE), torch.rand(SHAPE)
    gaussian(mean, sigma).log_prob(x).sum().backward()
    assert sigma.grad.item() == pytest.approx(((x - mean).square().sum() / 0.7**3 - x.numel() / 0.7).item(), rel=1e-12)


def test_categorical_without_knowledge_costs_eight_bits_a_pixel():
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


def counts_by_product(x: int, r: torch.Tensor, m: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """log P(x) and its slopes in log r and log m, in float64, from Γ(x + r)/Γ(r) = r (r + 1) … (r + x − 1)."""
    r, m, steps = r.detach().double(), m.detach().double(), torch.arange(x) / r.detach().double()
    log_p = torch.log1p(steps).sum() - torch.lgamma(torch.tensor(x + 1.0)) + x * m.log() - (r + x) * torch.log1p(m / r)
    by_r = (r + x) * m / (r + m) - r * torch.log1p(m / r) - (steps / (1 + steps)).sum()
    return log_p, by_r, r * (x - m) / (r + m)


DISPERSIONS = [0.1, 1.0, 10.0, 99.9, 100.1, 300.0, 1e3, 1e5, 1e7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("x", [0, 2, 16, 300])
@pytest.mark.parametrize("dispersion", DISPERSIONS)
def test_negative_binomial_keeps_its_digits_for_any_dispersion(dispersion, x, dtype):
    """Also in 32 bits, up to the rounding of x log m and log x! themselves; the series leaves out 10⁻¹²."""
    for mean in (0.05, 3.0, 300.0):
        log_r, log_m = (torch.tensor(log(value), dtype=dtype, requires_grad=True) for value in (dispersion, mean))
        value = NegativeBinomial(log_r.exp(), log_m).log_prob(torch.tensor(float(x), dtype=dtype))
        found = (value, *torch.autograd.grad(value, (log_r, log_m)))
        exact = counts_by_product(x, log_r.detach().double().exp(), log_m.detach().double().exp())
        for ours, truth in zip(found, exact, strict=True):
            assert ours.item() == pytest.approx(truth.item(), abs=20 * torch.finfo(dtype).eps * (10 + x + mean) + 1e-12)


@pytest.mark.parametrize("dispersion", DISPERSIONS)
def test_negative_binomial_is_torchs_at_64_bits(dispersion):
    log_m, x = torch.linspace(-3, 5, 9)[:, None], torch.tensor([0.0, 1.0, 2.5, 16.0, 300.0])  # also between two counts
    r = torch.tensor(dispersion)
    torchs = torch.distributions.NegativeBinomial(r, logits=log_m - r.log(), validate_args=False)
    expected = torchs.log_prob(x)  # r log r of it cancels
    torch.testing.assert_close(NegativeBinomial(r, log_m).log_prob(x), expected, rtol=1e-10, atol=1e-10 + 1e-14 * r)


def test_negative_binomial_of_large_dispersion_is_a_poisson_at_32_bits_where_torchs_is_lost():
    x, log_m = torch.tensor(2.0, dtype=torch.float32), torch.tensor(log(3), dtype=torch.float32)
    for dispersion in (1e5, 1e7, 1e12):
        r = torch.tensor(dispersion, dtype=torch.float32)
        assert NegativeBinomial(r, log_m).log_prob(x).item() == pytest.approx(stats.poisson.logpmf(2, 3), abs=5e-5)
        torchs = torch.distributions.NegativeBinomial(r, logits=log_m - r.log(), validate_args=False)
        assert abs(torchs.log_prob(x).item() - stats.poisson.logpmf(2, 3)) > 0.05


@pytest.mark.parametrize("dispersion", [0.5, 1e7])
def test_negative_binomial_counts_draws_have_their_mean_and_variance(dispersion, float32):
    law, n = NegativeBinomialCounts(dispersion)(torch.full((1, 1, 2), log(3))), 20_000
    drawn = law.sample((n,))
    variance = 3 + 9 / dispersion
    assert torch.allclose(law.mean, torch.tensor(3.0), rtol=1e-5)
    assert torch.allclose(law.variance, torch.tensor(variance), rtol=1e-5)
    assert ((drawn.mean(0) - 3).abs() < 6 * (variance / n) ** 0.5).all()
    spread = (drawn - 3).square()
    assert ((spread.mean(0) - variance).abs() < 6 * spread.std(0) / n**0.5).all()


def test_negative_binomial_expands_to_a_larger_batch():
    law, x = NegativeBinomialCounts(150.0)(torch.randn(1, 3, 4)), torch.randint(0, 9, (5, 1, 3, 4)).double()
    larger = law.expand((5,))
    assert (larger.batch_shape, larger.event_shape) == ((5,), (1, 3, 4))
    torch.testing.assert_close(larger.log_prob(x), law.log_prob(x), rtol=1e-14, atol=0)
    assert torch.equal(larger.variance, law.variance.expand(5, 1, 3, 4))


def test_negative_binomial_counts_of_huge_dispersion_are_a_poissons():
    log_mean, counts = torch.randn(SHAPE), torch.randint(0, 9, SHAPE).double()
    expected = stats.poisson.logpmf(counts.numpy(), log_mean.exp().numpy()).sum((1, 2, 3))
    found = NegativeBinomialCounts(1e7)(log_mean).log_prob(counts).detach().numpy()
    assert found == pytest.approx(expected, abs=1e-4)


LIKELIHOODS = {**{name: name for name in likelihoods.LIKELIHOODS}, "levels": categorical(17)}


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("build", [mlp_vae, conv_vae, mlp_autoencoder])
def test_likelihood_of_a_model_gets_the_numbers_it_needs(build, name):
    shape = (2, 4, 4)
    widths = dict(channels=(3,)) if build is conv_vae else dict(hidden=(7,))
    model = build(shape, 3, **widths, likelihood=LIKELIHOODS[name])
    z, x = torch.randn(5, 6, 3), torch.randint(0, 2, (6, *shape)).double()
    law = model.likelihood(z)
    assert law.log_prob(x).shape == (5, 6)
    assert model.decode(z).shape == (5, 6, *shape)
    assert law.log_prob(x).isfinite().all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_elbo_with_each_likelihood_has_a_gradient_in_every_parameter(name):
    model = mlp_vae((1, 4, 4), 2, hidden=(7,), batch_norm=False, likelihood=LIKELIHOODS[name])
    elbo(model, torch.randint(0, 2, (6, 1, 4, 4)).double()).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch knows no CUDA")
@pytest.mark.parametrize("name", [*LIKELIHOODS, NegativeBinomialCounts])
def test_elbo_with_each_likelihood_reads_no_value_while_a_graph_is_captured(name, capturing):
    """Without a device: tensors that have shapes and places but no values (torch's FakeTensorMode)."""
    with FakeTensorMode(), torch.device("cuda"):
        model = mlp_vae((1, 4, 4), 2, hidden=(7,), likelihood=LIKELIHOODS.get(name, name))
        value = elbo(model, torch.zeros(6, 1, 4, 4))
        assert (value.shape, value.device.type) == ((6,), "cuda")
        with pytest.raises(DataDependentOutputException):
            value.sum().item()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("name", [*LIKELIHOODS, NegativeBinomialCounts])
def test_fit_with_each_likelihood_can_be_captured(name, float32):
    model = mlp_vae((1, 4, 4), 2, hidden=(7,), likelihood=LIKELIHOODS.get(name, name))
    x, runtime = torch.randint(0, 2, (160, 1, 4, 4)).float(), Runtime(torch.device("cuda"))
    history = fit(model, x, elbo_terms, epochs=2, batch_size=16, device=runtime, progress=False)
    assert np.isfinite(history[-1]["loss"])


def test_parameters_per_dimension_are_the_same_with_an_option_set():
    held = partial(learned_gaussian, min_sigma=0.1)
    assert parameters_per_dimension(held) == parameters_per_dimension(partial(held)) == 2
    assert parameters_per_dimension(partial(gaussian, sigma=0.3)) == 1
    of_its_own = partial(lambda output: gaussian(output[..., 0, :, :, :]))
    of_its_own.parameters_per_dimension = 3
    assert parameters_per_dimension(of_its_own) == 3
    law = mlp_vae((1, 4, 4), 2, hidden=(7,), likelihood=held).likelihood(torch.randn(2, 2))
    assert (law.batch_shape, law.event_shape) == ((2,), (1, 4, 4))
    assert law.stddev.min() >= 0.1


def test_resolve_makes_an_instance_of_a_learned_likelihoods_class_for_each_model():
    assert isinstance(resolve(SharedGaussian), SharedGaussian)
    assert resolve(SharedGaussian) is not resolve(SharedGaussian)
    assert resolve(GreyLevels) is GreyLevels  # a law's class is a callable that makes a law
    model = mlp_vae((1, 4, 4), 2, hidden=(7,), likelihood=SharedGaussian)
    assert "output_distribution.log_variance" in dict(model.named_parameters())


def test_shared_gaussian_is_another_for_each_model():
    one, two = (mlp_vae((1, 4, 4), 2, hidden=(7,), likelihood="shared_gaussian") for _ in range(2))
    assert one.output_distribution is not two.output_distribution
    assert "output_distribution.log_variance" in dict(one.named_parameters())


@pytest.mark.parametrize("make", [SharedGaussian, NegativeBinomialCounts, lambda s: gaussian(one_pixel(0.0), s)])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_shared_gaussian_negative_binomial_counts_and_gaussian_refuse_what_is_not_positive(make, value):
    with pytest.raises(ValueError, match="must be positive"):
        make(value)


def test_shared_gaussian_starts_at_the_width_that_is_named():
    for sigma in (0.3, 1.0, 4.0):
        law = SharedGaussian(sigma)(torch.zeros(2, 1, 3, 3))
        torch.testing.assert_close(law.stddev, torch.full((2, 1, 3, 3), sigma))


def test_categorical_of_two_levels_is_a_bernoulli_variable():
    logits, x = torch.randn(4, 2, 1, 3, 3), torch.randint(2, (4, 1, 3, 3)).double()
    ours = categorical(2)(logits).log_prob(x)
    theirs = torch.distributions.Bernoulli(logits=logits[:, 1] - logits[:, 0]).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("num_levels", [1, 0, 2.0])
def test_categorical_refuses_fewer_than_two_levels(num_levels):
    with pytest.raises(ValueError, match="num_levels must be an integer of at least 2"):
        categorical(num_levels)


def test_discretized_logistic_starts_in_the_middle_with_a_scale_of_about_an_eighth():
    """An output of zeros, as an untrained decoder gives: mean one half, scale exp(−2)."""
    law = likelihoods.discretized_logistic(torch.zeros(2, 1, 2, 2), 17)
    assert torch.equal(law.location, torch.full((1, 2, 2), 0.5))
    assert torch.allclose(law.scale, torch.full((1, 2, 2), torch.e**-2))
