"""What chapter 04 proves about the ELBO: the identity, the gap, and what ascent on it does and does not do."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch.distributions import MultivariateNormal, Normal

from vae_core.data import load
from vae_core.distributions import diagonal_normal, kl_divergence, standard_normal
from vae_core.linear import PPCA
from vae_core.objectives import iwae_bound, log_weights
from vae_core.quadrature import QuadratureModel, two_modes

seeds = st.integers(0, 2**31 - 1)
HUMPS, X = QuadratureModel(two_modes, sigma=0.3), torch.tensor([[1.5]], dtype=torch.float64)


def linear_model(W, sigma2=0.4):
    model = PPCA(W.shape[1])
    model.mean_, model.components_, model.noise_variance_ = torch.zeros(len(W)), W.T, torch.tensor(sigma2)
    return model


def random_linear(d=3, p=5):
    return linear_model(torch.randn(p, d), 0.2 + torch.rand(()).item())


def precision(model):
    return torch.eye(model.n_components) + model.components_ @ model.components_.T / model.noise_variance_


def random_q(n, d, full=False):
    if not full:
        return diagonal_normal(torch.randn(n, d), torch.randn(n, d))
    factor = torch.randn(n, d, d)
    return MultivariateNormal(torch.randn(n, d), factor @ factor.mT + 0.1 * torch.eye(d))


def bell(mean, width):
    mean, width = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1) for v in (mean, width))
    return diagonal_normal(mean, 2 * width.log())


def within_six_errors(values, expected):
    return abs(values.mean().item() - expected) < 6 * values.std().item() / len(values) ** 0.5


class On:
    """A posterior that can only be evaluated: log q(z) is a function."""

    def __init__(self, log_prob):
        self.log_prob = log_prob


def log_posterior(z):
    return HUMPS.prior.log_prob(z) + HUMPS.likelihood(z).log_prob(X) - HUMPS.log_prob(X)


# The identity


@given(seed=seeds, full=st.booleans(), d=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_evidence_is_elbo_plus_gap_for_any_q_in_a_linear_model(seed, full, d):
    torch.manual_seed(seed)
    model, x, q = random_linear(d), 2 * torch.randn(6, 5), random_q(6, d, full)
    gap = kl_divergence(q, model.posterior(x))
    error = model.elbo(x, q) + gap - model.score_samples(x)
    assert (error.abs() / (1 + gap + model.score_samples(x).abs())).max() < 1e-11
    assert (gap >= 0).all()


@given(mean=st.floats(-2, 2), width=st.floats(0.05, 0.75))
@settings(max_examples=10, deadline=None)
def test_evidence_is_elbo_plus_gap_for_any_q_with_two_humps(mean, width):
    """The KL to the posterior is integrated here by scipy, over the formula of the density, normalised by scipy too."""

    def joint(z):
        return Normal(0.0, 1.0).log_prob(torch.tensor(z)) + Normal(z * z, 0.3).log_prob(torch.tensor(1.5))

    evidence = math.log(2 * quad(lambda z: joint(z).exp().item(), 0, 3, epsabs=1e-13)[0])
    q = Normal(mean, width)

    def integrand(z):
        log_q = q.log_prob(torch.tensor(z))
        return (log_q.exp() * (log_q - joint(z) + evidence)).item()

    gap = quad(integrand, mean - 10 * width, mean + 10 * width, epsabs=1e-11, epsrel=1e-11, limit=200)[0]
    assert HUMPS.log_prob(X).item() == pytest.approx(evidence, abs=1e-10)
    assert HUMPS.elbo(X, bell(mean, width)).item() + gap == pytest.approx(evidence, rel=1e-9, abs=1e-9)
    assert gap > 0


@given(seed=seeds)
@settings(max_examples=25, deadline=None)
def test_the_joint_form_and_the_two_terms_are_one_number(seed):
    """E_q[log p(x,z) − log q] from moments of (x, z) jointly, against reconstruction minus KL."""
    torch.manual_seed(seed)
    model, q = random_linear(2, 3), random_q(1, 2, full=True)
    x, W = torch.randn(1, 3), model.components_.T
    joint = MultivariateNormal(
        torch.zeros(5),
        torch.cat(
            [torch.cat([torch.eye(2), W.T], 1), torch.cat([W, W @ W.T + model.noise_variance_ * torch.eye(3)], 1)]
        ),
    )
    at_mean = joint.log_prob(torch.cat([q.mean, x], 1))
    spread = 0.5 * (joint.precision_matrix[:2, :2] * q.covariance_matrix[0]).sum()
    assert torch.allclose(at_mean - spread + q.entropy(), model.elbo(x, q), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("f", "sigma"), [(two_modes, 0.3), (lambda z: 1.3 * z, 1.0), (torch.sin, 0.5)])
def test_two_terms_are_the_definition_in_nonlinear_models(f, sigma):
    model, q = QuadratureModel(f, sigma), bell(3 * torch.rand(50) - 1.5, 0.05 + 0.7 * torch.rand(50))
    density = q.log_prob(model.grid[:, None, None]).T.exp()
    reconstruction = model.expectation(density, model.likelihood(model.grid[:, None]).log_prob(X))
    bound = model.elbo(X.expand(50, 1), q)
    assert torch.allclose(reconstruction - kl_divergence(q, model.prior), bound, rtol=1e-11, atol=1e-11)


def test_draws_estimate_the_bound():
    HUMPS.posterior = lambda x: bell(1.0, 0.3).expand((len(x),))
    values = log_weights(HUMPS, X, 400_000)[:, 0]
    assert within_six_errors(values, HUMPS.elbo(X, bell(1.0, 0.3)).item())


def test_the_sum_of_local_bounds_is_the_bound_of_all_data():
    W, x, q = torch.randn(4, 2), torch.randn(3, 4), random_q(3, 2)
    product = diagonal_normal(q.mean.reshape(1, 6), 2 * q.stddev.log().reshape(1, 6))
    whole = linear_model(torch.block_diag(W, W, W))
    assert torch.allclose(linear_model(W).elbo(x, q).sum(), whole.elbo(x.reshape(1, 12), product), rtol=1e-12)
    assert torch.allclose(linear_model(W).score_samples(x).sum(), whole.score_samples(x.reshape(1, 12)), rtol=1e-12)


# The bound


@given(seed=seeds, k=st.integers(2, 9))
@settings(max_examples=25, deadline=None)
def test_jensen_holds_for_every_handful_of_draws(seed, k):
    torch.manual_seed(seed)
    HUMPS.posterior = lambda x: bell(0.5, 0.6).expand((len(x),))
    log_w = log_weights(HUMPS, X, k * 200).reshape(k, 200)
    assert (log_w.logsumexp(0) - math.log(k) >= log_w.mean(0) - 1e-12).all()


@pytest.mark.parametrize("cut", [-1.25, 0.0, 1.1])
def test_a_q_that_overlooks_a_part_of_the_posterior_loses_the_log_of_what_it_kept(cut):
    density = HUMPS.posterior_density(X)
    kept = HUMPS.expectation(density, (HUMPS.grid > cut).double())
    q = On(lambda z: torch.where(z[..., 0] > cut, log_posterior(z) - kept.log(), -torch.inf))
    assert torch.allclose(HUMPS.elbo(X, q), HUMPS.log_prob(X) + kept.log(), atol=1e-10)


def test_the_sign_as_printed_breaks_the_bound_and_the_corrected_one_does_not():
    line, x, q = QuadratureModel(lambda z: 1.3 * z, 1.0), torch.tensor([[0.7]]), bell(0.4, math.exp(-0.15))
    z = line.grid[:, None, None]
    log_q, prior, likelihood = q.log_prob(z), line.prior.log_prob(z), line.likelihood(z).log_prob(x)
    printed, right = (line.expectation(log_q.exp().T, (likelihood - (log_q + s * prior)).T).item() for s in (1, -1))
    assert printed == pytest.approx(1.077, abs=5e-4)
    assert right == pytest.approx(-1.6615, abs=5e-5)
    assert right < line.log_prob(x).item() < printed


def test_exp_of_the_bound_is_no_density():
    line, x = QuadratureModel(lambda z: 1.3 * z, 1.0, limit=20.0), torch.linspace(-12, 12, 241)[:, None]
    width = torch.full((241, 1), 2 * (1 + 1.3**2) ** -0.5)
    bound = line.elbo(x, bell(1.3 * x / (1 + 1.3**2), width))
    assert torch.trapezoid(bound.exp(), x[:, 0]).item() == pytest.approx(math.exp(-0.5 * (3 - math.log(4))), rel=1e-9)


@pytest.mark.parametrize(("mean", "width"), [(0.0, 1.0), (1.2, 0.4), (1.186, 0.126)])
def test_the_mean_over_the_true_posterior_is_a_bound_from_above(mean, width):
    q = bell(mean, width)
    log_w = HUMPS.log_joint(X) - q.log_prob(HUMPS.grid[:, None, None]).T
    upper = HUMPS.expectation(HUMPS.posterior_density(X), log_w)
    assert HUMPS.elbo(X, q) < HUMPS.log_prob(X) < upper
    assert torch.allclose(upper - HUMPS.log_prob(X), HUMPS.forward_kl(X, q), rtol=1e-9)


# Equality, and the best q of a family


@given(seed=seeds, d=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_at_the_exact_posterior_the_bound_and_every_single_draw_are_the_evidence(seed, d):
    torch.manual_seed(seed)
    model, x = random_linear(d), 2 * torch.randn(4, 5)
    q, evidence = model.posterior(x), model.score_samples(x)
    z = q.sample((7,))
    log_likelihood = Normal(z @ model.components_, model.noise_variance_.sqrt()).log_prob(x).sum(-1)
    log_w = standard_normal(d, like=x).log_prob(z) + log_likelihood - q.log_prob(z)
    assert torch.allclose(model.elbo(x, q), evidence, rtol=1e-11)
    assert torch.allclose(log_w, evidence.expand(7, 4), rtol=1e-10)


def test_equality_with_two_humps():
    assert (HUMPS.elbo(X, On(log_posterior)) - HUMPS.log_prob(X)).abs().item() < 1e-12


@given(seed=seeds, d=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_no_diagonal_q_has_a_smaller_gap_than_the_formula_and_one_has_it(seed, d):
    torch.manual_seed(seed)
    model, x = random_linear(d), 2 * torch.randn(6, 5)
    M, exact = precision(model), model.posterior(x)
    smallest = 0.5 * (M.diagonal().log().sum() - torch.logdet(M))
    best = diagonal_normal(exact.mean, -M.diagonal().log().expand(6, d))
    assert torch.allclose(model.score_samples(x) - model.elbo(x, best), smallest.expand(6), atol=1e-9)
    near = diagonal_normal(best.mean + 0.1 * torch.randn(6, d), 2 * best.stddev.log() + 0.1 * torch.randn(6, d))
    for q in (near, random_q(6, d)):
        assert (model.score_samples(x) - model.elbo(x, q) >= smallest - 1e-10).all()
    assert (1 / M.diagonal() <= torch.linalg.inv(M).diagonal() + 1e-12).all()  # too sure of itself


def search(bound, start):
    """The parameters that maximise bound(parameters).sum(), by LBFGS."""
    v = start.clone().requires_grad_()
    climber = torch.optim.LBFGS([v], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss():
        climber.zero_grad()
        value = -bound(v).sum()
        value.backward()
        return value

    climber.step(loss)
    return v.detach()


def test_climbing_the_bound_finds_the_best_diagonal_q():
    model, x = random_linear(3), torch.randn(4, 5)
    mean, log_variance = search(lambda v: model.elbo(x, diagonal_normal(*v)), torch.zeros(2, 4, 3))
    assert torch.allclose(mean, model.posterior(x).mean, atol=1e-4)
    assert torch.allclose(log_variance.exp(), (1 / precision(model).diagonal()).expand(4, 3), rtol=1e-3)


def test_the_best_bell_curve_takes_one_hump_and_its_draws_cannot_tell():
    v = search(lambda v: HUMPS.elbo(X, diagonal_normal(*v)), torch.tensor([[[1.0]], [[-3.0]]]))
    best = diagonal_normal(*v)
    assert HUMPS.gap(X, best).item() == pytest.approx(math.log(2), abs=0.02)
    HUMPS.posterior = lambda x: best.expand((len(x),))
    evidence = HUMPS.log_prob(X).item()
    assert iwae_bound(HUMPS, X, 100_000).item() == pytest.approx(evidence - math.log(2), abs=0.02)
    HUMPS.posterior = lambda x: bell(0.0, 1.25).expand((len(x),))
    assert within_six_errors(log_weights(HUMPS, X, 100_000)[:, 0].exp(), math.exp(evidence))


def test_a_shared_encoder_has_no_smaller_gap_than_a_q_for_each_datum():
    wavy = QuadratureModel(lambda z: z + 0.4 * (2 * z).sin(), sigma=0.3, points=2001)
    x = torch.linspace(-2.4, 2.4, 9)[:, None]
    mean, width = wavy.posterior_moments(x)

    def own(v):
        return diagonal_normal(v[0, :, None], v[1, :, None])

    def shared(v):
        return diagonal_normal(v[0] + v[1] * x, v[2].expand(9, 1))

    each = wavy.gap(x, own(search(lambda v: wavy.elbo(x, own(v)), torch.stack([mean, 2 * width.log()]))))
    together = wavy.gap(x, shared(search(lambda v: wavy.elbo(x, shared(v)), torch.tensor([0.0, 0.5, -2.0]))))
    assert (each <= together + 1e-9).all()
    assert together.sum() > each.sum() + 1  # and it costs


# Ascent in θ as well


def mean_elbo(w, log_s2, x):
    """x = wz + noise and q(z|x) = N(kx, s²) with the best k."""
    k, s2 = w / (1 + w**2), log_s2.exp()
    reconstruction = -0.5 * (math.log(2 * math.pi) + (x - w * k * x) ** 2 + w**2 * s2)
    return (reconstruction - 0.5 * ((k * x) ** 2 + s2 - 1 - log_s2)).mean()


def mean_evidence(w, x):
    return Normal(0.0, (1 + w**2).sqrt()).log_prob(x).mean()


def ascend(point, free, steps, x):
    path = []
    for _ in range(steps):
        point = point.detach().requires_grad_()
        bound = mean_elbo(*point, x)
        path.append((bound.item(), mean_evidence(point[0], x).item()))
        point = point + 0.1 * torch.autograd.grad(bound, point)[0] * torch.tensor(free)
    return point.detach(), torch.tensor(path).T


def test_the_bound_can_rise_while_the_evidence_falls_and_both_meet_once_q_may_be_exact():
    x = math.sqrt(3.25) * torch.tensor([[-1.0], [1.0]])
    start = torch.tensor([1.5, math.log(0.01)])  # the best w, a bad width
    middle, (bound, evidence) = ascend(start, (1.0, 0.0), 150, x)
    assert (bound.diff() > 0).all()
    assert (evidence.diff() < 0).all()
    end, (bound, evidence) = ascend(middle, (1.0, 1.0), 1500, x)
    assert (bound.diff() > -1e-12).all()
    assert end[0].item() == pytest.approx(1.5, abs=1e-3)
    assert bound[-1].item() == pytest.approx(mean_evidence(start[0], x).item(), abs=1e-5)
    assert evidence[-1] >= bound[-1]


def test_the_slope_of_the_bound_is_that_of_the_evidence_minus_that_of_the_gap():
    x, w = torch.randn(5, 1), torch.tensor(0.9, requires_grad=True)
    q = bell(0.3 * torch.ones(5), 0.4 * torch.ones(5))

    def slope(value):
        return torch.autograd.grad(value.sum(), w)[0]

    model = linear_model(w.reshape(1, 1), 1.0)
    gap = kl_divergence(q, model.posterior(x))
    assert torch.allclose(slope(model.elbo(x, q)), slope(model.score_samples(x)) - slope(gap), rtol=1e-10)


def test_em_never_lowers_the_evidence_on_the_digits():
    history = PPCA(5, method="em", tol=1e-3).fit(load("digits").x_train.flatten(1)).log_likelihoods_
    assert len(history) > 5
    assert (torch.tensor(history).diff() > -1e-10).all()


# Real data


@pytest.fixture(scope="module")
def digits():
    data = load("digits")
    train, test = data.x_train.flatten(1).double(), data.x_test.flatten(1).double()
    return PPCA(10).fit(train), test


def test_on_digits_the_exact_posterior_and_the_diagonal_one_on_principal_axes_lose_nothing(digits):
    model, test = digits
    exact = model.posterior(test)
    diagonal = diagonal_normal(exact.mean, -precision(model).diagonal().log().expand(len(test), 10))
    for q in (exact, diagonal):
        assert torch.allclose(model.elbo(test, q), model.score_samples(test), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_turning_the_codes_keeps_the_evidence_and_costs_every_digit_the_same(digits, seed):
    model, test = digits
    torch.manual_seed(seed)
    turned = PPCA(10)
    turned.mean_, turned.noise_variance_ = model.mean_, model.noise_variance_
    turned.components_ = torch.linalg.qr(torch.randn(10, 10)).Q @ model.components_
    M = precision(turned)
    q = diagonal_normal(turned.posterior(test).mean, -M.diagonal().log().expand(len(test), 10))
    gap = turned.score_samples(test) - turned.elbo(test, q)
    assert torch.allclose(turned.score_samples(test), model.score_samples(test), atol=1e-9)
    assert torch.allclose(gap, (0.5 * (M.diagonal().log().sum() - torch.logdet(M))).expand(len(test)), atol=1e-9)
    assert gap.min() > 0.1
