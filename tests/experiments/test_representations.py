"""The probes behind chapter 18: the tools on made data, and the recorded figures against each other and the images."""

import json
from dataclasses import replace

import pytest
import representations
import torch

from vae_core.data import Dataset, load
from vae_core.experiments.records import default_out, load_trained
from vae_core.runtime import unit_interval

PATH = default_out() / "measured-representations.json"


@pytest.fixture
def record() -> dict:
    if not PATH.exists():
        pytest.skip(f"{PATH.name} is not recorded yet")
    return json.loads(PATH.read_text())


def blobs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of ten classes, each around a corner of its own."""
    y = torch.arange(n) % 10
    return 6 * torch.eye(10)[y] + torch.randn(n, 10, generator=torch.Generator().manual_seed(seed)), y


def test_a_subset_has_as_many_of_each_class_and_follows_its_seed():
    y = torch.randint(10, (2000,))
    index = representations.subset(y, 30, seed=1)
    assert torch.bincount(y[index]).tolist() == [30] * 10
    assert len(index.unique()) == 300
    assert torch.equal(index, representations.subset(y, 30, seed=1))
    assert not torch.equal(index, representations.subset(y, 30, seed=2))


def test_every_budget_is_probed_as_often_as_stated():
    (z, y), (z_test, y_test) = blobs(2000, 0), blobs(500, 1)
    data = Dataset("blobs", z, y, z_test, y_test)
    found = representations.over_budgets((z, z_test), data)
    assert {budget: len(values) for budget, values in found.items()} == {"100": 5, "1000": 5, "all": 1}
    assert min(found["all"] + found["1000"]) > 0.97
    assert "all" not in representations.over_budgets((z, z_test), data, skip=("all",))


def test_a_change_of_place_moves_whole_pixels_and_the_middle_one_leaves_the_image():
    x = torch.rand(3, 1, 5, 6)
    y = representations.changed(x, torch.tensor([0, 1, 2]), grey=True)
    assert torch.equal(y[1], x[1])
    assert torch.equal(y[0, ..., 2:], x[0, ..., :-2])
    assert torch.equal(y[2, ..., :-2], x[2, ..., 2:])
    assert y[0, ..., :2].sum() == y[2, ..., -2:].sum() == 0


def test_a_change_of_tint_dims_one_channel():
    x = torch.rand(3, 3, 2, 2)
    y = representations.changed(x, torch.tensor([0, 1, 2]), grey=False)
    for k in range(3):
        torch.testing.assert_close(y[k, k], 0.7 * x[k, k])
        rest = [j for j in range(3) if j != k]
        assert torch.equal(y[k, rest], x[k, rest])


def test_the_place_can_be_read_off_raw_pixels(float32):
    x = torch.zeros(400, 1, 8, 8)
    x[..., 3:5] = 0.5 + 0.5 * torch.rand(400, 1, 8, 2)
    data = Dataset("bars", (255 * x[:300]).byte(), torch.zeros(300), (255 * x[300:]).byte(), torch.zeros(100))
    assert representations.nuisance(lambda images: images.flatten(1), data, grey=True) > 0.95


def test_the_nearest_of_a_training_image_is_itself():
    z = torch.randn(50, 3)
    found = representations.nearest((z, z[7:10]), torch.tensor([0, 2]), count=2)
    assert found[:, 0].tolist() == [7, 9]
    stretched = z * torch.tensor([1.0, 100.0, 0.01])  # standardised first
    assert torch.equal(found, representations.nearest((stretched, stretched[7:10]), torch.tensor([0, 2]), count=2))


def test_training_on_few_images_follows_its_seed_and_has_the_networks_layers(float32, monkeypatch):
    task = replace(representations.TASKS["mnist"], epochs=1, contrastive_epochs=1)
    x = (255 * torch.rand(300, 1, 28, 28)).byte()
    made = [representations.reconstructive(task, kind, x, 20, 0) for kind in ("auto-encoder", "β-VAE mean")]
    made += [representations.contrastive(task, representations.grey_views, x, 20, seed) for seed in (0, 0, 1)]
    weights = [model.encoder[1].weight for model in made]
    assert {tuple(w.shape) for w in weights} == {(512, 784)}
    assert torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[3], weights[4])
    assert not hasattr(made[0], "posterior")
    untrained = representations.contrastive(task, representations.grey_views, x, 20, 0, epochs=0)
    assert not torch.equal(untrained.encoder[1].weight, weights[2])
    conv = representations.conv_autoencoder((3, 16, 16), 5)
    assert conv.reconstruct(torch.rand(2, 3, 16, 16)).shape == (2, 3, 16, 16)


def test_trying_out_never_touches_the_record(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["representations.py", "--images", "100"])
    with pytest.raises(SystemExit):
        representations.main()
    assert "--out" in capsys.readouterr().err


def test_the_record_holds_every_method_and_budget(record):
    assert record["command"] == "python book/representations.py"
    assert len(record["commit"]) == 40
    for name, figures in record["figures"].items():
        task, base = representations.TASKS[name], {"raw pixels", "PCA", "VAE mean", "VAE sample"}
        kinds = ("untrained", "auto-encoder", "β-VAE mean", "contrastive")
        wanted = base | {f"{kind}, seed {seed}" for kind in kinds for seed in task.seeds}
        wanted |= {f"contrastive, any turn, seed {task.seeds[0]}"} if task.wrong else set()
        assert set(figures["linear"]) == set(figures["neighbours"]) == set(figures["nuisance"]) == wanted
        for found in figures["linear"].values():
            assert {budget: len(values) for budget, values in found.items()} == representations.BUDGETS
            assert all(0 <= value <= 1 for values in found.values() for value in values)


def test_it_agrees_with_the_measurements_of_the_earlier_chapters(record):
    for name, key in (("mnist", "d = 20, seed 723"), ("fashion", "d = 20, seed 237"), ("cifar10", "cnn")):
        if name not in record["figures"]:
            continue
        probes = json.loads((default_out() / f"measured-{name}.json").read_text())["figures"]["probes"]
        linear, d = record["figures"][name]["linear"], 256 if name == "cifar10" else 20
        for here, there in (("VAE mean", key), ("PCA", f"PCA, d = {d}"), ("raw pixels", "raw pixels")):
            assert linear[here]["all"][0] == pytest.approx(probes[there]["linear"], abs=0.005)


def test_recorded_figures_hold_on_the_real_images(record, data_root, float32):
    data, encode = load("mnist", data_root), representations.encoder_of(load_trained("chen-mnist-d20"))
    assert record["data_sha256"]["mnist"] == data.sha256
    codes = tuple(encode(unit_interval(x)) for x in (data.x_train, data.x_test))
    few = representations.over_budgets(codes, data, skip=("10000", "all"))
    recorded = record["figures"]["mnist"]["linear"]["VAE mean"]
    for budget in ("100", "1000"):
        assert few[budget] == pytest.approx(recorded[budget], abs=0.003)
    assert representations.six_or_nine(codes, data) == pytest.approx(
        record["figures"]["mnist"]["six or nine"]["VAE mean"], abs=0.003
    )
