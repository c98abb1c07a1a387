"""What `fit` takes and what it refuses, in one sentence, before anything changes."""

import math

import numpy as np
import pytest
import torch
from checks import refused
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training_runs import network, same_state, squared_error, timeless, train, x

from vae_core.models import VAE
from vae_core.objectives import elbo, elbo_terms
from vae_core.runtime import Runtime
from vae_core.training import fit

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
        ("weight_decay", "none"),
        ("learning_rate", True),
        ("learning_rate", "fast"),
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
    with refused(TypeError, "x must be uint8", "torch.int64"):
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


# Containers


TAKEN = {
    "an array": lambda x: x.numpy(),
    "a float64 array": lambda x: x.numpy().astype(np.float64),
    "a reversed array": lambda x: x.flip(0).numpy()[::-1],
    "float64": lambda x: x.double(),
    "a map-style Dataset": lambda x: TensorDataset(x),
    "a Dataset with labels": lambda x: TensorDataset(x, torch.arange(len(x))),
    "a list of tensors": list,
    "a leaf that needs a gradient": lambda x: x.clone().requires_grad_(),
    "a tensor of inference mode": lambda x: inferred(lambda: x.clone()),
}


def inferred(make):
    with torch.inference_mode():
        return make()


@pytest.mark.parametrize("kind", TAKEN)
def test_fit_takes_what_holds_images(kind, x):
    (a, rows), (b, expected) = train(TAKEN[kind](x)), train(x)
    assert timeless(rows) == timeless(expected)
    assert same_state(a, b)


def test_fit_takes_true_and_false_as_ones_and_zeros(x):
    binary = x > 0.5
    for each in (binary, binary.numpy()):
        assert same_state(train(each)[0], train(binary.float())[0])


def test_fit_refuses_zeros_and_ones_as_bytes(x):
    with refused(ValueError, "uint8", "maximum is 1", "x.bool()"):
        train((x > 0.5).byte())


@pytest.mark.parametrize("y", [[k % 3 for k in range(256)], np.arange(256) % 3, torch.arange(256.0) % 3, range(256)])
def test_fit_takes_labels_of_any_kind_as_int64(y, x):
    seen = []

    def objective(model: VAE, batch: Tensor, labels: Tensor):
        seen.append(labels)
        return elbo_terms(model, batch)

    train(x, objective, y=y, epochs=1)
    assert {labels.dtype for labels in seen} == {torch.int64}
    assert sorted(torch.cat(seen).tolist()) == sorted(int(each) for each in y)


def test_fit_refuses_other_containers(x):
    for bad, word in (
        (DataLoader(TensorDataset(x)), "loader.dataset"),
        (None, "x must be data"),
        (x[0, 0, 0], "shape"),
    ):
        with pytest.raises((TypeError, ValueError), match=word):
            train(bad)
    for y in (torch.arange(9), [0.5] * 256, ["a"] * 256):
        with pytest.raises((TypeError, ValueError), match=r"^y must"):
            train(x, y=y)


class Line(nn.Module):
    """A model of rows (N, p) that is no VAE: y = w·x."""

    def __init__(self, p: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(p))


def least_squares(model: Line, batch: Tensor, y: Tensor) -> Tensor:
    return -(batch @ model.weight - y[:, 0]).square()


def test_fit_takes_tables_and_finds_their_regression():
    table = torch.randn(200, 3)
    y = table @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * torch.randn(200)
    model = Line(3)
    fit(model, table.numpy(), least_squares, y=y[:, None], epochs=300, batch_size=200, learning_rate=0.1)
    assert torch.allclose(model.weight, torch.linalg.lstsq(table, y).solution, atol=1e-3)


# Functions, models, devices


FUNCTIONS = {
    "objective": [None, "elbo", elbo(network(), torch.rand(2, 1, 8, 8)).detach()],
    "optimizer": [None, "Adam"],
    "anneal": [0.5, lambda progress: None, lambda progress: math.nan, lambda progress: torch.ones(2)],
    "after_epoch": [{}, "evaluate"],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_fit_refuses_what_is_no_function(name, x):
    for bad in FUNCTIONS[name]:
        with pytest.raises((TypeError, ValueError), match=f"^{name} must"):
            train(x, **{name: bad})


def test_fit_refuses_models_that_cannot_be_trained(x):
    frozen, made = network().requires_grad_(False), inferred(network)
    for model, word in ((nn.ReLU(), "no parameters"), (frozen, "frozen"), (made, "inference_mode")):
        with refused(ValueError, "model", word):
            train(x, squared_error, model)
    for model, word in ((nn.LazyLinear(3), "lazy"), (nn.Linear(3, 3, device="meta"), "meta")):
        with refused(ValueError, "model", word):
            train(x, squared_error, model)
    with refused(TypeError, "model must be a torch.nn.Module", "object"):
        train(x, model=object())


def test_fit_leaves_frozen_parameters_alone(x):
    model = network()
    model.encoder.requires_grad_(False)
    train(x, model=model)
    assert same_state_of_parameters(model.encoder, network().encoder)
    assert not torch.equal(model.mean.weight, network().mean.weight)


def same_state_of_parameters(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("device", ["cpu", "auto", torch.device("cpu"), Runtime(torch.device("cpu"))])
def test_fit_takes_devices_of_any_kind(device, x):
    if device == "auto" and torch.cuda.is_available():
        pytest.skip("auto is CUDA here")
    assert same_state(train(x, device=device)[0], train(x)[0])


@pytest.mark.parametrize("device", ["tpu", "cuda:99", 0])
def test_fit_refuses_devices_that_are_not_there(device, x):
    with pytest.raises((TypeError, ValueError), match=r"^device must"):
        train(x, device=device)


def test_fit_takes_x_and_y_in_another_precision_than_the_model(x):
    seen = []

    def objective(model, batch, y):
        seen.append((batch.dtype, y.dtype))
        return elbo(model, batch)

    for dtype, expected in ((torch.float32, torch.float32), (torch.float64,) * 2, (torch.bfloat16, torch.float32)):
        train(x.half(), objective, network(batch_norm=False).to(dtype), y=torch.rand(256, 2), epochs=1)
        train((255 * x).byte(), objective, network(batch_norm=False).to(dtype), y=torch.rand(256, 2), epochs=1)
        assert set(seen) == {(expected, expected)}
        seen.clear()


# The last batch


def test_fit_drops_a_smaller_last_batch_if_asked(x):
    sizes = []

    def objective(model: VAE, batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        return elbo(model, batch)

    train(x[:150], objective, batch_size=64, drop_last=True)
    assert sizes == [64, 64] * 2
    train(x[:65], model=network(batch_norm=True), batch_size=64, drop_last=True)  # no batch of one


def test_fit_averages_over_the_images_that_it_did_not_drop(x):
    images, model = x[:50].double(), network(batch_norm=False).double()
    values = []

    def objective(model: VAE, batch: Tensor) -> Tensor:
        values.append(squared_error(model, batch))
        return values[-1]

    _, (row,) = train(images, objective, model, epochs=1, batch_size=16, drop_last=True, learning_rate=1e-30)
    assert row["loss"] == pytest.approx(-torch.cat(values).mean().item(), rel=1e-12)
    assert len(torch.cat(values)) == 48


def test_fit_refuses_to_drop_all_batches_or_what_is_no_choice(x):
    with refused(ValueError, "drop_last", "64", "10"):
        train(x[:10], drop_last=True)
    with refused(TypeError, "drop_last", "'yes'"):
        train(x, drop_last="yes")


def test_fit_spreads_a_schedule_over_the_steps_that_it_makes(x):
    """300 images in batches of 200 are one step an epoch: after ten of them the rate has fallen to nearly nothing."""
    rates = []

    def objective(model: Line, batch: Tensor, weight: Tensor) -> Tensor:
        rates.append(weight.item())
        return -(batch @ model.weight).square()

    table = torch.randn(300, 2)
    settings = dict(epochs=10, batch_size=200, drop_last=True, anneal=lambda progress: progress)
    fit(Line(2), table, objective, **settings)
    assert rates == pytest.approx([(k + 0.5) / 10 for k in range(10)])
