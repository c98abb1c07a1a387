"""The named experiments and the command line: records, refusals, interrupted runs."""

import hashlib
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checks import made_arrays
from command_line_runs import assert_one_error, names_in, read, run, timeless
from safetensors.torch import load_file

from vae_core import data
from vae_core.evaluation import evaluate
from vae_core.experiments import definition, figures, records, registry, setups
from vae_core.experiments import run as experiment_run
from vae_core.experiments.command_line import main
from vae_core.models import mlp_conditional_vae, mlp_vae
from vae_core.objectives import beta_elbo_terms, elbo_terms, reconstruction_log_likelihood
from vae_core.training import fit

pytestmark = pytest.mark.usefixtures("float32")

REPOSITORY = Path(__file__).resolve().parents[2]
RECORD_KEYS = {
    *("name", "command", "commit", "seed", "device", "versions"),
    *("wall_seconds", "data_sha256", "config", "history", "test"),
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """The folder of `run digits-d2 --epochs 2`."""
    out = tmp_path_factory.mktemp("recorded")
    assert run(out, "--epochs", 2) == 0
    return out


# list and data


def test_list_shows_every_experiment_and_whether_it_is_recorded(recorded, capsys):
    assert main(["list", "--out", str(recorded)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(registry.EXPERIMENTS)
    for line, experiment in zip(lines, registry.EXPERIMENTS.values(), strict=True):
        assert line.split()[1:3] == [experiment.dataset, str(experiment.epochs)]
        assert line.split()[3].split(",")[0] == str(experiment.seed)
        assert experiment.source in line
    loss = read(recorded / "digits-d2.json")["test"]["loss"]
    assert f"loss {loss:.2f} after 2 epochs" in lines[0]
    assert all(" none " in line for line in lines[1:])


def test_list_without_any_record_says_so(tmp_path, capsys):
    assert main(["list", "--out", str(tmp_path / "absent")]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [" none " in line for line in lines] == [True] * len(registry.EXPERIMENTS)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"test": {"loss": null}}'])
def test_list_names_a_record_that_it_cannot_read(content, tmp_path, capsys):
    (tmp_path / "digits-d2.json").write_text(content)
    assert main(["list", "--out", str(tmp_path)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 1 + len(registry.EXPERIMENTS)
    assert "unreadable: digits-d2.json" in next(row for row in rows if row.startswith("digits-d2 "))


def test_data_prints_sizes_and_checksum(capsys):
    assert main(["data", "digits"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    for part in ("digits", "1437 training", "360 test", "(1, 8, 8)", data.load("digits").sha256):
        assert part in line


def test_data_takes_several_names_and_the_data_root(tmp_path, capsys):
    np.savez(tmp_path / "cifar10.npz", **made_arrays((32, 32, 3)))
    assert main(["data", "digits", "cifar10", "--data-root", str(tmp_path)]) == 0
    digits, cifar10 = capsys.readouterr().out.splitlines()
    assert digits.startswith("digits: 1437 training")
    assert cifar10.startswith("cifar10: 5 training and 3 test images of shape (3, 32, 32)")


# Records


def test_a_run_writes_its_record_and_leaves_nothing_else(recorded):
    assert names_in(recorded) == ["digits-d2.json"]


def test_a_record_holds_what_the_design_lists(recorded):
    record = read(recorded / "digits-d2.json")
    assert set(record) >= RECORD_KEYS
    assert record["name"] == "digits-d2"
    assert record["seed"] == record["config"]["seed"] == 0
    assert record["config"]["epochs"] == 2
    assert record["device"].startswith("cpu: ")
    assert record["versions"]["torch"] == torch.__version__
    assert record["wall_seconds"] > 0
    assert record["data_sha256"] == data.load("digits").sha256
    assert record["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", record["commit"])


def test_a_record_has_one_row_per_epoch(recorded):
    history = read(recorded / "digits-d2.json")["history"]
    assert [row["epoch"] for row in history] == [1, 2]
    assert all({"loss", "reconstruction", "kl"} <= set(row) for row in history)


def test_the_recorded_test_loss_is_the_sum_of_its_terms_and_above_the_floor(recorded):
    figures = read(recorded / "digits-d2.json")["test"]
    assert figures["n"] == 360
    assert figures["loss"] == figures["reconstruction"] + figures["kl"]
    assert figures["reconstruction"] > figures["entropy_floor"] > 0


@pytest.mark.parametrize("seed", [0, 5])
def test_a_record_is_what_build_fit_and_evaluate_give_with_its_seed(seed, tmp_path):
    assert run(tmp_path, "--epochs", 1, "--seed", seed) == 0
    experiment, digits = registry.find("digits-d2"), data.load("digits")
    model = setups.build(experiment, seed)
    history = fit(model, digits.x_train, elbo_terms, epochs=1, seed=seed, progress=False, **experiment.training)
    record = read(records.record_path(experiment, seed, tmp_path))
    ((made,), (row,)) = timeless(record["history"]), timeless(history)
    assert row.items() <= made.items()
    assert evaluate(model, digits.x_test, seed=seed).items() <= record["test"].items()


def test_a_run_prints_its_figures_and_its_record(recorded, tmp_path, capsys):
    assert run(tmp_path, "--epochs", 2) == 0
    printed = capsys.readouterr().out
    figures = read(tmp_path / "digits-d2.json")["test"]
    for name in ("loss", "reconstruction", "kl"):
        assert f"{figures[name]:.3f}" in printed
    assert str(tmp_path / "digits-d2.json") in printed


def test_the_recorded_command_gives_the_recorded_figures_again(recorded, tmp_path):
    first = read(recorded / "digits-d2.json")
    prefix, arguments = shlex.split(first["command"])[:3], shlex.split(first["command"])[3:]
    assert prefix == ["python", "-m", "vae_core"]
    assert main([*arguments, "--device", "cpu", "--out", str(tmp_path)]) == 0
    again = read(tmp_path / "digits-d2.json")
    assert again["test"] == first["test"]
    assert timeless(again["history"]) == timeless(first["history"])


def test_another_seed_is_written_beside_and_gives_other_figures(recorded, tmp_path):
    assert run(tmp_path, "--epochs", 2, "--seed", 5) == 0
    assert names_in(tmp_path) == ["digits-d2-s5.json"]
    record = read(tmp_path / "digits-d2-s5.json")
    assert record["seed"] == record["config"]["seed"] == 5
    assert record["command"] == "python -m vae_core run digits-d2 --epochs 2 --seed 5"
    assert record["test"] != read(recorded / "digits-d2.json")["test"]


def test_the_experiments_own_seed_is_no_other_seed(recorded, tmp_path):
    assert run(tmp_path, "--epochs", 2, "--seed", 0) == 0
    assert read(tmp_path / "digits-d2.json")["test"] == read(recorded / "digits-d2.json")["test"]


def test_numpys_integers_make_the_same_record(recorded, tmp_path):
    record, path = experiment_run.run(
        "digits-d2", epochs=np.int64(2), seed=np.int64(0), device="cpu", out=tmp_path, progress=False
    )
    assert record == read(path)
    assert record["test"] == read(recorded / "digits-d2.json")["test"]
    assert record["command"] == read(recorded / "digits-d2.json")["command"]


def test_an_untrained_network_can_be_recorded(tmp_path):
    assert run(tmp_path, "--epochs", 0) == 0
    assert read(tmp_path / "digits-d2.json")["history"] == []


def test_a_record_names_no_path_of_this_machine(recorded):
    def strings(value):
        if isinstance(value, dict):
            return [text for item in value.items() for text in strings(item)]
        if isinstance(value, list | tuple):
            return [text for item in value for text in strings(item)]
        return [value] if isinstance(value, str) else []

    for text in strings(read(recorded / "digits-d2.json")):
        assert not re.search(r"(^|[\s='\"])(/|~|[A-Z]:\\)", text)
        assert str(REPOSITORY) not in text


def test_a_second_run_takes_the_place_of_the_first_record(tmp_path):
    assert run(tmp_path, "--epochs", 0) == 0
    assert run(tmp_path, "--epochs", 1) == 0
    assert names_in(tmp_path) == ["digits-d2.json"]
    assert len(read(tmp_path / "digits-d2.json")["history"]) == 1


def test_replacing_a_longer_record_is_said(recorded, tmp_path, capsys):
    (tmp_path / "digits-d2.json").write_bytes((recorded / "digits-d2.json").read_bytes())
    assert run(tmp_path, "--epochs", 1) == 0
    assert "note: it replaces one of 2 epochs" in capsys.readouterr().out
    assert run(tmp_path, "--epochs", 1) == 0
    assert "note" not in capsys.readouterr().out


# Refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits-d3"], ["'digits-d3'", "digits-d2", "python -m vae_core list"]),
        (["imagenet"], ["'imagenet'", "python -m vae_core list"]),
        (["digits-d2", "--seed", "-1"], ["seed", "-1"]),
        (["digits-d2", "--seed", str(2**32)], ["seed", str(2**32)]),
        (["digits-d2", "--epochs", "-1"], ["epochs", "-1"]),
        (["digits-d2", "--device", "cuda"], ["device", "cuda", "cpu"]),
        (["digits-d2", "--device", "tpu"], ["device", "'tpu'", "auto"]),
    ],
)
def test_bad_arguments_are_refused_in_one_line_and_nothing_is_written(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_one_error(main(["run", *arguments, "--out", str(tmp_path)]), capsys, *words)
    assert names_in(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(experiment_run, "fit", lambda *_args, **_kwargs: pytest.fail("trained before it looked"))
    (tmp_path / "file").write_text("no folder")
    out = tmp_path / "file" / "results"
    assert_one_error(run(out), capsys, out, "--out")
    assert names_in(tmp_path) == ["file"]


def test_missing_data_are_refused_with_the_way_to_get_them(tmp_path, capsys, monkeypatch):
    def no_network(*_args, **_kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    root, out = tmp_path / "data", tmp_path / "out"
    code = run(out, "--data-root", root, name="chen-mnist-d20")
    assert_one_error(code, capsys, root, "python -m vae_core data mnist", "digits")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_data_of_an_unknown_name_are_refused(capsys):
    assert_one_error(main(["data", "imagenet"]), capsys, "'imagenet'", *data.NAMES)


def test_a_damaged_data_set_is_refused_and_no_record_is_written(tmp_path, capsys):
    (tmp_path / "mnist.npz").write_text("no archive")
    code = run(tmp_path / "out", "--data-root", tmp_path, name="chen-mnist-d20")
    assert_one_error(code, capsys, tmp_path / "mnist.npz")
    assert names_in(tmp_path / "out") == []


def test_a_loss_that_is_not_finite_is_one_error_and_no_record(tmp_path, capsys, monkeypatch):
    def objective(model, batch):
        value, terms = elbo_terms(model, batch)
        return value * float("nan"), terms

    monkeypatch.setattr(setups, "elbo_terms", objective)
    assert_one_error(run(tmp_path, "--epochs", 1), capsys, "epoch 1", "learning_rate")
    assert names_in(tmp_path) == []


def test_a_crash_while_writing_leaves_the_record_before_it(recorded, tmp_path, monkeypatch):
    path = tmp_path / "digits-d2.json"
    path.write_bytes((recorded / "digits-d2.json").read_bytes())
    before = path.read_bytes()

    def write_text(self, text):
        self.write_bytes(text[:10].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_text)
    assert run(tmp_path, "--epochs", 1) == 1
    assert path.read_bytes() == before
    assert names_in(tmp_path) == ["digits-d2.checkpoint.pt", "digits-d2.json"]


# Interrupted runs


@pytest.fixture
def interrupted(interrupted_at, tmp_path) -> Path:
    """A folder with the checkpoint of a run that was interrupted in its third epoch."""
    interrupted_at(50)
    assert names_in(tmp_path) == ["digits-d2.checkpoint.pt"]
    return tmp_path


def test_an_interrupted_run_resumes_to_the_figures_of_an_uninterrupted_one(interrupted, tmp_path_factory):
    whole = tmp_path_factory.mktemp("whole")
    assert run(whole, "--epochs", 3) == 0
    assert run(interrupted, "--epochs", 3, "--resume") == 0
    assert names_in(interrupted) == ["digits-d2.json"]
    resumed, expected = read(interrupted / "digits-d2.json"), read(whole / "digits-d2.json")
    assert resumed["test"] == expected["test"]
    assert timeless(resumed["history"]) == timeless(expected["history"])
    assert resumed["command"] == expected["command"]


def test_the_wall_time_of_a_resumed_run_includes_the_epochs_before(interrupted):
    assert run(interrupted, "--epochs", 3, "--resume") == 0
    record = read(interrupted / "digits-d2.json")
    assert record["wall_seconds"] >= sum(row["seconds"] for row in record["history"])


def test_an_interrupted_run_is_not_begun_anew_without_resume(interrupted, capsys):
    before = (interrupted / "digits-d2.checkpoint.pt").read_bytes()
    assert_one_error(run(interrupted, "--epochs", 3), capsys, interrupted / "digits-d2.checkpoint.pt", "--resume")
    assert (interrupted / "digits-d2.checkpoint.pt").read_bytes() == before


def test_resuming_to_fewer_epochs_than_are_done_is_refused(interrupted, capsys):
    assert_one_error(run(interrupted, "--epochs", 1, "--resume"), capsys, "epochs")
    assert names_in(interrupted) == ["digits-d2.checkpoint.pt"]


def test_resuming_without_an_interrupted_run_is_a_run(recorded, tmp_path):
    assert run(tmp_path, "--epochs", 2, "--resume") == 0
    assert read(tmp_path / "digits-d2.json")["test"] == read(recorded / "digits-d2.json")["test"]


# All of them: reproduce and table


@pytest.fixture
def two_experiments(monkeypatch) -> dict:
    """The registry reduced to two small experiments on digits, the dearer one first, one with another seed."""
    small = replace(registry.find("digits-d2"), name="small", epochs=1, more_seeds=(7,), printed={"loss": 30.0})
    large = replace(small, name="large", epochs=2, more_seeds=(), printed={}, weights=True)
    both = {"large": large, "small": small}
    for module in (registry, experiment_run, main.__globals__):
        patch = monkeypatch.setitem if isinstance(module, dict) else monkeypatch.setattr
        patch(module, "EXPERIMENTS", both)
    return both


def test_reproduce_runs_what_is_missing_cheapest_first(two_experiments, tmp_path, capsys):
    assert main(["reproduce", "--device", "cpu", "--out", str(tmp_path)]) == 0
    headings = [line for line in capsys.readouterr().out.splitlines() if ", seed " in line]
    assert headings == ["[1/3] small, seed 0", "[2/3] small, seed 7", "[3/3] large, seed 0"]
    assert names_in(tmp_path) == ["large.json", "large.safetensors", "small-s7.json", "small.json"]
    assert main(["reproduce", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("0 runs")


def test_reproduce_runs_only_what_matches(two_experiments, tmp_path):
    assert main(["reproduce", "--only", "sm*", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert names_in(tmp_path) == ["small-s7.json", "small.json"]


def test_a_pattern_that_no_name_matches_is_refused_in_one_line(two_experiments, tmp_path, capsys):
    code = main(["reproduce", "--only", "no-such-*", "--out", str(tmp_path)])
    assert_one_error(code, capsys, "'no-such-*'", "python -m vae_core list")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("change", [{"epochs": 5}, {"training": {}}, {"model": {"latent_dim": 3}}])
def test_a_record_of_another_definition_is_not_valid(change, two_experiments, tmp_path):
    experiment_run.run("small", out=tmp_path, device="cpu", progress=False)
    small = registry.find("small")
    assert records.read_record(small, 0, tmp_path)["name"] == "small"
    assert records.read_record(replace(small, **change), 0, tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_record_that_cannot_be_read_is_run_again(content, two_experiments, tmp_path):
    (tmp_path / "small.json").write_text(content)
    assert [(e.name, seed) for e, seed in experiment_run.pending(tmp_path, "small")] == [("small", 0), ("small", 7)]


def test_the_table_sets_mean_and_spread_beside_the_printed_number(two_experiments, tmp_path, capsys):
    for seed in (0, 7):
        experiment_run.run("small", out=tmp_path, seed=seed, device="cpu", progress=False)
    assert main(["table", "--out", str(tmp_path)]) == 0
    heading, loss, *others = capsys.readouterr().out.splitlines()
    first, second = (read(tmp_path / name)["test"]["loss"] for name in ("small.json", "small-s7.json"))
    assert heading.split()[:4] == ["EXPERIMENT", "FIGURE", "PRINTED", "OBTAINED"]
    spread = abs(first - second) / 2**0.5
    assert loss.split()[:6] == ["small", "loss", "30.00", f"{(first + second) / 2:.2f}", "±", f"{spread:.2f}"]
    assert all("not printed" in line for line in others)
    assert len(others) == 2


def test_cost_counts_six_operations_per_multiply_add_image_and_epoch():
    thesis = registry.find("chen-mnist-d20")
    dense = 784 * 512 + 512 * 256 + 256 * 128
    assert thesis.cost == 6 * (2 * dense + 2 * 128 * 20 + 20 * 128) * 60_000 * 20


def test_cost_of_a_convolution_counts_every_place():
    convolutions = 16 * (16 * 16 * 3 * 32 + 8 * 8 * 32 * 64 + 4 * 4 * 64 * 128)
    assert definition.multiply_adds(registry.find("chen-cifar10-cnn").network) == 2 * convolutions + 3 * 2048 * 256


def test_cost_counts_every_decoded_draw():
    """Encoder 784-200-200-(50, 50), decoder 50-200-200-784: the images are encoded once, each draw is decoded."""
    encoder, decoder = 784 * 200 + 200 * 200 + 2 * 200 * 50, 50 * 200 + 200 * 200 + 200 * 784
    for k in (1, 5, 50):
        assert registry.find(f"iwae-mnist-k{k}").cost == 6 * (encoder + k * decoder) * 60_000 * 20


def test_cost_of_a_transposed_convolution_counts_every_decoded_draw():
    convolutions = 16 * (16 * 16 * 3 * 32 + 8 * 8 * 32 * 64 + 4 * 4 * 64 * 128)
    network = registry.find("chen-cifar10-cnn").network
    assert definition.multiply_adds(network, 3) == 4 * convolutions + (2 + 3) * 2048 * 256


def test_the_cheapest_come_first_whatever_the_number_of_draws(tmp_path):
    found = dict.fromkeys(experiment.name for experiment, _ in experiment_run.pending(tmp_path, "*iwae-*"))
    assert list(found) == [f"{kind}-mnist-k{k}" for k in (1, 5, 50) for kind in ("iwae", "static-iwae")]


# Losses in evaluation mode, and weights on the way


def columns(row: dict) -> set[str]:
    return {key for key in row if key.startswith(("test_", "train_eval_"))}


BOTH = {f"{images}_{name}" for images in ("test", "train_eval") for name in records.LOSSES}


@pytest.mark.parametrize("track", [False, True])
def test_both_sets_of_images_are_judged_every_fifth_epoch_and_after_the_last(
    track, two_experiments, tmp_path, monkeypatch
):
    monkeypatch.setitem(two_experiments, "small", replace(two_experiments["small"], epochs=7, track_test=track))
    record, _ = experiment_run.run("small", out=tmp_path, device="cpu", progress=False)
    between = {name for name in BOTH if name.startswith("test_")} if track else set()
    assert {row["epoch"]: columns(row) for row in record["history"]} == {
        epoch: BOTH if epoch in (5, 7) else between for epoch in range(1, 8)
    }
    assert record["history"][-1]["test_loss"] == record["test"]["loss"]
    assert ("lowest_test_loss" in record["test"]) == track


def test_an_interrupted_run_is_judged_in_the_same_epochs(interrupted_at, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment_run, "EVALUATED_EVERY", 2)
    interrupted_at(30)  # in its second epoch
    assert run(tmp_path, "--epochs", 3, "--resume") == 0
    assert [columns(row) for row in read(tmp_path / "digits-d2.json")["history"]] == [set(), BOTH, BOTH]


def test_the_training_losses_in_evaluation_mode_are_those_of_evaluate(two_experiments, tmp_path):
    """In one piece of images the seed is evaluate's own; the running averages are those of the whole training."""
    record, _ = experiment_run.run("large", out=tmp_path, device="cpu", progress=False)
    model = setups.build(registry.find("large"), 0)
    x = data.load("digits").x_train
    fit(model, x, elbo_terms, epochs=2, seed=0, progress=False, **registry.find("large").training)
    expected = evaluate(model, x, seed=0)
    assert {name: record["history"][-1][f"train_eval_{name}"] for name in records.LOSSES} == pytest.approx(
        {name: expected[name] for name in records.LOSSES}, rel=1e-9
    )


def test_training_losses_are_means_over_all_images_whatever_the_pieces():
    experiment, digits = replace(registry.find("digits-d2"), binarise=True), data.load("digits")
    model = setups.build(experiment, 0)
    few, many = (figures.training_losses(experiment, digits, 0, model, at_once)["kl"] for at_once in (100, 5000))
    grey = figures.training_losses(registry.find("digits-d2"), digits, 0, model)["kl"]
    assert few == pytest.approx(many, rel=0.02)  # other draws of the pixels
    assert grey != pytest.approx(many, rel=1e-4)


def test_weights_are_kept_after_the_epochs_that_are_named(two_experiments, tmp_path, monkeypatch):
    monkeypatch.setitem(two_experiments, "small", replace(two_experiments["small"], epochs=3, snapshots=(1, 2)))
    whole, path = experiment_run.run("small", seed=7, out=tmp_path, device="cpu", progress=False)
    assert names_in(tmp_path) == ["small-s7-e1.safetensors", "small-s7-e2.safetensors", "small-s7.json"]
    files = {k: experiment_run.snapshot_path(path, k) for k in (1, 2)}
    assert whole["snapshots_sha256"] == {str(k): hashlib.sha256(f.read_bytes()).hexdigest() for k, f in files.items()}
    model = setups.build(registry.find("small"), 7)
    fit(model, data.load("digits").x_train, elbo_terms, epochs=2, seed=7, progress=False, batch_size=64)
    kept = load_file(files[2])
    assert all(torch.equal(kept[name], value.half()) for name, value in model.state_dict().items() if value.dim())


# The data at hand, and no checkpoints


def test_data_in_memory_make_the_record_of_the_data_on_disk(recorded, tmp_path):
    record, _ = experiment_run.run(
        "digits-d2",
        epochs=2,
        device="cpu",
        out=tmp_path,
        progress=False,
        dataset=data.load("digits"),
        checkpoints=False,
    )
    expected = read(recorded / "digits-d2.json")
    assert (record["test"], record["data_sha256"]) == (expected["test"], expected["data_sha256"])
    assert timeless(record["history"]) == timeless(expected["history"])


def test_the_data_of_another_set_are_refused(tmp_path):
    other = replace(data.load("digits"), name="mnist")
    with pytest.raises(ValueError, match="dataset must be digits, on which digits-d2 is trained, got mnist"):
        experiment_run.run("digits-d2", device="cpu", out=tmp_path, dataset=other)
    assert names_in(tmp_path) == []


def test_the_commit_can_be_named_where_there_is_no_history(monkeypatch):
    monkeypatch.setenv("VAE_CORE_COMMIT", "a" * 40)
    assert records.commit() == "a" * 40
    monkeypatch.delenv("VAE_CORE_COMMIT")
    assert records.commit() != "a" * 40


# What goes together


CONTRADICTIONS = [
    ("digits-d2", dict(num_samples=5, beta=2.0), "num_samples"),
    ("digits-d2", dict(num_samples=5, kl_warm_up=0.5), "num_samples"),
    ("digits-d2", dict(dequantise=True, binarise=True), "dequantise"),
    ("digits-d2", dict(dequantise=True, binarise_once=True), "dequantise"),
    ("digits-d2", dict(binarise_once=True), "binarise_once"),
    ("digits-d2", dict(dequantise=True), "dequantise with the likelihood bernoulli"),
    ("bits-mnist-discretized-logistic", dict(dequantise=True), "dequantise with the likelihood discretized_logistic"),
    ("bits-mnist-shared-gaussian", dict(num_samples=5), "num_samples"),
    ("chen-cifar10-cnn", dict(num_samples=5), "num_samples"),
    ("saleh-robustness-autoencoder-k2-n0", dict(beta=2.0), "auto-encoder"),
    ("saleh-robustness-autoencoder-k2-n0", dict(kl_warm_up=0.5), "auto-encoder"),
    ("saleh-robustness-autoencoder-k2-n0", dict(num_samples=5), "auto-encoder"),
]


@pytest.mark.parametrize(("name", "changes", "word"), CONTRADICTIONS)
def test_settings_of_which_one_would_be_ignored_are_refused_in_one_sentence(name, changes, word):
    experiment = replace(registry.find(name), **changes)
    with pytest.raises(ValueError, match=f"the experiment {name} asks for .*{word}") as caught:
        setups.objective_of(experiment, experiment.network())
    assert "\n" not in str(caught.value)


def test_a_contradiction_is_refused_before_anything_is_trained(two_experiments, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(two_experiments, "small", replace(two_experiments["small"], num_samples=5, beta=2.0))
    assert_one_error(run(tmp_path, name="small"), capsys, "small", "num_samples")
    assert names_in(tmp_path) == []


def value_of(objective, *arguments) -> torch.Tensor:
    torch.manual_seed(0)
    result = objective(*arguments)
    return result[0] if isinstance(result, tuple) else result


def test_warm_up_beta_and_binary_images_go_together():
    experiment = replace(registry.find("digits-d2"), kl_warm_up=0.5, beta=3.0, binarise=True)
    model, x = setups.build(experiment, 0).eval(), torch.rand(9, 1, 8, 8)
    objective, anneal = setups.objective_of(experiment, model)
    assert [anneal(progress) for progress in (0.0, 0.25, 0.5, 1.0)] == [0.0, 1.5, 3.0, 3.0]
    weight = torch.tensor(1.7)
    expected = value_of(lambda m, images: beta_elbo_terms(m, torch.bernoulli(images), weight), model, x)
    assert torch.equal(value_of(objective, model, x, weight), expected)


@pytest.mark.parametrize("changes", [dict(beta=2.0), dict(num_samples=5), dict(binarise=True), dict(kl_warm_up=0.5)])
def test_a_conditional_model_takes_the_settings_of_the_others(changes):
    model = mlp_conditional_vae((1, 8, 8), 2, 10, hidden=(7,), batch_norm=False)
    experiment, x, y = replace(registry.find("digits-d2"), **changes), torch.rand(9, 1, 8, 8), torch.eye(10)[:9]
    further = (torch.tensor(0.3),) if "kl_warm_up" in changes else ()
    plain = setups.objective_of(experiment, mlp_vae((1, 8, 8), 2, hidden=(7,)))[0]
    objective, _ = setups.objective_of(experiment, model)
    assert torch.equal(value_of(objective, model, x, y, *further), value_of(plain, model.given(y), x, *further))


def test_an_auto_encoder_can_be_trained_on_binary_images():
    experiment = replace(registry.find("saleh-robustness-autoencoder-k2-n0"), binarise=True)
    model, x = setups.build(experiment, 0), torch.rand(4, 1, 28, 28)
    objective, _ = setups.objective_of(experiment, model)
    expected = value_of(lambda m, images: reconstruction_log_likelihood(m, torch.bernoulli(images)), model, x)
    assert torch.equal(value_of(objective, model, x), expected)


# Weights


def test_loading_weights_leaves_the_random_state(two_experiments, tmp_path):
    experiment_run.run("large", out=tmp_path, device="cpu", progress=False)
    before = torch.get_rng_state()
    records.load_trained("large", tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_recorded_weights_give_the_recorded_figures(two_experiments, tmp_path):
    record, _ = experiment_run.run("large", out=tmp_path, device="cpu", progress=False)
    model = records.load_trained("large", tmp_path)
    figures = evaluate(model, data.load("digits").x_test, seed=0)
    assert not model.training
    assert figures["loss"] == pytest.approx(record["test"]["loss"], abs=0.02)  # 16-bit weights


@pytest.mark.parametrize("change", [{"epochs": 1}, {"seed": 7}])
def test_only_a_whole_run_with_its_own_seed_keeps_weights(change, two_experiments, tmp_path):
    experiment_run.run("large", out=tmp_path, device="cpu", progress=False, **change)
    assert [name for name in names_in(tmp_path) if name.endswith(".safetensors")] == []


def test_weights_that_are_not_there_name_the_command_that_makes_them(two_experiments, tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m vae_core run large"):
        records.load_trained("large", tmp_path)
    with pytest.raises(ValueError, match="small keeps no weights"):
        records.load_trained("small", tmp_path)


@pytest.fixture
def with_weights(two_experiments, tmp_path) -> Path:
    """The weights of `large`, beside its record."""
    experiment_run.run("large", out=tmp_path, device="cpu", progress=False)
    return tmp_path / "large.safetensors"


def assert_weights_refused(kind: type[Exception], path: Path, reason: str) -> None:
    with pytest.raises(kind) as caught:
        records.load_trained("large", path.parent)
    assert "\n" not in str(caught.value)
    for words in (str(path.with_suffix("")), reason, f"python -m vae_core run large --out {path.parent}"):
        assert words in str(caught.value)


def forget_hash(path: Path) -> None:
    """Make the record one of those that were written before records held the SHA-256 of their weights."""
    record = read(path)
    del record["weights_sha256"]
    path.write_text(json.dumps(record))


def test_weights_of_another_run_than_the_records_are_refused(with_weights):
    records.save_weights(setups.build(registry.find("large"), 1), with_weights)
    assert_weights_refused(ValueError, with_weights, "SHA-256")


def test_weights_without_a_record_are_refused(with_weights):
    with_weights.with_suffix(".json").unlink()
    assert_weights_refused(FileNotFoundError, with_weights, "large.json is not there")


def test_weights_beside_the_record_of_a_shorter_run_are_refused(with_weights):
    experiment_run.run("large", epochs=1, out=with_weights.parent, device="cpu", progress=False)
    assert_weights_refused(ValueError, with_weights, "whole run")


@pytest.mark.parametrize("change", [{"training": {}}, {"corruption": 0.5}, {"model": {"latent_dim": 3}}])
def test_weights_of_another_definition_are_refused(change, with_weights, two_experiments, monkeypatch):
    monkeypatch.setitem(two_experiments, "large", replace(two_experiments["large"], **change))
    assert_weights_refused(ValueError, with_weights, "as it is defined now")


def test_weights_of_a_record_without_their_hash_are_loaded(with_weights):
    forget_hash(with_weights.with_suffix(".json"))
    assert not records.load_trained("large", with_weights.parent).training


def test_damaged_or_foreign_weights_of_a_record_without_their_hash_are_refused(with_weights):
    forget_hash(with_weights.with_suffix(".json"))
    with_weights.write_bytes(b"no weights")
    assert_weights_refused(ValueError, with_weights, "does not hold the weights")
    records.save_weights(mlp_vae((1, 8, 8), 3, hidden=(256, 128)), with_weights)
    assert_weights_refused(ValueError, with_weights, "does not hold the weights")


# The thesis' network and figures


@pytest.mark.parametrize(
    ("latent_dim", "count"),
    [(2, 1_137_428), (5, 1_138_586), (10, 1_140_516), (15, 1_142_446), (20, 1_144_376), (25, 1_146_306)],
)
def test_the_thesis_network_has_its_number_of_parameters(latent_dim, count):
    thesis = registry.find("chen-mnist-d20")
    thesis = replace(thesis, model=thesis.model | {"latent_dim": latent_dim}) if latent_dim != 20 else thesis
    assert sum(parameter.numel() for parameter in thesis.network().parameters()) == count


def test_a_seed_builds_one_network_and_another_seed_another():
    digits = registry.find("digits-d2")
    first, again, other = (setups.build(digits, seed).mean.weight for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_training_arguments_are_the_thesis_ones():
    training = registry.find("chen-mnist-d20").training
    assert training == {"batch_size": 128, "learning_rate": 1e-3, "weight_decay": 1e-5, "reduction": "sum"}


def test_one_epoch_on_mnist(data_root, tmp_path):
    assert run(tmp_path, "--epochs", 1, "--data-root", data_root, name="chen-mnist-d20") == 0
    record = read(tmp_path / "chen-mnist-d20.json")
    assert 100 < record["test"]["loss"] < 130
    assert record["test"]["n"] == 10_000
    assert record["test"]["entropy_floor"] == pytest.approx(45.53, abs=0.005)


def test_the_committed_mnist_record_is_of_these_images(data_root):
    path = records.default_out() / "chen-mnist-d20.json"
    if not path.exists():
        pytest.skip("chen-mnist-d20 is not recorded: run `python -m vae_core run chen-mnist-d20`")
    assert read(path)["data_sha256"] == data.load("mnist", data_root).sha256


# As a program


def program(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "vae_core", *arguments], cwd=cwd, capture_output=True, text=True)


def test_the_program_runs_an_experiment_from_any_folder(tmp_path, recorded):
    done = program("run", "digits-d2", "--epochs", "2", "--device", "cpu", "--out", "results", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert names_in(tmp_path) == ["results", "results/digits-d2.json"]
    assert read(tmp_path / "results" / "digits-d2.json")["test"] == read(recorded / "digits-d2.json")["test"]


def test_the_program_refuses_in_one_line_and_with_exit_code_1(tmp_path):
    done = program("run", "nothing", "--out", "results", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: [^\n]*'nothing'[^\n]*\n", done.stderr)
    assert names_in(tmp_path) == []


def test_debug_shows_where_an_error_comes_from(tmp_path, capsys):
    done = program("run", "nothing", "--debug", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" in done.stderr
    assert "registry.py" in done.stderr
    with pytest.raises(ValueError, match="nothing"):
        main(["--debug", "run", "nothing"])  # before the command, too
    assert capsys.readouterr().out == ""


def test_a_command_line_that_cannot_be_read_ends_with_exit_code_2(tmp_path):
    done = program("frobnicate", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: python -m vae_core" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["run"], ["run", "digits-d2", "--epochs", "many"]])
def test_an_incomplete_command_line_shows_how_it_is_used(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    printed, error = capsys.readouterr()
    assert (end.value.code, printed) == (2, "")
    assert "usage: python -m vae_core" in error
    assert "Traceback" not in error


def test_help_is_a_manual_that_names_every_command_and_exit_status(tmp_path):
    done = program("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("list", "data", "run", "reproduce", "table", "--resume", "torchrun", "130", "VAE_CORE_DATA"):
        assert word in done.stdout, word


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    command = [sys.executable, "-m", "vae_core", "list"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # as `| true` does
    assert (process.wait(60), process.stderr.read()) == (141, "")
    process.stderr.close()
