"""The functions that `fit` is given: objectives, optimizers, `after_epoch`; and what is left when one of them fails."""

import math
import sys
from functools import partial

import numpy as np
import pytest
import torch
from checks import refused
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from training_runs import changed_at, flat, interrupt, network, same_state, squared_error, timeless, train, x

from vae_core.evaluation import evaluate
from vae_core.models import VAE
from vae_core.objectives import elbo, elbo_terms
from vae_core.training import NonFiniteLossError, fit

pytestmark = pytest.mark.usefixtures("float32")


# What an objective may return


def terms(make, name="extra"):
    """The ELBO, with a further term made of its value."""
    return lambda model, batch: (value := elbo(model, batch), {name: make(value)})


WRONG = {
    "nothing": (lambda model, batch: None, TypeError, ["objective", "(64,)", "None"]),
    "a number": (lambda model, batch: elbo(model, batch).mean().item(), TypeError, ["objective", "float"]),
    "a mean": (lambda model, batch: elbo(model, batch).mean(), ValueError, ["objective", "(64,)", "()"]),
    "a column": (lambda model, batch: elbo(model, batch)[:, None], ValueError, ["(64,)", "(64, 1)"]),
    "three things": (lambda model, batch: (elbo(model, batch), {}, {}), TypeError, ["objective", "tuple of 3"]),
    "a list": (lambda model, batch: [elbo(model, batch), {}], TypeError, ["objective", "list"]),
    "an array": (lambda model, batch: elbo(model, batch).detach().numpy(), TypeError, ["objective", "ndarray"]),
    "whole numbers": (lambda model, batch: elbo(model, batch).long(), ValueError, ["objective", "int64"]),
    "no gradient": (lambda model, batch: elbo(model, batch).detach(), ValueError, ["depend", "parameters"]),
    "no_grad": (torch.no_grad()(elbo), ValueError, ["depend", "parameters"]),
    "another model": (lambda model, batch: elbo(network(), batch), ValueError, ["depend", "parameters"]),
    "terms in a list": (lambda model, batch: (elbo(model, batch), []), TypeError, ["dict of terms", "list"]),
    "a term that is a mean": (terms(lambda value: value.mean()), ValueError, ["'extra'", "(64,)", "()"]),
    "a term that is a float": (terms(lambda value: value.mean().item()), TypeError, ["'extra'", "float"]),
    "a term that is None": (terms(lambda value: None), TypeError, ["'extra'", "None"]),
    "a term for each sample": (terms(lambda value: value.expand(3, -1)), ValueError, ["'extra'", "(3, 64)"]),
    "a term of whole numbers": (terms(lambda value: value.long()), ValueError, ["'extra'", "int64"]),
    "a term called loss": (lambda model, batch: (v := elbo(model, batch), {"loss": v}), ValueError, ["'loss'"]),
    "a term called epoch": (lambda model, batch: (v := elbo(model, batch), {"epoch": v}), ValueError, ["'epoch'"]),
    "a term called seconds": (
        lambda model, batch: (v := elbo(model, batch), {"seconds": v}),
        ValueError,
        ["'seconds'"],
    ),
    "a term called 3": (lambda model, batch: (v := elbo(model, batch), {3: v}), ValueError, ["3"]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_fit_refuses_what_an_objective_must_not_return(kind, x):
    objective, error, words = WRONG[kind]
    model = network()
    with refused(error, *words):
        train(x, objective, model)
    assert same_state(model, network())
    assert not model.training


def test_fit_refuses_terms_that_change_and_keeps_terms_that_change_places(x):
    for later, error in ((dict(a=1, b=2, c=3), ValueError), (dict(b=2), ValueError), (dict(b=2, a=1), None)):
        steps = iter(range(100))

        def objective(model, batch, later=later, steps=steps):
            value = elbo(model, batch)
            names = dict(a=1, b=2) if next(steps) < 2 else later
            return value, {name: 0 * value.detach() + number for name, number in names.items()}

        if error is None:
            row = train(x, objective, epochs=1)[1][0]
            assert (row["a"], row["b"]) == (1, 2)
            continue
        with refused(error, "same terms", "'a'", "'b'"):
            train(x, objective, epochs=1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_fit_names_the_term_that_is_not_finite(bad, x):
    with refused(ArithmeticError, "the term 'extra' became", "epoch 1", "step 1 of 4"):
        train(x, terms(lambda value: value * bad))


# Optimizers


class Point(nn.Module):
    """One parameter vector θ; the objective −½‖θ − x̄‖², whose gradient steps can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(2))


def to_the_mean(model: Point, batch: Tensor) -> Tensor:
    return -0.5 * (model.theta - batch).square().sum(1)


def final(optimizer, steps=5, **settings) -> Tensor:
    model = Point()
    data = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    fit(
        model,
        data,
        to_the_mean,
        epochs=steps,
        optimizer=optimizer,
        progress=False,
        **dict(learning_rate=0.1) | settings,
    )
    return model.theta.detach()


def test_fit_with_sgd_and_momentum_makes_its_steps():
    theta, velocity, mean = torch.zeros(2), torch.zeros(2), torch.tensor([2.0, 1.0])
    for _ in range(5):
        velocity = 0.9 * velocity + (theta - mean) + 0.01 * theta
        theta = theta - 0.1 * velocity
    assert torch.allclose(final(partial(SGD, momentum=0.9), weight_decay=0.01), theta, atol=1e-6)


def test_fit_with_adamw_decays_weights_apart_from_the_gradient():
    """Its first step is that of Adam, and −lr·w·θ; Adam adds w·θ to the gradient, whose size its step forgets."""

    def start(params, **rates):
        (theta,) = params
        with torch.no_grad():
            theta.fill_(1.5)
        return AdamW([theta], **rates)

    assert torch.allclose(final(start, 1, weight_decay=0.5), torch.tensor([1.5 + 0.1, 1.5 - 0.1]) - 0.1 * 0.5 * 1.5)


@pytest.mark.parametrize("optimizer", [torch.optim.RMSprop, torch.optim.NAdam, torch.optim.Adagrad, AdamW, SGD])
def test_fit_trains_with_torchs_optimizers(optimizer):
    before, after = (final(optimizer, steps) - torch.tensor([2.0, 1.0]) for steps in (1, 200))
    assert after.norm() < 0.5 * before.norm()


def test_fit_keeps_the_ratios_of_learning_rates_in_groups():
    def two_speeds(params, lr, weight_decay):
        (theta,) = params
        return SGD([{"params": [theta], "lr": 3 * lr}], weight_decay=weight_decay)

    assert torch.allclose(final(two_speeds), final(SGD, learning_rate=0.3), atol=1e-6)
    assert torch.allclose(final(two_speeds, schedule="one-cycle"), final(SGD, learning_rate=0.3, schedule="one-cycle"))


def test_fit_uses_adam_as_it_did_with_betas(x):
    """The same bits as torch's fused Adam, made by hand."""
    model, images = network(batch_norm=False), x[:64]
    train(images, squared_error, model, optimizer=partial(Adam, betas=(0.8, 0.99)), epochs=3, weight_decay=1e-3)
    expected = network(batch_norm=False)
    optimizer = Adam(expected.parameters(), 1e-2, (0.8, 0.99), weight_decay=1e-3, fused=True)
    torch.manual_seed(0)
    for _ in range(3):
        optimizer.zero_grad()
        (-squared_error(expected, images).mean()).backward()
        optimizer.step()
    assert torch.allclose(flat(model), flat(expected), atol=1e-5)  # but for the order of the images in a sum


OPTIMIZERS = {
    "made already": (Adam([nn.Parameter(torch.zeros(1))]), TypeError, ["Adam", "made already"]),
    "a rate of its own": (partial(SGD, lr=0.1), ValueError, ["lr", "0.1", "learning_rate"]),
    "a decay of its own": (partial(SGD, weight_decay=0.1), ValueError, ["weight_decay", "0.1"]),
    "momentum below zero": (partial(SGD, momentum=-1.0), ValueError, ["SGD", "momentum"]),
    "an unknown option": (partial(Adam, momentum=0.9), ValueError, ["Adam", "momentum"]),
    "no weight decay": (torch.optim.Rprop, ValueError, ["Rprop", "weight_decay"]),
    "a closure": (lambda params, lr, weight_decay: torch.optim.LBFGS(params, lr), ValueError, ["closure", "LBFGS"]),
    "no optimizer": (lambda params, **rates: list(params), TypeError, ["torch.optim.Optimizer", "list"]),
    "no parameters": (lambda **rates: None, ValueError, ["optimizer"]),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_fit_refuses_optimizers(kind, x):
    optimizer, error, words = OPTIMIZERS[kind]
    with refused(error, "optimizer", *words):
        train(x, optimizer=optimizer)


# After each epoch


@pytest.mark.parametrize("name", ["loss", "epoch", "seconds", "kl", "reconstruction"])
def test_fit_refuses_figures_of_names_that_the_row_has(name, x):
    with refused(ValueError, "after_epoch", repr(name), f"'test_{name}'") as _:
        train(x, after_epoch=lambda model: {name: 1.0})


def test_fit_refuses_the_losses_of_evaluate_under_their_own_names(x):
    with refused(ValueError, "after_epoch returned", "test_"):
        train(x, after_epoch=lambda model: evaluate(model, x))


FIGURES = [3.0, [("a", 1.0)], {"a": None}, {"a": "high"}, {"a": torch.ones(2)}, {"a": [1.0]}, {"a": 1j}]


@pytest.mark.parametrize("figures", FIGURES, ids=str)
def test_fit_refuses_figures_that_are_no_numbers(figures, x):
    with refused(TypeError, "after_epoch must return"):
        train(x, after_epoch=lambda model: figures)


def test_fit_takes_figures_of_any_number_type_or_none(x):
    figures = {"a": np.float32(1.5), "b": torch.tensor([2.0]), "c": 3, "d": True, "e": math.nan}
    row = train(x, after_epoch=lambda model: figures, epochs=1)[1][0]
    assert [row[name] for name in "abcd"] == [1.5, 2.0, 3.0, 1.0]
    assert {type(row[name]) for name in "abcde"} == {float}
    assert timeless(train(x, after_epoch=lambda model: None)[1]) == timeless(train(x)[1])


# Nothing is lost


def failing(error):
    def change(_value: Tensor) -> Tensor:
        raise error

    return change


def test_fit_leaves_history_and_the_last_good_state_after_an_error_in_the_objective(x):
    model = network()
    with pytest.raises(RuntimeError, match="mine") as caught:
        train(x, changed_at(10, failing(RuntimeError("mine"))), model, epochs=4)
    expected, rows = train(x, epochs=2)
    assert timeless(caught.value.history) == timeless(rows)
    assert same_state(model, expected)
    assert not model.training


def test_fit_leaves_history_and_the_last_good_state_after_a_loss_that_is_not_finite(x):
    with pytest.raises(NonFiniteLossError) as caught:
        train(x, changed_at(10, lambda value: value * math.nan), epochs=4)
    assert timeless(caught.value.history) == timeless(train(x, epochs=2)[1])


def test_fit_leaves_history_and_the_last_good_state_after_an_error_in_after_epoch(x):
    """The epoch itself is trained, so its row and its parameters stay."""
    model, epochs = network(), iter(range(10))

    def after_epoch(model: VAE) -> dict[str, float]:
        return {"figure": 1 / (2 - next(epochs))}

    with pytest.raises(ZeroDivisionError) as caught:
        train(x, model=model, epochs=5, after_epoch=after_epoch)
    expected, rows = train(x, epochs=3)
    history = timeless(caught.value.history)
    assert [row.pop("figure", None) for row in history] == [0.5, 1.0, None]
    assert history == timeless(rows)
    assert same_state(model, expected)
    assert not model.training


def test_fit_leaves_history_and_the_current_state_after_an_interrupt(x):
    model = network()
    with pytest.raises(KeyboardInterrupt) as caught:
        train(x, changed_at(10, interrupt), model, epochs=4)
    whole, rows = train(x, epochs=2)
    assert timeless(caught.value.history) == timeless(rows)
    assert not same_state(model, whole)
    assert evaluate(model, x)["loss"] < evaluate(whole, x)["loss"]
    assert not model.training


def test_fit_leaves_the_last_good_state_after_an_interrupt_in_a_ruined_epoch(x):
    model, steps = network(), iter(range(1, 100))

    def objective(model: VAE, batch: Tensor):
        value, terms = elbo_terms(model, batch)
        if (step := next(steps)) == 8:
            raise KeyboardInterrupt
        return (value * math.nan if step == 6 else value), terms

    with pytest.raises(KeyboardInterrupt):
        train(x, objective, model, epochs=4)
    assert same_state(model, train(x, epochs=1)[0])


def test_fit_leaves_history_with_an_error_that_takes_no_attribute(x):
    class Frozen(Exception):
        def __setattr__(self, name, value):
            if name == "history":
                raise AttributeError(name)
            super().__setattr__(name, value)

    with pytest.raises(Frozen):
        train(x, changed_at(1, failing(Frozen())))


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, MemoryError])
def test_fit_leaves_history_with_any_exception(error, x):
    with pytest.raises(error) as caught:
        train(x, changed_at(5, failing(error())))
    assert len(caught.value.history) == 1
