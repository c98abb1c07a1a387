"""What chapter 01 proves: KL is a divergence and no distance, Jensen, LOTUS, graphs as products, likelihood and KL."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, Cauchy, MultivariateNormal, Normal, Uniform
from torch.distributions import kl_divergence as torch_kl

from vae_core.data import load
from vae_core.distributions import diagonal_normal, kl_divergence, standard_normal


def kl(p, q):
    """KL(p ‖ q) of laws on finitely many values: 0 log 0 = 0, p log(p/0) = ∞."""
    return torch.where(p > 0, p * (p.log() - q.log()), 0.0).sum(-1)


def gauss(mu: float, sigma: float):
    return diagonal_normal(torch.tensor([mu]), 2 * torch.tensor([sigma]).log())


def laws(*shape: int):
    """Random laws on the last axis, some of them nearly degenerate."""
    p = torch.rand(*shape).pow(4) + 1e-12
    return p / p.sum(-1, keepdim=True)


def random_gaussian(d: int):
    factor = torch.randn(d, d)
    return MultivariateNormal(torch.randn(d), factor @ factor.mT + torch.eye(d))


# Divergences

probabilities = st.lists(st.floats(0, 1, allow_nan=False), min_size=4, max_size=4).filter(lambda row: sum(row) > 1e-3)


@given(probabilities, probabilities)
def test_kl_of_finite_laws_is_at_least_half_the_squared_distance(p, q):
    """Pinsker: so it is never negative, and zero only if the laws are equal; infinite where q misses p."""
    p, q = (torch.tensor(r, dtype=torch.float64) / sum(r) for r in (p, q))
    divergence = kl(p, q)
    assert divergence >= (p - q).abs().sum() ** 2 / 2 - 1e-12
    assert divergence.isinf() == ((p > 0) & (q == 0)).any()
    assert kl(p, p) == 0


def test_finite_kl_agrees_with_torch():
    p, q = laws(2, 50, 6)
    assert torch.allclose(kl(p, q), torch_kl(Categorical(p), Categorical(q)), atol=1e-10)


@pytest.mark.parametrize("steps", [2, 5, 100])
def test_many_small_steps_cost_less_than_one_large_one(steps):
    """No triangle inequality: n steps of 2/n cost 2/n together, one step of 2 costs 2."""
    way = [gauss(2.0 * k / steps, 1.0) for k in range(steps + 1)]
    total = sum(kl_divergence(p, q) for p, q in pairwise(way))
    assert total.item() == pytest.approx(2 / steps, rel=1e-9)
    assert kl_divergence(way[0], way[-1]).item() == pytest.approx(2.0)


def test_kl_is_symmetric_for_equal_covariances_and_not_otherwise():
    p, q = random_gaussian(3), random_gaussian(3)
    moved = MultivariateNormal(q.mean, p.covariance_matrix)
    assert torch.allclose(kl_divergence(p, moved), kl_divergence(moved, p), rtol=1e-10)
    assert (kl_divergence(p, q) - kl_divergence(q, p)).abs() > 1e-3


@pytest.mark.parametrize("d", [1, 2, 5])
def test_kl_needs_no_unit(d):
    """An invertible affine map changes entropies by its log-determinant and leaves the KL alone."""
    p, q, scale, shift = random_gaussian(d), random_gaussian(d), torch.randn(d, d) + 3 * torch.eye(d), torch.randn(d)

    def mapped(r):
        return MultivariateNormal(scale @ r.mean + shift, scale @ r.covariance_matrix @ scale.T)

    assert torch.allclose(kl_divergence(mapped(p), mapped(q)), kl_divergence(p, q), rtol=1e-8)
    assert torch.allclose(mapped(p).entropy() - p.entropy(), torch.linalg.slogdet(scale).logabsdet, rtol=1e-8)


def test_kl_grows_without_end_as_a_gaussian_shrinks_to_a_point():
    sigmas = [10.0**-k for k in range(2, 9)]
    price = torch.stack([kl_divergence(gauss(0.0, sigma), standard_normal(1)) for sigma in sigmas])
    assert torch.allclose(price.diff(), torch.tensor(math.log(10)), atol=1e-4)


def test_kl_of_a_cauchy_law_from_a_gaussian_has_no_limit():
    p, q = Cauchy(0.0, 1.0), Normal(0.0, 1.0)
    cut_off = []
    for T in (1e2, 1e3, 1e4):
        x = torch.linspace(-T, T, 1_000_001)
        cut_off.append(torch.trapezoid(p.log_prob(x).exp() * (p.log_prob(x) - q.log_prob(x)), x).item())
    assert cut_off[1] / cut_off[0] == pytest.approx(10, rel=0.1)  # ∼ T/π
    assert cut_off[2] == pytest.approx(1e4 / math.pi, rel=0.01)


# Jensen

finite = st.floats(-5, 5, allow_nan=False)


@given(
    lines=st.lists(st.tuples(finite, finite), min_size=1, max_size=6),
    atoms=st.lists(st.tuples(finite, st.floats(0.01, 1)), min_size=1, max_size=6),
)
def test_jensen_for_every_convex_polygon_and_equality_only_where_one_line_serves(lines, atoms):
    slope, height = torch.tensor(lines, dtype=torch.float64).T[..., None]
    x, weight = torch.tensor(atoms, dtype=torch.float64).T
    weight = weight / weight.sum()
    mean = (weight * x).sum()
    values, at_mean = slope * x + height, (slope * mean + height).amax()
    gap = (weight * values.amax(0)).sum() - at_mean
    assert gap >= -1e-12
    # the line on top at the mean misses f at an atom by so much; Jensen's gap is the mean of that
    best = (slope * mean + height).flatten().argmax()
    missed = values.amax(0) - values[best]
    assert torch.allclose(gap, (weight * missed).sum(), atol=1e-10)
    if missed.max() < 1e-12:
        assert gap < 1e-10
    if missed.max() > 1e-3:
        assert gap > 0


def test_equality_needs_neither_a_linear_function_nor_a_point_mass():
    """The printed condition of the lecture notes, refuted: |x| on positive X; a constant g of a spread-out X."""
    x = torch.rand(1000) + 1
    assert (x.abs().mean() - x.mean().abs()).abs() < 1e-12
    assert (-(0 * x + 1).log()).mean() == -(0 * x + 1).mean().log()
    assert (-x.log()).mean() > -x.mean().log() + 0.01  # strictly convex, X spread out


@pytest.mark.parametrize(
    "f", [torch.exp, torch.square, lambda y: -(y.abs() + 0.1).log()], ids=["exp", "square", "-log"]
)
def test_jensen_for_a_function_of_a_function(f):
    x, weight = torch.randn(100, 9), laws(100, 9)
    for g in (torch.sin, lambda x: x.square() + 0.1, lambda x: x.exp()):
        y = g(x).abs()  # so that all three f are convex on what g can be
        gap = (weight * f(y)).sum(1) - f((weight * y).sum(1))
        assert (gap > 0).all()
    constant = torch.full_like(x, 0.7)
    assert ((weight * f(constant)).sum(1) - f((weight * constant).sum(1))).abs().max() < 1e-12


def test_two_ways_to_take_a_mean_agree():
    """LOTUS for g(x) = x², X ~ N(0, 1): over the density of Y, over X, and by Monte Carlo."""
    y = torch.linspace(1e-9, 80, 800_001)
    density = Normal(0.0, 1.0).log_prob(y.sqrt()).exp() / y.sqrt()
    x = torch.linspace(-12, 12, 20_001)
    assert torch.trapezoid(y * density, y).item() == pytest.approx(1, abs=1e-5)
    assert torch.trapezoid(x**2 * Normal(0.0, 1.0).log_prob(x).exp(), x).item() == pytest.approx(1, abs=1e-10)
    squares = torch.randn(200_000) ** 2
    assert (squares.mean() - 1).abs() < 6 * squares.std() / len(squares) ** 0.5
    histogram = torch.histc(squares, 50, 0.5, 3) / len(squares)
    edges = torch.linspace(0.5, 3, 51)
    expected = torch.distributions.Chi2(1.0).cdf(edges).diff()
    assert ((histogram - expected).abs() < 6 * (expected / len(squares)).sqrt()).all()


def test_the_proof_of_non_negativity_has_two_inequalities():
    """KL ≥ −log q{p > 0} ≥ 0: uniform on [0, 1] against [0, 2] makes the first tight and not the second."""
    p, q = laws(200, 7), laws(200, 7)
    p[:, 5:] = 0
    p = p / p.sum(1, keepdim=True)
    step = -q[:, :5].sum(1).log()
    assert (kl(p, q) >= step - 1e-12).all()
    assert (step > 0).all()
    assert torch_kl(Uniform(0.0, 1.0), Uniform(0.0, 2.0)).item() == pytest.approx(math.log(2))


# Graphs


@pytest.mark.parametrize("nodes", [2, 4, 6])
def test_a_product_of_conditionals_along_any_graph_is_a_law_and_ancestral_draws_follow_it(nodes):
    parents = [[j for j in range(i) if torch.rand(()) < 0.5] for i in range(nodes)]
    tables = [laws(*[2] * len(who), 2) for who in parents]
    states = torch.cartesian_prod(*[torch.arange(2)] * nodes)  # (2^n, n)
    joint = torch.ones(len(states))
    draws = torch.zeros(100_000, nodes, dtype=torch.long)
    for i, (who, table) in enumerate(zip(parents, tables, strict=True)):
        joint = joint * table[(*states[:, who].T, states[:, i])]
        drawn = table[tuple(draws[:, who].T)].expand(len(draws), 2)
        draws[:, i] = drawn.multinomial(1)[:, 0]
    assert joint.sum().item() == pytest.approx(1, abs=1e-12)
    place = (draws * 2 ** torch.arange(nodes - 1, -1, -1)).sum(1)
    seen = torch.bincount(place, minlength=len(states)) / len(draws)
    assert ((seen - joint).abs() <= 6 * (joint * (1 - joint) / len(draws)).sqrt() + 1e-4).all()


# Forward and reverse


def two_modes(x):
    humps = Normal(torch.tensor([-3.5, 3.5]), 1.0).log_prob(x[..., None])
    return (humps + torch.tensor([0.4, 0.6]).log()).logsumexp(-1)


def forward_kl(v, x):
    log_p = two_modes(x)
    return torch.trapezoid(log_p.exp() * (log_p - Normal(v[0], v[1].exp()).log_prob(x)), x)


def reverse_kl(v):
    t = torch.linspace(-10, 10, 2001)
    log_q = Normal(0.0, 1.0).log_prob(t) - v[1]
    return torch.trapezoid(Normal(0.0, 1.0).log_prob(t).exp() * (log_q - two_modes(v[0] + v[1].exp() * t)), t)


def test_the_forward_fit_of_a_gaussian_matches_moments():
    x = torch.linspace(-20, 20, 8001)
    mean, variance = 0.7, 1 + 3.5**2 - 0.7**2  # 1 + E[centre²] − mean²
    v = torch.tensor([mean, 0.5 * math.log(variance)])
    gradient = torch.autograd.functional.jacobian(lambda v: forward_kl(v, x), v)
    assert gradient.abs().max() < 1e-10
    for _ in range(50):
        assert forward_kl(v + torch.randn(2), x) > forward_kl(v, x)


def test_the_reverse_fit_has_a_valley_on_each_hump_and_pays_for_the_lost_one():
    for centre, weight in ((-3.5, 0.4), (3.5, 0.6)):
        v = torch.tensor([centre, 0.0])
        for _ in range(20):  # Newton
            gradient = torch.autograd.functional.jacobian(reverse_kl, v)
            curvature = torch.autograd.functional.hessian(reverse_kl, v)
            v = v - torch.linalg.solve(curvature, gradient)
        assert gradient.abs().max() < 1e-10
        assert (torch.linalg.eigvalsh(curvature) > 0).all()
        assert v[0].item() == pytest.approx(centre, abs=0.05)
        assert reverse_kl(v).item() == pytest.approx(-math.log(weight), abs=0.01)


def test_a_factorised_reverse_fit_takes_conditional_variances_and_a_forward_fit_marginal_ones():
    p = random_gaussian(4)
    marginal, conditional = p.variance, 1 / p.precision_matrix.diagonal()
    assert (conditional < marginal).all()
    for variance, forward in ((marginal, True), (conditional, False)):
        log_variance = variance.log().requires_grad_()
        q = diagonal_normal(p.mean, log_variance)
        loss = kl_divergence(p, q) if forward else kl_divergence(q, p)
        assert torch.autograd.grad(loss, log_variance)[0].abs().max() < 1e-10


# Maximum likelihood


@given(st.lists(st.integers(0, 40), min_size=5, max_size=5).filter(lambda counts: sum(counts) > 0))
def test_likelihood_and_kl_differ_by_the_entropy_of_the_data(counts):
    """For every model: KL(p̂ ‖ p_θ) + mean log p_θ(x_n) = −H(p̂)."""
    data = torch.repeat_interleave(torch.arange(5), torch.tensor(counts))
    share = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    theta = torch.randn(20, 5, dtype=torch.float64).softmax(1)
    constant = kl(share, theta) + theta[:, data].log().mean(1)
    assert torch.allclose(constant, torch.xlogy(share, share).sum(), atol=1e-12)


def test_the_empirical_optimum_of_a_gaussian_is_the_sample_mean_and_the_biased_variance():
    x = torch.randn(37) * 2 + 5

    def score(v):
        return Normal(v[0], v[1].exp()).log_prob(x).mean()

    best = torch.stack([x.mean(), x.std(correction=0).log()])
    assert torch.autograd.functional.jacobian(score, best).abs().max() < 1e-12
    for _ in range(50):
        assert score(best + 0.3 * torch.randn(2)) < score(best)
    assert score(best) > score(torch.stack([x.mean(), x.std().log()]))  # N − 1 is not the maximum


@pytest.mark.parametrize("column", [2, 3, 5])
def test_for_gaussians_the_missing_likelihood_is_a_kl_from_the_best_one(column):
    """Pythagoras, on real data: mean log p_θ̂ − mean log p_θ = KL(p_θ̂ ‖ p_θ), in one and in four dimensions."""
    pixels = load("digits").x_train[:, 0, 2:6, column].double()
    for x in (pixels.sum(1, keepdim=True), pixels):
        best = MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0).reshape(x.shape[1], -1))
        theta = random_gaussian(x.shape[1])
        lost = best.log_prob(x).mean() - theta.log_prob(x).mean()
        assert torch.allclose(lost, kl_divergence(best, theta), rtol=1e-10)


def test_a_fitted_mean_is_1_over_2N_nats_from_the_truth_and_its_own_data_flatter_it_by_twice_that():
    N, repeats = 20, 50_000
    data, fresh = torch.randn(2, repeats, N)
    fit = data.mean(1, keepdim=True)
    flattery = (Normal(fit, 1.0).log_prob(data) - Normal(fit, 1.0).log_prob(fresh)).mean(1)
    for values, expected in ((fit[:, 0] ** 2 / 2, 1 / (2 * N)), (flattery, 1 / N)):
        assert (values.mean() - expected).abs() < 6 * values.std() / repeats**0.5
