"""Estimators of a gradient under the expectation: unbiased on problems with known gradients, and of known variance."""

import copy
import math

import numpy as np
import pytest
import torch
from checks import refused
from gradient_problems import BOUND, POINTS, PROBLEMS, assert_unbiased, derivatives, joint, squared_norm
from scipy import stats
from sklearn import datasets
from torch import Tensor, nn
from torch import distributions as laws
from torch.distributions import Independent, MultivariateNormal, Normal

from vae_core.distributions import diagonal_normal, standard_normal
from vae_core.gradients import (
    doubly_reparameterized,
    implicit,
    inverse_cdf,
    location_scale,
    pathwise,
    replicates,
    score_function,
    sticking_the_landing,
    stop_gradient,
    taylor_control_variate,
)
from vae_core.linear import PPCA

# Problems: f, and E f for a Gaussian of this mean and covariance. The mean 1 is the quadratic's optimum.


ESTIMATORS = {
    "score": score_function,
    "score, constant": lambda f, q, K: score_function(f, q, K, baseline=1.5),
    "score, per datum": lambda f, q, K: score_function(f, q, K, baseline=f(q.mean[None])[0]),
    "score, leave-one-out": lambda f, q, K: score_function(f, q, K, baseline="leave-one-out"),
    "score, control variate": lambda f, q, K: score_function(f, q, K, control_variate=taylor_control_variate(f, q)),
    "score, both": lambda f, q, K: score_function(f, q, K, "leave-one-out", taylor_control_variate(f, q)),
    "pathwise": pathwise,
    "pathwise, inverse cdf": lambda f, q, K: pathwise(f, q, K, inverse_cdf),
    "pathwise, implicit": lambda f, q, K: pathwise(f, q, K, implicit),
    "sticking the landing": sticking_the_landing,
}
EACH = pytest.mark.parametrize("name", ESTIMATORS)
PROBLEM = pytest.mark.parametrize("problem", PROBLEMS)


def entropy(name: str, log_variance: Tensor) -> Tensor:
    """What `sticking_the_landing` adds to E f, up to a constant: the entropy of q."""
    return 0.5 * log_variance.sum(-1) * (name == "sticking the landing")


@EACH
@PROBLEM
@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("point", POINTS)
def test_score_function_pathwise_and_sticking_the_landing_are_unbiased(name, problem, d, point):
    (f, expectation), parameters = PROBLEMS[problem], POINTS[point](d)
    mean, log_variance = (value.requires_grad_() for value in parameters)
    exact = expectation(mean, torch.diag(log_variance.exp())) + entropy(name, log_variance)
    found = replicates(lambda m, v: ESTIMATORS[name](f, diagonal_normal(m, v), 2), parameters, 20_000)
    assert_unbiased(found, derivatives(exact, parameters))


@PROBLEM
@pytest.mark.parametrize("estimator", [score_function, pathwise])
def test_score_function_and_pathwise_take_a_gaussian_with_any_covariance(problem, estimator):
    f, expectation = PROBLEMS[problem]
    factor = torch.tensor([[0.8, 0.0, 0.0], [0.4, 0.6, 0.0], [-0.5, 0.2, 0.9]]).requires_grad_()
    mean = POINTS["off"](3)[0].requires_grad_()
    exact = derivatives(expectation(mean, factor.tril() @ factor.tril().T), (mean, factor))
    found = replicates(lambda m, L: estimator(f, MultivariateNormal(m, scale_tril=L.tril()), 2), (mean, factor), 20_000)
    assert_unbiased(found, exact)


@EACH
def test_score_function_pathwise_and_sticking_the_landing_reach_parameters_of_f(name):
    parameters = (*POINTS["off"](2), torch.tensor([0.9, -1.4]))
    mean, log_variance, theta = (value.requires_grad_() for value in parameters)
    exact = ((theta * mean).cos() * (-(theta.square()) * log_variance.exp() / 2).exp()).sum()

    def surrogate(m: Tensor, v: Tensor, t: Tensor) -> Tensor:
        return ESTIMATORS[name](lambda z: (t * z).cos().sum(-1), diagonal_normal(m, v), 2)

    found = replicates(surrogate, parameters, 20_000)
    assert_unbiased(found, derivatives(exact + entropy(name, log_variance), parameters))


LAWS = {  # a law, its parameters, f, and E f
    "Exponential": (laws.Exponential, [0.8], torch.square, lambda r: 2 / r.square()),
    "Exponential, bounded f": (laws.Exponential, [0.8], lambda z: (-z).exp(), lambda r: r / (1 + r)),
    "Cauchy": (laws.Cauchy, [0.3, 0.7], torch.cos, lambda m, s: m.cos() * (-s).exp()),
    "Laplace": (laws.Laplace, [0.3, 0.7], torch.square, lambda m, s: m.square() + 2 * s.square()),
    "Gamma": (laws.Gamma, [1.7, 0.6], torch.square, lambda a, b: a * (a + 1) / b.square()),
    "Gamma, its rate": (lambda b: laws.Gamma(1.7, b), [0.6], torch.square, lambda b: 1.7 * 2.7 / b.square()),
    "Beta": (laws.Beta, [1.7, 0.6], torch.square, lambda a, b: a * (a + 1) / (a + b) / (a + b + 1)),
}
DRAWS = {draw.__name__: draw for draw in (location_scale, inverse_cdf, implicit)}
HAVE = {law: ["score", *DRAWS] for law in LAWS} | {law: ["score", "location_scale"] for law in ("Gamma", "Beta")}
HAVE["Gamma, its rate"] = ["score", "location_scale", "implicit"]  # torch has its cdf, differentiable in the rate only


@pytest.mark.parametrize(("law", "draw"), [(law, draw) for law, draws in HAVE.items() for draw in draws])
def test_score_function_and_pathwise_of_other_distributions_are_unbiased(law, draw):
    make, at, f, expectation = LAWS[law]
    parameters = tuple(torch.tensor(value, requires_grad=True) for value in at)

    def surrogate(*copies: Tensor) -> Tensor:
        q = Independent(make(*(each[:, None] for each in copies)), 1)
        if draw == "score":
            return score_function(lambda z: f(z).sum(-1), q, 2)
        return pathwise(lambda z: f(z).sum(-1), q, 2, DRAWS[draw])

    assert_unbiased(replicates(surrogate, parameters, 40_000), derivatives(expectation(*parameters), parameters))


def logistic(loc: Tensor, scale: Tensor, cache_size: int = 0) -> Independent:
    """From torch's parts: it has quantiles, but nobody has told torch its mean. Batch (B,), event (d,)."""
    base = laws.Uniform(torch.zeros_like(loc), torch.ones_like(loc))
    steps = [laws.SigmoidTransform(cache_size).inv, laws.AffineTransform(loc, scale, cache_size=cache_size)]
    return Independent(laws.TransformedDistribution(base, steps), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_cdf_takes_a_distribution_without_a_mean(dtype):
    loc, scale = (torch.full((1, 2), value, dtype=dtype, requires_grad=True) for value in (0.3, 0.7))
    q = logistic(loc, scale)
    with pytest.raises(NotImplementedError):
        _ = q.mean
    z = inverse_cdf(q, 10_000)
    assert (z.shape, z.dtype) == ((10_000, 1, 2), dtype)
    assert stats.kstest(z.detach().flatten().numpy(), stats.logistic(0.3, 0.7).cdf).pvalue > 1e-6
    by_loc, by_scale = torch.autograd.grad(z.sum(), (loc, scale))
    assert torch.allclose(by_loc, torch.full_like(loc, 10_000))
    assert torch.allclose(by_scale, ((z - loc) / scale).sum(0), rtol=1e-3)


def test_inverse_cdf_takes_one_uniform_number_for_each_coordinate():
    q = diagonal_normal(torch.randn(5, 3), torch.randn(5, 3))
    torch.manual_seed(3)
    u, following = torch.rand(4, 5, 3), torch.rand(2)
    assert torch.equal(seeded(inverse_cdf, q, 4), q.base_dist.icdf(u))
    assert torch.equal(torch.rand(2), following)


@pytest.mark.parametrize("law", ["Exponential", "Cauchy", "Laplace"])
def test_inverse_cdf_of_a_uniform_number_has_the_distribution(law):
    q = Independent(LAWS[law][0](*(torch.tensor([value]) for value in LAWS[law][1])), 1)
    z = inverse_cdf(q, 20_000).squeeze()
    assert stats.kstest(z.numpy(), lambda values: q.base_dist.cdf(torch.as_tensor(values)).numpy()).pvalue > 1e-6


def test_implicit_derivative_of_a_gaussian_is_that_of_location_scale():
    mean, scale = torch.randn(1, 3, requires_grad=True), (torch.rand(1, 3) + 0.5).requires_grad_()
    z = implicit(Independent(Normal(mean, scale), 1), 5)
    weights = torch.randn_like(z)
    by_mean, by_scale = torch.autograd.grad((weights * z).sum(), (mean, scale))
    assert torch.allclose(by_mean, weights.sum(0), atol=1e-12)
    assert torch.allclose(by_scale, (weights * (z - mean) / scale).sum(0), atol=1e-12)


DISCRETE = {  # q, and f of all its states
    "Bernoulli": (lambda logits: Independent(laws.Bernoulli(logits=logits), 1), torch.tensor([[0.3, -1.1, 0.6]])),
    "Categorical": (
        lambda logits: Independent(laws.Categorical(logits=logits), 1),
        torch.tensor([[[0.3, -1.1, 0.6, 0.1], [1.0, 0.2, -0.4, 0.0]]]),
    ),
}


@pytest.mark.parametrize("law", DISCRETE)
@pytest.mark.parametrize("baseline", [0.0, 0.7, "leave-one-out"])
def test_score_function_takes_discrete_codes(law, baseline):
    make, logits = DISCRETE[law]

    def f(z: Tensor) -> Tensor:
        return (z.double() @ torch.linspace(0.5, -1.5, z.shape[-1]) + 0.4).square()

    q = make(logits.requires_grad_())
    axes = [torch.arange(2.0)] * 3 if law == "Bernoulli" else [torch.arange(4)] * 2
    states = torch.cartesian_prod(*axes)[:, None]
    (exact,) = derivatives((q.log_prob(states).exp() * f(states)).sum(), (logits,))
    found = replicates(lambda copies: score_function(f, make(copies), 3, baseline), (logits[0],), 20_000)
    assert_unbiased(found, (exact[0],))


# Values, and identities that hold draw for draw


def seeded(estimator, *arguments):
    torch.manual_seed(3)
    return estimator(*arguments)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
@pytest.mark.parametrize("baseline", [0.0, 0.7, "leave-one-out"])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_score_function_takes_an_f_with_integer_or_bool_values(dtype, baseline, precision):
    mean = torch.randn(5, 3, dtype=precision, requires_grad=True)
    q, found = diagonal_normal(mean, torch.zeros_like(mean)), []
    for kind in (dtype, precision):
        surrogate = seeded(score_function, lambda z, kind=kind: (z[..., 0] > 0.2).to(kind), q, 4, baseline)
        found.append((surrogate, *torch.autograd.grad(surrogate.sum(), mean)))
    assert found[0][0].dtype == precision
    assert found[1][1].abs().max() > 0.1
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("baseline", [2, np.float32(2), np.int64(2), torch.tensor(2.0), torch.full((5,), 2.0)])
def test_score_function_takes_any_real_number_or_a_tensor_as_baseline(baseline):
    mean, slopes = torch.randn(5, 3, requires_grad=True), []
    for c in (baseline, 2.0):
        surrogate = seeded(score_function, squared_norm, diagonal_normal(mean, torch.zeros(5, 3)), 4, c)
        slopes.append(torch.autograd.grad(surrogate.sum(), mean)[0])
    assert torch.equal(*slopes)


@EACH
@PROBLEM
def test_score_function_pathwise_and_sticking_the_landing_have_the_mean_of_f_as_value(name, problem):
    f, q = PROBLEMS[problem][0], diagonal_normal(torch.randn(5, 3), torch.randn(5, 3))
    draw = {"pathwise, inverse cdf": inverse_cdf, "pathwise, implicit": implicit}.get(name, location_scale)
    z = seeded(draw, q, 4)
    expected = f(z) - q.log_prob(z) * (name == "sticking the landing")
    assert torch.allclose(seeded(ESTIMATORS[name], f, q, 4), expected.mean(0), rtol=1e-12, atol=1e-12)


def test_score_function_leave_one_out_of_two_draws_is_half_the_product_of_differences():
    mean = torch.randn(5, 3, requires_grad=True)
    f, q = PROBLEMS["exponential"][0], diagonal_normal(mean, torch.zeros(5, 3))
    (found,) = torch.autograd.grad(seeded(score_function, f, q, 2, "leave-one-out").sum(), mean)
    z = seeded(q.sample, (2,))
    value, score = f(z), z - mean  # the score of a mean, variance 1
    assert torch.allclose(found, 0.5 * (value[0] - value[1])[:, None] * (score[0] - score[1]), atol=1e-12)


@pytest.fixture
def wine() -> tuple:
    """log p(x, z) of a linear model for five wines, its posterior's parameters and law, and log p(x)."""
    X = torch.as_tensor(datasets.load_wine().data)
    X = (X - X.mean(0)) / X.std(0)
    model = PPCA(2).fit(X)
    model.components_, X = model.components_ + torch.randn(2, X.shape[1]) / 3, X[:5]  # no longer orthogonal
    prior, noise = standard_normal(2), model.noise_variance_.log().expand(X.shape[1])

    def f(z: Tensor) -> Tensor:
        return prior.log_prob(z) + diagonal_normal(z @ model.components_ + model.mean_, noise).log_prob(X)

    exact = model.posterior(X)
    parameters = tuple(part.clone().requires_grad_() for part in (exact.mean, exact.scale_tril))
    return f, parameters, MultivariateNormal(parameters[0], scale_tril=parameters[1]), model.score_samples(X)


def test_sticking_the_landing_is_zero_for_every_draw_at_the_exact_posterior(wine):
    f, parameters, q, log_p = wine
    for seed in range(20):
        torch.manual_seed(seed)
        surrogate = sticking_the_landing(f, q)
        assert torch.allclose(surrogate, log_p, atol=1e-10)
        for gradient in derivatives(surrogate.sum(), parameters):
            assert gradient.abs().max() < 1e-10
    plain = derivatives(pathwise(lambda z: f(z) - q.log_prob(z), q).sum(), parameters)
    assert min(gradient.abs().max() for gradient in plain) > 0.1


def test_doubly_reparameterized_with_one_draw_is_sticking_the_landing(wine):
    f, (mean, factor), _, _ = wine
    values, slopes = [], []
    for estimator in (doubly_reparameterized, sticking_the_landing):
        values.append(seeded(estimator, f, MultivariateNormal(mean + 0.3, scale_tril=1.5 * factor), 1))
        slopes.append(torch.cat([each.flatten() for each in derivatives(values[-1].sum(), (mean, factor))]))
    assert torch.allclose(*values, atol=1e-12)
    assert torch.allclose(*slopes, atol=1e-12)
    assert slopes[0].abs().max() > 0.1


def test_doubly_reparameterized_has_the_importance_weighted_bound_as_value(wine):
    f, _, q, _ = wine
    q = MultivariateNormal(q.mean + 0.3, q.covariance_matrix)
    z = seeded(q.rsample, (7,))
    expected = (f(z) - q.log_prob(z)).exp().mean(0).log()
    assert torch.allclose(seeded(doubly_reparameterized, f, q, 7), expected, atol=1e-12)


# The importance-weighted bound of a model with one code, its gradient by quadrature over both draws


def bound_by_quadrature(m: Tensor, v: Tensor, w: Tensor) -> Tensor:
    e = torch.linspace(-9, 9, 601)
    log_w = joint(m + (v / 2).exp() * e, w) + 0.5 * (e.square() + v)
    both = torch.logaddexp(log_w[:, None], log_w) - math.log(2)
    density = Normal(0.0, 1.0).log_prob(e).exp() * (e[1] - e[0])
    return density @ both @ density


def weighted(m: Tensor, v: Tensor, w: Tensor, num_samples: int, doubly: bool) -> Tensor:
    q = diagonal_normal(m[:, None], v[:, None])
    if doubly:
        return doubly_reparameterized(lambda z: joint(z[..., 0], w), q, num_samples)
    z = q.rsample((num_samples,))
    return (joint(z[..., 0], w) - q.log_prob(z)).logsumexp(0)


@pytest.mark.parametrize("doubly", [True, False])
def test_doubly_reparameterized_is_unbiased_for_the_gradient_of_the_bound(doubly):
    parameters = tuple(value.clone().requires_grad_() for value in BOUND)
    exact = derivatives(bound_by_quadrature(*parameters), parameters)
    assert_unbiased(replicates(lambda *p: weighted(*p, 2, doubly), BOUND, 200_000), exact)


def test_doubly_reparameterized_gains_from_draws_where_the_plain_gradient_loses():
    """Mean over standard deviation, for log σ², K = 1 and 64: the plain one's falls, the other's rises."""
    signal = {}
    for doubly in (True, False):
        for K in (1, 64):
            estimates = replicates(lambda *p, K=K, doubly=doubly: weighted(*p, K, doubly), BOUND, 20_000)[1]
            signal[doubly, K] = (estimates.mean().abs() / estimates.std()).item()
    assert signal[True, 64] > 1.5 * signal[True, 1]
    assert signal[False, 64] < signal[False, 1] - 6 * (2 / 20_000) ** 0.5


# The tools, and what is refused


PLAIN = {
    "Normal": lambda a, b: Independent(Normal(a, b), 1),
    "MultivariateNormal": lambda a, b: MultivariateNormal(a, torch.diag_embed(b)),
    "Gamma": lambda a, b: Independent(laws.Gamma(a, b), 1),
    "Beta": lambda a, b: Independent(laws.Beta(a, b), 1),
    "mixture": lambda a, b: laws.MixtureSameFamily(
        laws.Categorical(logits=a), MultivariateNormal(torch.stack([a, b], -1), torch.eye(2))
    ),
    "Weibull": lambda a, b: Independent(laws.Weibull(a, b), 1),  # its parameters sit in its transforms
    "logistic": logistic,
    "logistic, cached": lambda a, b: logistic(a, b, cache_size=1),
    "uniform logarithm": lambda a, b: Independent(
        laws.TransformedDistribution(laws.Uniform(a - 1, b + 2), laws.ComposeTransform([laws.ExpTransform().inv])), 1
    ),
}


@pytest.mark.parametrize("law", PLAIN)
def test_stop_gradient_is_the_same_distribution_and_passes_no_gradient(law):
    a, b = (torch.rand(4, 2) + 0.5).requires_grad_(), (torch.rand(4, 2) + 0.5).requires_grad_()
    q = PLAIN[law](a, b)
    fixed, z = stop_gradient(q), torch.rand(3, 4, 2)
    assert torch.equal(fixed.log_prob(z), q.log_prob(z))
    assert q.log_prob(z).requires_grad
    assert not fixed.log_prob(z).requires_grad
    assert (fixed.batch_shape, fixed.event_shape) == (q.batch_shape, q.event_shape)
    again = stop_gradient(q)  # of a law that has been used: its transforms know their inverses, and the last draw
    assert not again.log_prob(z).requires_grad
    assert torch.equal(again.log_prob(z), q.log_prob(z))


@pytest.mark.parametrize("cache_size", [0, 1])
@pytest.mark.parametrize("estimator", [doubly_reparameterized, sticking_the_landing])
def test_sticking_the_landing_does_not_depend_on_how_the_distribution_is_written(estimator, cache_size):
    """A Gaussian as an affine map of noise, with or without a memory of its last draw, and torch's own."""
    mean, scale, f = torch.randn(5, 3, requires_grad=True), torch.full((5, 3), 0.8, requires_grad=True), squared_norm
    moved = laws.AffineTransform(mean, scale, cache_size=cache_size)
    noise = Normal(torch.zeros(5, 3), torch.ones(5, 3))
    found = []
    for law in (Independent(laws.TransformedDistribution(noise, moved), 1), Independent(Normal(mean, scale), 1)):
        surrogate = seeded(estimator, f, law, 4)
        found.append((surrogate, *torch.autograd.grad(surrogate.sum(), (mean, scale))))
    torch.testing.assert_close(*found)


def test_replicates_are_independent_estimates_and_zero_where_nothing_depends():
    unused, mean = torch.randn(2, 3), torch.randn(3)
    zero, moving = replicates(
        lambda u, m: pathwise(squared_norm, diagonal_normal(m, torch.zeros_like(m))), (unused, mean), 50
    )
    assert torch.equal(zero, torch.zeros(50, 2, 3))
    assert moving.shape == (50, 3)
    assert len(moving[:, 0].unique()) == 50
    assert torch.equal(replicates(lambda u: torch.ones(7), (unused,), 7)[0], torch.zeros(7, 2, 3))


ALL = pytest.mark.parametrize("estimator", [*ESTIMATORS.values(), doubly_reparameterized], ids=[*ESTIMATORS, "doubly"])


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_score_function_and_the_others_return_one_number_per_batch_element_in_the_precision_of_q(estimator, dtype):
    mean = torch.randn(5, 3, dtype=dtype, requires_grad=True)
    surrogate = estimator(PROBLEMS["exponential"][0], diagonal_normal(mean, torch.zeros_like(mean)), 3)
    assert (surrogate.shape, surrogate.dtype) == ((5,), dtype)
    (slope,) = derivatives(surrogate[2], (mean,))
    assert slope.dtype == dtype
    assert slope[2].isfinite().all()
    assert (slope[2] != 0).all()
    assert (slope[[0, 1, 3, 4]] == 0).all()  # nothing crosses over


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("law", [Normal, laws.Cauchy])
def test_inverse_cdf_of_zero_is_that_of_the_smallest_step_above_it(law, dtype, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.zeros(shape, **options))
    q = Independent(law(torch.zeros(1, 2, dtype=dtype), torch.ones(1, 2, dtype=dtype)), 1)
    z = inverse_cdf(q, 1)
    assert z.isfinite().all()
    below_one = torch.nextafter(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))
    assert torch.equal(z[0, 0], q.base_dist.icdf(1 - below_one)[0])


GAUSS = diagonal_normal(torch.zeros(1, 2), torch.zeros(1, 2))
COIN = Independent(laws.Bernoulli(torch.full((1, 2), 0.5)), 1)
ONE = torch.ones(1)
REFUSED = {
    "must be a number, a tensor or 'leave-one-out', got 'mean'": lambda: score_function(squared_norm, GAUSS, 2, "mean"),
    "must be a number, a tensor or 'leave-one-out', got None": lambda: score_function(squared_norm, GAUSS, 2, None),
    "must be a number, a tensor or 'leave-one-out', got True": lambda: score_function(squared_norm, GAUSS, 2, True),
    "must be a number, a tensor or 'leave-one-out', got array": lambda: score_function(
        squared_norm, GAUSS, 2, np.ones(1)
    ),
    "needs num_samples of at least 2, got 1": lambda: score_function(squared_norm, GAUSS, 1, "leave-one-out"),
    "Bernoulli has no reparameterized samples; use score_function": lambda: pathwise(squared_norm, COIN),
    "Bernoulli has no inverse distribution function; use another": lambda: pathwise(squared_norm, COIN, 1, inverse_cdf),
    "Bernoulli has no distribution function; use another draw": lambda: pathwise(squared_norm, COIN, 1, implicit),
    "Beta has no distribution function": lambda: implicit(laws.Beta(ONE, ONE), 1),
}


def test_implicit_has_no_derivative_in_a_gammas_concentration():
    z = implicit(laws.Gamma(ONE.clone().requires_grad_(), ONE), 1)
    with pytest.raises(NotImplementedError, match="igamma"):
        z.sum().backward()


@pytest.mark.parametrize("message", REFUSED)
def test_score_function_pathwise_and_draws_refuse_what_they_cannot_estimate(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


@ALL
@pytest.mark.parametrize("count", [0, -1, 2.0, "2"])
def test_score_function_and_the_others_refuse_a_bad_num_samples(estimator, count):
    with pytest.raises(ValueError, match=f"num_samples must be a positive integer, got {count!r}"):
        estimator(squared_norm, GAUSS, count)


# Shapes


UNWRAPPED = Normal(torch.zeros(50, 2, requires_grad=True), 1.0)
IN_SHAPE = [
    score_function, pathwise, sticking_the_landing, lambda f, q, K: doubly_reparameterized(f, q, K),
    lambda f, q, K: score_function(f, q, K, taylor_control_variate(f, q)[1]),
]  # fmt: skip


@pytest.mark.parametrize("estimator", IN_SHAPE, ids=["score", "pathwise", "sticking", "doubly", "taylor"])
def test_score_function_and_the_others_refuse_a_q_without_its_event(estimator):
    words = ["f(z) must return one value for each draw and batch element", "(50, 2)", "torch.distributions.Independent"]
    with refused(ValueError, *words):
        estimator(squared_norm, UNWRAPPED, 2)
    assert estimator(squared_norm, Independent(UNWRAPPED, 1), 2).shape == (50,)


@pytest.mark.parametrize(
    ("f", "got"),
    [
        (lambda z: z, "shape (3, 50, 2)"),
        (lambda z: z.sum(), "shape ()"),
        (lambda z: z.sum(-1).mean(0), "shape (50,)"),
        (lambda z: z.sum(-1, keepdim=True), "shape (3, 50, 1)"),
        (lambda z: None, "NoneType"),
        (lambda z: 1.0, "float"),
    ],
)
@pytest.mark.parametrize("estimator", [score_function, pathwise, sticking_the_landing, doubly_reparameterized])
def test_score_function_and_the_others_refuse_an_f_of_another_shape(estimator, f, got):
    with refused(ValueError, "f(z) must return", "shape (3, 50)", got):
        estimator(f, Independent(UNWRAPPED, 1), 3)


def test_score_function_takes_codes_without_an_event():
    """One coin for each of B data, batch (B,), event (): E z = p, whose derivative in the logit is p (1 − p)."""
    logit = torch.tensor([0.4])

    def surrogate(m: Tensor) -> Tensor:
        return score_function(lambda z: z, laws.Bernoulli(logits=m[:, 0]), 2)

    p = logit.sigmoid()
    assert_unbiased(replicates(surrogate, (logit,), 20_000), (p * (1 - p),))


@pytest.mark.parametrize("baseline", [torch.ones(50, 1), torch.ones(3), torch.ones(2, 50), float("nan"), float("inf")])
def test_score_function_refuses_a_baseline_of_another_shape(baseline):
    with refused(ValueError, "baseline must"):
        score_function(squared_norm, Independent(UNWRAPPED, 1), 2, baseline)


def test_score_function_refuses_a_control_variate_of_another_shape():
    q = Independent(UNWRAPPED, 1)
    h, mean = taylor_control_variate(squared_norm, q)
    with refused(ValueError, "the mean of control_variate", "(50,)", "(50, 1)"):
        score_function(squared_norm, q, 2, control_variate=(h, mean[:, None]))
    with refused(ValueError, "control_variate(z) must return", "(2, 50, 2)"):
        score_function(squared_norm, q, 2, control_variate=(lambda z: z, mean))


def test_doubly_reparameterized_takes_single_numbers():
    """Batch (B,), event (): the same as with an event of one."""
    mean, found = torch.randn(5, requires_grad=True), []
    for q, f in (
        (Normal(mean, 0.7), lambda z: -0.5 * z.square()),
        (Independent(Normal(mean[:, None], 0.7), 1), lambda z: -0.5 * z[..., 0].square()),
    ):
        surrogate = seeded(doubly_reparameterized, f, q, 4)
        found.append((surrogate, *torch.autograd.grad(surrogate.sum(), mean)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_replicates_and_taylor_control_variate_work_where_gradients_are_switched_off(mode):
    def surrogate(m: Tensor) -> Tensor:
        return score_function(squared_norm, diagonal_normal(m, torch.zeros_like(m)), 2)

    def estimates() -> Tensor:
        torch.manual_seed(1)
        return replicates(surrogate, (m,), 30)[0]

    m = torch.ones(3)
    q = diagonal_normal(m[None], torch.zeros(1, 3))
    expected, (h, mean) = estimates(), taylor_control_variate(squared_norm, q)
    with mode():
        assert torch.equal(estimates(), expected)
        again, same = taylor_control_variate(squared_norm, q)
        assert torch.equal(same, mean)
        assert torch.equal(again(m), h(m))
    assert expected.abs().max() > 0.1


def test_replicates_refuse_a_surrogate_of_another_length():
    for surrogate in (lambda m: m.sum(), lambda m: m[:2].sum(1)):
        with refused(ValueError, "surrogate must return one value for each of 5 copies"):
            replicates(surrogate, (torch.ones(3),), 5)
    with refused(ValueError, "count must be a positive integer, got 0"):
        replicates(lambda m: m.sum(1), (torch.ones(3),), 0)


# Normalising flows


class Coupling(laws.Transform):
    """z₂ ↦ z₂ e^{s(z₁)} + t(z₁), z₁ as it is, with s and t from a network; invertible in closed form."""

    domain = codomain = laws.constraints.independent(laws.constraints.real, 1)
    bijective = True

    def __init__(self, cache_size: int = 0, norm: bool = False) -> None:
        super().__init__(cache_size)
        middle = nn.BatchNorm1d(4) if norm else nn.Identity()
        self.net = nn.Sequential(nn.Linear(1, 4), middle, nn.Tanh(), nn.Linear(4, 2))

    def _pair(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(z[..., :1].reshape(-1, 1)).reshape(*z.shape[:-1], 2).unbind(-1)

    def _call(self, x: Tensor) -> Tensor:
        s, t = self._pair(x)
        return torch.stack((x[..., 0], x[..., 1] * s.exp() + t), -1)

    def _inverse(self, y: Tensor) -> Tensor:
        s, t = self._pair(y)
        return torch.stack((y[..., 0], (y[..., 1] - t) * (-s).exp()), -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._pair(x)[0]


class FromClosure(Coupling):
    """The same with a function in place of the network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = lambda z: net(z)


def flow(transform: laws.Transform) -> laws.TransformedDistribution:
    return laws.TransformedDistribution(standard_normal(2).expand((5,)), [transform])


@pytest.mark.parametrize("cache_size", [0, 1])
@pytest.mark.parametrize("inverse", [False, True])
def test_stop_gradient_detaches_the_networks_inside_a_flow(cache_size, inverse):
    transform = Coupling(cache_size)
    q = flow(transform.inv if inverse else transform)
    z = q.rsample((3,))
    fixed = stop_gradient(q)
    assert torch.equal(fixed.log_prob(z.detach()), q.log_prob(z.detach()))
    assert q.log_prob(z.detach()).requires_grad
    assert not fixed.log_prob(z.detach()).requires_grad
    assert fixed.log_prob(z).requires_grad  # through z
    assert all(parameter.requires_grad for parameter in transform.net.parameters())


def test_sticking_the_landing_of_a_flow_is_the_path_gradient():
    """∇ log p(z) − log q(z) through z alone, by autograd with the density's parameters held as a copy."""
    transform, target = Coupling(), standard_normal(2)
    q, parameters = flow(transform), tuple(transform.net.parameters())
    found = torch.autograd.grad(seeded(sticking_the_landing, target.log_prob, q, 4).sum(), parameters)
    frozen = copy.deepcopy(transform)
    for parameter in frozen.net.parameters():
        parameter.requires_grad_(False)
    z = seeded(q.rsample, (4,))
    path = torch.autograd.grad(
        (target.log_prob(z) - flow(frozen).log_prob(z)).mean(0).sum(), parameters, retain_graph=True
    )
    torch.testing.assert_close(found, path)
    whole = torch.autograd.grad((target.log_prob(z) - q.log_prob(z)).mean(0).sum(), parameters)
    assert max((a - b).abs().max() for a, b in zip(found, whole, strict=True)) > 1e-3


def test_sticking_the_landing_of_a_flow_at_the_posterior_is_zero_for_every_draw():
    q = flow(Coupling())
    target = copy.deepcopy(q)
    value = sticking_the_landing(target.log_prob, q, 3)
    parameters = tuple(q.transforms[0].net.parameters())
    assert max(gradient.abs().max() for gradient in torch.autograd.grad(value.sum(), parameters)) < 1e-12
    assert value.abs().max() < 1e-12


def test_stop_gradient_leaves_the_running_averages_of_a_flow_alone():
    transform = Coupling(norm=True)
    fixed, z = stop_gradient(flow(transform)), torch.randn(5, 2)
    before = transform.net[1].running_mean.clone()
    fixed.log_prob(z)
    assert torch.equal(transform.net[1].running_mean, before)


def test_stop_gradient_refuses_what_it_cannot_detach():
    hidden, before = flow(FromClosure(nn.Linear(1, 2))), torch.get_rng_state()
    with refused(ValueError, "TransformedDistribution", "stop_gradient cannot find", "nn.Modules"):
        stop_gradient(hidden)
    assert torch.equal(torch.get_rng_state(), before)
    frozen = nn.Linear(1, 2).requires_grad_(False)
    assert not stop_gradient(flow(FromClosure(frozen))).log_prob(torch.zeros(5, 2)).requires_grad
