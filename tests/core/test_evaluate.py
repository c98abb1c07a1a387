"""`evaluate` and `kl_per_unit`: means over held-out data that leave the model alone."""

import pytest
import torch
from checks import refused
from torch import nn
from training_runs import network, same_state, train, x

from vae_core.evaluation import evaluate, kl_per_unit
from vae_core.objectives import elbo

pytestmark = pytest.mark.usefixtures("float32")


# evaluate


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_leaves_every_module_in_its_mode(training, x):
    model = network().train(training)
    model.encoder.train(not training)
    before = [module.training for module in model.modules()]
    evaluate(model, x)
    assert [module.training for module in model.modules()] == before


def test_evaluate_leaves_the_model_as_it_was_when_it_refuses(x):
    model = network().train()
    with refused(ValueError, "x must be", "(B, 1, 8, 8)"):
        evaluate(model, x[..., :7])
    assert model.training


def test_evaluate_changes_no_state_and_no_random_state(x):
    model, before = network().train(), torch.get_rng_state()
    evaluate(model, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert same_state(model, network())


def test_evaluate_depends_on_its_seed_alone(x):
    model = network()
    first = evaluate(model, x, seed=4)
    torch.manual_seed(99)
    assert evaluate(model, x, seed=4) == first
    assert evaluate(model, x, seed=5)["reconstruction"] != first["reconstruction"]
    assert evaluate(model, x, seed=5)["kl"] == first["kl"]


@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
def test_evaluate_has_the_sum_of_its_terms_over_all_images_as_loss(kl, x):
    figures = evaluate(network(), x, kl=kl, num_samples=3)
    assert set(figures) == {"loss", "reconstruction", "kl", "n"}
    assert figures["n"] == 256
    assert figures["loss"] == figures["reconstruction"] + figures["kl"]


@pytest.mark.parametrize(("num_samples", "kl"), [(1, "analytic"), (1, "monte_carlo"), (4, "analytic")])
def test_evaluate_is_the_mean_over_images_of_the_negative_elbo_in_evaluation_mode(num_samples, kl, x):
    model = train(x)[0].train()
    figures = evaluate(model, x, num_samples, kl, seed=4, batch_size=256)
    torch.manual_seed(4)
    with torch.no_grad():
        expected = -elbo(model.eval(), x, num_samples, kl).double().mean().item()
    assert figures["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 100, 255])
def test_evaluate_has_the_same_kl_for_every_batch_size(batch_size, x):
    model = network().double().train()
    expected = evaluate(model, x.double(), batch_size=256)["kl"]
    assert evaluate(model, x.double(), batch_size=batch_size)["kl"] == pytest.approx(expected, rel=1e-12)


def test_evaluate_refuses_no_images(x):
    with refused(ValueError, "x", "at least one image"):
        evaluate(network(), x[:0])


# Figures per unit


def test_kl_per_unit_adds_up_to_the_kl(x):
    model, _ = train(x, model=network(latent_dim=3))
    assert kl_per_unit(model, x, batch_size=100).sum().item() == pytest.approx(evaluate(model, x)["kl"], rel=1e-6)


def test_kl_per_unit_is_zero_for_a_unit_that_follows_the_prior(x):
    model = network(latent_dim=3)
    for head in (model.mean, model.log_variance):
        nn.init.zeros_(head.weight[1:])
        nn.init.zeros_(head.bias[1:])
    units = kl_per_unit(model, x)
    assert units[0] > 1e-3
    assert units[1:].abs().max() < 1e-12


def test_kl_per_unit_needs_images(x):
    with refused(ValueError, "x", "at least one image"):
        kl_per_unit(network(), x[:0])
