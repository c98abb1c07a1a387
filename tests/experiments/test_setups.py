"""The experiments of chapters 14 to 17: what their names say happens to images, objective and network."""

from dataclasses import replace
from math import log

import pytest
import torch
from torch.distributions import Independent, Uniform

from vae_core.data import load
from vae_core.experiments import figures, setups
from vae_core.experiments import run as experiment_run
from vae_core.experiments.figures import bits_per_dimension
from vae_core.experiments.registry import EXPERIMENTS, find
from vae_core.experiments.setups import dequantised, objective_of, start_at_mean_image
from vae_core.models import ConditionalVAE, mlp_vae
from vae_core.objectives import beta_elbo_terms, elbo_terms, iwae_bound

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def model():
    return mlp_vae((1, 8, 8), 3, hidden=(7,), batch_norm=False)


@pytest.fixture
def x():
    return torch.rand(16, 1, 8, 8)


def seeded(objective, *arguments):
    torch.manual_seed(0)
    result = objective(*arguments)
    return result[0] if isinstance(result, tuple) else result


def test_every_level_stays_in_its_own_256th():
    levels = torch.arange(256).repeat(4, 1)
    assert torch.equal((dequantised(levels / 255) * 256).floor().long(), levels)


def test_beta_weighs_the_kl(model, x):
    objective, _ = objective_of(find("beta-mnist-3"), model)
    assert torch.equal(seeded(objective, model, x), seeded(lambda *a: beta_elbo_terms(*a, beta=3.0), model, x))


def test_the_importance_weighted_bound_is_of_binary_images(model, x):
    objective, _ = objective_of(find("iwae-mnist-k5"), model)
    value = seeded(objective, model, x)
    assert torch.equal(value, seeded(lambda m, images: iwae_bound(m, torch.bernoulli(images), 5), model, x))


def test_images_that_are_binarised_once_stay_as_they_were_drawn(model):
    experiment, digits = find("static-iwae-mnist-k5"), load("digits")
    x = setups.prepare(experiment, digits, seed=0).x_train
    again, other = (setups.prepare(experiment, digits, seed).x_train for seed in (0, 1))
    assert set(x.unique().tolist()) == {0, 255}
    assert torch.equal(x, again)
    assert not torch.equal(x, other)
    error = (x / 255 - digits.x_train).mean(0).abs()  # by the law of large numbers small: n = 1437, variance ≤ 1/4
    assert error.max() < 5 * 0.5 / len(x) ** 0.5
    objective, _ = objective_of(experiment, model)
    value = seeded(objective, model, unit := x[:16] / 255)
    assert torch.equal(value, seeded(lambda m, images: iwae_bound(m, images, 5), model, unit))


def test_images_of_the_dynamic_kind_are_left_grey_for_the_objective_to_draw():
    digits = load("digits")
    assert setups.prepare(find("iwae-mnist-k5"), digits, seed=0).x_train is digits.x_train


def test_a_density_is_of_dequantised_images(model, x):
    objective, _ = objective_of(find("bits-mnist-continuous-bernoulli"), model)
    expected = seeded(lambda m, images: elbo_terms(m, dequantised(images)), model, x)
    assert torch.equal(seeded(objective, model, x), expected)


def test_the_discretized_logistic_is_of_the_levels_themselves(model, x):
    objective, _ = objective_of(find("bits-mnist-discretized-logistic"), model)
    assert objective is elbo_terms


def test_knowing_nothing_costs_eight_bits_either_way():
    """A uniform density on [0, 1] and a uniform law of 256 levels say the same."""
    density = Independent(Uniform(torch.zeros(1, 8, 8), torch.ones(1, 8, 8)), 3).log_prob(torch.rand(1, 8, 8))
    assert bits_per_dimension(-density.item(), 64, dequantised=True) == pytest.approx(8)
    assert bits_per_dimension(64 * log(256), 64, dequantised=False) == pytest.approx(8)


def test_a_model_that_starts_at_the_mean_image_decodes_to_it():
    model, x = mlp_vae((1, 8, 8), 3, hidden=(7,), batch_norm=False), load("digits").x_train
    with torch.no_grad():
        model.decoder[-1].weight.zero_()
        start_at_mean_image(model, x)
        image = model.decode(torch.randn(1, 3))[0]
    assert torch.allclose(image, x.mean(0), atol=1e-3 + 1e-6)


def on_digits(name: str, **changes):
    """The experiment, its network made smaller, on digits."""
    experiment = find(name)
    network = experiment.model | dict(latent_dim=2, hidden=(8,))
    return replace(experiment, dataset="digits", model=network, epochs=1, weights=False, **changes)


BEYOND = [name for name, e in EXPERIMENTS.items() if e.source.startswith("this book, chapter 1")]
ON_DIGITS = [name for name in BEYOND if "discretized" not in name and "cifar10" not in name]  # 17 levels, 8×8 pixels


@pytest.mark.parametrize("name", ON_DIGITS)
def test_each_runs_to_its_record_on_digits(name, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "importance_sampled", lambda *_: {"log_likelihood": -1.0})
    monkeypatch.setitem(EXPERIMENTS, name, on_digits(name))
    record, _ = experiment_run.run(name, out=tmp_path, device="cpu", progress=False)
    assert record["test"]["loss"] == pytest.approx(record["test"]["reconstruction"] + record["test"]["kl"])
    assert ("bits_per_dimension" in record["test"]) == name.startswith("bits-")


def test_a_conditional_run_is_told_the_labels_of_both_sets(tmp_path, monkeypatch):
    name = "conditional-mnist-d2"
    monkeypatch.setitem(EXPERIMENTS, name, on_digits(name))
    told = []
    given = ConditionalVAE.given
    each = lambda self, y: (told.append(y) if y.dim() == 2 else None) or given(self, y)  # noqa: E731, not one for all
    monkeypatch.setattr(ConditionalVAE, "given", each)
    experiment_run.run(name, out=tmp_path, device="cpu", progress=False)
    digits = load("digits")
    assert sum(map(len, told)) == 2 * (len(digits.x_train) + len(digits.x_test))  # trained, twice judged; twice tested
    assert torch.equal(told[-1].argmax(1), digits.y_test)
    assert all((y.sum(1) == 1).all() for y in told)


def test_conditions_are_for_conditional_models_only(model):
    assert setups.conditions(model, torch.tensor([1])) is None
