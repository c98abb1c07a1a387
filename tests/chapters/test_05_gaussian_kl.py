"""What chapter 05 proves beyond test_distributions.py: Gaussian divergences, densities of made draws."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import (
    Categorical,
    Chi2,
    Independent,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

from vae_core.data import load
from vae_core.distributions import diagonal_normal, kl_divergence, kl_monte_carlo, standard_normal
from vae_core.linear import PPCA

seeds = st.integers(0, 2**32 - 1)


def gaussian(seed: int, d: int) -> MultivariateNormal:
    draws = torch.Generator().manual_seed(seed)
    A = torch.randn(d, d, generator=draws, dtype=torch.float64)
    mean = torch.randn(d, generator=draws, dtype=torch.float64)
    return MultivariateNormal(mean, A @ A.mT + 0.1 * torch.eye(d, dtype=torch.float64))


def rotation(seed: int, d: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=draws, dtype=torch.float64)).Q


def marginals(r: MultivariateNormal):
    return diagonal_normal(r.mean, r.covariance_matrix.diagonal().log())


def within_six_errors(draws: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((draws.mean(0) - expected).abs() < 6 * draws.std(0) / len(draws) ** 0.5)


def test_the_one_dimensional_derivation_holds_line_by_line():
    """Lecture notes (16): each line is integrated symbolically, for every mu and every sigma > 0."""
    sympy = pytest.importorskip("sympy", reason="sympy comes with torch")
    z, mu = sympy.symbols("z mu", real=True)
    sigma = sympy.symbols("sigma", positive=True)
    log_q = -sympy.log(sigma) - sympy.log(2 * sympy.pi) / 2 - (z - mu) ** 2 / (2 * sigma**2)
    log_p = -sympy.log(2 * sympy.pi) / 2 - z**2 / 2

    def expectation(f):
        epsilon = sympy.symbols("epsilon", real=True)
        weight = sympy.exp(-(epsilon**2) / 2) / sympy.sqrt(2 * sympy.pi)
        f = sympy.expand(f.subs(z, mu + sigma * epsilon))
        return sympy.integrate(sympy.expand(f * weight), (epsilon, -sympy.oo, sympy.oo))

    lines = [
        expectation(log_q - log_p),
        expectation(-sympy.log(sigma) - (z - mu) ** 2 / (2 * sigma**2) + z**2 / 2),
        -sympy.log(sigma)
        - expectation((z - mu) ** 2) / (2 * sigma**2)
        + expectation((z - mu) ** 2 - mu**2 + 2 * mu * z) / 2,
        -sympy.log(sigma) - sympy.Rational(1, 2) + (sigma**2 + mu**2) / 2,
    ]
    for line in lines[:-1]:
        assert sympy.simplify(line - lines[-1]) == 0
    at = {mu: sympy.Rational(4, 5), sigma: sympy.Rational(2, 5)}
    ours = kl_divergence(diagonal_normal(torch.tensor([0.8]), 2 * torch.tensor([0.4]).log()), standard_normal(1))
    assert ours.item() == pytest.approx(float(lines[-1].subs(at)), rel=1e-13)


def test_vector_form_of_the_lecture_notes():
    mu, log_sigma = torch.randn(2, 50, 6)
    printed = 0.5 * (mu.norm(dim=-1) ** 2 + log_sigma.exp().norm(dim=-1) ** 2 - 2 * log_sigma.sum(-1) - 6)
    assert torch.allclose(kl_divergence(diagonal_normal(mu, 2 * log_sigma), standard_normal(6)), printed, rtol=1e-13)


def test_minus_kl_is_what_saleh_adds():
    mu, log_variance = torch.randn(2, 50, 6)
    eq_18 = 0.5 * (1 + log_variance - mu**2 - log_variance.exp()).sum(-1)
    assert torch.allclose(kl_divergence(diagonal_normal(mu, log_variance), standard_normal(6)), -eq_18, rtol=1e-13)


@pytest.mark.parametrize("d", [1, 4, 9])
def test_general_formula_as_chen_prints_it(d):
    q, p = gaussian(1, d), gaussian(2, d)
    (mu1, S1), (mu2, S2) = ((r.mean, r.covariance_matrix) for r in (q, p))
    shift, inverse = mu1 - mu2, S2.inverse()
    printed = -0.5 * (d + (S1.det() / S2.det()).log() - shift @ inverse @ shift - (inverse @ S1).trace())
    assert torch.allclose(kl_divergence(q, p), printed, rtol=1e-9)


@given(seeds, st.integers(1, 5))
def test_kl_does_not_change_when_both_are_sent_through_an_affine_map(seed, d):
    q, p = gaussian(seed, d), gaussian(seed + 1, d)
    A, b = gaussian(seed + 2, d).scale_tril @ rotation(seed, d), torch.ones(d, dtype=torch.float64)
    sent = [MultivariateNormal(A @ r.mean + b, A @ r.covariance_matrix @ A.mT) for r in (q, p)]
    assert torch.allclose(kl_divergence(*sent), kl_divergence(q, p), rtol=1e-6, atol=1e-9)


@given(seeds, st.integers(1, 6))
def test_kl_to_the_standard_normal_does_not_see_a_rotation(seed, d):
    q, R = gaussian(seed, d), rotation(seed, d)
    turned, p = MultivariateNormal(R @ q.mean, R @ q.covariance_matrix @ R.mT), standard_normal(d, like=q.mean)
    assert torch.allclose(kl_divergence(turned, p), kl_divergence(q, p), rtol=1e-8, atol=1e-10)


@given(seeds, st.integers(1, 6))
def test_what_is_no_product_pays_its_total_correlation_on_top(seed, d):
    q = gaussian(seed, d)
    p = diagonal_normal(gaussian(seed + 1, d).mean, gaussian(seed + 2, d).mean)
    alone = kl_divergence(marginals(q), p)
    assert torch.allclose(kl_divergence(q, p), kl_divergence(q, marginals(q)) + alone, rtol=1e-8, atol=1e-10)
    assert kl_divergence(q, p) >= alone - 1e-10


@given(seeds, st.integers(2, 6))
def test_best_diagonal_gaussian_in_both_directions(seed, d):
    """No neighbour is better, the slope vanishes, the divergence left over is the formula's, and 1/M_jj <= Sigma_jj."""
    p = gaussian(seed, d)
    M, S = p.precision_matrix, p.covariance_matrix
    for variance, matrix, divergence in (
        (1 / M.diagonal(), M, lambda q: kl_divergence(q, p)),
        (S.diagonal(), S, lambda q: kl_divergence(p, q)),
    ):
        free = torch.stack([p.mean, variance.log()]).requires_grad_()
        best = divergence(diagonal_normal(*free))
        gap = 0.5 * (matrix.diagonal().log().sum() - torch.logdet(matrix))
        assert torch.allclose(best, gap, rtol=1e-6, atol=1e-9)
        assert torch.autograd.grad(best, free)[0].abs().max() < 1e-6
        for k in range(5):
            push = 0.3 * torch.stack([gaussian(seed + k, d).mean, gaussian(seed + k + 9, d).mean])
            assert divergence(diagonal_normal(*(free.detach() + push))) > best
    assert (1 / M.diagonal() <= S.diagonal() * (1 + 1e-9)).all()


def test_in_the_plane_both_directions_leave_the_same_and_in_space_not():
    rho = 0.7
    plane = MultivariateNormal(torch.zeros(2), torch.tensor([[4.0, 2 * rho], [2 * rho, 1.0]]))
    space = gaussian(3, 3)

    def both(p):
        inner = diagonal_normal(p.mean, -p.precision_matrix.diagonal().log())
        return kl_divergence(inner, p).item(), kl_divergence(p, marginals(p)).item()

    assert both(plane) == pytest.approx((-0.5 * math.log(1 - rho**2),) * 2, rel=1e-10)
    assert abs(both(space)[0] - both(space)[1]) > 1e-3


def test_turning_ppcas_code_changes_the_diagonal_gap_and_nothing_else():
    X = load("digits").x_train.double().flatten(1)
    ppca = PPCA(n_components=8).fit(X)

    def figures(R):
        model = PPCA(n_components=8)
        vars(model).update(vars(ppca), components_=R.mT @ ppca.components_)
        q = model.posterior(X[:50])
        M = q.precision_matrix[0]
        gap = 0.5 * (M.diagonal().log().sum() - torch.logdet(M))
        return model.score_samples(X[:50]), kl_divergence(q, standard_normal(8)), gap

    straight, turned = figures(torch.eye(8)), figures(rotation(0, 8))
    assert torch.allclose(straight[0], turned[0], rtol=1e-8)
    assert torch.allclose(straight[1], turned[1], rtol=1e-8)
    assert straight[2].abs() < 1e-6
    assert turned[2] > 0.1


@pytest.mark.parametrize(("mu", "sigma"), [(0.5, 0.8), (-1.0, 0.1), (0.0, 1.5), (2.0, 1.0)])
def test_variance_of_one_monte_carlo_draw(mu, sigma):
    q = diagonal_normal(torch.tensor([mu]), 2 * torch.tensor([sigma]).log()).expand((200_000,))
    draws = kl_monte_carlo(q, standard_normal(1))
    formula = torch.tensor(mu**2 * sigma**2 + 0.5 * (sigma**2 - 1) ** 2)
    assert within_six_errors((draws - kl_divergence(q, standard_normal(1))[0]) ** 2, formula)


def test_a_monte_carlo_draw_can_be_negative_and_is_exactly_zero_where_q_is_p():
    q = diagonal_normal(torch.tensor([0.5]), torch.tensor([-0.4]))
    draws = kl_monte_carlo(q.expand((10_000,)), standard_normal(1))
    assert 0.1 < (draws < 0).double().mean() < 0.5
    assert (kl_monte_carlo(q.expand((100,)), q) == 0).all()


def test_a_mixture_prior_has_no_closed_form_but_dice():
    humps = MixtureSameFamily(Categorical(torch.ones(1, 2)), Normal(torch.tensor([[-2.0, 2.0]]), torch.ones(1, 2)))
    q, prior = diagonal_normal(torch.tensor([0.7]), torch.tensor([-1.0])), Independent(humps, 1)
    with pytest.raises(TypeError, match=r"^p must be"):
        kl_divergence(q, prior)
    z = torch.linspace(-15, 15, 30_001)[:, None]
    log_q = q.log_prob(z)
    exact = torch.trapezoid(log_q.exp() * (log_q - prior.log_prob(z)), z[:, 0])
    assert within_six_errors(kl_monte_carlo(q.expand((100_000,)), prior), exact)


def test_the_never_negative_estimate_is_unbiased_for_wide_q_and_far_too_low_for_narrow_q():
    p = Normal(0.0, 1.0)
    for sigma, honest in ((0.9, True), (0.05, False)):
        q = Normal(0.0, sigma)
        z = q.sample((100_000,))
        log_r = p.log_prob(z) - q.log_prob(z)
        positive, exact = log_r.exp() - 1 - log_r, torch.distributions.kl_divergence(q, p)
        assert (positive >= 0).all()
        assert within_six_errors(-log_r, exact)
        assert within_six_errors(positive, exact) if honest else positive.mean() < exact - 0.5


@pytest.mark.parametrize("value", [-20.0, 20.0])
def test_slope_in_the_log_variance_is_right_in_single_precision(value):
    t = torch.full((1,), value, dtype=torch.float32, requires_grad=True)
    kl_divergence(diagonal_normal(torch.zeros_like(t), t), standard_normal(1, like=t)).backward()
    assert t.grad.item() == pytest.approx(0.5 * (math.exp(value) - 1), rel=1e-5)


def test_cholesky_draw_divides_by_the_product_of_the_diagonal():
    q, epsilon = gaussian(5, 6), torch.randn(6)
    jacobian = torch.func.jacrev(lambda e: q.mean + q.scale_tril @ e)(epsilon)
    log_det = torch.linalg.slogdet(jacobian).logabsdet
    assert torch.allclose(log_det, q.scale_tril.diagonal().log().sum(), rtol=1e-12)
    log_q = standard_normal(6).log_prob(epsilon) - log_det
    assert torch.allclose(log_q, q.log_prob(q.mean + q.scale_tril @ epsilon), rtol=1e-12)


def test_change_of_variables_for_a_bent_map():
    e = torch.linspace(-9, 9, 20_001)
    slope = torch.vmap(torch.func.grad(lambda t: (0.6 * t).exp()))(e)
    log_q, z = Normal(0.0, 1.0).log_prob(e) - slope.log(), (0.6 * e).exp()
    assert torch.allclose(log_q, LogNormal(0.0, 0.6).log_prob(z), atol=1e-10)
    assert torch.trapezoid(log_q.exp(), z).item() == pytest.approx(1, abs=1e-6)


def test_a_map_that_is_not_one_to_one_loses_mass():
    """z = e^2: the formula for one-to-one maps counts one of two preimages."""
    e = torch.linspace(1e-4, 9, 200_001)
    as_if = (Normal(0.0, 1.0).log_prob(e) - (2 * e).log()).exp()
    assert torch.trapezoid(as_if * 2 * e, e).item() == pytest.approx(0.5, abs=1e-4)
    assert torch.allclose(2 * as_if, Chi2(1.0).log_prob(e**2).exp(), rtol=1e-9)
