"""Chapter 03: nonlinear latent models. The grid against formulas, and what the chapter proves about such models."""

from itertools import pairwise
from math import gamma, log, pi

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ive
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent, Normal

from vae_core.distributions import diagonal_normal, standard_normal
from vae_core.likelihoods import gaussian
from vae_core.linear import PPCA
from vae_core.networks import mlp
from vae_core.objectives import elbo, iwae_bound
from vae_core.quadrature import QuadratureModel, curve, two_modes


def bessel(x: float, sigma: float) -> float:
    """log p(x) of x = z² + noise, by its closed form; needs x > σ²/2."""
    a, b = 1 / (2 * sigma**2), x / sigma**2 - 0.5
    u = b**2 / (8 * a)
    integral = log(pi / 2) + 0.5 * log(b / (2 * a)) + 2 * u + log(ive(-0.25, u) + ive(0.25, u))
    return integral - a * x**2 - log(2 * pi * sigma)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def network(*widths: int) -> nn.Sequential:
    return mlp(widths[:-1], widths[-1], activation="tanh", batch_norm=False)


@settings(deadline=None, max_examples=40)
@given(st.floats(0.2, 2.0), st.floats(0.0, 1.0))
def test_the_grid_gives_the_closed_form_of_the_squared_normal(sigma, share):
    x = 0.5 * sigma**2 + 0.05 + share * 20
    assert QuadratureModel(two_modes, sigma).log_prob(column(x)).item() == pytest.approx(bessel(x, sigma), abs=1e-9)


def test_a_grid_that_ends_too_early_is_refused_as_its_sum_is_wrong_and_a_wider_one_right():
    x, truth, narrow = column(100.0), bessel(100.0, 0.5), QuadratureModel(two_modes, 0.5)
    assert (narrow.log_joint(x).logsumexp(1) + narrow.grid.diff()[0].log()).item() < truth - 100
    with pytest.raises(ValueError, match="the posterior of x does not fit the grid"):
        narrow.log_prob(x)
    assert QuadratureModel(two_modes, 0.5, limit=14.0).log_prob(x).item() == pytest.approx(truth, abs=1e-9)


def test_a_linear_mean_has_the_closed_forms_of_ppca_although_z_ranges_over_the_whole_line():
    x = torch.randn(50, 1) @ torch.randn(1, 4) + 0.4 * torch.randn(50, 4)
    ppca = PPCA(1).fit(x)
    model = QuadratureModel(lambda z: z @ ppca.components_ + ppca.mean_, ppca.noise_variance_.sqrt().item())
    torch.testing.assert_close(model.log_prob(x), ppca.score_samples(x), rtol=0, atol=1e-9)
    mean, sd = model.posterior_moments(x)
    torch.testing.assert_close(mean, ppca.posterior(x).mean[:, 0], rtol=0, atol=1e-9)
    torch.testing.assert_close(sd.square(), ppca.posterior(x).variance[:, 0], rtol=0, atol=1e-8)


def test_a_grid_in_two_dimensions_gives_ppca_with_two_components():
    x = torch.randn(300, 2) @ torch.randn(2, 5) + 0.5 * torch.randn(300, 5)
    ppca, t = PPCA(2).fit(x), torch.linspace(-7, 7, 201)
    z = torch.cartesian_prod(t, t)
    likelihood = Normal(z @ ppca.components_ + ppca.mean_, ppca.noise_variance_.sqrt())
    log_joint = likelihood.log_prob(x[0]).sum(-1) + standard_normal(2, like=z).log_prob(z)
    on_grid = log_joint.logsumexp(0) + 2 * (t[1] - t[0]).log()
    torch.testing.assert_close(on_grid, ppca.score_samples(x[:1])[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("ratio", [2.0, 1.5, 1.0])
def test_the_error_of_the_trapezoid_rule_on_a_bell_curve_is_poissons_sum(ratio):
    rule = ratio * torch.exp(-0.5 * (ratio * torch.arange(-60, 61)) ** 2).sum() / (2 * pi) ** 0.5
    theory = 2 * torch.exp(-2 * (pi * torch.arange(1, 6) / ratio) ** 2).sum()
    assert theory > 1e-9
    torch.testing.assert_close(rule - 1, theory, rtol=1e-6, atol=1e-15)


def test_the_error_falls_faster_than_the_square_of_the_step_unless_there_is_a_kink():
    def errors(f, x):
        best = QuadratureModel(f, 0.5, points=400_001).log_prob(x)
        return [(QuadratureModel(f, 0.5, points=n).log_prob(x) - best).abs().item() for n in (101, 201)]

    coarse, fine = errors(two_modes, column(4.0))
    assert fine < 1e-6 * coarse
    coarse, fine = errors(lambda z: 2 * (z - 0.29).abs(), column(0.5))
    assert fine > 1e-3 * coarse


def test_p_of_x_integrates_to_one_with_the_moments_of_the_story():
    x = torch.linspace(-6, 90, 4801)
    p = QuadratureModel(two_modes, 0.5, limit=12.0, points=601).log_prob(x[:, None]).exp()
    moments = [torch.trapezoid(p * x**k, x).item() for k in (0, 1, 2)]
    assert moments == pytest.approx([1, 1, 1 + 2 + 0.25], abs=1e-5)


class Bits(QuadratureModel):
    def likelihood(self, z):
        return Independent(Bernoulli(logits=self.f(z)), 1)


class Class(QuadratureModel):
    def likelihood(self, z):
        return Categorical(logits=self.f(z))


@pytest.mark.parametrize("seed", range(3))
def test_probabilities_of_all_bit_strings_and_of_all_classes_sum_to_one(seed):
    torch.manual_seed(seed)
    f = network(1, 8, 4)
    every = torch.cartesian_prod(*[torch.arange(2.0)] * 4)
    with torch.no_grad():
        assert Bits(f, 1.0).log_prob(every).exp().sum().item() == pytest.approx(1, abs=1e-9)
        assert Class(f, 1.0).log_prob(torch.arange(4)).exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("x", "sigma", "peak"), [(1.0, 0.3, 0.97724), (4.0, 0.5, 1.96850)])
def test_the_posterior_of_the_squared_normal_has_two_humps_and_mean_zero(x, sigma, peak):
    model = QuadratureModel(two_modes, sigma)
    density = model.posterior_density(column(x))[0]
    inner = density[1:-1]
    humps = model.grid[1:-1][(inner > density[:-2]) & (inner > density[2:]) & (inner > 1e-3)]
    torch.testing.assert_close(humps, torch.tensor([-peak, peak]), rtol=0, atol=0.0025)
    assert (x - sigma**2 / 2) ** 0.5 == pytest.approx(peak, abs=1e-5)
    assert abs(model.posterior_moments(column(x))[0].item()) < 1e-12


def test_where_the_humps_melt_the_posterior_is_a_pure_quartic():
    _, sd = QuadratureModel(two_modes, 1.0).posterior_moments(column(0.5))
    assert sd.item() ** 2 == pytest.approx(2**0.5 * gamma(3 / 4) / gamma(1 / 4), abs=1e-10)


def test_the_posterior_is_gaussian_for_an_affine_mean_and_not_for_a_curved_one():
    def excess_kurtosis(f, x):
        model = QuadratureModel(f, 0.5)
        mean, sd = model.posterior_moments(x)
        fourth = ((model.grid - mean[:, None]) / sd[:, None]) ** 4
        return model.expectation(model.posterior_density(x), fourth) - 3

    x = column(-1.0, 0.5, 4.0)
    torch.testing.assert_close(excess_kurtosis(lambda z: 1.3 * z - 0.2, x), torch.zeros(3), rtol=0, atol=1e-8)
    assert (excess_kurtosis(two_modes, x).abs() > 0.05).all()
    assert (excess_kurtosis(torch.sin, x).abs() > 0.01).all()


def test_no_bell_curve_gets_closer_to_two_humps_than_log_two():
    model = QuadratureModel(two_modes, 0.5, limit=12.0, points=1201)
    mean, scale = torch.cartesian_prod(torch.linspace(0, 2.4, 49), torch.linspace(0.05, 2, 79)).T
    gaps = model.gap(column(4.0).expand(len(mean), 1), diagonal_normal(mean[:, None], 2 * scale.log()[:, None]))
    assert log(2) - 1e-6 < gaps.min() < log(2) + 0.01
    assert mean[gaps.argmin()].item() == pytest.approx(1.97, abs=0.05)


def test_laplace_at_one_hump_misses_log_two():
    x, sigma = 4.0, 0.5
    m = torch.tensor(x - sigma**2 / 2).sqrt().requires_grad_()

    def log_joint(z):
        return -0.5 * z**2 - 0.5 * ((x - z**2) / sigma) ** 2 - log(2 * pi * sigma)

    curvature = -torch.func.grad(torch.func.grad(log_joint))(m)
    assert curvature.item() == pytest.approx(4 * m.item() ** 2 / sigma**2)
    laplace = log_joint(m) + 0.5 * log(2 * pi) - 0.5 * curvature.log()
    assert (bessel(x, sigma) - laplace).item() == pytest.approx(log(2), abs=0.02)


def test_ancestral_draws_follow_the_marginal_and_a_seed_repeats_them():
    model = QuadratureModel(two_modes, 0.5, points=2001)

    def draw():
        torch.manual_seed(3)
        return model.likelihood(model.prior.sample((100_000,))).sample()[:, 0]

    x = draw()
    assert torch.equal(x, draw())
    edges = torch.tensor([-0.5, 0.5, 1.5, 4.0])
    by_grid = [(model.prior.log_prob(model.grid[:, None]).exp() * Normal(model.grid**2, 0.5).cdf(e)) for e in edges]
    share = torch.stack(by_grid).sum(1) * (model.grid[1] - model.grid[0])
    error = (share * (1 - share) / len(x)).sqrt()
    assert (((x[:, None] < edges).double().mean(0) - share).abs() < 6 * error).all()


def test_slopes_of_the_log_joint_agree_with_finite_differences_in_theta_and_z():
    f, x = network(1, 6, 2), torch.randn(2)
    names = [name for name, _ in f.named_parameters()]

    def log_joint(z, *theta):
        mean = torch.func.functional_call(f, dict(zip(names, theta, strict=True)), z)
        return Normal(mean, 0.3).log_prob(x).sum() + standard_normal(1, like=z).log_prob(z)

    inputs = (torch.randn(1, requires_grad=True), *(p.detach().requires_grad_() for p in f.parameters()))
    assert torch.autograd.gradcheck(log_joint, inputs)


def test_the_slope_of_log_p_is_the_posterior_mean_of_the_slope_of_the_log_joint():
    f, x = network(1, 8, 2), torch.randn(5, 2)
    model = QuadratureModel(f, 0.4, limit=6.0, points=401)
    direct = torch.autograd.grad(model.log_prob(x).sum(), f.parameters())
    posterior = model.posterior_density(x).detach()
    fisher = torch.autograd.grad(model.expectation(posterior, model.log_joint(x)).sum(), f.parameters())
    for a, b in zip(direct, fisher, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=10)
@given(st.floats(0.1, 3.0), st.integers(0, 1000))
def test_em_on_the_grid_never_lowers_the_likelihood(sigma, seed):
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(seed))
    values = []
    for _ in range(8):
        model = QuadratureModel(curve, sigma, limit=6.0, points=801)
        values.append(model.log_prob(x).mean().item())
        squares = (x[:, None] - curve(model.grid[:, None])).square().mean(-1)
        sigma = model.expectation(model.posterior_density(x), squares).mean().sqrt().item()
    assert all(after >= before - 1e-10 for before, after in pairwise(values))


def test_mini_batch_slopes_average_to_the_full_slope():
    f, x = network(1, 8, 2), torch.randn(60, 2)
    model = QuadratureModel(f, 0.5, limit=5.0, points=101)

    def slope(part):
        parts = torch.autograd.grad(model.log_prob(part).mean(), f.parameters())
        return torch.cat([p.flatten() for p in parts])

    full = slope(x)
    one_pass = torch.stack([slope(x[i]) for i in torch.randperm(60).split(10)])
    torch.testing.assert_close(one_pass.mean(0), full, rtol=0, atol=1e-12)
    drawn = torch.stack([slope(x[torch.randint(60, (10,))]) for _ in range(300)])
    assert ((drawn.mean(0) - full).abs() < 6 * drawn.std(0) / 300**0.5 + 1e-12).all()
    assert drawn.std(0).max() > 1e-3


@settings(deadline=None, max_examples=30)
@given(st.floats(-2, 2), st.floats(-3, 1))
def test_the_bound_and_its_gap_add_up_to_log_p(mean, log_variance):
    model, x = QuadratureModel(two_modes, 0.5, limit=25.0, points=5001), column(4.0, 1.0)
    q = diagonal_normal(torch.full((2, 1), mean), torch.full((2, 1), log_variance))
    assert (model.gap(x, q) > 0).all()
    torch.testing.assert_close(model.elbo(x, q) + model.gap(x, q), model.log_prob(x), rtol=1e-8, atol=1e-8)


class WithPosterior:
    """A quadrature model and one bell curve for every x, as the objectives ask for."""

    def __init__(self, model):
        self.prior, self.likelihood = model.prior, model.likelihood

    def posterior(self, x):
        return diagonal_normal(torch.full((len(x), 1), 0.5), torch.full((len(x), 1), 0.7))


def test_importance_weighted_bounds_rise_to_the_quadrature_value():
    model, x = QuadratureModel(two_modes, 1.0), column(2.0)
    truth = model.log_prob(x).item()
    found = [iwae_bound(WithPosterior(model), x.expand(4000, 1), k) for k in (1, 5, 25, 125)]
    means = torch.stack([b.mean() for b in found])
    assert (means.diff() > 0).all()
    assert abs(means[-1].item() - truth) < 0.02
    assert means[-1] < truth + 6 * found[-1].std() / 4000**0.5


def test_an_encoder_trained_on_a_fixed_model_comes_closer_to_its_posterior():
    model = QuadratureModel(curve, 0.3, limit=6.0, points=601)
    x, g = model.likelihood(model.prior.sample((300,))).sample(), network(2, 16, 2)

    class Model:
        prior, likelihood = model.prior, model.likelihood

        def posterior(self, x):
            return diagonal_normal(*g(x).chunk(2, -1))

    def gap():
        with torch.no_grad():
            return model.gap(x, Model().posterior(x)).mean().item()

    optimizer, before = torch.optim.Adam(g.parameters(), lr=1e-2), gap()
    for _ in range(300):
        loss = -elbo(Model(), x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before > 1
    assert 0 < gap() < 0.25 * before


def test_a_linear_vae_trained_by_aevb_reaches_the_closed_form_of_ppca():
    x = torch.randn(400, 1) @ torch.randn(1, 3) + 0.5 * torch.randn(400, 3)
    x = x - x.mean(0)
    decoder, mean = nn.Linear(1, 3), nn.Linear(3, 1)
    log_sigma, log_variance = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.zeros(1))

    class Model:
        prior = standard_normal(1, like=log_sigma.data)

        def likelihood(self, z):
            return diagonal_normal(decoder(z), 2 * log_sigma.expand(3))

        def posterior(self, x):
            return diagonal_normal(mean(x), log_variance.expand(len(x), 1))

    parameters = [*decoder.parameters(), *mean.parameters(), log_sigma, log_variance]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    for step in range(500):
        if step == 350:
            optimizer.param_groups[0]["lr"] = 0.002
        loss = -elbo(Model(), x, num_samples=4).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    best = PPCA(1).fit(x).score(x)
    with torch.no_grad():
        reached = QuadratureModel(decoder, log_sigma.exp().item()).log_prob(x).mean().item()
    assert best - 0.01 < reached < best + 1e-9


def test_a_curve_beats_ppca_on_held_out_points_of_the_curve():
    truth = QuadratureModel(curve, 0.2, points=2001)
    x = truth.likelihood(truth.prior.sample((800,))).sample()
    gain = truth.log_prob(x[400:]) - PPCA(1).fit(x[:400]).score_samples(x[400:])
    assert gain.mean() > 6 * gain.std() / 400**0.5
    assert gain.mean() > 0.5


def test_the_exact_posterior_removes_noise_better_than_ppca_and_than_doing_nothing():
    model = QuadratureModel(curve, 0.2, limit=7.0, points=701)
    z = model.prior.sample((800,))
    x = model.likelihood(z).sample()
    density = model.posterior_density(x)
    cleaned = torch.stack([model.expectation(density, f) for f in curve(model.grid[:, None]).T], 1)
    ppca = PPCA(1).fit(x)
    linear = ppca.transform(x) @ ppca.components_ + ppca.mean_
    errors = [(guess - curve(z)).square().sum(1).mean().item() for guess in (cleaned, x, linear)]
    assert errors == sorted(errors)
    assert errors[0] < 0.7 * errors[1]


def test_a_lost_coordinate_is_filled_in_alike_by_the_posterior_and_by_a_ratio_of_marginals():
    whole, seen = QuadratureModel(curve, 0.2), QuadratureModel(lambda z: (2 * z).sin(), 0.2)
    x1, half = torch.linspace(-3, 3, 61), column(0.5)
    ratio = whole.log_prob(torch.stack([x1, torch.full_like(x1, 0.5)], 1)) - seen.log_prob(half)
    through_z = seen.expectation(seen.posterior_density(half), Normal(seen.grid, 0.2).log_prob(x1[:, None]).exp())
    torch.testing.assert_close(ratio.exp(), through_z, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_no_mean_gets_a_gaussian_head_below_its_floor(sigma):
    x = torch.rand(1, 28, 28)
    floor = 392 * log(2 * pi * sigma**2)
    assert -gaussian(x, sigma).log_prob(x).item() == pytest.approx(floor)
    assert -gaussian(torch.rand(1, 28, 28), sigma).log_prob(x).item() > floor


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_a_noise_that_is_not_positive_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma must be positive"):
        QuadratureModel(two_modes, sigma)
