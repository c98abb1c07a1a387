"""What chapter 08 says beyond the module's own tests: heads, likelihoods, batches, Saleh's loop, a listing's traps."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Bernoulli, Categorical, NegativeBinomial, Normal

from vae_core.data import load
from vae_core.distributions import diagonal_normal, kl_divergence
from vae_core.evaluation import evaluate
from vae_core.models import mlp_vae
from vae_core.objectives import elbo

widths = st.integers(1, 12)


def random_model(seed=0):
    torch.manual_seed(seed)
    return mlp_vae((1, 3, 4), 2, hidden=(7,), activation="tanh", batch_norm=False)


@given(widths, widths, widths)
def test_one_hidden_layer_is_two_lines_of_algebra_and_has_its_number_of_parameters(D, H, d):
    model = mlp_vae((1, 1, D), d, hidden=(H,), activation="tanh", batch_norm=False)
    formula = (D + 1) * H + 2 * (H + 1) * d + (d + 1) * H + (H + 1) * D
    assert sum(p.numel() for p in model.parameters()) == formula
    x, first = torch.rand(3, 1, 1, D), model.encoder[1]
    a = torch.tanh(x.flatten(1) @ first.weight.T + first.bias)
    q = model.posterior(x)
    assert torch.allclose(q.mean, a @ model.mean.weight.T + model.mean.bias)
    log_variance = a @ model.log_variance.weight.T + model.log_variance.bias
    assert torch.allclose(q.variance, log_variance.exp())


@pytest.mark.parametrize(("d", "count"), [(2, 788_788), (3, 790_290), (50, 860_884)])
def test_irvins_networks_have_the_numbers_in_the_text(d, count):
    model = mlp_vae((1, 28, 28), d, hidden=(500,), activation="tanh", batch_norm=False)
    assert sum(p.numel() for p in model.parameters()) == count


def test_a_head_of_log_sigma_is_half_a_head_of_log_variance():
    mean, log_sigma = torch.randn(2, 5, 3)
    q, z = diagonal_normal(mean, 2 * log_sigma), torch.randn(5, 3)
    assert torch.allclose(q.log_prob(z), Normal(mean, log_sigma.exp()).log_prob(z).sum(-1))
    forgotten = diagonal_normal(mean, log_sigma)
    assert torch.allclose(forgotten.stddev, q.stddev.sqrt())


def test_each_likelihood_of_the_table_is_a_law():
    a, b = torch.tensor(0.7), torch.tensor(-0.4)
    counts = torch.arange(400.0)
    for law, support in (
        (Bernoulli(logits=a), torch.tensor([0.0, 1.0])),
        (Categorical(logits=torch.stack([a, b, a * b])), torch.arange(3)),
        (NegativeBinomial(b.exp(), logits=a), counts),
    ):
        assert abs(law.log_prob(support).exp().sum() - 1) < 1e-9
    x = torch.linspace(-30, 30, 100_001)
    by_hand = -0.5 * ((2 * torch.tensor(torch.pi)).log() + b + (x - a) ** 2 * (-b).exp())
    assert torch.allclose(by_hand, Normal(a, (b / 2).exp()).log_prob(x))
    assert abs(torch.trapezoid(by_hand.exp(), x) - 1) < 1e-9
    r, s = b.exp(), torch.sigmoid(a)
    by_hand = torch.lgamma(counts + r) - torch.lgamma(r) - torch.lgamma(counts + 1) + r * (1 - s).log()
    assert torch.allclose(by_hand + counts * s.log(), NegativeBinomial(r, logits=a).log_prob(counts))


def test_a_unit_gaussian_on_784_pixels_costs_more_than_any_loss_that_irvin_prints():
    floor = -Normal(0.0, 1.0).log_prob(torch.zeros(784)).sum()
    assert round(floor.item(), 2) == 720.45 > 136.30


def test_a_batch_estimates_the_mean_over_all_images():
    """Over all batches of three out of six, the batch means average to the mean, and no single datum's value."""
    model, x = random_model(), torch.rand(6, 1, 3, 4)
    noise = torch.randn(6, 2)
    q = model.posterior(x)
    values = model.likelihood(q.mean + q.stddev * noise).log_prob(x)
    batches = torch.stack([values[list(index)].mean() for index in combinations(range(6), 3)])
    assert torch.allclose(batches.mean(), values.mean())
    assert (values - values.mean()).abs().min() > 1e-6
    sizes = torch.stack([part.mean() * len(part) for part in values.split(4)])
    assert torch.allclose(sizes.sum() / 6, values.mean())
    assert not torch.allclose(sizes[0] / 8 + sizes[1] / 4, values.mean())  # batches of 4 and 2, weighed alike


@given(st.integers(0, 2**31 - 1))
def test_one_image_at_a_time_is_all_at_once(seed):
    model = random_model(seed)
    x, noise, total = torch.rand(4, 1, 3, 4), torch.randn(4, 2), 0.0
    for image, epsilon in zip(x, noise, strict=True):
        features = model.encoder(image[None])
        mu, log_variance = model.mean(features), model.log_variance(features)
        p = model.decode(mu + (0.5 * log_variance).exp() * epsilon)[0]
        total = total + 0.5 * (1 + log_variance - mu**2 - log_variance.exp()).sum()
        total = total + (image * p.log() + (1 - image) * (1 - p).log()).sum()
    q = model.posterior(x)
    at_once = (model.likelihood(q.mean + q.stddev * noise).log_prob(x) - kl_divergence(q, model.prior)).sum()
    assert torch.allclose(total, at_once)
    parameters = list(model.parameters())
    for a, b in zip(torch.autograd.grad(total, parameters), torch.autograd.grad(at_once, parameters), strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_without_a_path_the_encoder_hears_of_the_kl_alone():
    model, x = random_model(), torch.rand(5, 1, 3, 4)
    q = model.posterior(x)
    value = model.likelihood(q.sample()).log_prob(x) - kl_divergence(q, model.prior)
    heads = list(model.mean.parameters()) + list(model.log_variance.parameters())
    ours = torch.autograd.grad(value.sum(), heads, retain_graph=True)
    of_kl = torch.autograd.grad(-kl_divergence(q, model.prior).sum(), heads)
    assert all(torch.allclose(a, b) for a, b in zip(ours, of_kl, strict=True))


def test_a_one_sample_test_loss_scatters_by_the_root_of_one_over_n(float32):
    model, x = mlp_vae((1, 8, 8), 2, hidden=(16,)).eval(), load("digits").x_test
    with torch.no_grad():
        model.decoder[0].weight.mul_(8)  # so that a draw matters
        variance = torch.stack([elbo(model, x) for _ in range(400)]).double().var(0).mean()
    losses = torch.tensor([evaluate(model, x, seed=seed)["loss"] for seed in range(200)]).double()
    predicted = (variance / len(x)).sqrt()
    assert abs(losses.std() / predicted - 1) < 6 / (2 * 200) ** 0.5


def test_a_decoder_that_remembers_the_last_batch_cannot_decode_another():
    out = nn.Linear(2, 784)
    remembered = torch.rand(16, 1, 28, 28).size()
    with pytest.raises(RuntimeError, match="invalid for input of size 784"):
        torch.sigmoid(out(torch.zeros(1, 2))).view(remembered)
    ours = mlp_vae((1, 28, 28), 2).eval()
    ours.posterior(torch.rand(16, 1, 28, 28))
    assert ours.decode(torch.zeros(1, 2)).shape == (1, 1, 28, 28)


def test_three_halvings_of_28_come_back_as_24():
    h, sides = torch.zeros(1, 1, 28, 28), []
    for layer in 3 * [nn.Conv2d] + 3 * [nn.ConvTranspose2d]:
        h = layer(1, 1, 4, 2, 1)(h)
        sides.append(h.shape[-1])
    assert sides == [14, 7, 3, 6, 12, 24]


@given(st.integers(1, 40), st.integers(2, 40))
def test_the_printed_ticks_are_one_too_many(n, size):
    start = size // 2
    assert len(range(start, n * size + start + 1, size)) == n + 1
    assert len(range(start, (n - 1) * size + start + 1, size)) == n
