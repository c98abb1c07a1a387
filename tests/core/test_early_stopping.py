"""`EarlyStopping`: a validation loss after each epoch, and the state of the best one, however training ends."""

import copy
import math
from functools import partial

import pytest
import torch
import training_runs
from checks import refused
from torch import Tensor
from training_runs import changed_at, interrupt, network, same_state, timeless, x

from vae_core.evaluation import evaluate
from vae_core.models import VAE, mlp_vae
from vae_core.objectives import beta_elbo_terms, elbo, linear_warm_up
from vae_core.training import EarlyStopping, NonFiniteLossError

pytestmark = pytest.mark.usefixtures("float32")
train = partial(training_runs.train, fingerprint="the ELBO, whatever interrupts it")


@pytest.fixture
def few(x) -> Tensor:
    """So few images that a VAE is soon better at them than at others."""
    return x[:32]


@pytest.fixture
def held_out(x) -> Tensor:
    return x[100:200]


FAST = dict(epochs=400, learning_rate=3e-2, batch_size=16)


def stopped_early(few, held_out, **settings):
    stop = EarlyStopping(held_out, patience=4)
    return (*train(few, after_epoch=stop, **FAST | settings), stop)


def test_early_stopping_stops_after_patience_epochs_without_a_lower_loss(few, held_out):
    _, history, stop = stopped_early(few, held_out)
    losses = [row["validation_loss"] for row in history]
    best = losses.index(min(losses))
    assert 1 < len(history) < FAST["epochs"]
    assert len(history) == best + 1 + stop.patience
    assert (stop.best_epoch, stop.best_loss) == (best + 1, losses[best])
    for k in range(best):  # it never had cause to stop before
        assert min(losses[k + 1 : k + 1 + stop.patience]) < min(losses[: k + 1])


def test_early_stopping_leaves_the_state_of_the_best_epoch(few, held_out):
    model, _, stop = stopped_early(few, held_out)
    expected, _ = train(few, **FAST | dict(epochs=stop.best_epoch))
    assert same_state(model, expected)  # buffers too
    assert not any(module.training for module in model.modules())


def test_early_stopping_gives_minus_the_mean_objective_in_evaluation_mode(few, held_out):
    states = []

    class Watched(EarlyStopping):
        def __call__(self, model):
            states.append(copy.deepcopy(model))
            return super().__call__(model)

    _, history = train(few, after_epoch=Watched(held_out, seed=3), batch_size=16, epochs=3)
    for state, row in zip(states, history, strict=True):
        torch.manual_seed(3)
        with torch.no_grad():
            values = torch.cat([elbo(state.eval(), batch) for batch in held_out.split(16)])
        assert row["validation_loss"] == pytest.approx(-values.double().mean().item(), rel=1e-6)


def test_early_stopping_does_not_disturb_training(few, held_out):
    (watched, rows), (alone, expected) = (
        train(few, epochs=5, after_epoch=stop) for stop in (EarlyStopping(held_out, patience=5), None)
    )
    assert [row.pop("validation_loss") for row in rows] == sorted(
        (row["validation_loss"] for row in train(few, epochs=5, after_epoch=EarlyStopping(held_out))[1]), reverse=True
    )
    assert timeless(rows) == timeless(expected)
    assert same_state(watched, alone)  # the loss fell each time, so the last epoch is the best


@pytest.mark.parametrize("step", [3, 36, pytest.param(101, marks=pytest.mark.slow)])
def test_early_stopping_leaves_the_best_state_when_interrupted(step, few, held_out):
    model, stop = network(), EarlyStopping(held_out, patience=60)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(few, changed_at(step, interrupt), model, after_epoch=stop, **FAST)
    assert len(caught.value.history) == (step - 1) // 2
    assert same_state(model, train(few, **FAST | dict(epochs=stop.best_epoch))[0])


@pytest.mark.slow
def test_early_stopping_leaves_the_best_state_after_an_error(few, held_out):
    model, stop = network(), EarlyStopping(held_out, patience=60)
    with pytest.raises(NonFiniteLossError):
        train(few, changed_at(90, lambda value: value * math.nan), model, after_epoch=stop, **FAST)
    assert 0 < stop.best_epoch < 44
    assert same_state(model, train(few, **FAST | dict(epochs=stop.best_epoch))[0])


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 21, 37])
def test_early_stopping_survives_a_resumption(step, few, held_out, tmp_path):
    whole, expected, stop = stopped_early(few, held_out)
    assert 2 * len(expected) > 37
    path, again = tmp_path / "c.pt", EarlyStopping(held_out, patience=4)
    with pytest.raises(KeyboardInterrupt):
        train(
            few, changed_at(step, interrupt), after_epoch=EarlyStopping(held_out, patience=4), checkpoint=path, **FAST
        )
    resumed, history = train(few, after_epoch=again, checkpoint=path, resume=True, **FAST)
    assert timeless(history) == timeless(expected)
    assert same_state(resumed, whole)
    assert (again.best_epoch, again.best_loss) == (stop.best_epoch, stop.best_loss)


@pytest.mark.slow
def test_early_stopping_of_a_stopped_run_stays_or_goes_on_with_more_patience(few, held_out, tmp_path):
    path = tmp_path / "c.pt"
    whole, rows, stop = stopped_early(few, held_out, checkpoint=path)
    again, same, _ = stopped_early(few, held_out, checkpoint=path, resume=True)
    assert same == rows
    assert same_state(again, whole)
    _, longer = train(few, after_epoch=EarlyStopping(held_out, patience=9), checkpoint=path, resume=True, **FAST)
    assert len(longer) >= stop.best_epoch + 9
    assert longer[: len(rows)] == rows


def test_early_stopping_refuses_to_go_on_with_other_validation_data(few, held_out, tmp_path):
    settings = dict(checkpoint=tmp_path / "c.pt", resume=True)
    train(few, after_epoch=EarlyStopping(held_out), **settings)
    with refused(ValueError, "another run", "validation_x"):
        train(few, after_epoch=EarlyStopping(held_out.flip(0)), **settings)


@pytest.mark.slow
def test_early_stopping_starts_anew_in_each_run(few, held_out):
    stop = EarlyStopping(held_out, patience=4)
    runs = [train(few, after_epoch=stop, **FAST) for _ in range(2)]
    assert timeless(runs[0][1]) == timeless(runs[1][1])
    assert same_state(runs[0][0], runs[1][0])


def test_early_stopping_takes_conditions_and_an_annealed_weight(x):
    """The validation loss has the weight of the end of training, 1, in each epoch."""
    y, asked = torch.arange(256) % 10, []

    def objective(model: VAE, batch: Tensor, labels: Tensor, weight: Tensor):
        if not model.training:
            asked.append((labels, weight.item()))
        return beta_elbo_terms(model, batch, weight)

    stop = EarlyStopping(x[128:].numpy(), y=y[128:].tolist())
    settings = dict(y=y[:128], anneal=linear_warm_up(0.9), epochs=2)
    train(x[:128], objective, after_epoch=stop, **settings)
    _, weights = zip(*asked, strict=True)
    assert set(weights) == {1.0}
    assert torch.equal(torch.cat([labels for labels, _ in asked]), y[128:].repeat(2))


def test_early_stopping_of_nan_keeps_nothing_and_stops(few, held_out):
    def objective(model: VAE, batch: Tensor) -> Tensor:
        return elbo(model, batch) * (1 if model.training else math.nan)

    stop = EarlyStopping(held_out, patience=3)
    model, history = train(few, objective, after_epoch=stop)
    assert stop.best_epoch == 0
    assert same_state(model, train(few, objective)[0])
    assert len(train(few, objective, after_epoch=stop, epochs=10)[1]) == 3
    assert all(math.isnan(row["validation_loss"]) for row in history)


REFUSED = {
    "no patience": (lambda x: dict(stop=EarlyStopping(x, patience=0)), "patience"),
    "half a patience": (lambda x: dict(stop=EarlyStopping(x, patience=1.5)), "patience"),
    "a negative seed": (lambda x: dict(stop=EarlyStopping(x, seed=-1)), "seed"),
    "other shapes": (lambda x: dict(stop=EarlyStopping(x[..., :4])), "the validation data"),
    "no validation data": (lambda x: dict(stop=EarlyStopping(x[:0])), "the validation data"),
    "values outside of the support": (lambda x: dict(stop=EarlyStopping(255 * x)), "the validation data"),
    "labels where fit has none": (lambda x: dict(stop=EarlyStopping(x, y=torch.zeros(len(x)))), "y"),
    "fewer labels than data": (lambda x: dict(stop=EarlyStopping(x, y=[1]), y=torch.zeros(len(x))), "y"),
    "no labels where fit has some": (lambda x: dict(stop=EarlyStopping(x), y=torch.zeros(len(x))), "y"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_early_stopping_refuses(kind, x):
    settings, name = REFUSED[kind]
    model = network()
    with refused(ValueError, name):
        given = settings(x)
        train(x, model=model, after_epoch=given.pop("stop"), **given)
    assert same_state(model, network())


def test_early_stopping_refuses_to_be_called_outside_of_fit(x):
    with refused(ValueError, "after_epoch=stop"):
        train(x, after_epoch=EarlyStopping(x).__call__)


@pytest.mark.slow
def test_early_stopping_finds_a_better_model_than_training_on(x, held_out):
    """Eight images are soon memorised: 300 epochs end about two nats above the best."""
    settings, losses = dict(epochs=300, batch_size=8), []
    for after_epoch in (EarlyStopping(held_out, patience=20), None):
        torch.manual_seed(1)
        model = mlp_vae((1, 8, 8), 8, hidden=(64, 32), batch_norm=False)
        train(x[:8], model=model, after_epoch=after_epoch, **settings)
        losses.append(evaluate(model, held_out)["loss"])
    assert losses[0] < losses[1] - 1
