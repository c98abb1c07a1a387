"""What chapter 09 says of MNIST: its verdicts and numbers, recomputed from the records (and, where it is, the data)."""

from functools import cache
from math import exp, sqrt
from statistics import mean, stdev

import pytest
import torch
from recorded_runs import interval, over_seeds, per_seed
from scipy import stats
from torch import nn

from vae_core.data import load
from vae_core.experiments.results import measured, recorded
from vae_core.models import mlp_vae
from vae_core.plots import grid_codes
from vae_core.runtime import unit_interval

SIZES = (2, 5, 10, 15, 20, 25)


@cache
def figures() -> dict:
    return measured("mnist")[0]


# --- settings


@pytest.mark.parametrize("d", SIZES)
def test_the_sweep_was_run_with_the_printed_settings(d):
    config = recorded(f"chen-mnist-d{d}")["config"]
    assert config["training"] == dict(batch_size=128, learning_rate=1e-3, weight_decay=1e-5, reduction="sum")
    assert (config["epochs"], config["seed"], config["model"]) == (20, 723, {"latent_dim": d})
    assert recorded(f"chen-mnist-d{d}")["data_sha256"] == recorded("chen-mnist-d2")["data_sha256"]


def test_records_name_the_versions_that_they_were_made_with():
    assert {"python", "torch", "vae_core"} <= set(recorded("chen-mnist-d20")["versions"])


def test_an_epoch_has_468_whole_batches_and_one_of_96():
    assert [len(part) for part in torch.empty(60_000).split(128)] == [128] * 468 + [96]
    assert divmod(50_000, 128) == (390, 80)
    assert divmod(10_000, 128) == (78, 16)


@pytest.mark.parametrize(("d", "count"), [(2, 1_137_428), (5, 1_138_586), (20, 1_144_376), (25, 1_146_306)])
def test_each_latent_unit_adds_386_parameters(d, count):
    assert sum(p.numel() for p in mlp_vae((1, 28, 28), d).parameters()) == count == 1_137_428 + 386 * (d - 2)


def test_batch_norm_and_relu_follow_every_layer_but_the_last_and_the_heads():
    model, block = mlp_vae((1, 28, 28), 20), (nn.Linear, nn.BatchNorm1d, nn.ReLU)
    assert [type(layer) for layer in model.encoder] == [nn.Flatten, *3 * block]
    assert [type(layer) for layer in model.decoder] == [*3 * block, nn.Linear]
    assert {type(model.mean), type(model.log_variance)} == {nn.Linear}


def test_the_weight_decays_prior_has_the_stated_precision():
    assert round(1e-5 * 60_000 / 128, 4) == 0.0047


# --- the sweep


def over_five(d: int, figure: str) -> list[float]:
    """A test figure of the five recorded seeds."""
    return [recorded(f"chen-mnist-d{d}", seed)["test"][figure] for seed in (723, 0, 1, 2, 3)]


def gap(d: int, figure: str) -> tuple[float, float]:
    """Difference from d = 20 over five seeds each, and half of its 95 % interval (scipy's, not the chapter's)."""
    low, high = stats.ttest_ind(over_five(d, figure), over_five(20, figure)).confidence_interval(0.95)
    return (low + high) / 2, (high - low) / 2


@pytest.mark.parametrize("figure", ["loss", "reconstruction"])
def test_twenty_units_suffice_and_fifteen_too_but_not_ten(figure):
    for d in (15, 25):
        difference, half = gap(d, figure)
        assert abs(difference) < half
    difference, half = gap(10, figure)
    assert difference > 2 * half


def test_the_numbers_of_the_sweeps_verdict():
    assert tuple(round(v, 2) for v in gap(25, "loss")) == (-0.03, 0.51)
    assert tuple(round(v, 2) for v in gap(25, "reconstruction")) == (-0.24, 0.89)
    assert tuple(round(v, 2) for v in gap(15, "loss")) == (0.27, 0.54)
    assert tuple(round(v, 2) for v in gap(10, "loss")) == (1.55, 0.65)


def test_the_losses_that_a_reader_should_see():
    assert (round(mean(over_five(20, "loss")), 1), round(stdev(over_five(20, "loss")), 1)) == (99.5, 0.4)
    assert round(mean(over_five(2, "loss"))) == 140
    last = [recorded("chen-mnist-d20", seed)["history"][-1]["loss"] for seed in (723, 0, 1, 2, 3)]
    assert round(mean(last) - mean(over_five(20, "loss")), 2) == 1.89


def test_how_many_units_are_active_depends_on_the_training():
    assert set(over_five(20, "active_units")) == {11, 12, 13}
    for change, low, high in (("rate-3e-3", 10, 10), ("rate-3e-4", 13, 15), ("warm-up", 17, 19)):
        units = over_seeds(f"units-mnist-{change}", "active_units")
        assert len(units) == 5
        assert (min(units), max(units)) == (low, high)


def test_a_dozen_units_of_twenty_are_used_whatever_the_seed():
    for bill in per_seed(figures()["kl_per_unit"], 20):
        bill = torch.tensor(bill)
        assert int((bill > 0.01).sum()) == 12
        assert bill[bill <= 0.01].sum() < 0.03


@pytest.mark.parametrize(("change", "inside"), [("mean-reduction", True), ("no-weight-decay", True),
                                                ("no-batch-norm", False)])  # fmt: skip
def test_only_batch_norm_moves_the_loss_by_more_than_a_seed(change, inside):
    low, high = interval(over_five(20, "loss"))
    test = recorded(f"ablation-{change}")["test"]
    assert (low < test["loss"] < high) == inside
    if not inside:
        assert round(test["loss"] - mean(over_five(20, "loss")), 2) == 10.75
        assert test["active_units"] == 6


def test_statistics_of_the_batch_make_the_loss_about_six_nats_worse():
    for name in ("ablation-mean-reduction", "binary-mnist-d20"):
        test = recorded(name)["test"]
        assert 5.5 < test["loss_with_batch_statistics"] - test["loss"] < 6.5


def test_a_binary_likelihood_confirms_twenty_and_shows_the_mean_codes_flattery():
    two, twenty = (recorded(f"binary-mnist-d{d}")["test"] for d in (2, 20))
    error = sqrt(two["log_likelihood_error"] ** 2 + twenty["log_likelihood_error"] ** 2)
    assert twenty["log_likelihood"] - two["log_likelihood"] > 40 * error
    assert round(twenty["log_likelihood"] - two["log_likelihood"]) == 44
    assert round(two["loss"] + two["log_likelihood"], 1) == 2.7
    assert round(twenty["loss"] + twenty["log_likelihood"], 1) == 4.8
    assert twenty["loss_at_mean_code"] < -twenty["log_likelihood"]


# --- what becomes of a digit


def test_all_thirty_digits_survive_twenty_numbers_and_not_two():
    thirty = figures()["thirty"]
    assert thirty["d = 20"] == thirty["originals"]
    assert thirty["d = 2"] != thirty["originals"]


def flipped(d: int) -> torch.Tensor:
    """Share of a written digit (row) that is read as another one (column), per seed."""
    counts = torch.tensor([found["from_to"] for found in per_seed(figures()["flips"], d)], dtype=torch.float64)
    return counts / counts.sum(2, keepdim=True)


def test_the_from_to_table_is_of_all_test_images_and_agrees_with_the_flipped_share():
    for found in (*per_seed(figures()["flips"], 2), *per_seed(figures()["flips"], 20)):
        counts = torch.tensor(found["from_to"], dtype=torch.float64)
        assert counts.sum() == 10_000
        assert 1 - counts.trace() / 10_000 == pytest.approx(found["flipped"], abs=1e-9)


def test_the_printed_confusions_happen_with_two_numbers():
    for before, after, lowest, highest in ((9, 4, 5.8, 9.7), (7, 9, 18.9, 25.1), (2, 3, 0.4, 3.0), (4, 9, 45.3, 52.3)):
        shares = 100 * flipped(2)[:, before, after]
        assert (round(shares.min().item(), 1), round(shares.max().item(), 1)) == (lowest, highest)


def test_fours_become_nines_more_often_than_any_other_change():
    shares = flipped(2)
    shares.diagonal(dim1=1, dim2=2).zero_()
    assert [divmod(int(k), 10) for k in shares.flatten(1).argmax(1)] == [(4, 9)] * 3


def test_the_numbers_of_the_verdict_on_thirty_digits():
    shares = [found["flipped"] for found in per_seed(figures()["flips"], 20)]
    assert 0.035 <= min(shares) < max(shares) < 0.039
    assert 0.3 < (1 - mean(shares)) ** 30 < 0.35
    assert round(1 - figures()["judge_accuracy"], 3) == 0.006
    assert 0.19 < mean(found["flipped"] for found in per_seed(figures()["flips"], 2)) < 0.205


# --- projections


def test_neighbours_find_far_fewer_overlaps_in_twenty_dimensions():
    for ending in ("", ", sampled"):
        two, twenty = (per_seed(figures()["probes"], d, ending) for d in (2, 20))
        assert min(p["neighbours"] for p in twenty) > max(p["neighbours"] for p in two) + 0.09


def test_the_numbers_of_the_verdict_on_overlaps():
    probes = figures()["probes"]
    assert round(mean(p["neighbours"] for p in per_seed(probes, 20)), 3) == 0.968
    assert {round(p["neighbours"], 2) for p in per_seed(probes, 2)} == {0.81, 0.82, 0.83}
    assert round(mean(p["neighbours"] for p in per_seed(probes, 20, ", sampled")), 2) == 0.92
    assert round(mean(p["neighbours"] for p in per_seed(probes, 2, ", sampled")), 2) == 0.81
    assert round(probes["PCA, d = 20"]["neighbours"], 3) == 0.970
    assert 0.966 < probes["raw pixels"]["neighbours"] < 0.967


def test_a_linear_probe_does_better_on_raw_pixels_than_on_the_code():
    raw = figures()["probes"]["raw pixels"]["linear"]
    error = sqrt(raw * (1 - raw) / 10_000)
    for ending in ("", ", sampled"):
        assert max(p["linear"] for p in per_seed(figures()["probes"], 20, ending)) < raw - 4 * error
    linear = [p["linear"] for p in per_seed(figures()["probes"], 20)]
    assert (round(raw, 3), round(min(linear), 3), round(max(linear), 3)) == (0.926, 0.890, 0.911)
    assert min(linear) > figures()["probes"]["PCA, d = 20"]["linear"]
    assert round(figures()["probes"]["PCA, d = 20"]["linear"], 3) == 0.880


def test_the_t_sne_picture_parts_the_classes_better_than_the_codes_do():
    found = figures()["t_sne"]
    assert 0.85 < found["trustworthiness"] < 0.95
    error = sqrt(2 * 0.85 * 0.15 / 5000)
    assert found["neighbours_in_picture"] - found["neighbours_in_code"] > 3 * error
    assert round(found["neighbours_in_picture"], 2) == 0.88
    assert round(found["neighbours_in_code"], 2) == 0.85


def test_most_of_the_grid_is_where_the_prior_never_goes():
    radius = torch.tensor(grid_codes(30, extent=4.0)).norm(dim=1)
    assert round((radius > 3).double().mean().item(), 2) == 0.58
    assert round(1 / exp(-(3**2) / 2)) == 90
    assert round((radius > 2).double().mean().item(), 3) == 0.818


def test_one_tick_too_many_is_printed():
    assert len(range(14, 30 * 28 + 14 + 1, 28)) == 31
    assert len(range(14, 29 * 28 + 14 + 1, 28)) == 30


def test_the_thirty_images_are_the_first_of_each_batch(data_root):
    dataset, kept = load("mnist", data_root), measured("mnist")[1]
    assert torch.equal(kept["images"], dataset.x_test[torch.arange(30) * 128])
    assert torch.equal(kept["y_test"].long(), dataset.y_test)
    assert figures()["thirty"]["class"] == dataset.y_test[torch.arange(30) * 128].tolist()


@pytest.mark.parametrize(("name", "cost"), [("mnist", 205.80), ("fashion-mnist", 385.02)])
def test_the_mean_picture_costs_what_the_chapters_say(name, cost, data_root):
    dataset = load(name, data_root)
    ink = unit_interval(dataset.x_train).mean(0).clamp(1e-12, 1 - 1e-12)
    x = unit_interval(dataset.x_test).mean(0)
    paid = -(x * ink.log() + (1 - x) * (1 - ink).log()).sum()
    assert paid.item() == pytest.approx(cost, abs=0.02)
