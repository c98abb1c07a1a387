"""What chapter 02 proves about linear latent models, beyond the unit tests of `vae_core.linear`."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal

from vae_core._linear_gaussian import LinearGaussian
from vae_core.data import load
from vae_core.linear import PCA, PPCA, FactorAnalysis

seeds = st.integers(0, 10_000)


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    """The training digits' pixels with ink in more than 1 % of the pictures, (1437, 54)."""
    pixels = load("digits").x_train.flatten(1).to(torch.float64)
    return pixels[:, (pixels > 0).to(torch.float64).mean(0) > 0.01]


def covariance(X):
    return torch.cov(X.T, correction=0)


def mean_log_p(C, S):
    """Mean log p of centred data with covariance S under N(0, C)."""
    return -0.5 * (len(C) * math.log(2 * math.pi) + torch.logdet(C) + torch.linalg.solve(C, S).trace())


def model(W, mu, psi) -> LinearGaussian:
    made = LinearGaussian(W.shape[1])
    made.components_, made.mean_, made.noise_variance_ = W.T, mu, psi
    return made


def spd(p, generator):
    A = torch.randn(p, p + 2, generator=generator, dtype=torch.float64)
    return A @ A.T / p


def projector(columns):
    Q = torch.linalg.qr(columns).Q
    return Q @ Q.T


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 6))
def test_the_trivial_fit_is_noise_alone(seed, p):
    """C-2.1.6, E-C2: over all covariance matrices the likelihood is largest at C = S, that is W = 0, Psi = S."""
    g = torch.Generator().manual_seed(seed)
    S, C = spd(p, g), spd(p, g)
    gap = mean_log_p(S, S) - mean_log_p(C, S)
    zero = torch.zeros(p, dtype=torch.float64)
    kl = torch.distributions.kl_divergence(MultivariateNormal(zero, S), MultivariateNormal(zero, C))
    assert gap >= 0
    torch.testing.assert_close(gap, kl, rtol=1e-8, atol=1e-10)


def test_the_printed_trivial_fit_sends_the_likelihood_to_minus_infinity(digits):
    """E-C2: with Psi -> 0 and d < p the best W of rank d does worse and worse."""
    S = covariance(digits)
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(S))
    W = vectors[:, :10] * values[:10].sqrt()
    scores = [mean_log_p(W @ W.T + a * torch.eye(len(S)), S).item() for a in (1e-2, 1e-4, 1e-6)]
    assert scores[0] > scores[1] > scores[2] < -1e5
    assert mean_log_p(S, S) > scores[0]
    assert torch.linalg.matrix_rank(W @ W.T) == 10 < torch.linalg.matrix_rank(S)


def test_sample_covariance_tends_to_the_model_covariance_at_rate_one_over_root_n():
    """C-2.1.1: n E|C_hat - C|^2 = tr(C)^2 + |C|^2 for every n, within six standard errors."""
    W, mu = torch.tensor([[1.6, -0.3], [0.8, 0.9], [0.1, 0.4]]), torch.tensor([1.0, 0.5, -2.0])
    psi = torch.tensor([0.15, 0.4, 0.05])
    C = W @ W.T + psi.diag()
    for n in (10, 100, 1000):
        draws = model(W, mu, psi).sample(400 * n, seed=n).view(400, n, 3) - mu
        error = n * (draws.mT @ draws / n - C).square().sum((1, 2))
        expected = C.trace() ** 2 + C.square().sum()
        assert (error.mean() - expected).abs() < 6 * error.std() / 20


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_mean_and_covariance_of_the_code_are_absorbed(seed):
    """C-2.1.2, C-2.1.5: z ~ N(m, V) is the same law of x as z ~ N(0, I) with W V^(1/2) and W m + mu."""
    g = torch.Generator().manual_seed(seed)
    W, x = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((5, 2), (7, 5)))
    mu, m = (torch.randn(k, generator=g, dtype=torch.float64) for k in (5, 2))
    V, psi = spd(2, g), torch.rand(5, generator=g, dtype=torch.float64) + 0.1
    W_new = W @ torch.linalg.cholesky(V)
    torch.testing.assert_close(W @ V @ W.T, W_new @ W_new.T, rtol=0, atol=1e-12 * (1 + (W @ V @ W.T).abs().max()))
    general = MultivariateNormal(W @ m + mu, W @ V @ W.T + psi.diag()).log_prob(x)
    torch.testing.assert_close(model(W_new, W @ m + mu, psi).score_samples(x), general, rtol=1e-9, atol=1e-9)


def test_noise_needs_one_entry_per_observed_number():
    """C-2.1.3, E-C1: noise of the code's length (d = 2, where p = 6) cannot be added to W z."""
    wrong = model(torch.randn(6, 2), torch.zeros(6), torch.ones(2))
    with pytest.raises(RuntimeError):
        wrong.score_samples(torch.randn(3, 6))


def test_marginal_is_the_integral_over_the_code():
    """C-2.1.4: quadrature over a one-dimensional z against the formula, to 1e-8."""
    W, mu, psi = torch.randn(3, 1), torch.randn(3), torch.rand(3) + 0.2
    x, z = 2 * torch.randn(6, 3), torch.linspace(-12, 12, 12001)[:, None]
    prior = -0.5 * z[:, 0].square() - 0.5 * math.log(2 * math.pi)
    likelihood = MultivariateNormal(z @ W.T + mu, psi.diag()).log_prob(x[:, None])
    integral = torch.trapezoid((prior + likelihood).exp(), z[:, 0]).log()
    torch.testing.assert_close(model(W, mu, psi).score_samples(x), integral, rtol=0, atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_rotating_the_codes_changes_no_probability(seed):
    """C-2.1.10, E-C3: log p is the same for W and W R, for any noise, while the columns turn."""
    g = torch.Generator().manual_seed(seed)
    W, x = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((6, 3), (9, 6)))
    R = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64)).Q
    mu, psi = torch.zeros(6, dtype=torch.float64), torch.rand(6, generator=g, dtype=torch.float64) + 0.1
    a, b = (model(V, mu, psi).score_samples(x) for V in (W, W @ R))
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-10)
    assert (W - W @ R).norm() > 1e-3
    torch.testing.assert_close(projector(W), projector(W @ R), rtol=0, atol=1e-10)


def test_ppca_is_a_stationary_point_and_the_best_of_all_choices_of_eigenvectors(digits):
    """C-2.1.8: gradient zero at the closed form; every other admissible set of eigenvectors is worse."""
    X = digits[:, 20:27]
    S, fitted = covariance(X), PPCA(2).fit(X)
    W, log_noise = fitted.components_.T.clone().requires_grad_(), fitted.noise_variance_.log().requires_grad_()
    best = mean_log_p(W @ W.T + log_noise.exp() * torch.eye(7), S)
    best.backward()
    assert W.grad.abs().max() < 1e-10
    assert log_noise.grad.abs() < 1e-10
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(S))
    for kept in combinations(range(7), 2):
        noise = (values.sum() - values[list(kept)].sum()) / 5
        if kept != (0, 1) and (values[list(kept)] > noise).all():
            V = vectors[:, list(kept)] * (values[list(kept)] - noise).sqrt()
            assert mean_log_p(V @ V.T + noise * torch.eye(7), S) < best - 1e-6


def test_factor_analysis_recovers_the_covariance_that_made_the_data():
    """C-2.1.7: EM on synthetic data comes closer to the truth as data grow, and close."""
    W, psi = torch.randn(8, 2), torch.rand(8) + 0.2
    C, errors = W @ W.T + psi.diag(), []
    for n in (200, 50_000):
        fitted = FactorAnalysis(2, max_iter=5000).fit(model(W, torch.zeros(8), psi).sample(n, seed=1))
        assert (torch.tensor(fitted.log_likelihoods_).diff() > -1e-10).all()
        errors.append((fitted.components_.T @ fitted.components_ + fitted.noise_variance_.diag() - C).norm() / C.norm())
    assert errors[1] < 0.03
    assert errors[1] < errors[0]


def test_as_the_noise_vanishes_the_posterior_becomes_the_least_squares_projection(digits):
    """C-2.1.9, C-2.1.12: mean -> lstsq and trace of the covariance -> 0, both in proportion to the noise."""
    fitted = PPCA(10).fit(digits)
    W, x = fitted.components_.T, digits[:50]
    target = torch.linalg.lstsq(W, (x - fitted.mean_).T).solution.T
    errors, traces = [], []
    for noise in (1e-4, 1e-6, 1e-8):
        q = model(W, fitted.mean_, torch.tensor(noise)).posterior(x)
        errors.append((q.mean - target).norm().item())
        traces.append(q.covariance_matrix[0].trace().item() / noise)
    assert errors[0] > 50 * errors[1] > 2500 * errors[2]
    assert errors[2] < 1e-5
    assert traces[2] == pytest.approx(torch.linalg.inv(W.T @ W).trace().item(), rel=1e-4)
    assert traces[1] == pytest.approx(traces[2], rel=1e-3)


def test_without_noise_there_is_no_density(digits):
    """C-2.1.16: log p -> -infinity off the plane and +infinity on it, while PCA's error on it is 0 however far out."""
    pca, fitted = PCA(10).fit(digits), PPCA(10).fit(digits)
    on_plane = pca.inverse_transform(pca.transform(digits))
    off, on = [], []
    for noise in (1e-2, 1e-4, 1e-8):
        limit = model(fitted.components_.T, fitted.mean_, torch.tensor(noise))
        off.append(limit.score(digits))
        on.append(limit.score(on_plane))
    assert off[0] > off[1] > off[2] < -1e6
    assert on[0] < on[1] < on[2] > 100
    far = pca.mean_ + 10 * (on_plane - pca.mean_)
    torch.testing.assert_close(pca.inverse_transform(pca.transform(far)), far, rtol=0, atol=1e-10)
    assert (fitted.score_samples(far) < fitted.score_samples(on_plane)).all()


def test_roweis_em_reaches_the_plane_at_the_rate_of_the_eigenvalues(digits):
    """C-2.1.13: Z = (W'W)^-1 W'X and W = XZ'(ZZ')^-1 shrink the distance by lambda_(d+1)/lambda_d a step."""
    X = (digits - digits.mean(0)).T
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(covariance(digits)))
    W, target, distances = torch.randn(X.shape[0], 10), projector(vectors[:, :10]), []
    for _ in range(150):
        Z = torch.linalg.solve(W.T @ W, W.T @ X)
        W = torch.linalg.solve(Z @ Z.T, Z @ X.T).T
        distances.append((projector(W) - target).norm().item())
    assert distances[-1] < 1e-10
    assert (distances[80] / distances[40]) ** (1 / 40) == pytest.approx((values[10] / values[9]).item(), rel=0.02)


def test_full_rank_is_not_needed(digits):
    """C-2.1.14, C-2.1.15, E-C4: forty pictures, 54 pixels: singular vectors, eigenvectors and EM agree."""
    few = digits[:40]
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(covariance(few)))
    fitted, target = PCA(39).fit(few), projector(vectors[:, :10])
    torch.testing.assert_close(fitted.explained_variance_, values[:39], rtol=0, atol=1e-12)
    torch.testing.assert_close(projector(fitted.components_[:10].T), target, rtol=0, atol=1e-9)
    torch.testing.assert_close(projector(PCA(10, method="em").fit(few).components_.T), target, rtol=0, atol=1e-8)


def test_linear_auto_encoder_reaches_the_plane_but_not_the_axes(digits):
    """C-3.1.3, D-0.2: gradient descent ends at the sum of the discarded eigenvalues, with other columns."""
    S = covariance(digits)
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(S))
    E, D = (0.1 * torch.randn(*s) for s in ((10, 54), (54, 10)))
    optimizer = torch.optim.Adam([E.requires_grad_(), D.requires_grad_()], lr=1e-2)
    for _ in range(1000):
        left = torch.eye(54) - D @ E
        error = (left @ S @ left.T).trace()
        optimizer.zero_grad()
        error.backward()
        assert error > values[10:].sum() - 1e-9
        optimizer.step()
    E, D, centred = E.detach(), D.detach(), digits - digits.mean(0)
    by_data = (centred - centred @ E.T @ D.T).square().sum(1).mean()
    torch.testing.assert_close(by_data, values[10:].sum(), rtol=1e-6, atol=0)
    assert (projector(D) - projector(vectors[:, :10])).norm() < 1e-3
    cosines = (D.T @ vectors[:, :10]).abs() / D.norm(dim=0)[:, None]
    assert cosines.max() < 0.99
    R = torch.linalg.qr(torch.randn(10, 10)).Q  # orthogonal weights: still free to turn
    turned = vectors[:, :10] @ R
    torch.testing.assert_close(S.trace() - (turned.T @ S @ turned).trace(), values[10:].sum())


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(0, 1))
def test_a_mixture_of_two_pictures_is_never_less_probable_than_both(seed, weight):
    """The law behind the double exposures: log N(x; mu, C) is concave in x."""
    g = torch.Generator().manual_seed(seed)
    W, a, b = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((6, 2), (20, 6), (20, 6)))
    fitted = model(W, torch.zeros(6, dtype=torch.float64), torch.rand(6, generator=g, dtype=torch.float64) + 0.1)
    of_a, of_b, between = map(fitted.score_samples, (a, b, weight * a + (1 - weight) * b))
    assert (between >= weight * of_a + (1 - weight) * of_b - 1e-9).all()
