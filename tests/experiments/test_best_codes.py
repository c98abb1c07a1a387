"""The search for the best codes of Irvin's networks, and PCA as a control: on small models, and as recorded."""

import hashlib
import json
from pathlib import Path

import best_codes
import numpy as np
import pca_control
import pytest
import torch
from sklearn.decomposition import PCA

from vae_core.data import Dataset, load
from vae_core.experiments.records import default_out
from vae_core.inference import WithPosterior, fit_posterior
from vae_core.models import mlp_vae

pytestmark = pytest.mark.usefixtures("float32")


def record(name: str) -> dict:
    return json.loads((default_out() / f"{name}.json").read_text())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return mlp_vae((1, 8, 8), 2, hidden=(16,)).eval()


def test_the_search_gains_and_its_gain_is_the_difference_of_the_losses(model):
    found = best_codes.searched(model, load("digits").x_test[:40])
    assert found["gain"]["mean"] > 6 * found["gain"]["error"] > 0
    assert found["gain"]["mean"] == pytest.approx(found["encoder"]["mean"] - found["best"]["mean"], abs=1e-4)


def test_where_the_encoder_is_the_best_already_nothing_is_gained(model):
    x = load("digits").x_test[:40]
    best = WithPosterior(model, fit_posterior(model, x, steps=1500, num_samples=32))
    gain = best_codes.searched(best, x)["gain"]["mean"]
    assert abs(gain) < 0.05


def weights(path: Path, content: bytes = b"x", epoch: int = 40) -> best_codes.Weights:
    return best_codes.Weights("irvin-z2-e100", 1, epoch, hashlib.sha256(content).hexdigest(), path)


def test_missing_weights_are_named_with_their_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"irvin-z2-e100 --seed 1` makes it, or name its folder with --weights"):
        best_codes.read_model(weights(tmp_path / "absent.safetensors"))


def test_the_weights_of_another_run_are_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="another run than the record"):
        best_codes.read_model(weights(tmp_path / "a.safetensors"))


def test_a_second_call_goes_on_with_what_is_missing(model, tmp_path, monkeypatch):
    measured = []

    def read_model(which):
        measured.append(which.epoch)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return model

    digits = load("digits")
    small = Dataset("mnist", digits.x_train[:50], digits.y_train[:50], digits.x_test[:50], digits.y_test[:50], "sum")
    monkeypatch.setattr(best_codes, "load", lambda *_: small)
    monkeypatch.setattr(best_codes, "all_weights", lambda *_: [weights(tmp_path, epoch=k) for k in (40, 94, 550)])
    monkeypatch.setattr(best_codes, "read_model", read_model)
    monkeypatch.setattr(best_codes, "SEARCH", dict(steps=2))
    arguments = ["--out", str(tmp_path), "--images", "5"]
    with pytest.raises(KeyboardInterrupt):
        best_codes.main(arguments)
    first = json.loads((tmp_path / "best-codes.json").read_text())["rows"]
    best_codes.main(arguments)
    assert measured == [40, 94, 94, 550]
    rows = json.loads((tmp_path / "best-codes.json").read_text())["rows"]
    assert len(rows) == 3
    assert first.items() < rows.items()


def test_what_is_recorded_is_of_the_recorded_weights_and_of_these_data(data_root):
    found = record("best-codes")
    wanted = {each.key: each.sha256 for each in best_codes.all_weights(default_out(), default_out())}
    assert {key: row["weights_sha256"] for key, row in found["rows"].items()} == wanted
    assert found["data_sha256"] == load("mnist", data_root).sha256


def test_small_codes_lose_more_on_new_images_than_on_those_they_were_trained_on():
    rows = record("best-codes")["rows"]
    gains = {key: [rows[key][split]["gain"] for split in ("train", "test")] for key in rows}
    for key, (train, test) in gains.items():
        assert train["mean"] > 6 * train["error"] > 0
        if key.startswith(("irvin-z2", "irvin-z3")):
            assert test["mean"] - train["mean"] > 2 * (train["error"] ** 2 + test["error"] ** 2) ** 0.5


# PCA


def test_pca_and_its_error_are_those_of_scikit_learn():
    x = np.random.default_rng(0).normal(size=(60, 7)) @ np.diag(np.arange(1, 8))
    pca = PCA(5).fit(x)
    z = torch.from_numpy(pca.transform(x))
    for d in (1, 3, 5):
        few = PCA(d).fit(x)
        wanted = np.square(few.inverse_transform(few.transform(x)) - x).mean()
        assert pca_control.squared_error(pca, torch.from_numpy(x), z, d) == pytest.approx(wanted)


def test_the_recorded_control_falls_in_error_and_is_of_these_data(data_root):
    found = record("pca-cifar10")
    assert found["data_sha256"] == load("cifar10", data_root).sha256
    errors = [found["rows"][f"PCA, d = {d}"]["mse"] for d in pca_control.SIZES]
    assert errors == sorted(errors, reverse=True)
    measured = record("measured-cifar10")["figures"]  # by the book's own PCA
    for d in (20, 256):
        assert found["rows"][f"PCA, d = {d}"]["linear"] == pytest.approx(
            measured["probes"][f"PCA, d = {d}"]["linear"], abs=0.002
        )
    assert found["rows"]["chen-cifar10-cnn"]["mse"] == pytest.approx(measured["mse"]["cnn"], rel=1e-3)
