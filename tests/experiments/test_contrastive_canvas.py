"""Digits on a canvas: nothing is lost in a move, the masked objective counts hidden pixels alone, and the record."""

import json

import contrastive_canvas as canvas
import pytest
import torch

from vae_core.data import load
from vae_core.experiments.records import default_out

PATH = default_out() / "measured-contrastive-canvas.json"


def patch(row: int, column: int, size: int = 12) -> torch.Tensor:
    """A 3 by 2 block of distinct values on an empty canvas, (1, 1, size, size)."""
    x = torch.zeros(1, 1, size, size)
    x[0, 0, row : row + 3, column : column + 2] = torch.arange(1.0, 7.0).view(3, 2) / 6
    return x


def test_ink_is_found_on_both_axes():
    x = torch.cat([patch(0, 0), patch(4, 7), patch(9, 10)])
    across, down = canvas.ink(x, 3), canvas.ink(x, 2)
    assert [each.tolist() for each in across] == [[0, 7, 10], [1, 8, 11]]
    assert [each.tolist() for each in down] == [[0, 4, 9], [2, 6, 11]]


@pytest.mark.parametrize("start", [(0, 0), (4, 7), (9, 10)])
def test_a_digit_is_put_where_it_is_told_and_stays_whole(start):
    x = patch(*start)
    assert torch.equal(canvas.placed(x, torch.tensor([[0.0, 0.0]])), patch(0, 0))
    assert torch.equal(canvas.placed(x, torch.tensor([[1.0, 0.0]])), patch(0, 10))
    assert torch.equal(canvas.placed(x, torch.tensor([[1.0, 1.0]])), patch(9, 10))


def test_every_image_has_a_place_of_its_own_and_keeps_its_ink():
    x = patch(4, 7).repeat(500, 1, 1, 1)
    y = canvas.placed(x, torch.rand(500, 2))
    assert torch.equal(y.flatten(1).sort().values, x.flatten(1).sort().values)
    places = torch.stack([canvas.ink(y, 3)[0], canvas.ink(y, 2)[0]], 1)
    assert places.amin(0).tolist() == [0, 0]
    assert places.amax(0).tolist() == [10, 9]
    assert len(places.unique(dim=0)) > 90


def test_brightness_is_uniform_and_does_not_remember_that_of_the_image():
    x = torch.cat([patch(4, 7), 0.5 * patch(4, 7)]).repeat(1000, 1, 1, 1)
    peak = canvas.scattered(x).amax((1, 2, 3))
    assert canvas.DARKEST <= peak.min() < canvas.DARKEST + 0.02
    assert 0.98 < peak.max() <= 1
    even, odd = peak[::2], peak[1::2]
    assert abs(even.mean() - odd.mean()) < 6 * peak.std() * (2 / 1000) ** 0.5
    assert canvas.scattered(torch.zeros(2, 1, 12, 12)).isfinite().all()


def test_turned_views_keep_the_digit_inside():
    """Its area on the canvas does not depend on where it was, so nothing is cut off at an edge."""
    whole = torch.zeros(400, 1, 24, 24)
    whole[:200, 0, 0:10, 0:10] = 1
    whole[200:, 0, 7:17, 7:17] = 1
    y = canvas.scattered(whole, turned=True)
    ink = (y / y.amax((1, 2, 3), keepdim=True)).sum((1, 2, 3))
    error = (ink[:200].var() / 200 + ink[200:].var() / 200).sqrt()
    assert abs(ink[:200].mean() - ink[200:].mean()) < 6 * error


def test_the_masked_objective_sees_only_what_is_not_hidden_and_counts_only_what_is(monkeypatch):
    model = canvas.build("masked", (1, 24, 24), 0).double().eval()
    x = torch.rand(5, 1, 24, 24)
    seen = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda images: seen.append(images) or encode(images))
    value, terms = canvas.masked_reconstruction(model, x)
    shown = seen[0] != 0
    tiles = shown.unflatten(3, (6, 4)).unflatten(2, (6, 4)).transpose(3, 4).flatten(4)  # (5, 1, 6, 6, 16)
    assert torch.equal(tiles.any(-1), tiles.all(-1))  # whole patches
    p = model.likelihood(encode(seen[0])).mean
    by_hand = (torch.xlogy(x, p) + torch.xlogy(1 - x, 1 - p)) * ~shown
    torch.testing.assert_close(value, by_hand.sum((1, 2, 3)))
    assert torch.equal(terms["reconstruction"], -value)


def test_explained_shares_are_those_of_least_squares():
    z, z_test = torch.randn(500, 4), torch.randn(400, 4)
    W = torch.randn(4, 1)
    noise, noise_test = torch.randn(500, 1), torch.randn(400, 1)
    v, v_test = (torch.cat([c @ W + 7, n], 1) for c, n in ((z, noise), (z_test, noise_test)))
    linear, unrelated = canvas.explained(z, v, z_test, v_test)
    assert linear == pytest.approx(1)
    assert -0.1 < unrelated < 0.05
    idle = torch.cat([z, torch.zeros(500, 1)], 1), torch.cat([z_test, torch.zeros(400, 1)], 1)
    assert canvas.explained(idle[0], v, idle[1], v_test)[0] == pytest.approx(1)


@pytest.mark.parametrize("kind", canvas.KINDS)
def test_every_code_is_trained_and_probed_and_follows_its_seed(kind, float32, monkeypatch):
    monkeypatch.setattr(canvas, "TRAINING", canvas.TRAINING | dict(epochs=1))
    monkeypatch.setattr(canvas, "LABELS", {"10": 1})
    images, y = (255 * torch.rand(200, 1, 28, 28)).byte(), torch.arange(200) % 10
    x = canvas.unit_interval(canvas.canvas(images, 0))
    assert x.shape[1:] == (1, canvas.SIDE, canvas.SIDE)
    half = (x, x, y)
    row = canvas.measure(kind, 0, half, half)
    assert row == canvas.measure(kind, 0, half, half)
    assert len(row["10"]) == 1
    assert len(row["factors"]) == 3


@pytest.fixture
def record() -> dict:
    if not PATH.exists():
        pytest.skip(f"{PATH.name} is not recorded yet")
    return json.loads(PATH.read_text())


def test_the_record_holds_every_code_and_seed(record):
    assert record["command"] == "python book/contrastive_canvas.py"
    assert "dirty" not in record["commit"]
    rows = record["figures"]["rows"]
    assert sorted((row["kind"], row["seed"]) for row in rows) == sorted(
        (k, s) for k in canvas.KINDS for s in canvas.SEEDS
    )
    for row in rows:
        assert {labels: len(row[labels]) for labels in canvas.LABELS} == canvas.LABELS


def test_the_recorded_rows_of_pixels_hold_on_the_real_images(record, data_root, float32):
    sha256, train, test = canvas.halves(data_root)
    assert sha256 == record["data_sha256"] == load("mnist", data_root).sha256
    for kind in ("raw pixels", "centred pixels"):
        row = next(row for row in record["figures"]["rows"] if row["kind"] == kind)
        found = canvas.measure(kind, 0, train, test)
        for labels in canvas.LABELS:
            assert found[labels] == pytest.approx(row[labels], abs=0.005)
