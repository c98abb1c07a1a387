"""What `fit` takes and what it refuses, in one sentence, before anything changes."""

import math

import pytest
import torch
from checks import refused
from training_runs import network, same_state, train, x

pytestmark = pytest.mark.usefixtures("float32")


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
def test_fit_settings_out_of_range_are_refused_before_anything_changes(argument, value, x, tmp_path):
    model = network().eval()
    with refused(ValueError, argument, repr(value)):
        train(x, model=model, checkpoint=tmp_path / "c.pt", **{argument: value})
    assert same_state(model, network())
    assert not model.training
    assert list(tmp_path.iterdir()) == []


def test_fit_no_images_are_refused(x):
    with refused(ValueError, "x", "at least one image"):
        train(x[:0])


def test_fit_images_of_another_dtype_are_refused_before_anything_changes(x):
    model = network().eval()
    with refused(TypeError, "images", "torch.int64"):
        train((x * 16).long(), model=model)
    assert same_state(model, network())
    assert not model.training


def test_fit_a_last_batch_of_one_image_is_refused_with_batch_norm_before_anything_changes(x):
    model = network(batch_norm=True)
    with refused(ValueError, "batch_size", "64"):
        train(x[:65], model=model, epochs=1, batch_size=64)
    assert same_state(model, network(batch_norm=True))


def test_fit_a_last_batch_of_one_image_is_trained_on_without_batch_norm(x):
    _, history = train(x[:65], model=network(batch_norm=False), epochs=1, batch_size=64)
    assert math.isfinite(history[0]["loss"])
