"""The measurements behind chapters 09 to 13: the tools on made data, and the recorded figures against the real one."""

import hashlib
import json
from dataclasses import replace

import measurements
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vae_core.data import load
from vae_core.evaluation import kl_per_unit, linear_probe, sharpness
from vae_core.experiments.records import default_out, load_trained
from vae_core.experiments.registry import EXPERIMENTS, find
from vae_core.experiments.results import PROGRAMS
from vae_core.experiments.run import run
from vae_core.runtime import unit_interval

NAMES = sorted(measurements.MEASUREMENTS)


def recorded(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    path = default_out() / f"measured-{name}.json"
    return json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))


class Brightest(nn.Module):
    """A judge that names the brightest of ten pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


def test_flips_are_counted_from_class_to_class():
    x = torch.eye(10).reshape(10, 1, 2, 5)
    y = torch.arange(10)
    same = measurements.flips(Brightest(), y, y, x)
    assert (same["accuracy"], same["flipped"]) == (1.0, 0.0)
    turned = measurements.flips(Brightest(), y, y, x.roll(1, 0))
    assert (turned["accuracy"], turned["flipped"]) == (0.0, 1.0)
    assert turned["from_to"][0][9] == turned["from_to"][3][2] == 1
    assert torch.tensor(turned["from_to"]).sum() == 10


def test_what_is_kept_of_images_and_codes():
    assert measurements.compact("images", torch.full((1, 1, 2, 2), 0.5)).unique().tolist() == [128]
    assert measurements.compact("y_test", torch.tensor([3])).dtype == torch.uint8
    assert measurements.compact("codes", torch.tensor([[0.1]])).dtype == torch.float16


def test_one_seed_gives_one_judge_and_leaves_the_random_state(float32):
    x, y = (255 * load("digits").x_train[:256]).byte(), load("digits").y_train[:256]
    state = torch.get_rng_state()
    one, two = (measurements.classifier(x, y, epochs=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_an_unknown_measurement_is_refused_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["measurements.py", "mnist", "moons", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        measurements.main()
    assert "unknown moons" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


KINDS = {
    "conditional": dict(model=dict(network="mlp_conditional_vae", latent_dim=2, condition_dim=10, hidden=(16,))),
    "importance-weighted": dict(num_samples=3),
    "binarised": dict(binarise=True),
    "binarised once": dict(binarise=True, binarise_once=True),
    "dequantised": dict(dequantise=True, model=dict(latent_dim=2, hidden=(16,), likelihood="shared_gaussian")),
    "warm-up": dict(kl_warm_up=0.5),
    "beta": dict(beta=4.0),
    "one class": dict(label=3),
    "permuted": dict(permute=True),
    "betas": dict(training=dict(batch_size=64, betas=(0.5, 0.9))),
    "autoencoder": dict(model=dict(network="mlp_autoencoder", latent_dim=2, hidden=(16,))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_is_trained_again_is_that_of_the_run(kind, tmp_path, monkeypatch, float32):
    small = dict(epochs=1, model=dict(latent_dim=2, hidden=(16,)), training=dict(batch_size=64), weights=True)
    experiment = replace(find("digits-d2"), name="small", **(small | KINDS[kind]))
    monkeypatch.setitem(EXPERIMENTS, "small", experiment)
    run("small", out=tmp_path, device="cpu", progress=False)
    of_run = load_trained("small", tmp_path)
    again = measurements.trained("small", load("digits"), epochs=1)  # as it would without recorded weights
    for a, b in zip(again.state_dict().values(), of_run.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)  # weights are kept in half precision


def test_a_measurement_carries_checksums_of_its_images_and_weights(tmp_path, monkeypatch, float32):
    monkeypatch.setattr(measurements, "default_out", lambda: tmp_path)
    monkeypatch.setitem(measurements.PROGRAMS, "measured-moons", replace(PROGRAMS["measured-boots"], networks=("a",)))
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    monkeypatch.setitem(
        measurements.MEASUREMENTS, "moons", lambda get: ({"n": len(get("digits").x_test)}, {"codes": torch.zeros(1)})
    )
    measurements.measure("moons", None, tmp_path)
    record = json.loads((tmp_path / "measured-moons.json").read_text())
    assert record["figures"] == {"n": 360}
    assert record["data_sha256"] == {"digits": load("digits").sha256}
    assert record["weights_sha256"] == {"a": hashlib.sha256(b"weights").hexdigest()}


@pytest.mark.parametrize("name", NAMES)
def test_the_checksums_of_a_recorded_measurement_are_right(name, data_root):
    record = recorded(name)[0]
    if "data_sha256" not in record:
        pytest.skip("measured before checksums were recorded")
    assert record["data_sha256"] == {dataset: load(dataset, data_root).sha256 for dataset in record["data_sha256"]}
    assert record["weights_sha256"] == measurements.weights_of(PROGRAMS[f"measured-{name}"].networks)


@pytest.mark.parametrize("name", NAMES)
def test_each_measurement_is_recorded_with_its_command(name):
    record, tensors = recorded(name)
    assert record["command"] == f"python book/measurements.py {name}"
    assert {value.dtype for value in tensors.values()} <= {torch.uint8, torch.float16}


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_every_test_image_is_judged_once(name):
    figures = recorded(name)[0]["figures"]
    for flips in figures["flips"].values():
        counts = torch.tensor(flips["from_to"])
        assert counts.sum() == 10_000
        assert 1 - counts.diagonal().sum() / 10_000 == pytest.approx(flips["flipped"], abs=1e-6)


@pytest.mark.parametrize(("name", "dataset"), [("mnist", "mnist"), ("fashion", "fashion-mnist")])
def test_the_recorded_figures_hold_on_the_real_images(name, dataset, data_root, float32):
    figures, data, model = recorded(name)[0]["figures"], load(dataset, data_root), load_trained(f"chen-{name}-d2")
    key = f"d = 2, seed {723 if name == 'mnist' else 237}"
    x_test = unit_interval(data.x_test)
    assert sharpness(x_test) == pytest.approx(figures["sharpness"]["originals"], rel=1e-4)
    assert kl_per_unit(model, x_test).tolist() == pytest.approx(figures["kl_per_unit"][key], abs=1e-3)
    train, test = (measurements.encoded(model, unit_interval(x))[0] for x in (data.x_train, data.x_test))
    probe = linear_probe(train, data.y_train, test, data.y_test)
    assert probe == pytest.approx(figures["probes"][key]["linear"], abs=0.002)
