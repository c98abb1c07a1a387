"""`run NAME --data folder:PATH`: an experiment's network and settings, the reader's images."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checks import files_below, refused
from command_line_runs import assert_one_error, names_in, read, run, timeless
from image_folders import write_classes, write_images

from vae_core.data import from_folder
from vae_core.evaluation import evaluate
from vae_core.experiments import records, setups
from vae_core.experiments import run as experiment_run
from vae_core.experiments.command_line import main
from vae_core.experiments.registry import EXPERIMENTS, find
from vae_core.objectives import elbo_terms
from vae_core.training import fit

pytestmark = pytest.mark.usefixtures("float32")
STEM = "digits-d2-folder-discs"


@pytest.fixture(autouse=True)
def data_below(tmp_path, monkeypatch) -> None:
    """What is kept of a folder goes below the test's own."""
    monkeypatch.setenv("VAE_CORE_DATA", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def discs(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("mine") / "discs")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


# The record


def test_the_record_says_whose_images_they_are_and_stands_beside_the_experiments_own(discs, out):
    assert run(out, "--epochs", 0) == 0
    own = (out / "digits-d2.json").read_bytes()
    assert run(out, "--epochs", 1, "--data", f"folder:{discs}") == 0
    assert names_in(out) == [f"{STEM}.json", "digits-d2.json"]
    assert (out / "digits-d2.json").read_bytes() == own
    record = read(out / f"{STEM}.json")
    config, changed = find("digits-d2").config(1, 0), {"dataset": "folder:discs", "image_shape": [1, 8, 8]}
    assert record["config"] == config | changed
    assert record["command"] == f"python -m vae_core run digits-d2 --epochs 1 --data folder:{discs}"
    assert record["data_sha256"] == from_folder(discs, 8, grey=True).sha256


def test_a_whole_run_is_no_record_of_the_named_experiment_under_any_name(discs, out, monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "digits-d2", replace(find("digits-d2"), epochs=1, weights=True))
    assert run(out, "--data", f"folder:{discs}") == 0
    assert names_in(out) == [f"{STEM}.json", f"{STEM}.safetensors"]
    for ending in ("json", "safetensors"):
        (out / f"{STEM}.{ending}").rename(out / f"digits-d2.{ending}")
    assert records.read_record(find("digits-d2"), 0, out) is None
    with refused(ValueError, "digits-d2.json", "whole run"):
        records.load_trained("digits-d2", out)


def test_figures_are_those_of_fit_and_evaluate_on_the_folder(discs, out):
    assert run(out, "--epochs", 2, "--seed", 5, "--data", f"folder:{discs}") == 0
    images, experiment = from_folder(discs, 8, grey=True), find("digits-d2")
    model = setups.build(experiment, 5)
    history = fit(model, images.x_train, elbo_terms, epochs=2, seed=5, progress=False, **experiment.training)
    record = read(out / f"{STEM}-s5.json")
    for made, row in zip(timeless(record["history"]), timeless(history), strict=True):
        assert row.items() <= made.items()
    assert evaluate(model, images.x_test, seed=5).items() <= record["test"].items()


@pytest.mark.parametrize(("name", "shape"), [("chen-mnist-d2", (1, 28, 28)), ("chen-cifar10-cnn", (3, 32, 32))])
def test_images_get_the_size_and_the_channels_of_the_experiments(name, shape, discs):
    experiment, images = setups.with_folder(find(name), f"folder:{discs}", None)
    assert images.image_shape == experiment.network().input_shape == experiment.image_shape == shape
    assert torch.equal(images.x_train, from_folder(discs, shape[1], grey=shape[0] == 1).x_train)


def test_the_recorded_command_makes_the_record_again_from_a_folder_with_a_blank(out, tmp_path, monkeypatch):
    write_images(tmp_path / "my discs", 12)
    monkeypatch.chdir(tmp_path)
    assert run(out, "--epochs", 1, "--data", "folder:my discs") == 0
    first = read(out / "digits-d2-folder-my-discs.json")
    again = [*shlex.split(first["command"])[3:], "--device", "cpu", "--out", "again"]
    assert main(again) == 0
    second = read(tmp_path / "again" / "digits-d2-folder-my-discs.json")
    assert (second["test"], second["config"]) == (first["test"], first["config"])


@pytest.mark.parametrize("ending", ["", "/", "/.", "/../discs"])
def test_a_folder_has_one_name_however_it_is_written(ending, discs):
    assert setups.on_folder(find("digits-d2"), f"folder:{discs}{ending}").dataset == "folder:discs"


def test_no_folder_name_makes_the_file_name_of_a_committed_record(tmp_path):
    """Names that end as other records do: a seed, a sibling experiment, a snapshot, with a path in them."""
    taken = {records.record_path(e, seed, tmp_path) for e in EXPERIMENTS.values() for seed in (*e.seeds, 5)}
    for name in ("s5", "e100", "e40", "d20", "mnist", "../s5", "ü.ö", "a b"):
        moved = [setups.on_folder(e, f"folder:{tmp_path}/x/{name}") for e in EXPERIMENTS.values()]
        paths = {records.record_path(e, seed, tmp_path) for e in moved for seed in (*e.seeds, 5)}
        assert not paths & taken
        assert all(path.parent == tmp_path for path in paths)


def test_what_is_printed_names_the_folder(discs, out, capsys):
    assert run(out, "--epochs", 1, "--data", f"folder:{discs}") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("digits-d2 on folder:discs: 1 epochs, seed 0, cpu")
    assert f"record: {out / STEM}.json" in printed


# Resuming


@pytest.fixture
def interrupted(discs, out, monkeypatch, capsys) -> Path:
    """The checkpoint of three epochs of one step on the discs that Ctrl-C ended in the third one."""
    trained = []

    def objective(model, batch):
        trained.append(model.training)
        if sum(trained) == 3:
            raise KeyboardInterrupt
        return elbo_terms(model, batch)

    with monkeypatch.context() as patched:
        patched.setattr(setups, "elbo_terms", objective)
        assert run(out, "--epochs", 3, "--data", f"folder:{discs}") == 130
    capsys.readouterr()
    assert names_in(out) == [f"{STEM}.checkpoint.pt"]
    return out


def test_an_interrupted_run_resumes_to_the_figures_of_a_whole_one(interrupted, discs, tmp_path):
    arguments = ("--epochs", 3, "--data", f"folder:{discs}")
    assert run(tmp_path / "whole", *arguments) == 0
    assert run(interrupted, *arguments, "--resume") == 0
    resumed, whole = read(interrupted / f"{STEM}.json"), read(tmp_path / "whole" / f"{STEM}.json")
    assert resumed["test"] == whole["test"]
    assert timeless(resumed["history"]) == timeless(whole["history"])


@pytest.mark.parametrize("n", [41, 60])
def test_a_run_is_not_resumed_with_further_images_in_the_folder(n, interrupted, tmp_path, capsys):
    """Of 41 images the new one is for testing: the training images are the same, the curve's test losses are not."""
    other, before = write_images(tmp_path / "changed" / "discs", n), files_below(interrupted)
    before = files_below(interrupted)
    assert_one_error(run(interrupted, "--epochs", 3, "--data", f"folder:{other}", "--resume"), capsys, "checkpoint")
    assert files_below(interrupted) == before


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_record_of_another_folder_of_the_same_name_is_not_replaced(resume, discs, out, tmp_path, capsys):
    assert run(out, "--epochs", 1, "--data", f"folder:{discs}") == 0
    before, other = files_below(out), write_images(tmp_path / "others" / "discs", 20, seed=1)
    capsys.readouterr()
    code = run(out, "--epochs", 1, "--data", f"folder:{other}", *resume)
    assert_one_error(code, capsys, out / f"{STEM}.json", f"folder:{other}", "--out")
    assert files_below(out) == before
    assert run(out, "--epochs", 2, "--data", f"folder:{discs}", *resume) == 0  # the same images may be run again


# Labels, conditions, corruption, few images


@pytest.fixture(scope="module")
def ten(tmp_path_factory) -> Path:
    return write_classes(tmp_path_factory.mktemp("ten") / "classes", 10, each=12)


@pytest.mark.parametrize(
    ("name", "classes", "words"),
    [
        ("saleh-boots-k2", 0, ("class 9", "sub-folder number 10", "no sub-folders")),
        ("saleh-boots-k20", 3, ("class 9", "3 sub-folders")),
        ("conditional-mnist-d2", 0, ("10 classes", "no sub-folders")),
        ("conditional-mnist-d2", 3, ("10 classes", "3 sub-folders")),
        ("conditional-mnist-d2", 11, ("10 classes", "11 sub-folders")),
    ],
)
def test_classes_that_the_folder_lacks_are_refused(name, classes, words, discs, out, tmp_path, capsys):
    folder = write_classes(tmp_path / "classes", classes, each=3) if classes else discs
    code = run(out, "--data", f"folder:{folder}", name=name)
    assert_one_error(code, capsys, name, f"folder:{folder}", *words)
    assert not out.exists()


@pytest.mark.parametrize("name", ["saleh-boots-k2", "conditional-mnist-d2", "saleh-robustness-autoencoder-k2-n30"])
def test_classes_conditions_and_corruption_work_with_a_folder_that_has_the_classes(name, ten, out):
    assert run(out, "--epochs", 1, "--data", f"folder:{ten}", name=name) == 0
    figures = read(out / f"{name}-folder-classes.json")["test"]
    y_test = from_folder(ten, 28, grey=True).y_test
    assert figures["n"] == (sum(y_test == 9) if "boots" in name else len(y_test))
    assert ("mse_from_corrupted" in figures) == ("n30" in name)


@pytest.mark.parametrize("n", [2, 4])
def test_fewer_than_two_images_for_training_or_test_are_refused(n, out, tmp_path, capsys):
    folder = write_images(tmp_path / "few", n)
    assert_one_error(run(out, "--data", f"folder:{folder}"), capsys, "digits-d2", "two", f"has {n - 1} and 1", "add")
    assert not out.exists()


def test_a_class_without_two_test_images_is_refused(out, tmp_path, capsys):
    folder = write_classes(tmp_path / "classes", 9, each=12)
    write_images(folder / "sparse", 1)
    code = run(out, "--data", f"folder:{folder}", name="saleh-boots-k2")
    assert_one_error(code, capsys, "saleh-boots-k2", "two training and two test images", "'sparse'")


def test_a_last_batch_of_one_image_is_left_out_and_the_config_says_so(discs, tmp_path, monkeypatch):
    n = len(from_folder(discs, 8, grey=True).x_train)
    for batch_size, left_out in ((n - 1, True), (n, False), (n - 2, False)):
        monkeypatch.setitem(EXPERIMENTS, "digits-d2", replace(find("digits-d2"), training=dict(batch_size=batch_size)))
        assert run(tmp_path / str(left_out), "--epochs", 1, "--data", f"folder:{discs}") == 0
        training = read(tmp_path / str(left_out) / f"{STEM}.json")["config"]["training"]
        assert training == dict(batch_size=batch_size) | (dict(drop_last=True) if left_out else {})


@pytest.mark.filterwarnings("default")
def test_a_broken_file_is_one_warning_on_stderr(out, tmp_path, capsys):
    folder = write_images(tmp_path / "broken", 20)
    (folder / "half.png").write_bytes((folder / "0.png").read_bytes()[:60])
    assert run(out, "--epochs", 1, "--data", f"folder:{folder}") == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: 1 of 21 image files were skipped: half.png (")
    assert error.count("\n") == 1


# Refusals


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("mnist", ("data", "'folder:PATH'", "'mnist'", "--data-root")),
        ("discs", ("data", "'folder:PATH'", "'discs'")),
        ("Folder:discs", ("data", "'folder:PATH'", "'Folder:discs'")),
        ("", ("data", "'folder:PATH'", "''")),
        ("folder:", ("path", "empty")),
        ("folder:nowhere", ("nowhere", "does not exist")),
        ("folder:file.zip", ("file.zip", "folder of images")),
        ("folder:empty", ("empty", "no image file")),
        ("folder:splits", ("splits", "train")),
    ],
)
def test_what_is_no_folder_of_images_is_refused(data, words, out, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.zip").write_bytes(b"PK")
    for split in ("train", "test"):
        write_images(tmp_path / "splits" / split, 1)
    assert_one_error(run(out, "--data", data), capsys, *words)
    assert not out.exists()


@pytest.mark.parametrize("data", [3, Path("discs"), ["folder:discs"]])
def test_run_takes_a_string(data, out):
    with refused(ValueError, "data must be 'folder:PATH'", repr(data)):
        experiment_run.run("digits-d2", data=data, out=out)


def test_run_takes_a_folder_or_a_dataset_in_memory(discs, out):
    with refused(ValueError, "data or dataset"):
        experiment_run.run("digits-d2", data=f"folder:{discs}", dataset=from_folder(discs, 8, grey=True), out=out)
    assert not out.exists()
