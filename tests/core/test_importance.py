"""Importance-sampled log p(x), the weighted KL and its warm-up, against what can be computed exactly."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

from vae_core.distributions import diagonal_normal, standard_normal
from vae_core.evaluation import evaluate, log_likelihood, log_weights_in_chunks, with_batch_statistics
from vae_core.models import mlp_vae
from vae_core.objectives import beta_elbo_terms, elbo_terms, linear_warm_up


class LinearGaussian(nn.Module):
    """x = W z + noise of variance σ², one W of orthogonal columns, so that the posterior is a diagonal Gaussian."""

    def __init__(self, widen: float = 1.0) -> None:
        super().__init__()
        basis = torch.linalg.qr(torch.randn(6, 2)).Q
        self.weight = nn.Parameter(basis * torch.tensor([1.5, 0.7]))
        self.variance, self.widen = 0.3, widen

    @property
    def prior(self) -> Independent:
        return standard_normal(2, like=self.weight)

    def posterior(self, x: Tensor) -> Independent:
        precision = self.weight.square().sum(0) / self.variance + 1
        mean = x.flatten(1) @ self.weight / self.variance / precision
        return diagonal_normal(mean, (self.widen / precision).log().expand_as(mean))

    def likelihood(self, z: Tensor) -> Independent:
        mean = (z @ self.weight.T).reshape(*z.shape[:-1], 1, 2, 3)
        return Independent(Normal(mean, math.sqrt(self.variance)), 3)

    def log_prob(self, x: Tensor) -> Tensor:
        covariance = self.weight @ self.weight.T + self.variance * torch.eye(6)
        return MultivariateNormal(torch.zeros(6), covariance).log_prob(x.flatten(1))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(40, 1, 2, 3)


def test_log_likelihood_with_one_sample_from_the_exact_posterior_is_exact(x):
    model = LinearGaussian()
    assert torch.allclose(log_likelihood(model, x, num_samples=1), model.log_prob(x), atol=1e-10)


def test_log_likelihood_with_many_samples_comes_close_from_below(x):
    model = LinearGaussian(widen=2.0)
    exact = model.log_prob(x).mean().item()
    means = [log_likelihood(model, x, k, batch_size=7).mean().item() for k in (1, 10, 1000)]
    assert means[0] < means[1] < means[2]
    assert means[2] == pytest.approx(exact, abs=0.01)


def test_log_likelihood_is_the_logarithm_of_an_unbiased_estimate(x):
    model = LinearGaussian(widen=2.0)
    ratios = (
        log_likelihood(model, x[:1].expand(20_000, -1, -1, -1), 1, batch_size=20_000) - model.log_prob(x[:1])
    ).exp()
    assert abs(ratios.mean().item() - 1) < 6 * (ratios.std() / len(ratios) ** 0.5).item()


def test_log_likelihood_in_chunks_has_the_same_distribution(x):
    model = LinearGaussian(widen=2.0)
    whole, portions = (log_likelihood(model, x, 600, at_once=size) for size in (600, 37))
    assert torch.allclose(whole, portions, atol=0.2)
    assert torch.equal(portions, log_likelihood(model, x, 600, at_once=37))


@pytest.mark.parametrize("at_once", [1, 3, 7, 8])
def test_log_weights_in_chunks_add_up_to_the_number_of_draws(at_once, x):
    assert log_weights_in_chunks(LinearGaussian(), x, 7, at_once).shape == (7, len(x))


def test_log_likelihood_refuses_no_image_or_sample(x):
    for images, counts in ((x[:0], {}), (x, dict(num_samples=0)), (x, dict(batch_size=0)), (x, dict(at_once=0))):
        with pytest.raises(ValueError, match=r"must (hold at least one|be a positive integer)"):
            log_likelihood(LinearGaussian(), images, **counts)


def test_beta_elbo_terms_weigh_the_kl_alone(x):
    model = LinearGaussian(widen=2.0)
    torch.manual_seed(1)
    value, terms = beta_elbo_terms(model, x, 4.0)
    torch.manual_seed(1)
    usual, same = elbo_terms(model, x)
    assert torch.equal(terms["kl"], same["kl"])
    assert torch.allclose(value, usual - 3 * terms["kl"], atol=1e-12)


def test_linear_warm_up_is_linear_and_then_one():
    beta = linear_warm_up(0.25)
    assert [beta(progress) for progress in (0.0, 0.125, 0.25, 0.6, 1.0)] == [0.0, 0.5, 1.0, 1.0, 1.0]
    for share in (0.0, -0.1, 1.5):
        with pytest.raises(ValueError, match="share must be in"):
            linear_warm_up(share)


def test_with_batch_statistics_is_the_training_mode_and_the_model_stays():
    images, model = torch.rand(64, 1, 2, 2), mlp_vae((1, 2, 2), 1, hidden=(4,)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copied = evaluate(with_batch_statistics(model), images, batch_size=64)
    torch.manual_seed(0)
    with torch.no_grad():
        _, terms = elbo_terms(model.train(), images)
    assert copied["kl"] == pytest.approx(terms["kl"].mean().item(), rel=1e-9)
    model.load_state_dict(before)
    assert evaluate(model, images)["kl"] != pytest.approx(copied["kl"], rel=1e-3)
