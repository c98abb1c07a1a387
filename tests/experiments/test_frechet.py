"""The Fréchet distance: closed forms, its bias, and what a whole measurement holds."""

import json
from itertools import pairwise

import frechet
import numpy as np
import pytest
import scipy.linalg
import torch

from vae_core.data import Dataset
from vae_core.experiments.records import default_out
from vae_core.models import mlp_conditional_vae, mlp_vae

PATH = default_out() / "measured-frechet.json"


def random_moments(f: int) -> frechet.Moments:
    A = torch.randn(f, f)
    return torch.randn(f), A @ A.T / f + 0.1 * torch.eye(f)


def test_one_feature_has_the_closed_form():
    """(m₁ − m₂)² + (s₁ − s₂)²."""
    first, second = (torch.tensor([2.0]), torch.tensor([[9.0]])), (torch.tensor([-1.0]), torch.tensor([[4.0]]))
    assert frechet.frechet(first, second) == pytest.approx(9 + 1)


def test_covariances_that_commute_have_the_closed_form():
    """A common rotation of diagonal covariances: the sum of (s₁ − s₂)² over features."""
    Q = torch.linalg.qr(torch.randn(5, 5)).Q
    s1, s2, m = torch.rand(5) + 0.1, torch.rand(5) + 0.1, torch.randn(5)
    found = frechet.frechet((m, (Q * s1**2) @ Q.T), (torch.zeros(5), (Q * s2**2) @ Q.T))
    assert found == pytest.approx((m.square() + (s1 - s2) ** 2).sum().item())


@pytest.mark.parametrize("f", [1, 3, 32])
def test_it_is_what_a_general_matrix_root_gives(f):
    first, second = random_moments(f), random_moments(f)
    (m1, c1), (m2, c2) = ((m.numpy(), c.numpy()) for m, c in (first, second))
    shared = np.trace(scipy.linalg.sqrtm(c1 @ c2)).real
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * shared
    assert frechet.frechet(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet.frechet(second, first) == pytest.approx(expected, rel=1e-9)
    assert frechet.frechet(first, first) == pytest.approx(0, abs=1e-9)


def test_features_that_never_vary_are_no_obstacle():
    """Covariances without full rank, as of features that are always zero, or of fewer images than features."""
    x, y = torch.randn(2, 20, 40)
    x[:, 0] = y[:, 0] = 0
    assert frechet.frechet(frechet.moments(x), frechet.moments(x)) == pytest.approx(0, abs=1e-5)
    assert 0 < frechet.frechet(frechet.moments(x), frechet.moments(y)) < 200


def test_a_shift_of_the_features_costs_its_square():
    x = torch.randn(100, 4)
    assert frechet.frechet(frechet.moments(x), frechet.moments(x + 3)) == pytest.approx(4 * 9)


def test_the_estimate_is_too_large_by_what_theory_says_of_means_and_falls_with_n():
    """E‖m̂ − m‖² = tr(C)/n exactly, a lower bound on the whole; within six errors over 400 samples."""
    C = torch.diag(torch.tensor([4.0, 1.0, 0.25]))
    exact = torch.zeros(3), C
    for n in (50, 200):
        parts = (torch.randn(400 * n, 3) @ C.sqrt()).split(n)
        of_means = torch.tensor([frechet.moments(part)[0].square().sum() for part in parts])
        assert abs(of_means.mean() - C.trace() / n) < 6 * of_means.std() / 20
        whole = torch.tensor([frechet.frechet(frechet.moments(part), exact) for part in parts])
        assert (whole > of_means).all()
    found = frechet.at_counts(torch.randn(4000, 3) @ C.sqrt(), exact, (100, 1000, 4000))
    assert {n: len(each) for n, each in found.items()} == {"100": 10, "1000": 4, "4000": 1}
    assert np.mean(found["100"]) > np.mean(found["1000"]) > 0


def test_a_conditional_model_is_told_the_labels_and_means_are_not_draws(float32):
    conditional = mlp_conditional_vae((1, 28, 28), 2, 10, hidden=(8,), batch_norm=False)
    with torch.no_grad():
        conditional.decoder[0].weight[:, :2] = 0  # the code does not count
    y = torch.tensor([3] * 5 + [7] * 5)
    found = frechet.drawn(conditional, 10, y, seed=0)
    assert torch.equal(found["means"][0], found["means"][4])
    assert not torch.equal(found["means"][4], found["means"][5])
    assert set(found["draws"].unique().tolist()) == {0.0, 1.0}
    plain = mlp_vae((1, 28, 28), 2, hidden=(8,))
    assert len(frechet.drawn(plain, 1500, torch.zeros(1500), seed=0)["draws"]) == 1500
    again = frechet.drawn(plain, 10, y, seed=1)["means"]
    assert torch.equal(again, frechet.drawn(plain, 10, y, seed=1)["means"])
    assert not torch.equal(again, frechet.drawn(plain, 10, y, seed=2)["means"])


@pytest.fixture
def small(monkeypatch) -> Dataset:
    """Bars that light up a tenth of the columns each: ten classes that a classifier tells apart."""
    monkeypatch.setattr(frechet, "CLASSIFIER", frechet.CLASSIFIER | dict(images=200, epochs=30))
    monkeypatch.setattr(frechet, "COUNTS", (20, 40))
    y = torch.arange(280) % 10
    x = 0.2 * torch.rand(280, 1, 28, 28)
    for k in range(10):
        x[y == k, :, :, 2 * k + 4 : 2 * k + 6] += 0.7
    x = (255 * x).byte()
    return Dataset("mnist", x, y, x[:40].clone(), y[:40])


def test_a_measurement_ranks_real_images_before_models_that_have_not_learned(float32, small):
    untrained = {"untrained": mlp_vae((1, 28, 28), 2, hidden=(8,)).eval()}
    row, shown = frechet.measure(small, untrained, seed=0)
    assert row["accuracy"] > 0.9
    for kind in ("means", "draws"):
        at_40 = {name: found["40"][0] for name, found in row[kind].items()}
        assert at_40["real"] < at_40["PPCA, d = 20"] < at_40["untrained"]
    assert len(row["means"]["real"]["20"]) == 2
    assert all(images.dtype == torch.uint8 for images in shown.values())
    again, _ = frechet.measure(small, untrained, seed=0)
    assert again == row


def test_weights_are_looked_for_in_every_folder_and_missing_ones_are_left_out(tmp_path, monkeypatch, capsys):
    found, origin = frechet.find_models(("chen-mnist-d2", "iwae-mnist-k50"), [tmp_path, default_out()])
    assert "chen-mnist-d2" in found
    assert origin["chen-mnist-d2"]["command"] == "python -m vae_core run chen-mnist-d2"
    (tmp_path / "chen-mnist-d2.safetensors").write_bytes(b"no weights")
    with pytest.raises(FileNotFoundError, match=r"chen-mnist-d2\.json is not there"):
        frechet.find_models(("chen-mnist-d2",), [tmp_path])
    monkeypatch.setattr("sys.argv", ["frechet.py", "--out", str(tmp_path), "--weights", str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        frechet.main()
    assert "--weights must name folders that exist" in capsys.readouterr().err


def test_the_record_holds_every_source_and_its_bias_falls_with_n():
    if not PATH.exists():
        pytest.skip(f"{PATH.name} is not recorded yet")
    record = json.loads(PATH.read_text())
    assert record["command"] == "python book/frechet.py"
    assert "dirty" not in record["commit"]
    assert set(record["data_sha256"]) == set(frechet.MODELS)
    rows = record["figures"]["rows"]
    assert {(row["data"], row["seed"]) for row in rows} == {(d, s) for d in frechet.MODELS for s in frechet.SEEDS}
    for row in rows:
        wanted = {"real", "test", "real, blurred", "PPCA, d = 20", *record["config"]["models"][row["data"]]}
        for kind in ("means", "draws"):
            assert set(row[kind]) == wanted
            means = [np.mean(row[kind]["real"][str(n)]) for n in frechet.COUNTS]
            assert all(a > b > 0 for a, b in pairwise(means))
