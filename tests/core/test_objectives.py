"""Bounds against models that are solved exactly: linear-Gaussian in closed form, nonlinear by quadrature."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal

from vae_core.distributions import diagonal_normal, kl_divergence, standard_normal
from vae_core.models import mlp_vae
from vae_core.objectives import elbo, elbo_terms, iwae_bound, log_weights


class OneDimensional:
    """z ~ N(0, 1), x|z ~ N(f(z), noise²), q(z|x) = N(mean, scale²) for every x. No base class."""

    def __init__(self, f, noise=1.0, mean=0.0, scale=1.0):
        self.f, self.noise = f, noise
        self.mean = torch.tensor(mean, requires_grad=True)
        self.log_variance = torch.tensor(2 * math.log(scale), requires_grad=True)

    @property
    def prior(self):
        return standard_normal(1)

    def posterior(self, x):
        return diagonal_normal(self.mean.expand_as(x), self.log_variance.expand_as(x))

    def likelihood(self, z):
        return Independent(Normal(self.f(z), self.noise), 1)


W, X = 1.3, 0.7


def linear(mean=0.4, scale=0.86):
    return OneDimensional(lambda z: W * z, mean=mean, scale=scale)


def exact_linear():
    """q is the true posterior N(Wx/τ, 1/τ), τ = 1 + W²."""
    precision = 1 + W**2
    return linear(mean=W * X / precision, scale=precision**-0.5)


def curved():
    return OneDimensional(lambda z: torch.sin(2 * z) + z, noise=0.5, mean=0.2, scale=0.7)


LOG_EVIDENCE = -0.5 * (math.log(2 * math.pi * (1 + W**2)) + X**2 / (1 + W**2))  # x ~ N(0, 1 + W²)


def data(n: int) -> torch.Tensor:
    return torch.full((n, 1), X)


def quadrature(model) -> tuple[float, float]:
    """log p(x) and the exact ELBO of a one-dimensional model at x = X."""
    z = torch.linspace(-12, 12, 48_001)[:, None]
    x = torch.tensor([X])
    log_joint = model.prior.log_prob(z) + model.likelihood(z).log_prob(x)
    log_q = model.posterior(x).log_prob(z)
    log_evidence = torch.trapezoid(log_joint.exp(), z[:, 0]).log()
    bound = torch.trapezoid(log_q.exp() * (log_joint - log_q), z[:, 0])
    return log_evidence.item(), bound.item()


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def assert_mean(values: torch.Tensor, expected: float) -> None:
    mean, error = mean_and_error(values.detach())
    assert abs(mean - expected) < 6 * error, f"{mean} is not {expected} ± {error}"


def test_quadrature_oracle_gives_the_evidence_of_the_linear_model():
    assert quadrature(linear())[0] == pytest.approx(LOG_EVIDENCE, abs=1e-10)


@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
@pytest.mark.parametrize("build", [linear, curved])
def test_elbo_has_the_exact_bound_as_its_mean_with_either_kl(build, kl):
    model = build()
    assert_mean(elbo(model, data(200_000), kl=kl), quadrature(model)[1])


@pytest.mark.parametrize("num_samples", [1, 3])
def test_elbo_has_one_mean_with_either_kl(num_samples):
    difference = elbo(curved(), data(100_000), num_samples, "analytic") - elbo(
        curved(), data(100_000), num_samples, "monte_carlo"
    )
    assert_mean(difference, 0.0)


def test_elbo_with_a_sampled_kl_is_log_evidence_without_noise_at_the_exact_posterior():
    values = elbo(exact_linear(), data(1000), kl="monte_carlo")
    assert (values - LOG_EVIDENCE).abs().max() < 1e-13


def test_elbo_with_an_analytic_kl_still_fluctuates_at_the_exact_posterior():
    values = elbo(exact_linear(), data(200_000)).detach()
    v = 1 / (1 + W**2)
    a, b = X - W * W * X * v, W * W * v  # x − Wz ~ N(a, b), and Var(u²/2) = b²/2 + a²b
    assert values.var().item() == pytest.approx(b * b / 2 + a * a * b, rel=0.03)
    assert_mean(values, LOG_EVIDENCE)


@pytest.mark.parametrize(("mean", "scale"), [(0.4, 0.86), (0.0, 0.3), (1.0, 1.2)])
def test_elbo_off_the_posterior_has_the_variance_of_a_quadratic_form(mean, scale):
    model, n = linear(mean, scale), 400_000
    slope = scale * W * (X - W * mean)  # of log p(x|z) in ε; its ε² has the factor −W²s²/2
    analytic = 2 * (W * W * scale * scale / 2) ** 2 + slope**2
    curvature = (1 - scale * scale * (1 + W * W)) / 2
    sampled = 2 * curvature**2 + (slope - scale * mean) ** 2
    assert elbo(model, data(n)).var().item() == pytest.approx(analytic, rel=0.03)
    assert elbo(model, data(n), kl="monte_carlo").var().item() == pytest.approx(sampled, rel=0.03)


@pytest.mark.parametrize("build", [linear, curved])
def test_elbo_is_below_iwae_bound_is_below_log_evidence(build):
    model = build()
    log_evidence, bound = quadrature(model)
    means, errors = zip(
        *(mean_and_error(iwae_bound(model, data(100_000), k).detach()) for k in (1, 3, 20)), strict=True
    )
    assert abs(means[0] - bound) < 6 * errors[0]
    assert means[0] + 6 * errors[0] < means[1] - 6 * errors[1]
    assert means[1] + 6 * errors[1] < means[2] - 6 * errors[2]
    assert means[2] + 6 * errors[2] < log_evidence


def test_iwae_bound_approaches_log_evidence():
    model = curved()
    values = iwae_bound(model, data(50), 20_000).detach()
    assert values.mean().item() == pytest.approx(quadrature(model)[0], abs=2e-3)


def test_iwae_bound_with_one_sample_is_the_sampled_elbo():
    torch.manual_seed(3)
    one = iwae_bound(curved(), data(10), 1)
    torch.manual_seed(3)
    assert torch.allclose(one, elbo(curved(), data(10), kl="monte_carlo"), rtol=1e-13)


def test_log_weights_average_to_the_evidence():
    model = curved()
    assert_mean(log_weights(model, data(1), 400_000)[:, 0].exp(), math.exp(quadrature(model)[0]))


def test_elbo_lies_below_log_evidence_by_the_kl_divergence_from_the_posterior():
    q, precision = linear().posterior(torch.tensor([X])), 1 + W**2
    posterior = diagonal_normal(torch.tensor([W * X / precision]), torch.tensor([-math.log(precision)]))
    log_evidence, bound = quadrature(linear())
    assert log_evidence - bound == pytest.approx(kl_divergence(q, posterior).item(), abs=1e-9)


@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
def test_elbo_has_unbiased_gradients(kl):
    model, n = linear(), 100_000
    mean, log_variance = (torch.full((n, 1), p.item(), requires_grad=True) for p in (model.mean, model.log_variance))
    model.posterior = lambda x: diagonal_normal(mean, log_variance)
    per_draw = torch.autograd.grad(elbo(model, data(n), kl=kl).sum(), (mean, log_variance))
    variance = log_variance[0].exp().item()
    assert_mean(per_draw[0], W * (X - W * model.mean.item()) - model.mean.item())
    assert_mean(per_draw[1], 0.5 * (1 - variance * (1 + W**2)))


def test_elbo_of_more_samples_has_a_smaller_variance():
    one, nine = (elbo(curved(), data(100_000), k).var().item() for k in (1, 9))
    assert one / nine == pytest.approx(9, rel=0.05)


@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
def test_elbo_terms_add_up(kl):
    value, terms = elbo_terms(curved(), data(20), num_samples=4, kl=kl)
    assert value.shape == (20,)
    assert torch.allclose(value, -terms["reconstruction"] - terms["kl"], atol=1e-12)


def test_elbo_terms_hold_the_analytic_kl_divergence():
    model, x = curved(), data(5)
    kl = elbo_terms(model, x)[1]["kl"]
    assert torch.allclose(kl, kl_divergence(model.posterior(x), model.prior))
    assert (kl > 0).all()


def test_elbo_of_an_image_model_equals_the_hand_computation_with_the_same_noise():
    model, x = mlp_vae((1, 4, 4), 3, hidden=(8,)).eval(), torch.rand(6, 1, 4, 4)
    torch.manual_seed(4)
    value = elbo(model, x, num_samples=2)
    torch.manual_seed(4)
    features = model.encoder(x)
    mean, log_variance = model.mean(features), model.log_variance(features)
    z = mean + (0.5 * log_variance).exp() * torch.randn(2, 6, 3)
    probability = torch.sigmoid(model.decoder(z.reshape(12, 3))).reshape(2, 6, 16)
    pixels = x.reshape(6, 16)
    log_likelihood = (pixels * probability.log() + (1 - pixels) * (1 - probability).log()).sum(-1).mean(0)
    divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(-1)
    assert torch.allclose(value, log_likelihood - divergence, atol=1e-10)


def test_log_weights_elbo_and_iwae_bound_have_their_documented_shapes():
    model, x = mlp_vae((1, 4, 4), 3, hidden=(8,)), torch.rand(6, 1, 4, 4)
    assert log_weights(model, x, 5).shape == (5, 6)
    assert elbo(model, x, 5).shape == iwae_bound(model, x, 5).shape == (6,)


@pytest.mark.parametrize("num_samples", [0, -1, 2.0, "3"])
@pytest.mark.parametrize("objective", [elbo, iwae_bound, log_weights])
def test_elbo_iwae_bound_and_log_weights_refuse_a_bad_num_samples(objective, num_samples):
    with pytest.raises(ValueError, match="num_samples must be a positive integer, got"):
        objective(curved(), data(2), num_samples)


def test_elbo_refuses_an_unknown_kl():
    with pytest.raises(ValueError, match="kl must be 'analytic' or 'monte_carlo', got 'exact'"):
        elbo(curved(), data(2), kl="exact")
