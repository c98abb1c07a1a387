"""What `fit` takes and what it refuses, in one sentence, before anything changes."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from checks import refused
from torch import Tensor, nn
from torch.distributions import Independent
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, TensorDataset
from training_runs import flat, network, same_state, squared_error, timeless, train, x

from vae_core.distributions import standard_normal
from vae_core.likelihoods import LIKELIHOODS, NegativeBinomialCounts
from vae_core.models import VAE, mlp_autoencoder, mlp_conditional_vae, mlp_vae
from vae_core.objectives import elbo, elbo_terms, iwae_bound, reconstruction_log_likelihood
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


# Values outside of the likelihood's support


def of(likelihood, shape=(1, 8, 8)) -> VAE:
    torch.manual_seed(1)
    return mlp_vae(shape, 2, hidden=(8,), batch_norm=False, likelihood=likelihood)


OUTSIDE = {
    "0 to 255": lambda x: 255 * x,
    "normalised": lambda x: 2 * x - 1,
    "standardised": lambda x: (x - x.mean()) / x.std(),
    "one value of all": lambda x: x.index_put((torch.tensor([200]),), x[200] + 1),
    "an array": lambda x: (255 * x).numpy(),
}
OBJECTIVES = {
    "elbo_terms": elbo_terms,
    "a partial": partial(iwae_bound, num_samples=2),
    "a lambda": lambda model, batch: elbo(model, batch),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("values", OUTSIDE)
@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli"])
def test_fit_refuses_images_outside_the_support(likelihood, values, objective, x, tmp_path):
    model = of(likelihood)
    with refused(ValueError, "x must", "got"):
        train(OUTSIDE[values](x), OBJECTIVES[objective], model, checkpoint=tmp_path / "new" / "c.pt")
    assert same_state(model, of(likelihood))
    assert list(tmp_path.iterdir()) == []


def test_fit_refuses_levels_and_counts_that_are_none(x):
    for model in (of("discretized_logistic"), of(NegativeBinomialCounts)):
        with refused(ValueError, "x must"):
            train(x / 3, model=model)


@pytest.mark.parametrize("likelihood", [*LIKELIHOODS, NegativeBinomialCounts])
def test_fit_takes_all_values_of_the_support(likelihood, x):
    values = {"gaussian": 9 * x - 4, "discretized_logistic": (255 * x).round() / 255}
    if likelihood in ("negative_binomial", NegativeBinomialCounts):
        x = (16 * x).round()
    _, history = train(values.get(likelihood, x), model=of(LIKELIHOODS.get(likelihood, likelihood)), epochs=1)
    assert math.isfinite(history[0]["loss"])


def test_fit_refuses_images_outside_the_support_of_a_conditional_model_or_an_autoencoder(x):
    y = one_hot(torch.arange(256) % 10, 10).float()
    models = mlp_conditional_vae((1, 8, 8), 2, 10, hidden=(8,)), mlp_autoencoder((1, 8, 8), 2, hidden=(8,))
    objectives = (lambda model, batch, y: elbo_terms(model.given(y), batch)), reconstruction_log_likelihood
    for model, objective, settings in zip(models, objectives, (dict(y=y), {}), strict=True):
        with refused(ValueError, "x must"):
            train(255 * x, objective, model, **settings)
        train(x, objective, model, epochs=1, **settings)


def test_fit_takes_what_the_objective_brings_into_the_support(x):
    """It is the objective that knows: what it hands the likelihood counts, conditional models' too."""
    plain, _ = train(x, elbo, network())
    scaled, _ = train(256 * x, lambda model, batch: elbo(model, batch / 256), network())
    assert same_state(scaled, plain)
    counted, _ = train(x, lambda model, batch: elbo(model, (16 * batch).round()), of(NegativeBinomialCounts))
    assert torch.allclose(flat(counted), flat(train((16 * x).round(), elbo, of(NegativeBinomialCounts))[0]), atol=1e-6)
    y = one_hot(torch.arange(256) % 10, 10).float()
    model = mlp_conditional_vae((1, 8, 8), 2, 10, hidden=(8,))
    train(255 * x, lambda model, batch, y: elbo(model.given(y), batch / 255), model, y=y, epochs=1)


def test_fit_asks_no_likelihood_that_does_not_see_the_data(x):
    """Noise in a second channel; an objective that uses the decoder's mean alone; a model without a likelihood."""
    beside = torch.cat([x, torch.randn_like(x)], 1)
    train(beside, lambda model, batch: elbo(model, batch[:, :1]), epochs=1)
    train(2 * x - 1, squared_error, epochs=1)
    train(2 * x - 1, lambda model, batch: -model(batch.flatten(1)).square().mean(1), nn.Linear(64, 3), epochs=1)


def test_fit_decodes_nothing_beside_the_batches(x):
    """Chapter 07 counts the decoder's passes."""
    model, passes = network(), []
    model.decoder.register_forward_hook(lambda _layer, _inputs, output: passes.append(len(output)))
    train(x, model=model, epochs=1)
    assert passes == [64] * 4


class Poisson(nn.Module):
    """A model of counts without our base class: q is its prior."""

    def __init__(self, p: int) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.zeros(p))

    @property
    def prior(self):
        return standard_normal(2, like=self.log_rate)

    def posterior(self, x: Tensor):
        return self.prior.expand(x.shape[:1])

    def likelihood(self, z: Tensor):
        rate = self.log_rate.exp().expand(*z.shape[:-1], -1)
        return Independent(torch.distributions.Poisson(rate, validate_args=False), 1)


def test_fit_asks_other_peoples_models_too():
    counts = torch.poisson(torch.tensor([0.5, 3.0, 8.0]).expand(500, -1))
    model = Poisson(3)
    fit(model, counts, elbo, epochs=200, batch_size=500, learning_rate=0.1)
    assert torch.allclose(model.log_rate.exp(), counts.mean(0), atol=1e-3)  # the maximum of the likelihood
    for bad in (counts - 1, counts / 2):
        with refused(ValueError, "x must"):
            fit(Poisson(3), bad, elbo, epochs=1)
    fit(Poisson(3), counts / 2, lambda model, batch: elbo(model, 2 * batch), epochs=1)


def test_fit_asks_about_the_support_once_and_changes_nothing_by_it(x, monkeypatch):
    asked = []
    monkeypatch.setattr("vae_core._training_data.check_support", lambda p, x, name="x": asked.append((name, len(x))))
    (a, rows), model = train(x, epochs=3), network()
    assert asked == [("x", 256)]
    monkeypatch.setattr("vae_core.training.check_data", lambda *_: None)
    assert timeless(train(x, model=model, epochs=3)[1]) == timeless(rows)
    assert same_state(a, model)


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
