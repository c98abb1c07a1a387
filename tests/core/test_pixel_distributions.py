"""Distributions at the ends of their range: at 32 bits, values and gradients against 40 digits (mpmath)."""

from math import log

import mpmath
import pytest
import torch

from vae_core.likelihoods import SharedGaussian, discretized_logistic, gaussian, learned_gaussian
from vae_core.models import mlp_vae
from vae_core.pixel_distributions import (
    ContinuousBernoulli,
    DiscretizedLogistic,
    GreyLevels,
    NegativeBinomial,
    bounded_scale,
)

EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def forty_digits(float32):
    with mpmath.workdps(40):
        yield


def exact_counts(x: float, r: mpmath.mpf, m: mpmath.mpf) -> tuple[mpmath.mpf, ...]:
    """log P(x) of the usual formula, and its derivatives in log r and log m."""
    binomial = mpmath.loggamma(x + r) - mpmath.loggamma(r) - mpmath.loggamma(x + 1)
    value = binomial + r * mpmath.log(r / (r + m)) + x * mpmath.log(m / (r + m))
    by_r = mpmath.digamma(x + r) - mpmath.digamma(r) + mpmath.log(r / (r + m)) + (m - x) / (r + m)
    return value, r * by_r, r * (x - m) / (r + m)


def counts(x: float, r: float, m: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What 32 bits and 40 digits make of it, value and both derivatives."""
    log_r, log_m = (torch.tensor(log(value), requires_grad=True) for value in (r, m))
    value = NegativeBinomial(log_r.exp(), log_m).log_prob(torch.tensor(float(x)))
    found = (value, *torch.autograd.grad(value, (log_r, log_m)))
    truth = exact_counts(x, mpmath.mpf(log_r.exp().item()), mpmath.exp(mpmath.mpf(log_m.item())))
    return tuple(each.item() for each in found), tuple(map(float, truth))


@pytest.mark.parametrize("r", [1e-3, 0.1, 1, 9.9, 10, 50, 1e3, 1e4, 1e6, 1e7])
@pytest.mark.parametrize("m", [1e-3, 1, 10, 1e3, 1e4, 1e6])
def test_negative_binomial_is_exact_at_32_bits_from_no_count_to_a_million(r, m):
    """To 30 units of the last place of 1, of the value and of its derivatives (a unit of log m is m's own rounding)."""
    for x in (0, 1, 9, 10, 100, 1e4, 1.1e4, 1e6):
        found, truth = counts(x, r, m)
        one = 1 + abs(truth[0]) + abs(truth[2])
        assert found[0] == pytest.approx(truth[0], abs=30 * EPS * one)
        assert found[1] == pytest.approx(truth[1], abs=30 * EPS * one)
        assert found[2] == pytest.approx(truth[2], abs=30 * EPS * (1 + abs(truth[2]) + r * m / (r + m)))


@pytest.mark.parametrize(("x", "r"), [(1e4, 10), (1e4, 50), (1e6, 10), (1e6, 50)])
def test_negative_binomial_beats_torchs_where_the_count_is_the_mean(x, r):
    """torch's error is a thousandth of a nat at counts of 10⁴, and half a nat at 10⁶ (F15)."""
    found, truth = counts(x, r, x)
    assert found[0] == pytest.approx(truth[0], abs=5e-6)
    logits = torch.tensor(log(x)) - torch.tensor(float(r)).log()
    torchs = torch.distributions.NegativeBinomial(torch.tensor(float(r)), logits=logits)
    assert abs(torchs.log_prob(torch.tensor(x)).item() - truth[0]) > 100 * abs(found[0] - truth[0])


@pytest.mark.parametrize("log_m", [-200.0, -100.0, 80.0, 100.0, 200.0])
@pytest.mark.parametrize("x", [0.0, 1.0, 300.0, 1e6])
@pytest.mark.parametrize("r", [0.1, 10.0, 1e4])
def test_negative_binomial_is_exact_where_the_mean_itself_is_not_representable(x, r, log_m):
    leaf = torch.tensor(log_m, requires_grad=True)
    value = NegativeBinomial(torch.tensor(r), leaf).log_prob(torch.tensor(x))
    (slope,) = torch.autograd.grad(value, leaf)
    truth, _, by_m = exact_counts(x, mpmath.mpf(torch.tensor(r).item()), mpmath.exp(log_m))
    assert value.item() == pytest.approx(float(truth), rel=1e-6, abs=1e-6)
    assert slope.item() == pytest.approx(float(by_m), rel=1e-6, abs=1e-6)


def test_negative_binomial_probabilities_sum_to_one_over_all_counts():
    x = torch.arange(40_000.0).double()
    for r, m in ((0.3, 2.0), (9.0, 50.0), (11.0, 1000.0), (1e6, 300.0)):
        p = NegativeBinomial(torch.tensor(r).double(), torch.tensor(m).double().log()).log_prob(x).exp()
        assert p.sum().item() == pytest.approx(1, abs=1e-9)
        assert (p * x).sum().item() == pytest.approx(m, rel=1e-6)


LOGITS = [-1e4, -1e3, -200.0, -88.0, -5.0, -0.5, 0.5, 5.0, 20.0, 88.0, 200.0, 1e3, 1e4]


@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.parametrize("x", [0.0, 1e-6, 0.003, 0.5, 0.9999, 1 - EPS / 2, 1.0])
def test_continuous_bernoulli_is_exact_at_32_bits_for_logits_up_to_ten_thousand(logit, x):
    logits, x = torch.tensor(logit, requires_grad=True), torch.tensor(x)
    value = ContinuousBernoulli(logits).log_prob(x)
    (slope,) = torch.autograd.grad(value, logits)
    a, t = mpmath.mpf(logit), mpmath.mpf(x.item())

    def truth(a):
        return a * t - mpmath.log(1 + mpmath.exp(a)) + mpmath.log(a / mpmath.tanh(a / 2))

    assert value.item() == pytest.approx(float(truth(a)), rel=4 * EPS, abs=4 * EPS)
    assert slope.item() == pytest.approx(float(mpmath.diff(truth, a)), abs=10 * EPS)


EXTREMES = [-1e4, -250.0, -100.0, -60.0, 60.0, 100.0, 250.0, 1e4]


@pytest.mark.parametrize("log_variance", EXTREMES)
@pytest.mark.parametrize("error", [0.0, 1e-3, 1.0, 100.0])
def test_learned_gaussian_has_a_finite_value_and_gradient_at_any_log_variance(log_variance, error):
    output = torch.tensor([0.0, log_variance]).reshape(2, 1, 1, 1).requires_grad_()
    value = learned_gaussian(output).log_prob(torch.full((1, 1, 1), error))
    value.backward()
    assert value.isfinite()
    assert output.grad.isfinite().all()


@pytest.mark.parametrize("log_variance", [-34.0, -10.0, 0.0, 34.0])
def test_learned_gaussian_and_shared_gaussian_are_exact_within_their_range(log_variance):
    x, mean = torch.tensor(0.5).reshape(1, 1, 1), torch.tensor(0.25)
    s, residual = mpmath.mpf(torch.tensor(log_variance).item()), mpmath.mpf("0.25")
    truth = -(mpmath.log(2 * mpmath.pi) + s + residual**2 * mpmath.exp(-s)) / 2
    output = torch.stack([mean, torch.tensor(log_variance)]).reshape(2, 1, 1, 1).requires_grad_()
    shared = SharedGaussian()
    shared.log_variance.data.fill_(log_variance)
    for value, leaf in (
        (learned_gaussian(output).log_prob(x), output),
        (shared(mean.reshape(1, 1, 1)).log_prob(x), shared.log_variance),
    ):
        (slope,) = torch.autograd.grad(value, leaf)
        assert value.item() == pytest.approx(float(truth), rel=50 * EPS)
        assert slope.flatten()[-1].item() == pytest.approx(float((residual**2 * mpmath.exp(-s) - 1) / 2), rel=50 * EPS)


@pytest.mark.parametrize("log_variance", EXTREMES)
def test_shared_gaussian_has_a_finite_value_and_gradient_at_any_log_variance(log_variance):
    likelihood = SharedGaussian()
    likelihood.log_variance.data.fill_(log_variance)
    value = likelihood(torch.zeros(2, 1, 3, 3, requires_grad=True)).log_prob(torch.rand(1, 3, 3)).sum()
    value.backward()
    assert value.isfinite()
    assert likelihood.log_variance.grad.isfinite()


def test_bounded_scale_is_the_exponential_within_and_constant_beyond():
    inside = torch.linspace(-17, 17, 101)
    assert torch.equal(bounded_scale(inside), inside.exp())
    assert bounded_scale(torch.tensor([-18.0, -1e9])).unique().numel() == 1
    assert bounded_scale(torch.tensor([18.0, 1e9])).unique().numel() == 1
    assert bounded_scale(torch.tensor(-100.0).double()).log().item() == pytest.approx(-100)


@pytest.mark.parametrize("log_scale", EXTREMES)
@pytest.mark.parametrize("x", [0.0, 128 / 255, 1.0])
@pytest.mark.parametrize("mean", [-0.5, 0.0, 0.3, 1.5])
def test_discretized_logistic_has_a_finite_value_and_gradient_at_any_log_scale(log_scale, x, mean):
    output = torch.tensor([mean, log_scale]).reshape(2, 1, 1, 1).requires_grad_()
    value = discretized_logistic(output).log_prob(torch.full((1, 1, 1), x))
    value.backward()
    assert value.isfinite()
    assert output.grad.isfinite().all()


@pytest.mark.parametrize("log_scale", [-15.0, -9.0, -2.0, 0.0, 15.0])
@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_discretized_logistic_is_exact_at_32_bits(log_scale, level):
    mean, scale = torch.tensor(0.3).reshape(1, 1, 1), torch.tensor(log_scale).reshape(1, 1, 1)
    value = DiscretizedLogistic(mean, scale).log_prob(torch.full((1, 1, 1), level / 255))
    s, mu, h = mpmath.exp(mpmath.mpf(log_scale)), mpmath.mpf(mean.item()), mpmath.mpf(1) / 510

    def tail(edge, sign):  # P below the edge, or above it
        return 1 / (1 + mpmath.exp(-sign * (edge - mu) / s))

    x = mpmath.mpf(level) / 255
    with mpmath.workdps(3000 if log_scale < -10 else 400):
        if level in (0, 255):
            truth = mpmath.log(tail(x + h, 1) if level == 0 else tail(x - h, -1))
        else:
            truth = (
                mpmath.log(tail(x + h, 1) - tail(x - h, 1)) if mu > x else mpmath.log(tail(x - h, -1) - tail(x + h, -1))
            )
    rounding = 4 * EPS * float(1 / s)  # of (x ± h − μ)/s itself
    assert value.item() == pytest.approx(float(truth), rel=20 * EPS, abs=20 * EPS + rounding)


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4, 1e8])
def test_grey_levels_have_a_finite_value_and_gradient_for_large_logits(scale):
    logits = (scale * torch.randn(5, 1, 3, 3)).requires_grad_()
    value = GreyLevels(logits).log_prob(torch.randint(0, 5, (1, 3, 3)) / 4)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    assert GreyLevels(logits).mean.isfinite().all()


def test_discretized_logistic_takes_bounded_memory_for_its_mean_and_has_the_gradient_of_its_formula():
    shape, levels = (60, 3, 16, 16), 256
    location, log_scale = torch.rand(shape, requires_grad=True), torch.full(shape, -2.0, requires_grad=True)

    def at_once(location, log_scale):
        edges = (torch.arange(levels - 1) + 0.5) / (levels - 1)
        return torch.sigmoid((location[..., None] - edges) / log_scale.exp()[..., None]).mean(-1)

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        mean = DiscretizedLogistic(location, log_scale, levels).mean
    kept = sum(event.self_cpu_memory_usage for event in profile.events())
    assert max(event.self_cpu_memory_usage for event in profile.events()) <= 2**20 * 4
    assert kept < 2**20 * 8  # nothing of the 47 MB stays for the gradient
    expected = at_once(location, log_scale)
    assert torch.equal(mean, expected)
    weights = torch.randn(shape)
    for ours, theirs in zip(
        torch.autograd.grad((mean * weights).sum(), (location, log_scale)),
        torch.autograd.grad((expected * weights).sum(), (location, log_scale)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_discretized_logistic_of_no_image_has_an_empty_mean():
    model = mlp_vae((1, 4, 4), 2, hidden=(7,), likelihood="discretized_logistic")
    assert model.decode(torch.zeros(0, 2)).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("sigma", [torch.ones(2), torch.ones(3, 1), torch.ones(2, 1, 1, 1, 1)])
def test_gaussian_refuses_a_width_of_another_shape(sigma):
    with pytest.raises(ValueError, match=r"sigma must broadcast to one datum, \(1, 5, 4\), got shape"):
        gaussian(torch.zeros(1, 5, 4), sigma)
