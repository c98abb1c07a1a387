"""Every named experiment is what its document prints, and what its name says happens to data and model."""

import json
from dataclasses import fields, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from checks import made_arrays, real, refused
from torch import nn

from vae_core import data
from vae_core.evaluation import add_outliers, reconstruction_mse
from vae_core.experiments import figures, setups
from vae_core.experiments import run as experiment_run
from vae_core.experiments.definition import IMAGES, NOT_IN_CONFIG, Experiment
from vae_core.experiments.registry import EXPERIMENTS, find
from vae_core.models import VAE
from vae_core.objectives import reconstruction_log_likelihood
from vae_core.runtime import unit_interval
from vae_core.training import fit

pytestmark = pytest.mark.usefixtures("float32")

SWEEP = [f"chen-{images}-d{d}" for images in ("mnist", "fashion") for d in (2, 5, 10, 15, 20, 25)]
CIFAR10 = ["chen-cifar10-fc", "chen-cifar10-cnn"]
IRVIN = ["irvin-z2", "irvin-z3", "irvin-z50"]
SALEH = ["saleh-mnist-k2", "saleh-fashion-k2", "saleh-boots-k2", "saleh-boots-k20"]
ROBUSTNESS = [
    f"saleh-robustness-{kind}-k{k}-n{percent}"
    for kind, k, percent in product(("vae", "autoencoder"), (2, 10, 50), (0, 10, 30))
]
DOCUMENTS = [*SWEEP, *CIFAR10, "svhn-cnn", *IRVIN, *SALEH, *ROBUSTNESS]
BOOTS = ["saleh-boots-k2", "saleh-boots-k20"]
each = pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)


def test_every_experiment_of_the_documents_is_there_and_no_other_but_the_books_own():
    own = {name for name, e in EXPERIMENTS.items() if e.source.startswith("this book")}
    assert set(EXPERIMENTS) - own == set(DOCUMENTS)
    assert len(DOCUMENTS) == len(set(DOCUMENTS)) == 12 + 2 + 1 + 3 + 4 + 18


# Networks


def linear_sizes(network: nn.Module) -> list[int]:
    """Widths along a dense map, input first."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    return [layers[0].in_features, *(layer.out_features for layer in layers)]


def on_meta(experiment: Experiment) -> nn.Module:
    with torch.device("meta"):
        return experiment.network()


DENSE = {name: ([784, 512, 256, 128], int(name.split("-d")[1])) for name in SWEEP}
DENSE |= {"chen-cifar10-fc": ([3072, 512, 256, 128], 256)}
DENSE |= {name: ([784, 500], int(name.removeprefix("irvin-z"))) for name in IRVIN}
DENSE |= {name: ([784, 400, 256, 128], int(name.split("-k")[1].split("-")[0])) for name in (*SALEH, *ROBUSTNESS)}


@pytest.mark.parametrize(("name", "widths", "d"), [(name, *sizes) for name, sizes in DENSE.items()])
def test_dense_networks_have_the_printed_widths_there_and_back(name, widths, d):
    model = on_meta(find(name))
    assert linear_sizes(model.encoder) == widths
    assert linear_sizes(model.mean) == [widths[-1], d]
    assert linear_sizes(model.decoder) == [d, *reversed(widths)]


@pytest.mark.parametrize("name", ["chen-cifar10-cnn", "svhn-cnn"])
def test_convolutional_networks_have_the_printed_channels_there_and_back(name):
    model = on_meta(find(name))
    there = [m.out_channels for m in model.encoder.modules() if isinstance(m, nn.Conv2d)]
    back = [m.out_channels for m in model.decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert (there, back) == ([32, 64, 128], [64, 32, 3])
    assert linear_sizes(model.mean) == [2048, 256]
    assert linear_sizes(model.decoder) == [256, 2048]


def having(*layers: type) -> set[str]:
    """The names of the documents' experiments whose network has such a layer."""
    return {name for name in DOCUMENTS if any(isinstance(m, layers) for m in on_meta(find(name)).modules())}


def test_only_the_thesis_normalises_batches_and_only_irvin_uses_tanh():
    assert having(nn.BatchNorm1d, nn.BatchNorm2d) == {*SWEEP, *CIFAR10, "svhn-cnn"}
    assert having(nn.Tanh) == set(IRVIN)
    assert having(nn.ReLU) == set(DOCUMENTS) - set(IRVIN)


def test_only_the_auto_encoders_are_deterministic():
    assert set(DOCUMENTS) - having(VAE) == {name for name in ROBUSTNESS if "autoencoder" in name}


@each
def test_every_network_takes_the_images_of_its_set_and_costs_something(experiment):
    assert on_meta(experiment).input_shape == IMAGES[experiment.dataset][1]
    assert experiment.cost > 0


def test_asking_for_the_cost_draws_no_random_numbers():
    before = torch.get_rng_state()
    assert find("chen-mnist-d2").cost > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_an_auto_encoder_costs_what_its_vae_costs_but_for_one_head():
    vae, autoencoder = (find(f"saleh-robustness-{kind}-k50-n0").cost for kind in ("vae", "autoencoder"))
    assert vae - autoencoder == 6 * 128 * 50 * 60_000 * 10


def test_one_class_costs_a_tenth_of_all():
    boots = find("saleh-boots-k2")
    assert boots.cost * 10 == pytest.approx(replace(boots, label=None).cost, rel=1e-12)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_the_definition_knows_the_images_of_each_set(name, data_root):
    dataset = real(name, data_root)
    assert (len(dataset.x_train), dataset.image_shape) == IMAGES[name]


def test_the_definition_knows_the_digits():
    digits = data.load("digits")
    assert (len(digits.x_train), digits.image_shape) == IMAGES["digits"]


# Settings and printed numbers


@pytest.mark.parametrize(
    ("names", "dataset", "epochs", "seed"),
    [
        (SWEEP[:6], "mnist", 20, 723),
        (SWEEP[6:], "fashion-mnist", 20, 237),
        (CIFAR10, "cifar10", 25, 723),
        (["svhn-cnn"], "svhn", 25, 723),
        (IRVIN, "mnist", 550, 0),
        (["saleh-mnist-k2"], "mnist", 30, 1),
        (["saleh-fashion-k2"], "fashion-mnist", 30, 1),
        (BOOTS, "fashion-mnist", 20, 1),
        (ROBUSTNESS, "mnist", 10, 1),
    ],
)
def test_data_epochs_and_seed_are_the_documents(names, dataset, epochs, seed):
    found = {name: (find(name).dataset, find(name).epochs, find(name).seed) for name in names}
    assert found == dict.fromkeys(names, (dataset, epochs, seed))


def test_training_settings_are_the_documents():
    adam = dict(learning_rate=1e-3)
    thesis = adam | dict(batch_size=128, weight_decay=1e-5, reduction="sum")
    expected = dict.fromkeys([*SWEEP, *CIFAR10, "svhn-cnn"], thesis)
    expected |= dict.fromkeys(IRVIN, adam | dict(batch_size=256))
    expected |= dict.fromkeys([*SALEH, *ROBUSTNESS], adam | dict(batch_size=128))
    assert {name: find(name).training for name in DOCUMENTS} == expected


PRINTED = {
    "chen-cifar10-fc": {"loss": 1864.54, "reconstruction": 1847.17, "kl": 17.37},
    "chen-cifar10-cnn": {"loss": 1822.52, "reconstruction": 1779.06, "kl": 43.46},
    "irvin-z3": {"lowest_train_loss": 133.74, "lowest_test_loss": 136.30},
    "irvin-z50": {"lowest_train_loss": 100.47, "lowest_test_loss": 100.78},
}


def test_printed_numbers_are_those_of_the_documents_and_no_others():
    assert {name: e.printed for name, e in EXPERIMENTS.items() if e.printed} == PRINTED


@pytest.mark.parametrize("name", CIFAR10)
def test_a_printed_loss_is_the_sum_of_its_printed_terms(name):
    printed = find(name).printed
    assert printed["loss"] == pytest.approx(printed["reconstruction"] + printed["kl"], abs=1e-9)


def test_every_epoch_is_tested_where_a_curve_or_a_lowest_loss_is_shown():
    assert {name for name in DOCUMENTS if find(name).track_test} == {"chen-cifar10-cnn", *IRVIN, *SALEH}


def test_the_corruption_is_the_one_in_the_name_and_repeated_over_three_seeds():
    expected = {name: (int(name.split("-n")[1]) / 100, (1, 2, 3)) for name in ROBUSTNESS}
    assert {name: (find(name).corruption, find(name).seeds) for name in ROBUSTNESS} == expected
    assert {name for name, e in EXPERIMENTS.items() if e.corruption} < set(ROBUSTNESS)


def test_only_boots_are_of_one_class():
    assert {name: e.label for name, e in EXPERIMENTS.items() if e.label is not None} == dict.fromkeys(BOOTS, 9)


# The config of a record


@each
def test_a_config_survives_json_and_names_its_run(experiment):
    config = experiment.config(3, 4)
    assert json.loads(json.dumps(config)) == config
    assert (config["epochs"], config["seed"], config["name"]) == (3, 4, experiment.name)


def test_a_config_holds_optional_settings_only_where_they_are_set():
    always = {"name", "source", "dataset", "model", "training", "epochs", "seed"}
    expected = dict.fromkeys(DOCUMENTS, always)
    expected |= dict.fromkeys(["chen-cifar10-cnn", *IRVIN, *SALEH], always | {"track_test"})
    expected |= dict.fromkeys(BOOTS, always | {"track_test", "label"})
    expected |= {name: always | {"corruption"} for name in ROBUSTNESS if not name.endswith("-n0")}
    assert {name: set(find(name).config(1, 0)) for name in DOCUMENTS} == expected


def test_configs_tell_all_experiments_apart():
    configs = [json.dumps(e.config(e.epochs, e.seed) | {"name": ""}, sort_keys=True) for e in EXPERIMENTS.values()]
    assert len(set(configs)) == len(configs)


def test_naming_a_default_changes_no_config():
    digits = find("digits-d2")
    named = replace(digits, label=None, corruption=0.0, track_test=False)
    assert named.config(1, 0) == digits.config(1, 0)


CHANGES = {
    "label": 0, "corruption": 0.1, "binarise": True, "binarise_once": True, "kl_warm_up": 0.5, "track_test": True,
    "dequantise": True, "beta": 2.0, "num_samples": 5, "permute": True, "name": "another", "source": "another",
    "dataset": "mnist", "model": {"latent_dim": 3}, "training": {"batch_size": 7}, "epochs": 61, "seed": 1,
    "image_shape": (1, 16, 16), "printed": {"loss": 1.0}, "weights": True, "more_seeds": (1,), "snapshots": (1,),
}  # fmt: skip


@pytest.mark.parametrize("name", [f.name for f in fields(Experiment)])
def test_whatever_is_set_changes_the_config_unless_no_figure_depends_on_it(name):
    """A new field needs a line above, and is in the config by itself."""
    digits, change = find("digits-d2"), {name: CHANGES[name]}
    changed = replace(digits, **change)
    before, after = digits.config(digits.epochs, digits.seed), changed.config(changed.epochs, changed.seed)
    if name in NOT_IN_CONFIG:
        assert after == before
    else:
        assert after == before | json.loads(json.dumps(change)) != before


def test_what_is_not_in_the_config_changes_no_figure(tmp_path):
    """The same run with each of these fields set gives the same history and test figures."""
    digits = replace(find("digits-d2"), epochs=1)
    changes = ({}, *({name: CHANGES[name]} for name in NOT_IN_CONFIG))
    made = []
    for k, change in enumerate(changes):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(EXPERIMENTS, "digits-d2", replace(digits, **change))
            record, _ = experiment_run.run("digits-d2", out=tmp_path / str(k), device="cpu", progress=False)
        made.append((record["test"], [{**row, "seconds": 0} for row in record["history"]]))
    assert all(each == made[0] for each in made)


# Data and history


def made(name: str, n_train: int = 60, n_test: int = 40) -> data.Dataset:
    arrays = made_arrays((28, 28), n_train, n_test)
    x, y = ({split: torch.from_numpy(arrays[f"{k}_{split}"]) for split in ("train", "test")} for k in "xy")
    return data.Dataset(name, x["train"][:, None], y["train"].long(), x["test"][:, None], y["test"].long())


@pytest.mark.parametrize("name", BOOTS)
def test_only_boots_are_kept_in_their_order(name):
    dataset = made("fashion-mnist")
    prepared = setups.prepare(find(name), dataset, seed=1)
    for split in ("train", "test"):
        x, y = getattr(dataset, f"x_{split}"), getattr(dataset, f"y_{split}")
        boots = [image for image, label in zip(x, y, strict=True) if label == 9]
        assert torch.equal(getattr(prepared, f"x_{split}"), torch.stack(boots))
        assert getattr(prepared, f"y_{split}").tolist() == [9] * len(boots)
        assert 0 < len(boots) < len(x)


def test_label_0_is_a_class_as_well():
    prepared = setups.prepare(replace(find("saleh-boots-k2"), label=0), made("fashion-mnist"), seed=1)
    assert set(prepared.y_train.tolist()) == set(prepared.y_test.tolist()) == {0}


@pytest.mark.parametrize("percent", [10, 30])
def test_training_images_are_corrupted_by_the_seed_and_test_images_stay_clean(percent):
    dataset, experiment = made("mnist"), find(f"saleh-robustness-vae-k2-n{percent}")
    first, again, other = (setups.prepare(experiment, dataset, seed) for seed in (1, 1, 2))
    assert torch.equal(first.x_train, add_outliers(dataset.x_train, percent / 100, seed=1))
    assert torch.equal(first.x_train, again.x_train)
    assert not torch.equal(first.x_train, other.x_train)
    assert torch.equal(first.x_test, dataset.x_test)
    assert (first.y_train is dataset.y_train, first.y_test is dataset.y_test) == (True, True)


def test_vae_and_auto_encoder_are_trained_on_the_same_corrupted_images():
    a, b = (find(f"saleh-robustness-{kind}-k50-n30") for kind in ("vae", "autoencoder"))
    dataset = made("mnist")
    assert torch.equal(setups.prepare(a, dataset, 1).x_train, setups.prepare(b, dataset, 1).x_train)


def test_permuted_images_hold_the_same_pixels_in_one_order_for_all_images_channels_and_seeds():
    numbers = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    permuted = setups.permuted(numbers)
    order = permuted[0, 0].flatten()
    assert sorted(order.tolist()) == list(range(16)) != order.tolist()
    assert torch.equal(permuted.flatten(2), numbers.flatten(2)[..., order])
    dataset, experiment = made("cifar10"), find("cifar10-cnn-permuted")
    first, other = (setups.prepare(experiment, dataset, seed) for seed in (0, 1))
    assert torch.equal(first.x_train, setups.permuted(dataset.x_train))
    assert torch.equal(first.x_test, setups.permuted(dataset.x_test))
    assert torch.equal(first.x_train, other.x_train)


def test_all_other_experiments_take_their_data_as_they_are():
    changed = ("corruption", "binarise_once", "permute")
    others = [e for e in EXPERIMENTS.values() if e.label is None and not any(getattr(e, name) for name in changed)]
    dataset = made("mnist")
    assert len(others) == len(EXPERIMENTS) - 2 - 12 - 3 - 1  # boots, two thirds of robustness, binarised, permuted
    assert all(setups.prepare(e, dataset, 1) is dataset for e in others)


def test_the_lowest_losses_are_of_any_epoch_each_for_itself():
    losses = [(5.0, 6.0), (3.0, 7.0), (4.0, 5.5)]
    history = [{"epoch": k, "loss": train, "test_loss": test} for k, (train, test) in enumerate(losses, 1)]
    assert figures.lowest(history) == {"lowest_train_loss": 3.0, "lowest_test_loss": 5.5}


def test_without_test_losses_there_are_no_lowest_ones():
    assert figures.lowest([]) == figures.lowest([{"epoch": 1, "loss": 5.0}]) == {}


# End to end on small made sets


def run(name: str, root: Path, epochs: int = 1) -> dict:
    dataset = find(name).dataset
    np.savez(root / f"{dataset}.npz", **made_arrays((32, 32, 3) if dataset == "svhn" else (28, 28), 60, 40))
    record, path = experiment_run.run(
        name, epochs=epochs, device="cpu", data_root=root, out=root / "out", progress=False
    )
    assert json.loads(path.read_text()) == record
    return record


def test_svhn_runs_from_end_to_end(tmp_path):
    record = run("svhn-cnn", tmp_path)
    figures, (row,) = record["test"], record["history"]
    assert row["loss"] == pytest.approx(row["reconstruction"] + row["kl"], rel=1e-6)
    assert figures["n"] == 40
    assert figures["loss"] == figures["reconstruction"] + figures["kl"]
    assert figures["reconstruction"] > figures["entropy_floor"] > 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["svhn-cnn.json"]


CONTROLS = [name for name, e in EXPERIMENTS.items() if e.dataset == "cifar10" and e.source.startswith("this book")]


@pytest.mark.parametrize("name", CONTROLS)
def test_the_controls_on_cifar10_build_and_one_step_of_theirs_is_finite(name):
    experiment = find(name)
    model = setups.build(experiment, 0)
    objective, anneal = setups.objective_of(experiment, model)
    x = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    settings = dict(experiment.training) | dict(batch_size=8, epochs=1, progress=False)
    (row,) = fit(model, x, objective, anneal=anneal, **settings)
    assert row["loss"] == pytest.approx(row["reconstruction"] + row["kl"], rel=1e-5)
    assert 0 < row["kl"] < row["reconstruction"]


def test_the_registry_holds_the_sweeps_with_their_seeds():
    expected = {
        name: 3 for name in EXPERIMENTS if name.startswith(("beta-binary", "cifar10-", "bits-cifar10", "irvin"))
    }
    expected |= {name: 5 for name in EXPERIMENTS if name.startswith(("units-mnist", "binary-fashion"))}
    expected |= dict.fromkeys(IRVIN, 1)
    assert {name: len(find(name).seeds) for name in expected} == expected
    for d in (2, 3, 50):
        long, short = find(f"irvin-z{d}"), find(f"irvin-z{d}-e100")
        assert (short.model, short.training, short.dataset) == (long.model, long.training, long.dataset)
        assert (short.epochs, short.snapshots) == (100, (40, 94))


def test_an_auto_encoder_pays_no_kl_and_has_no_active_units(tmp_path):
    record = run("saleh-robustness-autoencoder-k2-n0", tmp_path)
    figures, (row,) = record["test"], record["history"]
    assert row["loss"] == row["reconstruction"]
    assert "kl" not in row
    assert figures["kl"] == 0
    assert figures["loss"] == figures["reconstruction"]
    assert set(figures) == {"loss", "reconstruction", "kl", "n", "entropy_floor", "mse"}


def test_robustness_trains_on_corrupted_images_and_tests_on_clean_and_corrupted_ones(tmp_path):
    experiment = find("saleh-robustness-autoencoder-k2-n30")
    figures = run(experiment.name, tmp_path)["test"]
    dataset, model = data.load("mnist", tmp_path), setups.build(experiment, 1)
    x_train, clean = add_outliers(dataset.x_train, 0.3, seed=1), unit_interval(dataset.x_test)
    fit(model, x_train, reconstruction_log_likelihood, epochs=1, seed=1, progress=False, **experiment.training)
    noisy = unit_interval(add_outliers(dataset.x_test, 0.3, seed=2))
    assert figures["mse"] == reconstruction_mse(model, clean)
    assert figures["mse_from_corrupted"] == reconstruction_mse(model, noisy, clean)


def test_an_experiment_that_tracks_its_test_loss_ends_where_its_curve_ends(tmp_path):
    record = run("irvin-z2", tmp_path, epochs=3)
    curve = [row["test_loss"] for row in record["history"]]
    assert len(curve) == 3
    assert curve[-1] == record["test"]["loss"]
    assert record["test"]["lowest_test_loss"] == min(curve)
    assert record["test"]["lowest_train_loss"] == min(row["loss"] for row in record["history"])


def test_an_experiment_on_boots_is_tested_on_boots_alone(tmp_path):
    boots = (made_arrays((28, 28), 60, 40)["y_test"] == 9).sum()
    assert run("saleh-boots-k2", tmp_path)["test"]["n"] == boots


def test_an_unknown_experiment_is_refused_with_those_spelt_like_it():
    with refused(ValueError, "'saleh-boots-k3'", "saleh-boots-k2", "python -m vae_core list"):
        find("saleh-boots-k3")
