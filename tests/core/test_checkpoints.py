"""Checkpoints of `fit`: going on bit for bit, and only with the same run."""

import copy
import math
import pickle
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import training_runs
from checks import Payload, refused, write_half
from torch import Tensor, nn
from training_runs import changed_at, flat, interrupt, network, same_state, timeless, x

from vae_core._training import checkpoints
from vae_core._training.fingerprints import describe, digest_of
from vae_core.evaluation import evaluate
from vae_core.models import VAE
from vae_core.objectives import elbo, elbo_terms, linear_warm_up
from vae_core.training import EarlyStopping, NonFiniteLossError

pytestmark = pytest.mark.usefixtures("float32")
train = partial(training_runs.train, fingerprint="the ELBO, whatever interrupts it")


# Checkpoints


@pytest.fixture
def unfinished(x, tmp_path) -> Path:
    """The checkpoint of a run that was interrupted in its third epoch."""
    path = tmp_path / "run.checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        train(x, changed_at(10, interrupt), epochs=4, checkpoint=path)
    return path


def test_fit_an_interrupted_run_goes_on_bit_for_bit(x, unfinished):
    whole, expected = train(x, epochs=4)
    resumed, history = train(x, epochs=4, checkpoint=unfinished, resume=True)
    assert same_state(resumed, whole)
    assert timeless(history) == timeless(expected)


def test_fit_a_run_whose_numbers_are_numpys_goes_on_bit_for_bit(x, tmp_path):
    """What numpy.mean returns, or numpy.logspace: a checkpoint that holds them could not be read."""
    rates = dict(
        learning_rate=np.float64(1e-2),
        weight_decay=np.float32(0.5),
        optimizer=partial(torch.optim.Adam, betas=(0.8, 0.99)),
    )
    numbers = dict(epochs=np.int64(3), batch_size=np.int64(64), seed=np.int64(5), schedule="one-cycle", **rates)
    numbers |= dict(after_epoch=lambda model: {"mean": np.mean(flat(model).numpy()), "one": torch.tensor(1.0)})
    path = tmp_path / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        train(x, changed_at(6, interrupt), checkpoint=path, **numbers)
    (resumed, history), (whole, expected) = train(x, checkpoint=path, resume=True, **numbers), train(x, **numbers)
    assert same_state(resumed, whole)
    assert timeless(history) == timeless(expected)
    assert {type(value) for row in history for value in row.values()} == {int, float}


def test_fit_a_run_begun_on_another_device_goes_on_with_this_ones_optimiser(x, unfinished):
    """On CUDA alone Adam is capturable; the graph of a whole step refuses any other."""
    state = torch.load(unfinished, weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        group |= {"capturable": True, "lr": torch.tensor(1e-2)}
    torch.save(state, unfinished)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    checkpoints.restore(unfinished, model, optimizer, state["settings"], 4, resume=True)
    assert [group["capturable"] for group in optimizer.param_groups] == [False]
    resumed, _ = train(x, epochs=4, checkpoint=unfinished, resume=True)
    assert same_state(resumed, train(x, epochs=4)[0])


def test_fit_resuming_starts_after_the_last_finished_epoch(x, unfinished):
    steps = []

    def objective(model: VAE, batch: Tensor):
        steps.append(len(batch))
        return elbo_terms(model, batch)

    train(x, objective, epochs=4, checkpoint=unfinished, resume=True)
    assert len(steps) == 2 * 4


def test_fit_a_checkpoint_changes_nothing_about_a_run(x, tmp_path):
    assert same_state(train(x, checkpoint=tmp_path / "new" / "c.pt")[0], train(x)[0])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["c.pt"]


def test_fit_resuming_without_a_checkpoint_starts_anew(x, tmp_path):
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


def test_fit_a_checkpoint_is_not_overwritten_without_resume(x, unfinished):
    assert_refused_and_untouched(FileExistsError, x, unfinished, "resume", "delete")


@pytest.mark.parametrize(
    ("argument", "value"),
    [("batch_size", 32), ("learning_rate", 1e-3), ("weight_decay", 1e-5), ("reduction", "sum"), ("seed", 1)],
)
def test_fit_a_checkpoint_of_other_settings_is_refused(argument, value, x, unfinished):
    settings = {"epochs": 4, "resume": True, argument: value}
    assert_refused_and_untouched(ValueError, x, unfinished, argument, repr(value), **settings)


def test_fit_a_checkpoint_of_another_number_of_images_is_refused(x, unfinished):
    assert_refused_and_untouched(ValueError, x[:200], unfinished, "200", "256", epochs=4, resume=True)


def test_fit_a_checkpoint_of_another_network_is_refused(x, unfinished):
    model = network(latent_dim=3)
    assert_refused_and_untouched(ValueError, x, unfinished, model=model, epochs=4, resume=True)


def test_fit_a_checkpoint_with_more_epochs_than_asked_for_is_refused(x, unfinished):
    assert_refused_and_untouched(ValueError, x, unfinished, "epochs", epochs=1, resume=True)


KEYS = ("model", "optimizer", "history", "rng", "settings", "best")
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
def test_fit_a_damaged_or_foreign_checkpoint_is_refused_and_left_alone(content, x, unfinished):
    FOREIGN[content](unfinished)
    assert_refused_and_untouched(ValueError, x, unfinished, epochs=4, resume=True)


def test_fit_a_crash_while_saving_leaves_the_checkpoint_before_it(x, unfinished, monkeypatch):
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


def test_fit_a_loss_that_is_not_finite_leaves_the_checkpoint_of_the_last_good_epoch(x, tmp_path):
    path = tmp_path / "c.pt"
    with pytest.raises(NonFiniteLossError):
        train(x, changed_at(6, lambda value: value * math.nan), epochs=3, checkpoint=path)
    resumed, history = train(x, epochs=3, checkpoint=path, resume=True)
    whole, expected = train(x, epochs=3)
    assert same_state(resumed, whole)
    assert timeless(history) == timeless(expected)


def test_fit_an_interrupted_run_keeps_the_figures_of_its_epochs(x, tmp_path):
    settings = dict(epochs=4, after_epoch=lambda model: {"test": evaluate(model, x)["kl"]})
    with pytest.raises(KeyboardInterrupt):
        train(x, changed_at(10, interrupt), checkpoint=tmp_path / "c.pt", **settings)
    resumed, history = train(x, checkpoint=tmp_path / "c.pt", resume=True, **settings)
    whole, expected = train(x, **settings)
    assert same_state(resumed, whole)
    assert timeless(history) == timeless(expected)


# Whose checkpoint it is


def test_fit_refuses_a_checkpoint_of_another_fingerprint(x, tmp_path):
    path = tmp_path / "c.pt"
    train(x, epochs=1, checkpoint=path, fingerprint="digits")
    settings = dict(epochs=2, resume=True)
    assert_refused_and_untouched(ValueError, x, path, "'digits'", "'letters'", fingerprint="letters", **settings)
    assert_refused_and_untouched(ValueError, x, path, "'digits'", "elbo_terms", fingerprint=None, **settings)


def test_fit_goes_on_with_a_checkpoint_of_the_same_fingerprint(x, tmp_path):
    path = tmp_path / "c.pt"
    train(x, epochs=1, checkpoint=path, fingerprint="digits")
    resumed, history = train(x, epochs=2, checkpoint=path, resume=True, fingerprint="digits")
    whole, expected = train(x, epochs=2)
    assert same_state(resumed, whole)
    assert timeless(history) == timeless(expected)


LABELS = torch.arange(256) % 10


def labelled(model: VAE, batch: Tensor, y: Tensor, weight: Tensor | None = None):
    return elbo_terms(model, batch)


def numbered(samples: int):
    """The ELBO with a number that the function closes over."""
    return lambda model, batch: elbo_terms(model, batch, samples)


SHIFT = 0.0


def shifted(model: VAE, batch: Tensor):
    """The ELBO, with a global number in it."""
    value, terms = elbo_terms(model, batch)
    return value + SHIFT, terms


def helped(model: VAE, batch: Tensor):
    return shifted(model, batch)


OTHERS = {  # what is another run, and a word of the refusal
    "other images": (lambda x: dict(x=x.flip(3)), "sha256 of x"),
    "the images in another order": (lambda x: dict(x=x.flip(0)), "sha256 of x"),
    "other labels": (lambda x: dict(y=LABELS.flip(0), objective=labelled), "sha256 of y"),
    "another bound": (lambda x: dict(objective=elbo), "objective"),
    "another number of samples": (lambda x: dict(objective=partial(elbo_terms, num_samples=2)), "num_samples=2"),
    "another positional argument": (lambda x: dict(objective=numbered(2)), "samples=2"),
    "another optimizer": (lambda x: dict(optimizer=torch.optim.AdamW), "AdamW"),
    "another decay rate": (lambda x: dict(optimizer=partial(torch.optim.Adam, betas=(0.5, 0.9))), "betas=(0.5, 0.9)"),
    "another warm-up": (lambda x: dict(anneal=linear_warm_up(0.3), y=LABELS, objective=labelled), "share=0.3"),
    "without the last batch": (lambda x: dict(drop_last=True), "drop_last"),
    "early stopping": (lambda x: dict(after_epoch=EarlyStopping(x)), "sha256 of validation_x"),
}
BASE = {
    "other labels": lambda: dict(y=LABELS, objective=labelled),
    "another positional argument": lambda: dict(objective=numbered(1)),
    "another warm-up": lambda: dict(anneal=linear_warm_up(0.5), y=LABELS, objective=labelled),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_fit_refuses_to_go_on_with_something_else(kind, x, tmp_path):
    path, (other, word) = tmp_path / "c.pt", OTHERS[kind]
    settings = dict(x=x, checkpoint=path, fingerprint=None, epochs=2) | BASE.get(kind, dict)()
    train(**settings)
    train(**settings, resume=True)  # the same run goes on
    with refused(ValueError, path, "of another run", word):
        train(**settings | other(x), resume=True)


@pytest.mark.parametrize("objective", [shifted, helped])
def test_fit_refuses_to_go_on_with_another_number_among_the_globals(objective, x, tmp_path, monkeypatch):
    settings = dict(checkpoint=tmp_path / "c.pt", fingerprint=None)
    train(x, objective, **settings)
    monkeypatch.setattr(sys.modules[__name__], "SHIFT", 1.0)
    with refused(ValueError, "SHIFT=0.0", "SHIFT=1.0"):
        train(x, objective, **settings, resume=True)


def test_fit_refuses_to_go_on_with_a_changed_function_of_the_same_name(x, tmp_path):
    def objective(model, batch):
        return elbo(model, batch)

    settings = dict(checkpoint=tmp_path / "c.pt", fingerprint=None)
    train(x, objective, **settings)

    def objective(model, batch):
        return 2 * elbo(model, batch)

    with refused(ValueError, "objective is", "asked for was"):
        train(x, objective, **settings, resume=True)


def test_fit_goes_on_with_a_function_that_says_the_same(x, tmp_path):
    """Another function object, NumPy's numbers, another order of keywords, a model and a list that change."""

    def run(k, **settings):
        seen, teacher = [], network()

        def objective(model, batch):
            seen.append(len(batch))
            teacher.zero_grad()
            return elbo_terms(model, batch, num_samples=int(k))

        return train(x, objective, checkpoint=tmp_path / "c.pt", fingerprint=None, **settings)

    run(np.int64(2), epochs=1)
    resumed, _ = run(2, epochs=2, resume=True)
    assert same_state(resumed, train(x, partial(elbo_terms, num_samples=2))[0])


def test_fit_refuses_to_resume_without_a_checkpoint_or_with_a_folder(x, tmp_path):
    with refused(ValueError, "resume", "checkpoint"):
        train(x, resume=True)
    with refused(ValueError, "checkpoint", "folder", tmp_path):
        train(x, checkpoint=tmp_path, resume=True)


def test_describe_says_what_decides_a_function():
    sampled = partial(elbo_terms, kl="monte_carlo", num_samples=np.int64(3))
    assert describe(sampled) == "vae_core.objectives.elbo_terms(kl='monte_carlo', num_samples=3)"
    assert describe(torch.optim.Adam) == "torch.optim.adam.Adam"
    assert describe(linear_warm_up(0.3)) == "vae_core.objectives.linear_warm_up.<locals>.<lambda>[share=0.3]"
    assert describe(torch.ones(2)) != describe(torch.zeros(2))
    assert describe(nn.Linear(1, 1)) == describe(nn.Linear(1, 1)) == "torch.nn.modules.linear.Linear"
    assert describe(labelled) == describe(labelled) != describe(shifted)


def test_describe_ends_with_functions_that_call_each_other():
    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n > 0 and even(n - 1)

    assert describe(even) == describe(even) != describe(odd)


def test_digest_of_depends_on_shape_type_and_every_byte():
    x = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    alike = (x.clone(), x.transpose(1, 2).contiguous().transpose(1, 2))
    others = (x.reshape(3, 2, 4), x.view(torch.int8), x.float(), x.flip(0), x + torch.eye(4).byte()[3])
    assert {digest_of(each) for each in alike} == {digest_of(x)}
    assert len({digest_of(each) for each in (x, *others)}) == 6
    assert digest_of(torch.ones(2, dtype=torch.bfloat16)) != digest_of(torch.zeros(2, dtype=torch.bfloat16))
