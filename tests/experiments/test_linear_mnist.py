"""The recorded linear models of MNIST: what was written down is what they are, on the real data."""

import json

import linear_mnist
import pytest
import torch
from safetensors.torch import load_file

from vae_core.data import load
from vae_core.experiments.records import default_out
from vae_core.linear import PPCA, FactorAnalysis


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((default_out() / "linear-mnist.json").read_text())


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in load_file(default_out() / "linear-mnist.safetensors").items()}


def figures(record: dict, model: str) -> dict[int, dict]:
    return {row["d"]: row for row in record["rows"] if row["model"] == model}


def test_ppca_fitted_anew_gives_the_recorded_log_p(record, data_root):
    dataset = load("mnist", data_root)
    assert record["data_sha256"] == dataset.sha256
    train, test = (linear_mnist.dequantized(x, seed) for seed, x in enumerate((dataset.x_train, dataset.x_test)))
    model = PPCA(20).fit(train)
    expected = figures(record, "PPCA")[20]
    assert model.score(train) == pytest.approx(expected["log_p_train"], abs=1e-6)
    assert model.score(test) == pytest.approx(expected["log_p_test"], abs=1e-6)


@pytest.mark.parametrize(("model", "name"), [(PPCA(20), "PPCA"), (FactorAnalysis(20), "factor analysis")])
def test_the_recorded_parameters_have_the_recorded_log_p(model, name, record, weights, data_root):
    key = "ppca" if name == "PPCA" else "fa"
    model.mean_, model.components_, model.noise_variance_ = weights["mean"], weights[key], weights[key + "_noise"]
    test = linear_mnist.dequantized(load("mnist", data_root).x_test, 1)
    assert model.score(test) == pytest.approx(figures(record, name)[20]["log_p_test"], abs=0.01)  # kept in float32


def test_more_components_never_make_the_training_images_less_probable(record):
    for name in ("PPCA", "factor analysis"):
        values = [row["log_p_train"] for _, row in sorted(figures(record, name).items())]
        assert values == sorted(values)
    errors = [record["pca_mse"][str(d)] for d in record["config"]["sizes"]]
    assert errors == sorted(errors, reverse=True)


def test_every_pixel_is_dequantized_within_its_own_256th(record):
    x = torch.arange(256, dtype=torch.uint8).repeat(4, 1)
    whole = linear_mnist.dequantized(x, 0) * 256
    assert torch.equal(whole.floor(), x.double())
    assert not torch.equal(linear_mnist.dequantized(x, 0), linear_mnist.dequantized(x, 1))
