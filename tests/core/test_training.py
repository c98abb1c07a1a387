"""`fit`: determinism, bookkeeping, what is not finite, figures after each epoch, and the thesis' own way."""

import contextlib
import math
import os

import numpy as np
import pytest
import torch
from checks import refused
from torch import Tensor, nn
from training_runs import changed_at, flat, interrupt, network, same_state, squared_error, timeless, train, x

from vae_core.evaluation import evaluate
from vae_core.models import VAE, mlp_vae
from vae_core.objectives import elbo, elbo_terms
from vae_core.runtime import seed_everything, unit_interval
from vae_core.training import NonFiniteLossError, fit, training_seed

pytestmark = pytest.mark.usefixtures("float32")


# What a run is


def test_fit_the_same_seed_gives_the_same_parameters_bit_for_bit(x):
    (a, rows_a), (b, rows_b) = train(x, seed=5), train(x, seed=5)
    assert same_state(a, b)
    assert timeless(rows_a) == timeless(rows_b)


def test_fit_another_seed_gives_other_parameters(x):
    assert not same_state(train(x, seed=5)[0], train(x, seed=6)[0])


def test_fit_the_seed_is_all_the_randomness_there_is(x):
    a, _ = train(x)
    model = network()
    torch.manual_seed(99)
    assert same_state(train(x, model=model)[0], a)


@pytest.mark.parametrize("objective", [elbo_terms, changed_at(3, interrupt)])
def test_fit_the_callers_random_state_is_left_as_it_was(objective, x):
    model, before = network(), torch.get_rng_state()
    with contextlib.suppress(KeyboardInterrupt):
        train(x, objective, model)
    assert torch.equal(torch.get_rng_state(), before)


def test_fit_the_loss_falls_on_digits(x):
    _, history = train(x, epochs=10)
    losses = [row["loss"] for row in history]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.75 * losses[0]


def test_fit_every_image_is_seen_once_an_epoch_in_another_order(x):
    seen = []

    def objective(model: VAE, batch: Tensor) -> Tensor:
        seen.append(batch)
        return elbo(model, batch)

    train(x, objective, epochs=2)
    first, second = (torch.cat(seen[k : k + 4]) for k in (0, 4))
    assert [len(batch) for batch in seen] == [64] * 8
    assert not torch.equal(first, second)
    for images in (first, second):
        assert sorted(images.flatten(1).tolist()) == sorted(x.flatten(1).tolist())


def test_fit_the_model_trains_in_training_mode_and_is_left_in_evaluation_mode(x):
    modes = []

    def objective(model: VAE, batch: Tensor) -> Tensor:
        modes.append(model.training)
        return elbo(model, batch)

    model, _ = train(x, objective, network().eval(), epochs=1)
    assert modes == [True] * 4
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("progress", [False, True])
def test_fit_nothing_is_printed_without_progress_or_with_tqdm_disabled(progress, x, capsys):
    assert os.environ["TQDM_DISABLE"] == "1"  # conftest.py sets it before tqdm is imported
    train(x, progress=progress)
    assert capsys.readouterr() == ("", "")


def test_fit_no_epochs_change_nothing_and_give_no_rows(x):
    model, history = train(x, epochs=0)
    assert history == []
    assert same_state(model, network())


def test_fit_training_does_not_draw_again_what_initialisation_drew(x):
    """seed_everything(s), a model, fit(seed=s): the same s must not give the same random numbers twice."""
    drawn = []

    def objective(model: nn.Module, batch: Tensor) -> Tensor:
        drawn.append(torch.rand(5))
        return elbo(model, batch)

    fit(mlp_vae((1, 8, 8), 1, hidden=(4,)), x[:8], objective, epochs=1, batch_size=8, seed=3)
    torch.manual_seed(3)
    stream = torch.rand(1000)
    assert not torch.isin(drawn[0], stream).any()
    assert len({training_seed(seed) for seed in range(1000)} | set(range(1000))) == 2000


# The history


def test_fit_a_row_holds_epoch_loss_terms_and_seconds(x):
    _, history = train(x, epochs=3)
    assert [set(row) for row in history] == [{"epoch", "loss", "reconstruction", "kl", "seconds"}] * 3
    assert [row["epoch"] for row in history] == [1, 2, 3]


def test_fit_the_loss_is_the_sum_of_its_terms(x):
    for row in train(x)[1]:
        assert row["loss"] == pytest.approx(row["reconstruction"] + row["kl"], rel=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("batch_size", [16, 49, 50, 1000])
def test_fit_the_logged_loss_is_the_mean_over_images_whatever_the_batches(batch_size, reduction, x):
    images, model = x[:50].double(), network(batch_norm=False).double()
    expected = -squared_error(model, images).mean().item()
    settings = dict(epochs=1, batch_size=batch_size, reduction=reduction, learning_rate=1e-30)
    _, (row,) = train(images, squared_error, model, **settings)
    assert row["loss"] == pytest.approx(expected, rel=1e-12)


def test_fit_an_objective_may_return_its_values_alone(x):
    (a, rows), (b, _) = train(x, elbo), train(x, elbo_terms)
    assert same_state(a, b)
    assert [set(row) for row in rows] == [{"epoch", "loss", "seconds"}] * 2


# Equivalent ways to say the same


def test_fit_uint8_images_and_the_same_images_as_floats_give_the_same_parameters(x):
    stored = (x * 16 * 15).to(torch.uint8)
    assert same_state(train(stored)[0], train(unit_interval(stored))[0])


def test_fit_sum_with_a_weight_decay_is_mean_with_it_divided_by_the_batch_size(x):
    def parameters(reduction: str, weight_decay: float) -> Tensor:
        model = network(batch_norm=False).double()
        settings = dict(reduction=reduction, weight_decay=weight_decay, batch_size=32)
        return flat(train(x.double(), model=model, **settings)[0])

    summed = parameters("sum", 10.0)
    torch.testing.assert_close(parameters("mean", 10.0 / 32), summed, rtol=0, atol=1e-4)  # but for Adam's epsilon
    assert (parameters("mean", 10.0) - summed).abs().max() > 0.1


def test_fit_numpys_integers_are_integers(x):
    numbers = dict(epochs=np.int64(1), batch_size=np.int32(32), seed=np.uint8(200))
    (a, rows), (b, expected) = train(x, **numbers), train(x, **{name: int(n) for name, n in numbers.items()})
    assert same_state(a, b)
    assert timeless(rows) == timeless(expected)
    draws = []
    for seed in (np.int64(7), 7):
        seed_everything(seed)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


# A loss that is not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_fit_a_loss_that_is_not_finite_puts_the_model_back_to_the_last_good_epoch(bad, x):
    model = network()
    with refused(NonFiniteLossError, "epoch 2", "step 2 of 4", "learning_rate", "epoch 1"):
        train(x, changed_at(6, lambda value: value * bad), model, epochs=3)
    assert same_state(model, train(x, epochs=1)[0])


def test_fit_a_loss_that_is_not_finite_in_the_first_epoch_puts_the_initial_model_back(x):
    model = network()
    with refused(NonFiniteLossError, "epoch 1", "step 1 of 4"):
        train(x, changed_at(1, lambda value: value * math.nan), model)
    assert same_state(model, network())


def steep(value: Tensor) -> Tensor:
    """The same values, with slopes that are no numbers."""
    return value + (value - value).sqrt()


@pytest.mark.parametrize(("epochs", "step"), [(1, 4), (3, 4), (3, 12)])
def test_fit_a_slope_that_is_not_finite_puts_the_model_back_to_the_last_good_epoch(epochs, step, x):
    """The last loss of an epoch is taken before the step that it leads to."""
    model, bad = network(), step // 4
    with refused(NonFiniteLossError, f"a gradient of epoch {bad}", f"the end of epoch {bad - 1}", "learning_rate"):
        train(x, changed_at(step, steep), model, epochs=epochs)
    assert same_state(model, train(x, epochs=bad - 1)[0])


def test_fit_what_never_was_finite_is_no_parameter_that_became_so(x):
    masked, free = network(), train(x)[0]
    masked.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    train(x, model=masked)
    assert torch.equal(flat(masked), flat(free))


def test_fit_an_interrupted_model_keeps_what_it_learnt_and_may_be_used(x):
    model, trained = network(), network()
    with pytest.raises(KeyboardInterrupt):
        train(x, changed_at(10, interrupt), model, epochs=4)
    train(x, model=trained, epochs=4)
    assert not model.training
    assert evaluate(trained, x)["loss"] < evaluate(model, x)["loss"] < 0.99 * evaluate(network(), x)["loss"]


# After each epoch


def disturb(model: nn.Module) -> dict[str, float]:
    """Figures at the price of random numbers, another seed and another mode."""
    model.eval()
    torch.manual_seed(len(list(model.parameters())))
    return {"draw": torch.rand(1000).mean().item()}


def test_fit_figures_after_each_epoch_join_its_row(x):
    sums = []

    def after_epoch(model: VAE) -> dict[str, float]:
        sums.append(flat(model).sum().item())
        return {"sum": sums[-1], "twice": 2 * sums[-1]}

    model, history = train(x, epochs=3, after_epoch=after_epoch)
    assert [(row["sum"], row["twice"]) for row in history] == [(value, 2 * value) for value in sums]
    assert len(set(sums)) == 3
    assert sums[-1] == flat(model).sum().item()
    assert [set(row) for row in history] == [{"epoch", "loss", "reconstruction", "kl", "seconds", "sum", "twice"}] * 3


def test_fit_figures_after_each_epoch_do_not_disturb_training(x):
    (disturbed, rows), (alone, expected) = train(x, epochs=3, after_epoch=disturb), train(x, epochs=3)
    assert same_state(disturbed, alone)
    assert [row.pop("draw") > 0 for row in rows] == [True] * 3
    assert timeless(rows) == timeless(expected)


def test_fit_figures_after_each_epoch_are_those_of_evaluation_mode(x):
    """A forward pass in training mode would take the batch's own statistics, and change the running averages."""

    def mean(model: VAE) -> dict[str, float]:
        return {"mean": model.reconstruct(x).mean().item()}

    (watched, rows), (alone, _) = train(x, epochs=2, after_epoch=mean), train(x, epochs=2)
    assert any(isinstance(module, nn.BatchNorm1d) for module in watched.modules())
    assert same_state(watched, alone)
    assert rows[-1]["mean"] == alone.reconstruct(x).mean().item()


def test_fit_the_last_figure_is_that_of_the_trained_model(x):
    def tested(model: VAE) -> dict[str, float]:
        return {f"test_{name}": value for name, value in evaluate(model, x, seed=3).items()}

    model, history = train(x, after_epoch=tested)
    assert tested(model).items() <= history[-1].items()
