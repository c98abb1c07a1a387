"""What chapter 12 says about CIFAR-10: the floor, the two networks, and each verdict from the recorded figures."""

import json
from math import log, prod
from statistics import mean, stdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import binary_cross_entropy

from vae_core.data import load
from vae_core.evaluation import entropy_floor
from vae_core.experiments.records import default_out, valid_records
from vae_core.experiments.registry import find
from vae_core.models import conv_vae, mlp_vae
from vae_core.objectives import elbo
from vae_core.runtime import seed_everything, unit_interval

D, MEAN_IMAGE = 3 * 32 * 32, {"mnist": 205.80, "fashion-mnist": 385.02, "cifar10": 2117.79}
KINDS = ("fc", "cnn")
shares = st.floats(0.001, 0.999)


def values(experiment, name):
    return [record["test"][name] for record in valid_records(find(experiment), default_out())]


def measured(name):
    path = default_out() / f"measured-{name}.json"
    if not path.exists():
        pytest.skip(f"{path.name} is not recorded: run `python book/measurements.py {name}`")
    return json.loads(path.read_text())["figures"]


def cross_entropy(x, s):
    return binary_cross_entropy(torch.as_tensor(s).expand_as(x), x, reduction="sum").item()


def way_covered(experiment, dataset):
    floors = values(experiment, "entropy_floor")
    return [
        (MEAN_IMAGE[dataset] - r) / (MEAN_IMAGE[dataset] - f)
        for r, f in zip(values(experiment, "reconstruction"), floors, strict=True)
    ]


# The floor


@given(shares, shares)
def test_no_decoder_gets_below_the_floor_and_the_perfect_copy_reaches_it(x, s):
    pixel = torch.full((1, 1, 1, 1), x)
    assert cross_entropy(pixel, s) >= entropy_floor(pixel) - 1e-12
    assert abs(cross_entropy(pixel, x) - entropy_floor(pixel)) < 1e-12


def test_the_grey_card_scores_the_same_for_every_picture():
    for x in (torch.rand(3, 32, 32), torch.zeros(3, 32, 32), torch.ones(3, 32, 32)):
        assert abs(cross_entropy(x, 0.5) - D * log(2)) < 1e-9
    assert round(D * log(2), 2) == 2129.35


@given(shares.filter(lambda p: abs(p - 0.5) > 1e-3))
def test_the_bernoulli_formula_has_at_most_half_the_mass_of_a_density(p):
    mass = (2 * p - 1) / (log(p) - log(1 - p))
    x = torch.linspace(0, 1, 4001)
    assert abs(torch.trapezoid(p**x * (1 - p) ** (1 - x), x).item() - mass) < 1e-5
    assert mass <= 0.5


@pytest.mark.parametrize("name", MEAN_IMAGE)
def test_the_mean_images_score_is_the_one_in_the_text(name, data_root, float32):
    dataset = load(name, data_root)
    x, total = unit_interval(dataset.x_train).mean(0), 0.0
    for batch in dataset.x_test.split(1000):
        batch = unit_interval(batch)
        total += -(torch.xlogy(batch, x) + torch.xlogy(1 - batch, 1 - x)).double().sum().item()
    # a border pixel that is black in all training images and not in a test image costs infinitely much; torch clamps
    if total == float("inf"):
        total = sum(
            binary_cross_entropy(x.expand_as(b), b, reduction="sum").item()
            for b in map(unit_interval, dataset.x_test.split(1000))
        )
    assert abs(total / len(dataset.x_test) - MEAN_IMAGE[name]) < 0.02


def test_few_numbers_of_photographs_and_most_of_mnist_are_exactly_black_or_white(data_root):
    share = {
        name: ((x == 0) | (x == 255)).double().mean().item()
        for name in ("cifar10", "mnist")
        for x in (load(name, data_root).x_test,)
    }
    assert round(share["cifar10"], 2) == 0.01
    assert round(share["mnist"], 1) == 0.8


# The networks


def test_both_networks_have_their_number_of_parameters():
    counts = [sum(p.numel() for p in find(f"chen-cifar10-{kind}").network().parameters()) for kind in KINDS]
    assert counts == [3_580_672, 1_911_235]


@pytest.mark.parametrize(("stride", "down", "up"), [(1, [31, 30, 29], [5, 6, 7]), (2, [16, 8, 4], [8, 16, 32])])
def test_only_stride_two_gives_the_printed_features(stride, down, up):
    x, z = torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 4, 4)
    for side, side_up in zip(down, up, strict=True):
        x, z = nn.Conv2d(1, 1, 4, stride, 1)(x), nn.ConvTranspose2d(1, 1, 4, stride, 1)(z)
        assert (x.shape[-1], z.shape[-1]) == (side, side_up)
    assert (128 * prod(x.shape) == 2048) == (stride == 2)


@given(st.integers(0, 2**31 - 1))
def test_a_dense_network_does_with_shuffled_pixels_what_it_did_before(seed):
    torch.manual_seed(seed)
    model, order, x = mlp_vae((1, 4, 4), 3, hidden=(8, 5)).eval(), torch.randperm(16), torch.rand(6, 1, 4, 4)
    torch.manual_seed(seed)
    before = elbo(model, x)
    with torch.no_grad():
        model.encoder[1].weight.copy_(model.encoder[1].weight[:, order])
        for last in (model.decoder[-1].weight, model.decoder[-1].bias):
            last.copy_(last[order])
    torch.manual_seed(seed)
    assert torch.allclose(elbo(model, x.flatten(1)[:, order].reshape(x.shape)), before, atol=1e-10)


def test_the_order_of_training_changes_the_second_networks_weights():
    seed_everything(723)
    _, second = conv_vae((3, 32, 32), 256), mlp_vae((3, 32, 32), 256)
    seed_everything(723)
    assert not torch.equal(second.encoder[1].weight, mlp_vae((3, 32, 32), 256).encoder[1].weight)
    assert {find(f"chen-cifar10-{kind}").seed for kind in KINDS} == {723}


# The recorded runs


def test_curves_fall_and_the_convolutional_one_is_lower_from_the_first_epoch():
    curves = {k: [r["history"] for r in valid_records(find(f"chen-cifar10-{k}"), default_out())] for k in KINDS}
    for history in (*curves["fc"], *curves["cnn"]):
        losses = [row["loss"] for row in history]
        assert len(losses) == 25
        assert losses[0] > losses[4] > losses[-1]
    for dense in curves["fc"]:
        for conv in curves["cnn"]:
            assert all(a["loss"] > b["loss"] for a, b in zip(dense, conv, strict=True))
            assert all(conv[1][name] < dense[-1][name] for name in ("loss", "reconstruction"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_printed_table_is_reproduced_within_a_nat(kind):
    experiment = find(f"chen-cifar10-{kind}")
    for name, tolerance in (("loss", 1), ("reconstruction", 1.5), ("kl", 1.5)):
        ours = values(experiment.name, name)
        assert len(ours) >= 2
        assert abs(mean(ours) - experiment.printed[name]) < tolerance
        assert stdev(ours) < 2


def test_the_difference_between_the_networks_is_not_the_seeds():
    for name, expected in (("loss", 42), ("reconstruction", 68), ("kl", -26)):
        dense, conv = (values(f"chen-cifar10-{kind}", name) for kind in KINDS)
        difference = mean(dense) - mean(conv)
        assert abs(difference - expected) < 1.5
        assert abs(difference) > 10 * max(stdev(dense), stdev(conv))
    printed = {kind: find(f"chen-cifar10-{kind}").printed for kind in KINDS}
    assert [round(printed[k]["loss"] - printed[k]["reconstruction"], 2) for k in KINDS] == [17.37, 43.46]


def test_nine_tenths_of_the_losses_are_the_floor():
    for kind, excess, covered in (("fc", 165, 0.62), ("cnn", 97, 0.78)):
        name = f"chen-cifar10-{kind}"
        floor = values(name, "entropy_floor")[0]
        assert round(floor, 2) == 1681.72
        assert floor > 0.9 * max(values(name, "loss"))
        assert abs(mean(values(name, "reconstruction")) - floor - excess) < 1
        assert round(mean(way_covered(name, "cifar10")), 2) == covered
        assert abs(find(name).printed["reconstruction"] - floor - excess) < 0.5


def test_the_dense_network_uses_nine_units_and_the_convolutional_one_almost_two_hundred():
    assert set(values("chen-cifar10-fc", "active_units")) == {9}
    assert all(150 < units < 200 for units in values("chen-cifar10-cnn", "active_units"))


def test_some_fifty_of_the_convolutional_networks_units_carry_its_code():
    for kind, low, high in (("fc", 7, 9), ("cnn", 40, 55)):
        shares = measured("cifar10")["kl_per_unit"][kind]
        large = [share for share in shares if share > 0.1]
        assert low <= len(large) <= high
        assert sum(large) > 0.9 * sum(shares)


def test_way_covered_does_not_fall_with_complexity_for_the_convolutional_network():
    mnist = mean(way_covered("chen-mnist-d20", "mnist"))
    fashion = mean(way_covered("chen-fashion-d20", "fashion-mnist"))
    dense, conv = (mean(way_covered(f"chen-cifar10-{kind}", "cifar10")) for kind in KINDS)
    assert [round(v, 2) for v in (mnist, fashion, dense, conv)] == [0.79, 0.81, 0.62, 0.78]


# The measurements


def test_the_ten_images_are_the_first_of_each_batch(data_root):
    from safetensors.torch import load_file

    measured("cifar10")
    kept = load_file(default_out() / "measured-cifar10.safetensors")
    assert torch.equal(kept["images"], load("cifar10", data_root).x_test[:1280:128])


def test_convolutional_reconstructions_are_better_and_still_not_recognised():
    figures = measured("cifar10")
    fc, cnn = (figures["flips"][kind] for kind in KINDS)
    assert figures["mse"]["cnn"] < 0.7 * figures["mse"]["fc"]
    assert figures["sharpness"]["fc"] < figures["sharpness"]["cnn"] < 0.2 * figures["sharpness"]["originals"]
    assert cnn["accuracy"] - fc["accuracy"] > 6 * 0.5 / 100
    assert min(fc["flipped"], cnn["flipped"]) > 0.5


def test_fewer_labels_are_kept_on_more_complex_images():
    cifar = 1 - measured("cifar10")["flips"]["cnn"]["flipped"]
    mnist = 1 - measured("mnist")["flips"]["d = 20, seed 723"]["flipped"]
    fashion = 1 - measured("fashion")["flips"]["d = 20, seed 237"]["flipped"]
    assert mnist > 0.9 > fashion > 0.5 > cifar


def test_neighbours_in_the_pictures_are_of_mixed_kinds():
    for picture in measured("cifar10")["t_sne"].values():
        assert picture["neighbours_in_picture"] < 0.5
        assert 0.5 < picture["trustworthiness"] < 0.55  # near chance: most of each distance is noise


def test_a_linear_probe_is_far_above_chance():
    figures = measured("cifar10")
    for kind in KINDS:
        accuracy = figures["probes"][kind]["linear"]
        assert accuracy > 0.2
        assert (accuracy - 0.1) / (0.1 * 0.9 / 10_000) ** 0.5 > 30
        assert figures["judge_accuracy"] > accuracy + 0.2


def test_the_probes_are_as_stated_and_sampled_codes_know_little():
    found = measured("cifar10")
    probes, pictures = found["probes"], found["t_sne"]
    linear = [round(100 * probes[name]["linear"], 1) for name in ("raw pixels", "fc", "cnn")]
    assert linear == [37.9, 40.2, 49.0]
    assert all(0.38 < probes[kind]["neighbours"] < 0.40 for kind in ("fc", "cnn"))
    sampled = [probes[f"{kind}, sampled"]["neighbours"] for kind in ("fc", "cnn")]
    assert all(
        0.125 < share < 0.155 for share in (*sampled, *(found["neighbours_in_code"] for found in pictures.values()))
    )
