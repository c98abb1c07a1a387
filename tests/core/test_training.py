"""The training loop and `evaluate`: determinism, bookkeeping, refusals, checkpoints, and the thesis' own way."""

import contextlib
import copy
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import thesis_oracle
import torch
from checks import Payload, refused, write_half
from torch import Tensor, nn

from vae_core import _checkpoints, data
from vae_core.evaluation import evaluate, kl_per_unit
from vae_core.models import VAE, mlp_vae
from vae_core.objectives import elbo, elbo_terms
from vae_core.runtime import seed_everything, unit_interval
from vae_core.training import NonFiniteLossError, fit, training_seed

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def x() -> Tensor:
    """256 digits, float32."""
    return data.load("digits").x_train[:256]


def network(batch_norm: bool = True, latent_dim: int = 2) -> VAE:
    """The same initial weights each time."""
    torch.manual_seed(1)
    return mlp_vae((1, 8, 8), latent_dim, hidden=(16, 8), activation="tanh", batch_norm=batch_norm)


def train(x: Tensor, objective=elbo_terms, model: VAE | None = None, **settings) -> tuple[VAE, list[dict]]:
    model = network() if model is None else model
    defaults = dict(epochs=2, batch_size=64, learning_rate=1e-2, progress=False)
    return model, fit(model, x, objective, **(defaults | settings))


def same_state(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def timeless(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def squared_error(model: VAE, batch: Tensor) -> Tensor:
    """An objective without noise, (B,)."""
    return -(model.reconstruct(batch) - batch).square().sum((1, 2, 3))


def changed_at(step: int, change):
    """The ELBO, but `change` of it from the given step (1 is the first) on."""
    steps = iter(range(1, 10**6))

    def objective(model: VAE, batch: Tensor):
        value, terms = elbo_terms(model, batch)
        return (value, terms) if next(steps) < step else (change(value), terms)

    return objective


def interrupt(_value: Tensor) -> Tensor:
    raise KeyboardInterrupt


# What a run is


def test_the_same_seed_gives_the_same_parameters_bit_for_bit(x):
    (a, rows_a), (b, rows_b) = train(x, seed=5), train(x, seed=5)
    assert same_state(a, b)
    assert timeless(rows_a) == timeless(rows_b)


def test_another_seed_gives_other_parameters(x):
    assert not same_state(train(x, seed=5)[0], train(x, seed=6)[0])


def test_the_seed_is_all_the_randomness_there_is(x):
    a, _ = train(x)
    model = network()
    torch.manual_seed(99)
    assert same_state(train(x, model=model)[0], a)


@pytest.mark.parametrize("objective", [elbo_terms, changed_at(3, interrupt)])
def test_the_callers_random_state_is_left_as_it_was(objective, x):
    model, before = network(), torch.get_rng_state()
    with contextlib.suppress(KeyboardInterrupt):
        train(x, objective, model)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_loss_falls_on_digits(x):
    _, history = train(x, epochs=10)
    losses = [row["loss"] for row in history]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.75 * losses[0]


def test_every_image_is_seen_once_an_epoch_in_another_order(x):
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


def test_the_model_trains_in_training_mode_and_is_left_in_evaluation_mode(x):
    modes = []

    def objective(model: VAE, batch: Tensor) -> Tensor:
        modes.append(model.training)
        return elbo(model, batch)

    model, _ = train(x, objective, network().eval(), epochs=1)
    assert modes == [True] * 4
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("progress", [False, True])
def test_nothing_is_printed_without_progress_or_with_tqdm_disabled(progress, x, capsys):
    assert os.environ["TQDM_DISABLE"] == "1"  # conftest.py sets it before tqdm is imported
    train(x, progress=progress)
    assert capsys.readouterr() == ("", "")


def test_no_epochs_change_nothing_and_give_no_rows(x):
    model, history = train(x, epochs=0)
    assert history == []
    assert same_state(model, network())


# The history


def test_a_row_holds_epoch_loss_terms_and_seconds(x):
    _, history = train(x, epochs=3)
    assert [set(row) for row in history] == [{"epoch", "loss", "reconstruction", "kl", "seconds"}] * 3
    assert [row["epoch"] for row in history] == [1, 2, 3]


def test_the_loss_is_the_sum_of_its_terms(x):
    for row in train(x)[1]:
        assert row["loss"] == pytest.approx(row["reconstruction"] + row["kl"], rel=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("batch_size", [16, 49, 50, 1000])
def test_the_logged_loss_is_the_mean_over_images_whatever_the_batches(batch_size, reduction, x):
    images, model = x[:50].double(), network(batch_norm=False).double()
    expected = -squared_error(model, images).mean().item()
    settings = dict(epochs=1, batch_size=batch_size, reduction=reduction, learning_rate=1e-30)
    _, (row,) = train(images, squared_error, model, **settings)
    assert row["loss"] == pytest.approx(expected, rel=1e-12)


def test_an_objective_may_return_its_values_alone(x):
    (a, rows), (b, _) = train(x, elbo), train(x, elbo_terms)
    assert same_state(a, b)
    assert [set(row) for row in rows] == [{"epoch", "loss", "seconds"}] * 2


# Equivalent ways to say the same


def test_uint8_images_and_the_same_images_as_floats_give_the_same_parameters(x):
    stored = (x * 16 * 15).to(torch.uint8)
    assert same_state(train(stored)[0], train(unit_interval(stored))[0])


def test_sum_with_a_weight_decay_is_mean_with_it_divided_by_the_batch_size(x):
    def parameters(reduction: str, weight_decay: float) -> Tensor:
        model = network(batch_norm=False).double()
        settings = dict(reduction=reduction, weight_decay=weight_decay, batch_size=32)
        return flat(train(x.double(), model=model, **settings)[0])

    summed = parameters("sum", 10.0)
    torch.testing.assert_close(parameters("mean", 10.0 / 32), summed, rtol=0, atol=1e-4)  # but for Adam's epsilon
    assert (parameters("mean", 10.0) - summed).abs().max() > 0.1


def test_numpys_integers_are_integers(x):
    numbers = dict(epochs=np.int64(1), batch_size=np.int32(32), seed=np.uint8(200))
    (a, rows), (b, expected) = train(x, **numbers), train(x, **{name: int(n) for name, n in numbers.items()})
    assert same_state(a, b)
    assert timeless(rows) == timeless(expected)
    draws = []
    for seed in (np.int64(7), 7):
        seed_everything(seed)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


# Refusals


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("epochs", -1),
        ("epochs", 1.5),
        ("epochs", True),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("batch_size", True),
        ("learning_rate", 0.0),
        ("learning_rate", -1e-3),
        ("learning_rate", math.nan),
        ("weight_decay", -1e-5),
        ("weight_decay", math.nan),
        ("reduction", "max"),
        ("seed", "x"),
        ("seed", 1.5),
        ("seed", True),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_changes(argument, value, x, tmp_path):
    model = network().eval()
    with refused(ValueError, argument, repr(value)):
        train(x, model=model, checkpoint=tmp_path / "c.pt", **{argument: value})
    assert same_state(model, network())
    assert not model.training
    assert list(tmp_path.iterdir()) == []


def test_no_images_are_refused(x):
    with refused(ValueError, "x", "at least one image"):
        train(x[:0])


def test_images_of_another_dtype_are_refused_before_anything_changes(x):
    model = network().eval()
    with refused(TypeError, "images", "torch.int64"):
        train((x * 16).long(), model=model)
    assert same_state(model, network())
    assert not model.training


def test_a_last_batch_of_one_image_is_refused_with_batch_norm_before_anything_changes(x):
    model = network(batch_norm=True)
    with refused(ValueError, "batch_size", "64"):
        train(x[:65], model=model, epochs=1, batch_size=64)
    assert same_state(model, network(batch_norm=True))


def test_a_last_batch_of_one_image_is_trained_on_without_batch_norm(x):
    _, history = train(x[:65], model=network(batch_norm=False), epochs=1, batch_size=64)
    assert math.isfinite(history[0]["loss"])


# A loss that is not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_puts_the_model_back_to_the_last_good_epoch(bad, x):
    model = network()
    with refused(NonFiniteLossError, "epoch 2", "step 2 of 4", "learning_rate", "epoch 1"):
        train(x, changed_at(6, lambda value: value * bad), model, epochs=3)
    assert same_state(model, train(x, epochs=1)[0])


def test_a_loss_that_is_not_finite_in_the_first_epoch_puts_the_initial_model_back(x):
    model = network()
    with refused(NonFiniteLossError, "epoch 1", "step 1 of 4"):
        train(x, changed_at(1, lambda value: value * math.nan), model)
    assert same_state(model, network())


def steep(value: Tensor) -> Tensor:
    """The same values, with slopes that are no numbers."""
    return value + (value - value).sqrt()


@pytest.mark.parametrize(("epochs", "step"), [(1, 4), (3, 4), (3, 12)])
def test_a_slope_that_is_not_finite_puts_the_model_back_to_the_last_good_epoch(epochs, step, x):
    """The last loss of an epoch is taken before the step that it leads to."""
    model, bad = network(), step // 4
    with refused(NonFiniteLossError, f"a gradient of epoch {bad}", f"the end of epoch {bad - 1}", "learning_rate"):
        train(x, changed_at(step, steep), model, epochs=epochs)
    assert same_state(model, train(x, epochs=bad - 1)[0])


def test_what_never_was_finite_is_no_parameter_that_became_so(x):
    masked, free = network(), train(x)[0]
    masked.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    train(x, model=masked)
    assert torch.equal(flat(masked), flat(free))


def test_a_loss_that_is_not_finite_leaves_the_checkpoint_of_the_last_good_epoch(x, tmp_path):
    path = tmp_path / "c.pt"
    with pytest.raises(NonFiniteLossError):
        train(x, changed_at(6, lambda value: value * math.nan), epochs=3, checkpoint=path)
    resumed, history = train(x, epochs=3, checkpoint=path, resume=True)
    whole, expected = train(x, epochs=3)
    assert same_state(resumed, whole)
    assert timeless(history) == timeless(expected)


def test_an_interrupted_model_keeps_what_it_learnt_and_may_be_used(x):
    model, trained = network(), network()
    with pytest.raises(KeyboardInterrupt):
        train(x, changed_at(10, interrupt), model, epochs=4)
    train(x, model=trained, epochs=4)
    assert not model.training
    assert evaluate(trained, x)["loss"] < evaluate(model, x)["loss"] < 0.99 * evaluate(network(), x)["loss"]


# Checkpoints


@pytest.fixture
def unfinished(x, tmp_path) -> Path:
    """The checkpoint of a run that was interrupted in its third epoch."""
    path = tmp_path / "run.checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        train(x, changed_at(10, interrupt), epochs=4, checkpoint=path)
    return path


def test_an_interrupted_run_goes_on_bit_for_bit(x, unfinished):
    whole, expected = train(x, epochs=4)
    resumed, history = train(x, epochs=4, checkpoint=unfinished, resume=True)
    assert same_state(resumed, whole)
    assert timeless(history) == timeless(expected)


def test_a_run_whose_numbers_are_numpys_goes_on_bit_for_bit(x, tmp_path):
    """What numpy.mean returns, or numpy.logspace: a checkpoint that holds them could not be read."""
    rates = dict(learning_rate=np.float64(1e-2), weight_decay=np.float32(0.5), betas=np.array([0.8, 0.99]))
    numbers = dict(epochs=np.int64(3), batch_size=np.int64(64), seed=np.int64(5), schedule="one-cycle", **rates)
    numbers |= dict(after_epoch=lambda model: {"mean": np.mean(flat(model).numpy()), "one": torch.tensor(1.0)})
    path = tmp_path / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        train(x, changed_at(6, interrupt), checkpoint=path, **numbers)
    (resumed, history), (whole, expected) = train(x, checkpoint=path, resume=True, **numbers), train(x, **numbers)
    assert same_state(resumed, whole)
    assert timeless(history) == timeless(expected)
    assert {type(value) for row in history for value in row.values()} == {int, float}


def test_a_run_begun_on_another_device_goes_on_with_this_ones_optimiser(x, unfinished):
    """On CUDA alone Adam is capturable; the graph of a whole step refuses any other."""
    state = torch.load(unfinished, weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        group |= {"capturable": True, "lr": torch.tensor(1e-2)}
    torch.save(state, unfinished)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    _checkpoints.restore(unfinished, model, optimizer, state["settings"], 4, resume=True)
    assert [group["capturable"] for group in optimizer.param_groups] == [False]
    resumed, _ = train(x, epochs=4, checkpoint=unfinished, resume=True)
    assert same_state(resumed, train(x, epochs=4)[0])


def test_resuming_starts_after_the_last_finished_epoch(x, unfinished):
    steps = []

    def objective(model: VAE, batch: Tensor):
        steps.append(len(batch))
        return elbo_terms(model, batch)

    train(x, objective, epochs=4, checkpoint=unfinished, resume=True)
    assert len(steps) == 2 * 4


def test_a_checkpoint_changes_nothing_about_a_run(x, tmp_path):
    assert same_state(train(x, checkpoint=tmp_path / "new" / "c.pt")[0], train(x)[0])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["c.pt"]


def test_resuming_without_a_checkpoint_starts_anew(x, tmp_path):
    model, history = train(x, checkpoint=tmp_path / "c.pt", resume=True)
    assert len(history) == 2
    assert same_state(model, train(x)[0])


def assert_refused_and_untouched(kind, x, path: Path, *words, **settings) -> None:
    before, model = path.read_bytes(), settings.pop("model", None) or network()
    initial = copy.deepcopy(model)
    with refused(kind, path, *words):
        train(x, model=model, checkpoint=path, **settings)
    assert path.read_bytes() == before
    assert same_state(model, initial)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_checkpoint_is_not_overwritten_without_resume(x, unfinished):
    assert_refused_and_untouched(FileExistsError, x, unfinished, "resume", "delete")


@pytest.mark.parametrize(
    ("argument", "value"),
    [("batch_size", 32), ("learning_rate", 1e-3), ("weight_decay", 1e-5), ("reduction", "sum"), ("seed", 1)],
)
def test_a_checkpoint_of_other_settings_is_refused(argument, value, x, unfinished):
    settings = {"epochs": 4, "resume": True, argument: value}
    assert_refused_and_untouched(ValueError, x, unfinished, argument, repr(value), **settings)


def test_a_checkpoint_of_another_number_of_images_is_refused(x, unfinished):
    assert_refused_and_untouched(ValueError, x[:200], unfinished, "200", "256", epochs=4, resume=True)


def test_a_checkpoint_of_another_network_is_refused(x, unfinished):
    model = network(latent_dim=3)
    assert_refused_and_untouched(ValueError, x, unfinished, model=model, epochs=4, resume=True)


def test_a_checkpoint_with_more_epochs_than_asked_for_is_refused(x, unfinished):
    assert_refused_and_untouched(ValueError, x, unfinished, "epochs", epochs=1, resume=True)


KEYS = ("model", "optimizer", "history", "rng", "settings")
FOREIGN = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "cut at the end": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no checkpoint\n"),
    "weights alone": lambda path: torch.save(network().state_dict(), path),
    "a list": lambda path: torch.save([1, 2], path),
    "the right keys, other values": lambda path: torch.save(dict.fromkeys(KEYS, 1), path),
    "a plain pickle": lambda path: path.write_bytes(pickle.dumps(Payload(path.parent / "executed"))),
    "an object": lambda path: torch.save(Payload(path.parent / "executed"), path),
    "an object inside": lambda path: torch.save(dict.fromkeys(KEYS, Payload(path.parent / "executed")), path),
}


@pytest.mark.parametrize("content", FOREIGN)
def test_a_damaged_or_foreign_checkpoint_is_refused_and_left_alone(content, x, unfinished):
    FOREIGN[content](unfinished)
    assert_refused_and_untouched(ValueError, x, unfinished, epochs=4, resume=True)


def test_a_crash_while_saving_leaves_the_checkpoint_before_it(x, unfinished, monkeypatch):
    def save(_state, target):
        write_half(target)
        raise OSError(28, "No space left on device")

    before = unfinished.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", save)
        with pytest.raises(OSError, match="No space left"):
            train(x, epochs=4, checkpoint=unfinished, resume=True)
    assert {path: path.read_bytes() for path in unfinished.parent.iterdir()} == {unfinished: before}
    resumed, _ = train(x, epochs=4, checkpoint=unfinished, resume=True)
    assert same_state(resumed, train(x, epochs=4)[0])


def test_training_does_not_draw_again_what_initialisation_drew(x):
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


# The oracle: the thesis' way, which shares no code with vae_core


@pytest.fixture
def thesis_and_ours() -> tuple[nn.Module, VAE]:
    """Identical weights, float64, d = 2, on 8×8 images."""
    theirs, ours = thesis_oracle.ThesisVAE(64, 2).double(), mlp_vae((1, 8, 8), 2).double()
    parts = (ours.encoder, ours.mean, ours.log_variance, ours.decoder)
    values = [value for part in parts for value in part.state_dict().values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), copy.deepcopy(values), strict=True)))
    return theirs, ours


def thesis_parameters(ours: VAE) -> list[Tensor]:
    return [p for part in (ours.encoder, ours.mean, ours.log_variance, ours.decoder) for p in part.parameters()]


def thesis_steps(net: nn.Module, x: Tensor, seed: int, batch_size: int) -> list[float]:
    """One epoch of summed losses, on the batches and with the noise that `fit` draws from this seed."""
    optimizer = torch.optim.Adam(net.train().parameters(), lr=1e-3, weight_decay=1e-5)
    torch.manual_seed(training_seed(seed))
    losses = []
    for index in torch.randperm(len(x)).split(batch_size):
        noise = torch.randn(len(index), 2, dtype=x.dtype)
        loss = sum(thesis_oracle.summed_losses(x[index], *net(x[index], noise)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_like_the_thesis(ours: VAE, x: Tensor, seed: int, batch_size: int) -> list[float]:
    losses = []

    def objective(model: VAE, batch: Tensor):
        value, terms = elbo_terms(model, batch)
        losses.append(-value.sum().item())
        return value, terms

    settings = dict(epochs=1, learning_rate=1e-3, weight_decay=1e-5, reduction="sum")
    train(x, objective, ours, seed=seed, batch_size=batch_size, **settings)
    return losses


def test_three_steps_are_those_of_the_thesis(x, thesis_and_ours):
    theirs, ours = thesis_and_ours
    images = x[:96].double()
    expected = thesis_steps(theirs, images, seed=7, batch_size=32)
    assert train_like_the_thesis(ours, images, seed=7, batch_size=32) == pytest.approx(expected, rel=1e-9)
    assert len(expected) == 3
    idle = 0
    for p, q in zip(thesis_parameters(ours), theirs.parameters(), strict=True):
        # A bias before batch norm has no gradient but rounding error, which Adam divides by 1e-8 (its epsilon).
        without_gradient = q.grad.abs().max() < 1e-13
        idle += int(without_gradient)
        torch.testing.assert_close(p, q, rtol=0, atol=1e-8 if without_gradient else 1e-13)
    assert idle == 6


def test_figures_on_held_out_images_are_those_of_the_thesis(x, thesis_and_ours):
    theirs, ours = thesis_and_ours
    thesis_steps(theirs, x[:96].double(), seed=7, batch_size=32)
    train_like_the_thesis(ours, x[:96].double(), seed=7, batch_size=32)
    held_out = x[96:].double()
    torch.manual_seed(3)
    expected = thesis_oracle.test_losses(theirs, [(batch, None) for batch in held_out.split(50)])
    assert evaluate(ours, held_out, seed=3, batch_size=50) == pytest.approx(expected, rel=1e-9)


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
def test_the_evaluated_loss_is_the_sum_of_its_terms_over_all_images(kl, x):
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
def test_the_batch_size_of_evaluate_does_not_change_the_kl(batch_size, x):
    model = network().double().train()
    expected = evaluate(model, x.double(), batch_size=256)["kl"]
    assert evaluate(model, x.double(), batch_size=batch_size)["kl"] == pytest.approx(expected, rel=1e-12)


def test_evaluate_refuses_no_images(x):
    with refused(ValueError, "x", "at least one image"):
        evaluate(network(), x[:0])


# Figures per unit


def test_the_kl_of_the_units_adds_up_to_the_kl(x):
    model, _ = train(x, model=network(latent_dim=3))
    assert kl_per_unit(model, x, batch_size=100).sum().item() == pytest.approx(evaluate(model, x)["kl"], rel=1e-6)


def test_a_unit_that_follows_the_prior_costs_nothing(x):
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


# After each epoch


def disturb(model: nn.Module) -> dict[str, float]:
    """Figures at the price of random numbers, another seed and another mode."""
    model.eval()
    torch.manual_seed(len(list(model.parameters())))
    return {"draw": torch.rand(1000).mean().item()}


def test_figures_after_each_epoch_join_its_row(x):
    sums = []

    def after_epoch(model: VAE) -> dict[str, float]:
        sums.append(flat(model).sum().item())
        return {"sum": sums[-1], "twice": 2 * sums[-1]}

    model, history = train(x, epochs=3, after_epoch=after_epoch)
    assert [(row["sum"], row["twice"]) for row in history] == [(value, 2 * value) for value in sums]
    assert len(set(sums)) == 3
    assert sums[-1] == flat(model).sum().item()
    assert [set(row) for row in history] == [{"epoch", "loss", "reconstruction", "kl", "seconds", "sum", "twice"}] * 3


def test_figures_after_each_epoch_do_not_disturb_training(x):
    (disturbed, rows), (alone, expected) = train(x, epochs=3, after_epoch=disturb), train(x, epochs=3)
    assert same_state(disturbed, alone)
    assert [row.pop("draw") > 0 for row in rows] == [True] * 3
    assert timeless(rows) == timeless(expected)


def test_figures_after_each_epoch_are_those_of_evaluation_mode(x):
    """A forward pass in training mode would take the batch's own statistics, and change the running averages."""

    def mean(model: VAE) -> dict[str, float]:
        return {"mean": model.reconstruct(x).mean().item()}

    (watched, rows), (alone, _) = train(x, epochs=2, after_epoch=mean), train(x, epochs=2)
    assert any(isinstance(module, nn.BatchNorm1d) for module in watched.modules())
    assert same_state(watched, alone)
    assert rows[-1]["mean"] == alone.reconstruct(x).mean().item()


def test_the_last_figure_is_that_of_the_trained_model(x):
    model, history = train(x, after_epoch=lambda model: evaluate(model, x, seed=3))
    assert evaluate(model, x, seed=3).items() <= history[-1].items()


def test_an_interrupted_run_keeps_the_figures_of_its_epochs(x, tmp_path):
    settings = dict(epochs=4, after_epoch=lambda model: {"test": evaluate(model, x)["kl"]})
    with pytest.raises(KeyboardInterrupt):
        train(x, changed_at(10, interrupt), checkpoint=tmp_path / "c.pt", **settings)
    resumed, history = train(x, checkpoint=tmp_path / "c.pt", resume=True, **settings)
    whole, expected = train(x, **settings)
    assert same_state(resumed, whole)
    assert timeless(history) == timeless(expected)


# Whose checkpoint it is


def test_a_checkpoint_of_another_identity_is_refused(x, tmp_path):
    path = tmp_path / "c.pt"
    train(x, epochs=1, checkpoint=path, identity="digits")
    settings = dict(epochs=2, resume=True)
    assert_refused_and_untouched(ValueError, x, path, "'digits'", "'letters'", identity="letters", **settings)
    assert_refused_and_untouched(ValueError, x, path, "'digits'", "''", **settings)


def test_a_checkpoint_of_the_same_identity_goes_on(x, tmp_path):
    path = tmp_path / "c.pt"
    train(x, epochs=1, checkpoint=path, identity="digits")
    resumed, history = train(x, epochs=2, checkpoint=path, resume=True, identity="digits")
    whole, expected = train(x, epochs=2)
    assert same_state(resumed, whole)
    assert timeless(history) == timeless(expected)
