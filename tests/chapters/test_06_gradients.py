"""What chapter 06 claims: which gradient estimator is right, and how far each one scatters."""

import itertools
import math

import pytest
import torch
from scipy import special, stats
from torch.autograd import grad
from torch.distributions import (
    Bernoulli,
    Beta,
    Cauchy,
    Exponential,
    Gamma,
    MultivariateNormal,
    Normal,
    RelaxedBernoulli,
)

from vae_core.distributions import diagonal_normal, kl_divergence, standard_normal
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
from vae_core.models import mlp_vae
from vae_core.objectives import elbo, elbo_terms
from vae_core.quadrature import QuadratureModel, two_modes

W, X = 1.3, torch.tensor([[0.7]], dtype=torch.float64)
LINE, HUMPS = QuadratureModel(lambda z: W * z, sigma=1.0), QuadratureModel(two_modes, sigma=0.5)
MODELS = pytest.mark.parametrize("model", [LINE, HUMPS], ids=("line", "humps"))
PLACES = pytest.mark.parametrize("place", [(0.4, -0.3), (-0.8, -1.5), (1.2, 0.0)])


def log_joint(model):
    return lambda z: model.prior.log_prob(z) + model.likelihood(z).log_prob(X[0])


def paid(model, q):
    """log p(x, z) - log q(z), as a function of z."""
    return lambda z: log_joint(model)(z) - q.log_prob(z)


def estimates(rule, place, count, dim=1):
    """Gradients in mean and log variance: (count, 2 dim)."""
    m, v = (torch.full((dim,), each, dtype=torch.float64) for each in place)
    return torch.cat(replicates(lambda a, b: rule(diagonal_normal(a, b)), (m, v), count), -1)


def assert_mean(values, truth):
    error = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - truth).abs() <= 6 * error + 1e-9).all()


def variance_and_error(values):
    square = (values - values.mean(0)).square()
    return square.mean(0), square.std(0) / len(values) ** 0.5


def by_differences(model, place, h=1e-4):
    """The true gradient: central differences of the ELBO, which is an integral."""
    at = [elbo_at(model, (place[0] + a, place[1] + b)) for a, b in ((h, 0), (-h, 0), (0, h), (0, -h))]
    return torch.cat([at[0] - at[1], at[2] - at[3]]) / (2 * h)


def elbo_at(model, place):
    return model.elbo(X, normal_at(place))


def normal_at(place):
    return diagonal_normal(*(torch.tensor([[each]], dtype=torch.float64) for each in place))


def on_grid(place):
    """The grid (points, 1), q's mass on it (points, 1), its score (points, 2), and log q (points,)."""
    z, (m, v) = LINE.grid[:, None], place
    log_q = normal_at(place).log_prob(z)
    u = (z - m) / math.exp(v / 2)
    score = torch.cat([u / math.exp(v / 2), (u.square() - 1) / 2], 1)
    return z, log_q.exp()[:, None] * (z[1] - z[0]), score, log_q


def moments(g, mass):
    mean = (mass * g).sum(0)
    return mean, (mass * g.square()).sum(0) - mean.square()


# ------------------------------------------------------------------ what passes under the average, and what does not


@PLACES
def test_the_models_gradient_passes_under_the_average(place):
    m, variance = place[0], math.exp(place[1])
    z = normal_at(place).sample((100_000,))[:, 0]
    assert_mean((X - W * z) * z, X[0] * m - W * (m**2 + variance))


@MODELS
@PLACES
def test_the_naive_gradient_is_zero_for_every_model_and_q(model, place):
    _, mass, score, _ = on_grid(place)
    assert ((mass * score).sum(0).abs() < 1e-10).all()

    def naive(q):
        return paid(model, q)(q.sample((1,))).mean(0)

    g = estimates(naive, place, 20_000)
    assert_mean(g, 0.0)
    assert by_differences(model, place).abs().max() > 0.1  # which the truth is not


def test_the_splitting_of_the_gradient_is_an_equality():
    handles = tuple(torch.tensor([each], requires_grad=True) for each in (0.4, -0.3))
    m, v = handles
    fit = (-0.5 * math.log(2 * math.pi) - 0.5 * ((0.7 - W * m).square() + W**2 * v.exp())).sum()
    price = kl_divergence(diagonal_normal(m, v), standard_normal(1))
    whole, parts = grad(fit - price, handles, retain_graph=True), [grad(each, handles) for each in (fit, price)]
    for k in (0, 1):
        torch.testing.assert_close(whole[k], parts[0][k] - parts[1][k], rtol=0, atol=1e-14)


# -------------------------------------------------------------------------------------------- the score function


@MODELS
@PLACES
def test_the_score_functions_mean_is_the_gradient_by_quadrature(model, place):
    z, mass, score, log_q = on_grid(place)
    mean, _ = moments((log_joint(model)(z) - log_q - 1)[:, None] * score, mass)
    torch.testing.assert_close(mean, by_differences(model, place), atol=2e-6, rtol=2e-6)


def test_the_thesis_example_has_these_gradients():
    torch.testing.assert_close(by_differences(LINE, (0.4, -0.3)), torch.tensor([-0.1660, -0.4964]), atol=1e-4, rtol=0)


@PLACES
def test_the_estimator_as_printed_knows_nothing_of_the_data(place):
    z, mass, score, log_q = on_grid(place)
    printed = (Normal(0.0, 1.0).log_prob(z)[:, 0] - log_q - 1)[:, None] * score
    of_minus_kl = torch.tensor([-place[0], 0.5 * (1 - math.exp(place[1]))])
    torch.testing.assert_close(moments(printed, mass)[0], of_minus_kl, atol=1e-9, rtol=1e-9)
    assert (of_minus_kl - by_differences(LINE, place)).abs().max() > 0.1


@pytest.mark.parametrize(("offset", "variance"), [(1.0, 20.1), (0.0, 11.6), (None, 3.4)])
def test_what_one_subtracts_leaves_the_mean_and_moves_the_variance(offset, variance):
    place, best = (0.4, -0.3), elbo_at(LINE, (0.4, -0.3)).item()
    c = best if offset is None else offset
    g = estimates(lambda q: score_function(paid(LINE, stop_gradient(q)), q, 1, c), place, 200_000)
    assert_mean(g, by_differences(LINE, place))
    z, mass, score, log_q = on_grid(place)
    _, exact = moments((log_joint(LINE)(z) - log_q - c)[:, None] * score, mass)
    assert exact[0].item() == pytest.approx(variance, abs=0.06)
    v, error = variance_and_error(g)
    assert ((v - exact).abs() < 6 * error).all()


@MODELS
@PLACES
def test_the_best_constant_is_the_vertex_of_the_parabola(model, place):
    z, mass, score, log_q = on_grid(place)
    f, s = (log_joint(model)(z) - log_q)[:, None], score[:, :1]
    best = ((mass * f * s**2).sum() / (mass * s**2).sum()).item()
    at = [moments((f - c) * s, mass)[1].item() for c in (best - 0.5, best, best + 0.5)]
    assert at[1] < min(at[0], at[2])
    assert at[0] == pytest.approx(at[2], rel=1e-6)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_leave_one_out_is_unbiased_and_the_mean_of_all_loses_a_kth(k):
    def lazy(q):
        z = q.sample((k,))
        f = paid(LINE, q)(z).detach()
        return ((f - f.mean(0)) * q.log_prob(z)).mean(0)

    truth = by_differences(LINE, (0.4, -0.3))
    assert_mean(estimates(lazy, (0.4, -0.3), 200_000), (1 - 1 / k) * truth)
    fair = estimates(
        lambda q: score_function(paid(LINE, stop_gradient(q)), q, k, "leave-one-out"), (0.4, -0.3), 200_000
    )
    assert_mean(fair, truth)


def test_leave_one_out_of_two_draws_is_a_comparison():
    handles = tuple(torch.tensor([each], requires_grad=True) for each in (0.4, -0.3))
    q = diagonal_normal(*handles)
    torch.manual_seed(1)
    ours = grad(score_function(log_joint(LINE), q, 2, "leave-one-out"), handles[0])[0]
    torch.manual_seed(1)
    z = q.sample((2,))
    f, s = log_joint(LINE)(z), ((z - q.mean) / q.variance)[:, 0]
    torch.testing.assert_close(ours[0], (f[0] - f[1]) * (s[0] - s[1]) / 2)


def test_a_parabola_takes_all_noise_from_a_parabola_and_none_from_the_mean():
    def touched(f):
        def rule(q):
            h, mean = taylor_control_variate(f, q)
            return score_function(f, q, 1, f(q.mean[None])[0].detach(), (h, mean))

        return rule

    g = estimates(touched(log_joint(LINE)), (0.4, -0.3), 1000)
    assert g.var(0).max() < 1e-20
    bent, plain = (
        estimates(rule, (0.4, -2.0), 100_000)
        for rule in (touched(log_joint(HUMPS)), lambda q: score_function(log_joint(HUMPS), q))
    )
    assert_mean(bent - plain, 0.0)


def test_ascent_without_any_path_reaches_the_linear_optimum():
    """Mini-batches, two learning rates, `sample` alone: as good as PPCA, whose maximum is known."""
    torch.manual_seed(3)
    data = torch.randn(300, 1) @ torch.tensor([[1.5, -1.0, 0.5]]) + 0.7 * torch.randn(300, 3)
    data = data - data.mean(0)
    best = PPCA(1).fit(data)
    sigma = best.noise_variance_.sqrt()
    w, a, b = (v.requires_grad_() for v in (0.3 * torch.ones(1, 3), torch.zeros(3, 1), torch.zeros(())))
    for step in range(900):
        batch = data[torch.randint(300, (50,))]
        q = diagonal_normal(batch @ a, b.expand(50, 1))
        held = stop_gradient(q)

        def f(z, batch=batch, held=held):
            likelihood = Normal(z @ w, sigma).log_prob(batch).sum(-1)
            return standard_normal(1).log_prob(z) + likelihood - held.log_prob(z)

        slopes = grad(score_function(f, q, 4, "leave-one-out").mean(), (w, a, b))
        with torch.no_grad():
            for value, slope, rate in zip((w, a, b), slopes, (0.05, 0.02, 0.02), strict=True):
                value += rate / (1 + step / 200) * slope
    learned = PPCA(1)
    learned.mean_, learned.components_, learned.noise_variance_ = best.mean_, w.detach(), best.noise_variance_
    assert 0 <= best.score(data) - learned.score(data) < 0.01


# -------------------------------------------------------------------------------------------- mini-batches


def test_all_mini_batches_average_to_the_gradient_of_the_mean_bound():
    net = mlp_vae((1, 4, 4), 2, hidden=(8,), batch_norm=False).double()
    x, weight = torch.rand(6, 1, 4, 4), net.mean.weight
    epsilon = torch.randn(6, 2)

    def bound(index):
        q = net.posterior(x[index])
        z = q.mean + q.stddev * epsilon[index]
        return net.likelihood(z).log_prob(x[index]) - kl_divergence(q, net.prior)

    full = grad(bound(torch.arange(6)).mean(), weight)[0]
    batches = [torch.tensor(index) for index in itertools.combinations(range(6), 3)]
    mean = torch.stack([grad(bound(index).mean(), weight)[0] for index in batches]).mean(0)
    torch.testing.assert_close(mean, full, atol=1e-12, rtol=1e-10)
    scaled = torch.stack([grad(6 / 3 * bound(index).sum(), weight)[0] for index in batches]).mean(0)
    torch.testing.assert_close(scaled, 6 * full, atol=1e-12, rtol=1e-10)  # the sum over data, scaled by N/M


def test_an_epochs_batches_average_to_the_data_sets_bound_only_if_equal_or_weighted():
    bounds = torch.randn(10)
    for size, equal in ((5, True), (4, False)):
        batches = bounds.split(size)
        means, sizes = torch.stack([b.mean() for b in batches]), torch.tensor([len(b) / 10 for b in batches])
        assert torch.allclose(means.mean(), bounds.mean()) is equal
        torch.testing.assert_close(means @ sizes, bounds.mean())


def test_the_kl_belongs_inside_the_average():
    net = mlp_vae((1, 4, 4), 2, hidden=(8,), batch_norm=False).double()
    net.mean.weight.data *= 10
    x = torch.rand(8, 1, 4, 4)
    torch.manual_seed(2)
    bound, terms = elbo_terms(net, x)
    torch.manual_seed(2)
    q = net.posterior(x)
    z = q.rsample((1,))[0]
    by_hand = sum(net.likelihood(z[m]).log_prob(x[m]) - terms["kl"][m] for m in range(8)) / 8
    torch.testing.assert_close(bound.mean(), by_hand)
    printed = -terms["reconstruction"].mean() - terms["kl"][0]
    assert (printed - by_hand).abs() > 0.01


# -------------------------------------------------------------------------------------------- changes of variables


@pytest.mark.parametrize(
    ("draw", "law", "theirs"),
    [
        (location_scale, Normal(0.4, 0.9), stats.norm(0.4, 0.9)),
        (inverse_cdf, Normal(0.4, 0.9), stats.norm(0.4, 0.9)),
        (inverse_cdf, Exponential(2.0), stats.expon(0, 0.5)),
        (inverse_cdf, Cauchy(0.4, 0.9), stats.cauchy(0.4, 0.9)),
        (implicit, Gamma(2.5, 2.0), stats.gamma(2.5, 0, 0.5)),
    ],
    ids=("shift", "normal", "exponential", "cauchy", "gamma"),
)
def test_every_change_of_variables_has_the_law_it_should(draw, law, theirs):
    assert stats.kstest(draw(law, 20_000).numpy(), theirs.cdf).pvalue > 1e-4


def test_cholesky_and_symmetric_root_give_the_same_law_and_the_covariance_itself_another():
    a = torch.randn(3, 3)
    sigma, mean = a @ a.T + 0.1 * torch.eye(3), torch.randn(3)
    values, vectors = torch.linalg.eigh(sigma)
    epsilon = torch.randn(200_000, 3)
    for scale in (torch.linalg.cholesky(sigma), vectors @ values.sqrt().diag() @ vectors.T):
        z = mean + epsilon @ scale.T
        assert_mean(z, mean)
        assert_mean((z - mean)[:, :, None] * (z - mean)[:, None], sigma)
        torch.testing.assert_close(scale @ scale.T, sigma)
    assert (sigma @ sigma.T - sigma).abs().max() > 0.1
    z = location_scale(MultivariateNormal(mean, sigma), 200_000)
    assert_mean((z - mean)[:, :, None] * (z - mean)[:, None], sigma)


def test_the_jacobians_determinant_turns_the_noises_density_into_qs():
    mean, log_variance, epsilon = torch.randn(4), torch.randn(4), torch.randn(4)
    sigma = (log_variance / 2).exp()
    jacobian = torch.autograd.functional.jacobian(lambda e: mean + sigma * e, epsilon)
    torch.testing.assert_close(jacobian.det(), sigma.prod())
    q = diagonal_normal(mean, log_variance)
    torch.testing.assert_close(
        q.log_prob(mean + sigma * epsilon) + jacobian.det().abs().log(), standard_normal(4).log_prob(epsilon)
    )


@MODELS
@PLACES
def test_the_mean_over_the_noise_is_the_mean_over_q(model, place):
    z, mass, *_ = on_grid(place)
    m, sigma = place[0], math.exp(place[1] / 2)
    drawn = m + sigma * torch.randn(100_000, 1)
    functions = (
        lambda z: z[:, 0],
        lambda z: z[:, 0].square(),
        lambda z: model.likelihood(z).log_prob(X[0]),
        paid(model, normal_at(place)),
    )
    for f in functions:
        assert_mean(f(drawn), (mass[:, 0] * f(z)).sum())
    not_invertible = m + sigma * torch.randn(2, 100_000).sum(0) / 2**0.5  # two noises make one z
    assert_mean(not_invertible.square(), m**2 + sigma**2)


def test_torchs_own_gamma_and_beta_draws_move_as_the_implicit_formula_says():
    h, a = 1e-5, torch.full((5000,), 2.5, requires_grad=True)
    for law, cdf in (
        (Gamma(a, 1.0), special.gammainc),
        (Beta(a, 1.5), lambda a, z: special.betainc(a, 1.5, z)),
    ):
        drawn = law.rsample()
        theirs, z = grad(drawn.sum(), a)[0], drawn.detach()
        rise = torch.from_numpy(cdf(2.5 + h, z.numpy()) - cdf(2.5 - h, z.numpy())) / (2 * h)
        torch.testing.assert_close(-rise / law.log_prob(z).exp().detach(), theirs, rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("law", [Exponential, lambda rate: Gamma(2.5, rate)], ids=("exponential", "gamma"))
def test_implicit_draws_move_with_a_rate_as_they_must(law):
    rate = torch.tensor(2.0, requires_grad=True)
    z = implicit(law(rate), 1000)
    slope = grad(z.sum(), rate)[0]
    torch.testing.assert_close(slope, -z.detach().sum() / 2)


# -------------------------------------------------------------------------------------------- the path


@PLACES
def test_the_pathwise_gradient_is_the_chain_rule_and_unbiased(place):
    m, sigma = place[0], math.exp(place[1] / 2)
    torch.manual_seed(1)
    z = normal_at(place).sample((100_000,))[:, 0]
    slope = W * (X - W * z) - z  # of log p(x, z) in z
    by_hand = torch.cat([slope, slope * (z - m) / 2 + 0.5], 1)
    torch.manual_seed(1)
    g = estimates(lambda q: pathwise(paid(LINE, q), q), place, 100_000)
    torch.testing.assert_close(g, by_hand, atol=1e-9, rtol=1e-9)
    truth = torch.tensor([W * (0.7 - W * m) - m, 0.5 * (1 - (1 + W**2) * sigma**2)])
    assert_mean(g, truth)
    torch.testing.assert_close(truth, by_differences(LINE, place), atol=2e-6, rtol=2e-6)


@MODELS
def test_both_families_estimate_one_gradient(model):
    place = (0.4, -1.0)
    truth = by_differences(model, place)
    for rule in (
        lambda q: pathwise(paid(model, q), q),
        lambda q: score_function(paid(model, q), q),
        lambda q: sticking_the_landing(log_joint(model), q),
        lambda q: pathwise(lambda z: model.likelihood(z).log_prob(X[0]), q) - kl_divergence(q, model.prior),
    ):
        assert_mean(estimates(rule, place, 100_000), truth)


def test_more_draws_keep_the_mean_and_divide_the_variance():
    v1, error1 = variance_and_error(estimates(lambda q: pathwise(paid(LINE, q), q), (0.4, -0.3), 100_000))
    for draws in (5, 50):
        g = estimates(lambda q, draws=draws: pathwise(paid(LINE, q), q, draws), (0.4, -0.3), 10_000)
        assert_mean(g, by_differences(LINE, (0.4, -0.3)))
        v, error = variance_and_error(g)
        assert ((draws * v - v1).abs() < 6 * (draws * error + error1)).all()


def test_two_forms_of_the_bound_agree_and_at_the_exact_posterior_one_of_them_is_certain():
    posterior = (W * 0.7 / (1 + W**2), -math.log(1 + W**2))
    for place, of_a, of_b in (((0.4, -0.3), 0.504, 0.833), (posterior, 0.0, 0.244)):
        LINE.posterior = lambda x, place=place: normal_at(place).expand((len(x),))
        a, b = (elbo(LINE, X.expand(100_000, 1), kl=kind) for kind in ("monte_carlo", "analytic"))
        for values, variance in ((a, of_a), (b, of_b)):
            assert_mean(values, elbo_at(LINE, place))
            v, error = variance_and_error(values)
            assert (v - variance).abs() < 6 * error + 1e-3
    assert (a - LINE.log_prob(X)).abs().max() < 1e-12


def test_in_a_linear_model_with_several_codes_every_draw_lands():
    x = torch.randn(40, 5) @ torch.randn(5, 5)
    model = PPCA(2).fit(x)
    model.components_ = torch.linalg.qr(torch.randn(2, 2)).Q @ model.components_
    exact = model.posterior(x)
    mean, tril = exact.mean.clone().requires_grad_(), exact.scale_tril.clone().requires_grad_()
    q = MultivariateNormal(mean, scale_tril=tril)

    def joint(z):
        likelihood = Normal(model.mean_ + z @ model.components_, model.noise_variance_.sqrt()).log_prob(x)
        return standard_normal(2).log_prob(z) + likelihood.sum(-1)

    surrogate = sticking_the_landing(joint, q, 3)
    torch.testing.assert_close(surrogate.detach(), model.score_samples(x), rtol=0, atol=1e-10)
    for slope in grad(surrogate.sum(), (mean, tril)):
        assert slope.abs().max() < 1e-9
    whole = pathwise(lambda z: joint(z) - q.log_prob(z), q, 3)
    assert grad(whole.sum(), mean)[0].abs().max() > 0.1  # the score term is still there


# -------------------------------------------------------------------------------------------- when the path fails


def test_a_step_has_no_path_but_a_score():
    def step_up(z):
        return (z[..., 0] > 0).double()

    slope = Normal(0.0, 1.0).log_prob(torch.tensor(0.3)).exp()
    assert slope.item() == pytest.approx(0.381, abs=5e-4)
    assert_mean(estimates(lambda q: score_function(step_up, q), (0.3, 0.0), 200_000)[:, 0], slope)
    assert estimates(lambda q: pathwise(step_up, q), (0.3, 0.0), 100).abs().max() == 0


@pytest.mark.parametrize("frequency", [0.3, 1.0, 20.0])
def test_a_path_pays_for_steepness_and_a_score_for_size(frequency):
    k, m = frequency, 0.3
    true = k * math.cos(k * m) * math.exp(-(k**2) / 2)
    twice = math.cos(2 * k * m) * math.exp(-2 * k**2)
    exact = {
        score_function: 0.5 * (1 - (1 - 4 * k**2) * twice) - true**2,
        pathwise: k**2 * 0.5 * (1 + twice) - true**2,
    }
    for rule, variance in exact.items():
        g = estimates(lambda q, rule=rule: rule(lambda z: (k * z[..., 0]).sin(), q), (m, 0.0), 100_000)[:, 0]
        assert_mean(g, true)
        v, error = variance_and_error(g)
        assert abs(v - variance) < 6 * error
    assert (exact[pathwise] > exact[score_function]) == (frequency > 1)


def toll(z):
    return (z - 0.45) ** 2


def relaxed_mean(logit, tau):
    u = (torch.arange(400_000) + 0.5) / 400_000
    z = ((logit + u.log() - (-u).log1p()) / tau).sigmoid()
    return (2 * (z - 0.45) * z * (1 - z) / tau).mean()


def test_a_relaxed_coin_is_biased_at_every_temperature_and_may_point_the_wrong_way():
    logit = torch.tensor(-1.0)
    s = logit.sigmoid()
    truth = s * (1 - s) * (toll(1.0) - toll(0.0))
    score, *relaxed = (
        replicates(lambda v: score_function(toll, Bernoulli(logits=v), 2, "leave-one-out"), (logit,), 200_000)[0],
        *(
            replicates(lambda v, t=t: pathwise(toll, RelaxedBernoulli(torch.tensor(t), logits=v)), (logit,), 200_000)[0]
            for t in (0.2, 1.0)
        ),
    )
    assert_mean(score, truth)
    for g, tau in zip(relaxed, (0.2, 1.0), strict=True):
        assert_mean(g, relaxed_mean(logit, tau))
    assert relaxed_mean(logit, 1.0) < -0.01 < 0 < truth
    biases = torch.stack([(relaxed_mean(logit, tau) - truth).abs() for tau in (0.4, 0.2, 0.1, 0.05)])
    assert (biases.diff() < 0).all()  # colder is less biased …
    assert relaxed[0].std() > 2 * relaxed[1].std()  # … and noisier


@pytest.mark.parametrize("logit", [-1.0, 0.0, 2.0])
def test_straight_through_takes_the_slopes_at_the_ends_for_that_of_the_chord(logit):
    logit = torch.tensor(logit)
    s = logit.sigmoid()

    def straight(v):
        p = v.sigmoid()
        return toll(torch.bernoulli(p).detach() + p - p.detach())

    assert_mean(replicates(straight, (logit,), 200_000)[0], s * (1 - s) * 2 * (s - 0.45))
    truth = s * (1 - s) * (toll(1.0) - toll(0.0))
    assert torch.isclose(s * (1 - s) * 2 * (s - 0.45), truth) == bool(logit == 0)


# -------------------------------------------------------------------------------------------- many draws, many codes


def test_signal_to_noise_falls_with_more_draws_unless_doubly_reparameterized():
    def plain(q, k):
        return paid(LINE, q)(q.rsample((k,))).logsumexp(0) - math.log(k)

    def doubly(q, k):
        return doubly_reparameterized(log_joint(LINE), q, k)

    ratios = {}
    for rule in (plain, doubly):
        g = [estimates(lambda q, k=k, rule=rule: rule(q, k), (0.9, -0.3), 20_000)[:, 0] for k in (4, 16, 64)]
        ratios[rule] = torch.stack([each.mean().abs() / each.std() for each in g])
        ratios[rule, "of 16"] = g[1]
    assert_mean(ratios[plain, "of 16"] - ratios[doubly, "of 16"], 0.0)
    steps = {rule: ratios[rule].log().diff() / math.log(4) for rule in (plain, doubly)}
    assert (steps[plain] < -0.2).all()
    assert (steps[doubly] > 0.2).all()


def cosine_variance(d, baseline):
    """Of one component of (f − c)·score, for f = Σ cos 2z_j at μ = 0.3, σ = ½; by integrals over one code."""
    t = LINE.grid
    weight = Normal(0.0, 1.0).log_prob(t).exp() * (t[1] - t[0])
    phi, s = (0.6 + t).cos(), 2 * t
    phi = phi - weight @ phi if baseline else phi
    e = weight @ phi
    others = (d - 1) * (weight @ phi**2 - e**2) + ((d - 1) * e) ** 2
    cross = 2 * (d - 1) * e * (weight @ (phi * s**2))
    return (weight @ (phi * s) ** 2 + cross + 4 * others - (weight @ (phi * s)) ** 2).item()


def test_variance_grows_with_the_square_of_the_codes_with_a_baseline_linearly_by_path_not_at_all():
    place, mean = (0.3, 2 * math.log(0.5)), math.cos(0.6) * math.exp(-0.5)
    paths = []
    for d in (1, 8, 64):
        rules = {
            False: lambda q: score_function(lambda z: (2 * z).cos().sum(-1), q),
            True: lambda q, d=d: score_function(lambda z: (2 * z).cos().sum(-1), q, 1, d * mean),
        }
        for baseline, rule in rules.items():
            v, error = variance_and_error(estimates(rule, place, 20_000, d)[:, 0])
            assert (v - cosine_variance(d, baseline)).abs() < 6 * error
        g = estimates(lambda q: pathwise(lambda z: (2 * z).cos().sum(-1), q), place, 20_000, d)[:, 0]
        paths.append(variance_and_error(g))
    assert all((v - paths[0][0]).abs() < 6 * (error + paths[0][1]) for v, error in paths)
    slopes = [
        math.log(cosine_variance(2048, baseline) / cosine_variance(1024, baseline), 2) for baseline in (False, True)
    ]
    assert slopes == pytest.approx([2, 1], abs=0.01)


def test_each_code_may_be_paid_for_itself_alone():
    """Rao and Blackwell: the same mean, and a variance that does not know the number of codes."""
    m, v = torch.full((64, 1), 0.3), torch.full((64, 1), 2 * math.log(0.5))

    def rule(a, b):
        return score_function(lambda z: (2 * z[..., 0]).cos(), diagonal_normal(a, b))

    own = replicates(rule, (m, v), 4000)[0][..., 0]
    assert_mean(own, -2 * math.sin(0.6) * math.exp(-0.5))
    variance, error = variance_and_error(own)
    assert ((variance - cosine_variance(1, False)).abs() < 6 * error).all()
    assert cosine_variance(64, False) > 1000 * cosine_variance(1, False)
