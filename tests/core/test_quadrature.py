"""Quadrature against closed forms where f is linear, and against the theorems where it is not."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal

from vae_core.distributions import diagonal_normal, kl_divergence
from vae_core.objectives import elbo, log_weights
from vae_core.quadrature import QuadratureModel, curve, two_modes

SIGMA, SLOPE = 0.6, torch.tensor([1.5, -0.7], dtype=torch.float64)
POINTS = {
    two_modes: torch.tensor([[0.9], [2.5], [-0.4]]).double(),
    curve: torch.tensor([[0.3, 0.5], [-1.5, 1.0]]).double(),
}
BOTH = pytest.mark.parametrize("f", [two_modes, curve])


def line(z: torch.Tensor) -> torch.Tensor:
    return z * SLOPE + 1


@pytest.fixture
def linear() -> tuple[QuadratureModel, torch.Tensor, MultivariateNormal]:
    """A model with a linear f, data, and its posterior by Bayes' rule for Gaussians."""
    x, precision = torch.randn(6, 2), 1 + SLOPE.square().sum() / SIGMA**2
    mean = ((x - 1) @ SLOPE / SIGMA**2 / precision)[:, None]
    return QuadratureModel(line, SIGMA), x, diagonal_normal(mean, (-precision.log()).expand(6, 1))


def gaussian(x: torch.Tensor, mean: float, deviation: float):
    return diagonal_normal(torch.full((len(x), 1), mean), torch.full((len(x), 1), 2 * math.log(deviation)))


def test_quadrature_model_of_a_line_has_a_gaussian_marginal(linear):
    model, x, _ = linear
    marginal = MultivariateNormal(torch.ones(2), SLOPE.outer(SLOPE) + SIGMA**2 * torch.eye(2))
    assert torch.allclose(model.log_prob(x), marginal.log_prob(x), atol=1e-8)


def test_quadrature_model_of_a_line_has_a_gaussian_posterior(linear):
    model, x, posterior = linear
    mean, deviation = model.posterior_moments(x)
    assert torch.allclose(mean, posterior.mean[:, 0], atol=1e-8)
    assert torch.allclose(deviation, posterior.stddev[:, 0], atol=1e-8)
    expected = posterior.log_prob(model.grid[:, None, None]).exp().T
    assert torch.allclose(model.posterior_density(x), expected, atol=1e-8)


def test_quadrature_model_of_a_line_has_the_closed_forms_of_bound_and_gaps(linear):
    model, x, posterior = linear
    q = diagonal_normal(torch.randn(6, 1), torch.randn(6, 1) - 1)
    gap, reverse = kl_divergence(q, posterior), kl_divergence(posterior, q)
    assert torch.allclose(model.gap(x, q), gap, atol=1e-8)
    assert torch.allclose(model.forward_kl(x, q), reverse, rtol=1e-8, atol=1e-8)
    assert torch.allclose(model.elbo(x, q), model.log_prob(x) - gap, atol=1e-8)
    assert torch.allclose(model.elbo(x, posterior), model.log_prob(x), atol=1e-8)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([two_modes, curve]), st.floats(0.2, 1.5), st.floats(-2, 2), st.floats(0.05, 1.0))
def test_quadrature_model_log_prob_is_elbo_plus_gap_for_every_gaussian(f, sigma, mean, deviation):
    model, x = QuadratureModel(f, sigma), POINTS[f]
    q = diagonal_normal(
        torch.full((len(x), 1), mean).double(), torch.full((len(x), 1), 2 * math.log(deviation)).double()
    )
    gap = model.gap(x, q)
    assert torch.allclose(model.log_prob(x), model.elbo(x, q) + gap, rtol=1e-10, atol=1e-8)
    assert (gap > -1e-9).all()
    assert (model.forward_kl(x, q) > -1e-9).all()


@BOTH
@pytest.mark.parametrize("deviation", [0.7, 0.004])
def test_quadrature_model_forward_kl_is_the_integral_of_posterior_times_log_ratio(f, deviation):
    """Also for a q so narrow that log q is far below −10⁵ where the posterior is."""
    model, x = QuadratureModel(f, 0.5), POINTS[f]
    q, z = gaussian(x, 0.1, deviation), torch.linspace(-12, 12, 100_001)
    log_joint = -0.5 * (z.square() + (x[:, None] - f(z[:, None])).square().sum(-1) / 0.25)
    log_joint -= 0.5 * math.log(2 * math.pi) + x.shape[1] * math.log(0.5 * math.sqrt(2 * math.pi))
    log_posterior = log_joint - torch.trapezoid(log_joint.exp(), z).log()[:, None]
    log_q = -0.5 * ((z - 0.1) / deviation).square() - math.log(deviation * math.sqrt(2 * math.pi))
    expected = torch.trapezoid(log_posterior.exp() * (log_posterior - log_q), z)
    assert torch.allclose(model.forward_kl(x, q), expected, rtol=1e-9)


@BOTH
def test_quadrature_model_posterior_density_integrates_to_one(f):
    model, x = QuadratureModel(f, 0.4), POINTS[f]
    assert torch.allclose(torch.trapezoid(model.posterior_density(x), model.grid), torch.ones(len(x)), atol=1e-10)


def test_two_modes_are_mirror_images_about_a_mean_of_zero():
    model, x = QuadratureModel(two_modes, 0.4), POINTS[two_modes]
    density, (mean, deviation) = model.posterior_density(x), model.posterior_moments(x)
    assert torch.allclose(density, density.flip(1), atol=1e-12)
    assert mean.abs().max() < 1e-12
    middle, (top, where) = len(model.grid) // 2, density[1].max(0)
    assert density[1, middle] < 1e-6 * top
    assert model.grid[where].abs().item() == pytest.approx(math.sqrt(2.5), abs=0.05)
    assert deviation[1].item() == pytest.approx(math.sqrt(2.5), abs=0.05)


@BOTH
def test_quadrature_model_does_not_depend_on_a_finer_or_wider_grid(f):
    x = POINTS[f]
    q, usual = gaussian(x, 0.3, 0.5), QuadratureModel(f, 0.3)
    for other in (QuadratureModel(f, 0.3, points=16_001), QuadratureModel(f, 0.3, limit=12.0, points=12_001)):
        for name in ("log_prob", "posterior_moments"):
            pair = [
                torch.cat([torch.cat(list(value)) if isinstance(value, tuple) else value])
                for value in (getattr(usual, name)(x), getattr(other, name)(x))
            ]
            assert torch.allclose(*pair, rtol=0, atol=1e-9)
        for name in ("elbo", "gap", "forward_kl"):
            assert torch.allclose(getattr(usual, name)(x, q), getattr(other, name)(x, q), rtol=1e-12, atol=1e-9)


@BOTH
def test_quadrature_model_log_prob_agrees_with_samples_of_the_prior(f):
    model, x = QuadratureModel(f, 0.5), POINTS[f]
    z = model.prior.sample((200_000, 1))
    p = model.likelihood(z).log_prob(x).exp()
    assert ((p.mean(0) - model.log_prob(x).exp()).abs() < 6 * p.std(0) / len(z) ** 0.5).all()
    mean, deviation = model.posterior_moments(x)
    for power, moment in ((1, mean), (2, mean.square() + deviation.square())):
        difference = p * (z[..., 0] ** power - moment)  # its mean is 0: E[p(x|z) z] = p(x) E[z|x]
        assert (difference.mean(0).abs() < 6 * difference.std(0) / len(z) ** 0.5).all()


class Guessing(QuadratureModel):
    """A reader's own q, the same for every x."""

    def posterior(self, x: torch.Tensor):
        return gaussian(x, 0.8, 0.4)


@BOTH
@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
def test_quadrature_model_elbo_is_the_mean_of_the_sampled_elbo(f, kl):
    model, x = Guessing(f, 0.5), POINTS[f]
    exact = model.elbo(x, model.posterior(x))
    for b in range(len(x)):
        draws = elbo(model, x[b].expand(50_000, -1), kl=kl)
        assert (draws.mean() - exact[b]).abs() < 6 * draws.std() / len(draws) ** 0.5


@BOTH
def test_quadrature_model_log_prob_is_that_of_the_mean_weight(f):
    model, x = Guessing(f, 1.0), POINTS[f]
    model.posterior = lambda x: gaussian(x, 0.0, 1.2)  # wider than the posterior, so that the weights have a variance
    weights = log_weights(model, x, 200_000).exp()
    assert ((weights.mean(0) - model.log_prob(x).exp()).abs() < 6 * weights.std(0) / len(weights) ** 0.5).all()


def test_quadrature_model_elbo_gets_nothing_where_q_is_zero():
    q = torch.distributions.Uniform(torch.tensor([[-1.0]]), torch.tensor([[1.0]]), validate_args=False)
    model, x = QuadratureModel(two_modes, 0.5), POINTS[two_modes][:1]
    q = torch.distributions.Independent(q, 1, validate_args=False)
    assert torch.allclose(model.elbo(x, q) + model.gap(x, q), model.log_prob(x), atol=0.01)  # a jump costs accuracy
    assert model.forward_kl(x, q) > 1e100


@pytest.mark.parametrize("sigma", [0.0, -0.3, math.nan])
def test_quadrature_model_refuses_a_noise_that_is_not_positive(sigma):
    with pytest.raises(ValueError, match="sigma must be positive and finite, got"):
        QuadratureModel(curve, sigma)


@pytest.mark.parametrize("x", [10.0, 60.0, -40.0, math.nan])
def test_quadrature_model_refuses_a_posterior_that_leaves_the_grid(x):
    model = QuadratureModel(lambda z: z, 0.5)  # posterior mean 0.8 x
    with pytest.raises(ValueError, match=r"the posterior of x does not fit the grid \(datum 1\)"):
        model.log_prob(torch.tensor([[0.5], [x]]))


@pytest.mark.parametrize("sigma", [1e-3, 1e-4])
def test_quadrature_model_refuses_a_posterior_narrower_than_the_grids_step(sigma):
    x = torch.tensor([[0.50123]])
    with pytest.raises(ValueError, match="more points"):
        QuadratureModel(lambda z: z, sigma).log_prob(x)
    exact = torch.distributions.Normal(0.0, (1 + sigma**2) ** 0.5).log_prob(x)[0]
    assert torch.allclose(QuadratureModel(lambda z: z, sigma, limit=6.0, points=400_001).log_prob(x), exact, atol=1e-8)


@pytest.mark.parametrize(("mean", "sd"), [(8.0, 1.0), (0.0, 3.0), (20.0, 1.0), (0.001, 1e-4)])
@pytest.mark.parametrize("integral", ["elbo", "gap", "forward_kl"])
def test_quadrature_model_refuses_a_q_that_does_not_fit_the_grid(mean, sd, integral):
    model, x = QuadratureModel(two_modes, 0.5), POINTS[two_modes][:1]
    with pytest.raises(ValueError, match=r"q does not fit the grid \(datum 0\)"):
        getattr(model, integral)(x, gaussian(x, mean, sd))


@pytest.mark.parametrize(
    "q",
    [
        torch.distributions.Normal(torch.zeros(3, 1), 1.0),
        diagonal_normal(torch.zeros(2, 1), torch.zeros(2, 1)),
        diagonal_normal(torch.zeros(3, 2), torch.zeros(3, 2)),
    ],
)
@pytest.mark.parametrize("integral", ["elbo", "gap", "forward_kl"])
def test_quadrature_model_refuses_a_q_of_another_shape(q, integral):
    with pytest.raises(ValueError, match=r"must have batch shape \(.*Independent"):
        getattr(QuadratureModel(two_modes, 0.5), integral)(POINTS[two_modes], q)


def test_quadrature_model_refuses_data_of_another_width():
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2\), got \(3, 1\)"):
        QuadratureModel(curve, 0.5).log_prob(torch.ones(3, 1))


@pytest.mark.parametrize("settings", [dict(limit=0.0), dict(limit=math.inf), dict(points=2), dict(points=10.5)])
def test_quadrature_model_refuses_a_grid_that_is_none(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        QuadratureModel(curve, 0.5, **settings)
