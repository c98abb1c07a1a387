"""torch's state around a call of `fit`: it has no effect, or the right one, and is there again afterwards."""

import contextlib
from functools import partial

import pytest
import torch
from checks import refused
from torch import Tensor
from training_runs import changed_at, network, same_state, squared_error, timeless, train, x

from vae_core.evaluation import evaluate
from vae_core.models import VAE
from vae_core.objectives import elbo, elbo_terms
from vae_core.training import fit

pytestmark = pytest.mark.usefixtures("float32")
bfloat16 = partial(torch.autocast, "cpu", torch.bfloat16)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AROUND = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "gradients off": lambda: torch.set_grad_enabled(False),
    "float64 as default": lambda: default_dtype(torch.float64),
    "deterministic algorithms": deterministic,
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "a default device": lambda: torch.device("cpu"),
    "random numbers of the caller": lambda: torch.random.fork_rng(devices=[]),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("images", [lambda x: x, lambda x: (255 * x).byte()], ids=["floats", "bytes"])
@pytest.mark.parametrize("kind", AROUND)
def test_fit_trains_the_same_within(kind, images, x):
    x, model = images(x), network()
    expected, rows = train(x)
    with AROUND[kind]():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()
        history = fit(model, x, elbo_terms, epochs=2, batch_size=64, learning_rate=1e-2, progress=False)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()) == before
    assert timeless(history) == timeless(rows)
    assert same_state(model, expected)
    model.mean.weight.sum().backward()  # no tensor of inference mode


def test_fit_works_with_the_weights_of_each_step_within_autocast(x):
    """Autocast keeps the weights that it has rounded: without a fresh start the gradient would never change."""
    with bfloat16():
        inside, rows = train(x, epochs=30)
    outside, expected = train(x, epochs=30)
    losses, wanted = ([row["loss"] for row in history] for history in (rows, expected))
    assert wanted[0] - wanted[-1] > 10
    assert losses == pytest.approx(wanted, abs=0.5)
    assert evaluate(inside, x)["loss"] == pytest.approx(evaluate(outside, x)["loss"], abs=0.5)


def test_fit_leaves_no_old_weights_in_autocasts_cache(x):
    """In `after_epoch`, and after the call, with or without an error."""
    seen = []

    def watch(model: VAE) -> dict[str, float]:
        with torch.no_grad():
            seen.append((model.encode(x[:4]), fresh(model, x[:4])))
        return {}

    with bfloat16():
        model, _ = train(x, squared_error, after_epoch=watch)
        watch(model)
    assert len(seen) == 3
    assert all(torch.equal(*pair) for pair in seen)


def test_fit_leaves_no_old_weights_in_autocasts_cache_after_an_error_or_a_resumption(x, tmp_path):
    def fail(value: Tensor) -> Tensor:
        raise RuntimeError

    settings = dict(epochs=4, checkpoint=tmp_path / "c.pt", fingerprint="the ELBO")
    with bfloat16():
        model = network()
        with pytest.raises(RuntimeError):
            train(x, changed_at(11, fail), model, **settings)
        assert torch.equal(model.encode(x[:4]), fresh(model, x[:4]))
        used = network()
        used.encode(x[:4])  # so that its first weights are in the cache
        resumed, _ = train(x, model=used, resume=True, **settings)
        expected, _ = train(x, epochs=4)
    assert same_state(resumed, expected)


def fresh(model: VAE, x: Tensor) -> Tensor:
    with bfloat16(cache_enabled=False):
        return model.encode(x)


def test_fit_sums_losses_in_32_bits_within_autocast(x):
    """The sum of 250 values of 40.5 nats would be rounded to a multiple of 64 in bfloat16."""

    def objective(model: VAE, batch: Tensor):
        value = elbo(model, batch)
        return value, {"part": (value - value + 40.5).bfloat16()}

    with bfloat16():
        row = train(x[:250], objective, epochs=1, batch_size=250)[1][0]
    assert row["part"] == 40.5


def test_fit_refuses_autocast_with_float16(x):
    with torch.autocast("cpu", torch.float16), refused(ValueError, "autocast", "float16", "bfloat16"):
        train(x)


def test_fit_trains_in_training_mode_whatever_mode_the_model_is_in(x):
    mixed = network()
    mixed.encoder.eval()
    for model in (network().eval(), mixed):
        assert same_state(train(x, model=model)[0], train(x)[0])
