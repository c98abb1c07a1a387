"""Likelihoods, networks and models: densities that are densities, shapes, and the story they tell."""

import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.nn.functional import binary_cross_entropy_with_logits

from vae_core.distributions import standard_normal
from vae_core.likelihoods import bernoulli, gaussian, resolve
from vae_core.models import mlp_vae
from vae_core.networks import mlp

BINARY = torch.tensor(list(product([0.0, 1.0], repeat=4)), dtype=torch.float64).reshape(16, 1, 2, 2)


def small(**options):
    return mlp_vae((1, 2, 2), 1, hidden=(6,), **options).eval()


def test_bernoulli_probabilities_of_all_binary_images_sum_to_one():
    assert bernoulli(torch.randn(1, 2, 2)).log_prob(BINARY).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_bernoulli_is_minus_the_cross_entropy_also_on_grey_images():
    logits, x = torch.randn(5, 1, 3, 3), torch.rand(5, 1, 3, 3)
    cross_entropy = binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
    assert torch.allclose(bernoulli(logits).log_prob(x), -cross_entropy, atol=1e-12)


@pytest.mark.parametrize("logit", [17.0, 100.0, -100.0])
def test_bernoulli_neither_saturates_nor_loses_its_gradient(logit):
    logits = torch.full((1, 1, 1), logit, dtype=torch.float32, requires_grad=True)
    value = bernoulli(logits).log_prob(torch.full((1, 1, 1), float(logit < 0), dtype=torch.float32))
    value.backward()
    assert value.item() == pytest.approx(-abs(logit), rel=1e-6)
    assert logits.grad.item() == pytest.approx(-math.copysign(1, logit), rel=1e-6)


def test_bernoulli_mean_is_the_sigmoid():
    logits = torch.randn(1, 2, 2)
    assert torch.allclose(bernoulli(logits).mean, torch.sigmoid(logits))


@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0])
def test_gaussian_keeps_every_constant(sigma):
    mean, x = torch.randn(4, 1, 2, 3), torch.randn(4, 1, 2, 3)
    squared = ((x - mean) ** 2).sum((1, 2, 3))
    printed = -3 * math.log(2 * math.pi) - 6 * math.log(sigma) - squared / (2 * sigma**2)
    assert torch.allclose(gaussian(mean, sigma).log_prob(x), printed, rtol=1e-12)


def test_gaussian_density_integrates_to_one():
    x = torch.linspace(-20, 20, 40_001)
    density = gaussian(torch.full((1, 1, 1), 0.3), 0.8).log_prob(x.reshape(-1, 1, 1, 1)).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
def test_gaussian_refuses_a_width_that_is_not_positive(sigma):
    with pytest.raises(ValueError, match="sigma must be positive, got"):
        gaussian(torch.zeros(1, 1, 1), sigma)


def test_a_likelihood_is_a_name_or_a_callable():
    assert resolve("gaussian") is gaussian
    assert resolve(math.sin) is math.sin
    with pytest.raises(ValueError, match=r"one of .*'bernoulli', .*'gaussian', .* got 'poisson'"):
        resolve("poisson")


def test_mlp_blocks_are_linear_norm_activation_and_the_last_layer_is_bare():
    kinds = [type(layer) for layer in mlp((5, 4, 3), 2)]
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*block, *block, nn.Linear]
    assert [type(layer) for layer in mlp((5, 4), activation="tanh", batch_norm=False)] == [nn.Linear, nn.Tanh]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(widths=(4,)), "widths must be at least two positive integers, got"),
        (dict(widths=(4, 0)), "widths must be at least two positive integers, got"),
        (dict(widths=(4, 2), activation="swish"), "activation must be one of .* got 'swish'"),
    ],
)
def test_mlp_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        mlp(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(input_shape=(), latent_dim=2), r"input_shape must be .*\(C, H, W\) or \(D,\), got \(\)"),
        (dict(input_shape=5, latent_dim=2), r"input_shape must be .*\(C, H, W\) or \(D,\), got 5"),
        (dict(input_shape=(1, 0, 4), latent_dim=2), r"input_shape must be .*, got \(1, 0, 4\)"),
        (dict(input_shape=(2.5,), latent_dim=2), r"input_shape must be .*, got \(2.5,\)"),
        (dict(input_shape="ab", latent_dim=2), r"input_shape must be .*, got 'ab'"),
        (dict(input_shape=(1, 4, 4), latent_dim=0), "latent_dim must be a positive integer, got 0"),
        (dict(input_shape=(1, 4, 4), latent_dim=2, hidden=()), r"hidden must be at least one positive width, got \(\)"),
        (dict(input_shape=(1, 4, 4), latent_dim=2, hidden=128), "hidden must be at least one positive width, got 128"),
        (dict(input_shape=(1, 4, 4), latent_dim=2, hidden=(8, 0)), "hidden must be at least one positive width"),
        (dict(input_shape=(1, 4, 4), latent_dim=True), "latent_dim must be a positive integer, got True"),
        (dict(input_shape=(1, 4, 4), latent_dim="2"), "latent_dim must be a positive integer, got '2'"),
        (dict(input_shape=(1, 4, 4), latent_dim=2, likelihood="x"), "likelihood must be"),
        (dict(input_shape=(1, 4, 4), latent_dim=2, likelihood=["bernoulli"]), "likelihood must be"),
    ],
)
def test_mlp_vae_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        mlp_vae(**arguments)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 6)])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_distributions_have_the_documented_shapes(shape, likelihood):
    model, x = mlp_vae(shape, 3, hidden=(7, 5), likelihood=likelihood), torch.rand(4, *shape)
    q = model.posterior(x)
    p = model.likelihood(q.rsample((2,)))
    assert (q.batch_shape, q.event_shape) == ((4,), (3,))
    assert (model.prior.batch_shape, model.prior.event_shape) == ((), (3,))
    assert (p.batch_shape, p.event_shape) == ((2, 4), shape)
    assert p.log_prob(x).shape == (2, 4)
    assert model.reconstruct(x).shape == x.shape
    assert model.eval().decode(torch.zeros(3)).shape == shape


def test_a_grid_of_codes_is_decoded_as_its_rows_are():
    model, z = small(), torch.randn(3, 5, 1)
    rows = torch.stack([model.decode(row) for row in z])
    assert torch.allclose(model.decode(z), rows, atol=1e-14)


def test_the_encoder_puts_out_the_log_variance():
    model = small()
    nn.init.zeros_(model.log_variance.weight)
    nn.init.constant_(model.log_variance.bias, math.log(0.25))
    q = model.posterior(torch.rand(3, 1, 2, 2))
    assert torch.allclose(q.variance, torch.full((3, 1), 0.25))
    assert torch.allclose(q.stddev, torch.full((3, 1), 0.5))


def test_both_networks_receive_gradients():
    model = small()
    model.reconstruct(torch.rand(3, 1, 2, 2)).sum().backward()
    used = [p.grad is not None for name, p in model.named_parameters() if not name.startswith("log_variance")]
    assert all(used)


def evidence(model) -> torch.Tensor:
    """p(x) of all 16 binary images under a model with one latent number, by quadrature."""
    z = torch.linspace(-9, 9, 4001)[:, None]
    with torch.no_grad():
        log_joint = model.likelihood(z[:, None]).log_prob(BINARY) + standard_normal(1).log_prob(z)[:, None]
    return torch.trapezoid(log_joint.exp(), z, dim=0)


def test_evidence_of_all_binary_images_sums_to_one():
    assert evidence(small()).sum().item() == pytest.approx(1, abs=1e-9)


def test_ancestral_sampling_draws_images_with_their_evidence():
    model, n = small(), 200_000
    nn.init.normal_(model.decoder[-1].weight, std=2)  # make the pixels depend on z
    images = model.sample(n)
    codes = (images.reshape(n, 4) * torch.tensor([8.0, 4.0, 2.0, 1.0])).sum(1).long()
    frequency, expected = codes.bincount(minlength=16) / n, evidence(model)
    assert ((frequency - expected).abs() < 6 * (expected * (1 - expected) / n).sqrt()).all()
    assert (expected.max() / expected.min()) > 3  # the test could tell a uniform sampler


def test_gaussian_samples_carry_their_noise():
    images = small(likelihood="gaussian").sample(50_000)
    assert images.var().item() > 1  # noise of variance 1, plus what z adds


def test_the_same_seed_gives_the_same_samples():
    model = small()
    torch.manual_seed(5)
    first = model.sample(10)
    torch.manual_seed(5)
    assert torch.equal(first, model.sample(10))


@pytest.mark.parametrize("x", [torch.zeros(2, 1, 2, 3), torch.zeros(2, 4), torch.zeros(2, 1, 2, 2, dtype=torch.uint8)])
def test_images_of_another_shape_or_dtype_are_refused(x):
    with pytest.raises(ValueError, match=r"x must be float images of shape \(B, 1, 2, 2\), got"):
        small().posterior(x)


def test_codes_of_another_dimension_are_refused():
    with pytest.raises(ValueError, match=r"z must end in the latent dimension 1, got shape \(5, 2\)"):
        small().likelihood(torch.zeros(5, 2))


def test_the_likelihood_of_a_standard_decoder_matches_its_normal_density():
    model, z, x = small(likelihood="gaussian"), torch.randn(3, 1), torch.rand(3, 1, 2, 2)
    mean = model.decoder(z).reshape(3, 1, 2, 2)
    assert torch.allclose(model.likelihood(z).log_prob(x), Normal(mean, 1.0).log_prob(x).sum((1, 2, 3)), atol=1e-12)
