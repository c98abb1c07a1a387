"""The committed records: complete, made by a clean commit of the present definition, and right."""

import hashlib
import json
import math
import re
import shlex
import statistics
from pathlib import Path

import explorer_codes
import pytest
import torch
from safetensors.torch import load as load_tensors

from vae_core.data import load
from vae_core.evaluation import evaluate
from vae_core.experiments import setups
from vae_core.experiments.command_line import parser
from vae_core.experiments.records import default_out, load_trained, record_path, valid_records
from vae_core.experiments.registry import find
from vae_core.experiments.setups import conditions, prepare
from vae_core.interactive.explorer import EncodedImages

NOT_TRAINED = (  # they have tests of their own
    *("bench-", "gpu-", "linear-", "measured-"),
    *("best-codes", "disentanglement", "pca-"),
)
OWN_IMAGES = "-folder-"  # in the names of what a reader has made with --data
CARD = sorted((default_out() / "cuda").glob("*.json"))  # runs that a CPU had recorded before
RECORDS = sorted(
    path
    for path in default_out().glob("*.json")
    if not path.name.startswith(NOT_TRAINED) and OWN_IMAGES not in path.name
)
RECORDS += CARD
ON_THE_WAY = {"residual-cifar10": {10}}  # epochs whose evaluation is nan, in a run that ended well
WEIGHTS = sorted(
    path
    for path in default_out().glob("*.safetensors")
    if not path.name.startswith(NOT_TRAINED) and ".codes" not in path.suffixes and OWN_IMAGES not in path.name
)
SNAPSHOTS = [path for path in WEIGHTS if re.search(r"-e\d+$", path.stem) and not path.with_suffix(".json").exists()]
WEIGHTS = [path for path in WEIGHTS if path not in SNAPSHOTS]
ORACLE = Path(__file__).parents[1] / "thesis_oracle.jsonl"


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def name_of(path: Path) -> str:
    """The name of a record, `cuda/` before those of the card that a CPU had recorded before."""
    return str(path.relative_to(default_out()).with_suffix(""))


@pytest.mark.parametrize("path", RECORDS, ids=name_of)
def test_a_record_is_of_the_experiment_as_it_is_defined_now(path):
    record = read(path)
    experiment = find(record["name"])
    assert path == record_path(experiment, record["seed"], path.parent)
    assert record["config"] == experiment.config(experiment.epochs, record["seed"])
    assert [row["epoch"] for row in record["history"]] == list(range(1, experiment.epochs + 1))
    assert len(record["commit"]) == 40


@pytest.mark.parametrize("path", RECORDS, ids=name_of)
def test_a_recorded_command_is_read_word_for_word_and_makes_this_record(path):
    record = read(path)
    before, arguments = record["command"].split(" -m vae_core ")
    assert before == "python" or re.fullmatch(r"torchrun --nproc-per-node \d+", before)
    options = parser().parse_args(shlex.split(arguments))
    experiment = find(options.name)
    seed = experiment.seed if options.seed is None else options.seed
    epochs = experiment.epochs if options.epochs is None else options.epochs
    assert record_path(experiment, seed, options.out).name == path.name
    assert record["config"] == experiment.config(epochs, seed)


@pytest.mark.parametrize("path", RECORDS, ids=name_of)
def test_a_records_figures_are_finite_and_add_up(path):
    record = read(path)
    weighted = "kl_warm_up" in record["config"]  # then the loss of a training epoch weighs its KL by less than 1
    bound_alone = "num_samples" in record["config"]  # the importance-weighted bound has no terms in training
    for row in [*record["history"], record["test"]]:
        if row.get("epoch") in ON_THE_WAY.get(record["name"], ()):
            assert all(math.isfinite(row[figure]) for figure in ("loss", "reconstruction", "kl"))
        else:
            assert all(math.isfinite(value) for value in row.values())
        if bound_alone and row is not record["test"]:
            continue
        beta = 1 if row is record["test"] else record["config"].get("beta", 1)
        whole = row["reconstruction"] + beta * row.get("kl", 0)
        assert row["loss"] == pytest.approx(whole, rel=1e-6) or (weighted and row["loss"] < whole)
    if "likelihood" not in record["config"]["model"]:  # a density has no such floor
        assert record["test"]["reconstruction"] > record["test"]["entropy_floor"]


@pytest.mark.parametrize("path", RECORDS, ids=name_of)
def test_a_record_was_made_from_these_data(path, data_root):
    record = read(path)
    assert record["data_sha256"] == load(record["config"]["dataset"], data_root).sha256


def test_the_card_repeats_what_a_cpu_recorded_and_every_figure_is_evaluated_every_fifth_epoch():
    for path in CARD:
        record = read(path)
        assert record["device"].startswith("cuda")
        alone = record["name"] == "residual-cifar10"  # nan on the way: kept aside from the records that chapters load
        assert alone or read(default_out() / path.name)["device"].startswith("cpu")
        for row in record["history"]:
            both = row["epoch"] % 5 == 0 or row["epoch"] == len(record["history"])
            assert ("train_eval_loss" in row) == both


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.stem)
def test_recorded_weights_give_the_recorded_figures_on_the_real_test_set(path, data_root, float32):
    record = read(path.with_suffix(".json"))
    experiment = find(record["name"])
    dataset, model = prepare(experiment, load(experiment.dataset, data_root), record["seed"]), load_trained(path.stem)
    told = conditions(model, dataset.y_test)
    model, size = (model, 1000) if told is None else (model.given(told), len(told))  # all at once, each beside its y
    images = setups.test_images(experiment, dataset, record["seed"])
    figures = evaluate(model, images, seed=record["seed"], batch_size=size)
    for figure in ("loss", "reconstruction", "kl"):
        assert figures[figure] == pytest.approx(record["test"][figure], abs=0.1)


@pytest.mark.parametrize("path", SNAPSHOTS, ids=lambda path: path.stem)
def test_weights_kept_on_the_way_give_the_test_loss_of_their_epoch(path, data_root, float32):
    stem, epoch = re.fullmatch(r"(.*)-e(\d+)", path.stem).groups()
    content, record = path.read_bytes(), read(path.with_name(f"{stem}.json"))
    assert hashlib.sha256(content).hexdigest() == record["snapshots_sha256"][epoch]
    experiment = find(record["name"])
    model, dataset = (
        setups.build(experiment, 0),
        prepare(experiment, load(experiment.dataset, data_root), record["seed"]),
    )
    model.load_state_dict(load_tensors(content))
    figures = evaluate(model, setups.test_images(experiment, dataset, record["seed"]), seed=record["seed"])
    assert figures["loss"] == pytest.approx(record["history"][int(epoch) - 1]["test_loss"], abs=0.1)


def test_all_recorded_weights_together_are_small():
    assert sum(path.stat().st_size for path in (*WEIGHTS, *SNAPSHOTS)) < 25e6


def test_the_thesis_network_reaches_what_the_independent_oracle_reaches():
    """Three seeds each, 20 epochs on real MNIST; the oracle's are in thesis_oracle.jsonl."""
    ours = [record["test"] for record in valid_records(find("chen-mnist-d20"), default_out())]
    oracle = [json.loads(line) for line in ORACLE.read_text().splitlines()]
    assert len(ours) >= 3
    assert len(oracle) >= 3
    for figure in ("loss", "reconstruction", "kl"):
        difference = statistics.mean(r[figure] for r in ours) - statistics.mean(r[figure] for r in oracle)
        assert abs(difference) < 1, figure


@pytest.mark.parametrize("name", explorer_codes.NAMES)
def test_recorded_codes_are_those_of_the_real_test_images(name, data_root, float32):
    found = EncodedImages.load(default_out() / f"{name}.codes.safetensors")
    expected = explorer_codes.encoded(name, data_root)
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.codes, expected.codes, atol=5e-3, rtol=1e-3)  # kept in half precision
    torch.testing.assert_close(found.kl, expected.kl, atol=1e-3, rtol=1e-3)
