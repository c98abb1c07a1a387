"""The program of `make gpu`, on a CPU with tiny settings: whole, killed and begun again, packed."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import gpu
import gpu_data
import gpu_pack
import gpu_plan
import gpu_processes
import gpu_speed
import gpu_training
import numpy as np
import pytest
import thesis_oracle
import torch
from PIL import Image

from vae_core import data, training
from vae_core._training.steps import Step
from vae_core.experiments.records import read_record
from vae_core.experiments.registry import EXPERIMENTS, find

pytestmark = pytest.mark.usefixtures("float32")

PROGRAM = Path(gpu.__file__)
ENVIRONMENT = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "VAE_CORE_COMMIT": "c" * 40}


def dry(out: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, str(PROGRAM), "--dry", "--out", str(out), *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def again(monkeypatch, out: Path) -> None:
    """The runs of a dry run once more, in this process (its worker is one of its own); they must succeed."""
    monkeypatch.setenv("VAE_CORE_COMMIT", "c" * 40)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.main(["--dry", "--out", str(out), "--only", "rows", "--only", "further"]) == 0


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, bytes]:
    """The folder of a dry run that was killed after its first run, and that run's record."""
    out = tmp_path_factory.mktemp("gpu")
    process, first = dry(out, "--only", "rows", "--only", "further"), out / f"{gpu_plan.DRY[0]}.json"
    deadline = time.time() + 200
    while not first.exists() and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=200)  # the worker holds the pipe until it has ended its run, and sees that it is alone
    assert not (out / f"{gpu_plan.DRY[-1]}.json").exists()
    return out, first.read_bytes()


@pytest.fixture(scope="module")
def done(killed) -> Path:
    """The folder of a whole dry run, begun where the killed one stopped."""
    out, _ = killed
    process = dry(out)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert "0 failures" in printed
    return out


# From end to end


def test_each_part_leaves_its_figures(done):
    tests, speed, trained = (read(done / f"gpu-{part}.json") for part in ("tests", "speed", "trained"))
    assert (tests["exit_code"], tests["failures"], tests["errors"]) == (0, 0, 0)
    assert tests["tests"] == tests["skipped"] > 5
    assert {"ours, captured", "thesis' way", "PyTorch's example", "ours, eager", "2 runs at once"} <= set(speed["rows"])
    assert all(row["images_per_second"] > 0 for row in speed["rows"].values())
    assert (trained["asked"], trained["recorded"]) == (len(gpu_plan.DRY), len(gpu_plan.DRY))
    assert read(done / "gpu-machine.json")["device"].startswith("cpu: ")


def test_a_rate_stands_beside_that_of_the_thesis_way(done):
    rows = read(done / "gpu-speed.json")["rows"]
    thesis = rows["thesis' way"]["images_per_second"]
    for row in rows.values():
        assert row["over_thesis"] == pytest.approx(row["images_per_second"] / thesis)


@pytest.mark.parametrize("name", gpu_plan.DRY)
def test_every_run_is_an_ordinary_record(name, done):
    experiment = find(name)
    record = read_record(replace(experiment, epochs=1), experiment.seed, done)
    assert record is not None
    assert record["command"] == f"python -m vae_core run {name} --epochs 1"
    assert record["commit"] == "c" * 40
    assert record["data_sha256"] == data.load(experiment.dataset, done / ".data").sha256
    assert {"train_eval_loss", "test_loss"} <= set(record["history"][-1])


def test_the_summary_names_what_is_recorded_and_what_failed(done):
    told = read(done / "gpu-summary.json")
    assert told["recorded"] == {name: [find(name).seed] for name in gpu_plan.DRY}
    assert told["failed"] == []


def test_a_second_call_makes_nothing_anew(done, monkeypatch):
    before = {path.name: path.stat().st_mtime_ns for path in done.glob("[!g]*.json")}
    again(monkeypatch, done)
    assert {path.name: path.stat().st_mtime_ns for path in done.glob("[!g]*.json")} == before


def test_after_a_kill_the_program_goes_on_with_what_is_missing(killed, done):
    _, before = killed
    assert (done / f"{gpu_plan.DRY[0]}.json").read_bytes() == before
    assert {f"{name}.json" for name in gpu_plan.DRY} <= {path.name for path in done.iterdir()}


# Failures and limits


@pytest.fixture
def plan(tmp_path) -> gpu_plan.Plan:
    """One worker's view of a dry run whose data are there."""
    gpu_data.dry_data(tmp_path / "data")
    (tmp_path / "out").mkdir()
    return gpu_plan.Plan(tmp_path / "data", tmp_path / "out", dry=True, workers=1, end=time.time() + 100)


def starts():
    return gpu_processes.spawn.Array("d", len(gpu_plan.TRAINED))


def test_a_run_that_fails_leaves_its_traceback_and_the_next_one_runs(plan, monkeypatch):
    kept = gpu_training.experiment_run.run

    def run(name, **settings):
        if name == gpu_plan.DRY[0]:
            raise RuntimeError("a run that fails")
        return kept(name, **settings)

    monkeypatch.setattr(gpu_training.experiment_run, "run", run)
    gpu_training.work(plan, gpu_plan.items(plan, ("rows",)), starts(), threads=1)
    (failed,) = (plan.out / "failures").iterdir()
    assert failed.name == f"{gpu_plan.DRY[0]}-s{find(gpu_plan.DRY[0]).seed}.txt"
    assert "a run that fails" in failed.read_text()
    assert gpu.summary(plan)["recorded"] == {gpu_plan.DRY[1]: [find(gpu_plan.DRY[1]).seed]}


def test_a_run_that_may_be_resumed_needs_no_checkpoints(tmp_path):
    settings = dict(epochs=1, out=tmp_path, device="cpu", progress=False, resume=True, checkpoints=False)
    record, path = gpu_training.experiment_run.run("digits-d2", **settings)
    assert {file.name for file in tmp_path.iterdir()} == {"digits-d2.json"}
    before = path.stat().st_mtime_ns
    assert gpu_training.experiment_run.run("digits-d2", **settings) == (record, path)
    assert path.stat().st_mtime_ns == before


def test_a_worker_stops_before_its_next_run_when_its_parent_is_gone(plan, monkeypatch):
    monkeypatch.setattr(gpu_training, "orphaned", lambda: True)
    gpu_training.work(plan, gpu_plan.items(plan, ("rows",)), starts(), threads=1)
    assert list(plan.out.iterdir()) == []


def test_on_a_card_a_failed_run_is_tried_once_more_without_graphs_in_a_new_process(plan, monkeypatch):
    item, tried = ("rows", gpu_plan.DRY[0], 0), []

    def run(*_arguments, **_settings):
        tried.append(training.GraphedStep)
        raise RuntimeError("no graph")

    def ended(status: int):
        raise SystemExit(status)

    monkeypatch.setattr(gpu_training.experiment_run, "run", run)
    monkeypatch.setattr(gpu_training.os, "_exit", ended)
    card = replace(plan, device="cuda")
    for settled in (False, True):
        with pytest.raises(SystemExit, match="3"):
            gpu_training.attempt(card, item, {}, starts())
        assert gpu_plan.settled(card, item) is settled
    assert tried == [training.GraphedStep, Step]


def test_no_run_begins_when_the_time_of_its_part_or_of_all_is_over(plan):
    started = starts()
    assert gpu_training.in_time(plan, "rows", started)
    assert not gpu_training.in_time(replace(plan, end=time.time()), "rows", started)
    gpu_training.begin("rows", started)
    assert gpu_training.in_time(plan, "rows", started)
    over = replace(plan, limits=tuple((part, 0.0) for part in gpu_plan.SECONDS))
    assert not gpu_training.in_time(over, "rows", started)
    assert gpu_training.in_time(over, "further", started)


def test_a_part_that_fails_leaves_its_traceback_and_the_others_go_on(plan):
    def broken() -> dict:
        raise RuntimeError("a part that fails")

    gpu.part_of(plan, "speed", broken)
    gpu.part_of(plan, "tests", lambda: {"done": True})
    assert "a part that fails" in (plan.out / "failures" / "speed.txt").read_text()
    assert read(plan.out / "gpu-tests.json")["done"]
    assert not (plan.out / "gpu-speed.json").exists()


def test_the_workers_of_other_peoples_loaders_are_forked_as_they_are_outside(plan, monkeypatch):
    methods = []
    monkeypatch.setattr(
        gpu_speed.multiprocessing, "set_start_method", lambda name, force: methods.append((name, force))
    )
    monkeypatch.setattr(gpu_speed, "ways", lambda *_: {})
    gpu_speed.speeds(plan, plan.out / "gpu-speed.json", shared=False)
    assert methods == [("fork", True)]


def test_the_fastest_number_of_runs_at_once_is_taken(plan):
    assert gpu_speed.best_workers(plan, shared=False) == 4
    rates = {"4 runs at once": 7.0, "4 runs at once, sharing": 8.0, "12 runs at once, sharing": 9.0, "ours": 99.0}
    rows = {name: {"images_per_second": rate} for name, rate in rates.items()}
    (plan.out / "gpu-speed.json").write_text(json.dumps({"rows": rows}))
    assert (gpu_speed.best_workers(plan, shared=False), gpu_speed.best_workers(plan, shared=True)) == (4, 12)


# What is run


def test_all_names_are_known_and_no_run_is_asked_for_twice():
    plan = gpu_plan.Plan(Path(), Path())
    for part in gpu_plan.TRAINED:
        todo = gpu_plan.items(plan, (part,))
        assert len(set(todo)) == len(todo)
        assert all(name in EXPERIMENTS for _, name, _ in todo)


def test_the_thesis_rows_are_run_with_five_seeds_their_own_first():
    todo = gpu_plan.items(gpu_plan.Plan(Path(), Path()), ("rows",))
    names = {name for _, name, _ in todo}
    assert len(names) == 12 + 2
    for name in names:
        seeds = [seed for _, other, seed in todo if other == name]
        assert len(set(seeds)) == 5
        assert seeds[: len(find(name).seeds)] == list(find(name).seeds)


def test_the_sweep_over_beta_is_of_binary_images_and_three_seeds():
    todo = gpu_plan.items(gpu_plan.Plan(Path(), Path()), ("further",))
    names = ["binary-mnist-d20", *(f"beta-binary-mnist-{beta}" for beta in ("0.1", "0.3", "0.6", "1.5", 2, 3, 5, 10))]
    assert all(sum(name == other for _, other, _ in todo) == 3 for name in names)
    assert all(find(name).binarise for name in names)


# The thesis' way


class OnCard:
    """A batch on the host: it can be moved, and counted, and nothing else."""

    def __init__(self, images: torch.Tensor, moved: list) -> None:
        self.images, self.moved = images, moved

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device) -> torch.Tensor:
        self.moved.append(torch.device(device))
        return self.images.to(device)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_thesis_way_moves_each_batch_to_its_network(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    net, moved = thesis_oracle.ThesisVAE(64, 2).to(device), []
    batches = [(OnCard(torch.rand(8, 1, 8, 8), moved), None) for _ in range(3)]
    optimizer = torch.optim.Adam(net.parameters())
    losses = [thesis_oracle.train_epoch(net, optimizer, batches) for _ in range(5)]
    assert moved == 15 * [next(net.parameters()).device]
    assert losses[-1] < losses[0]
    figures = thesis_oracle.test_losses(net, batches)
    assert moved == 18 * [next(net.parameters()).device]
    assert figures["loss"] == pytest.approx(figures["reconstruction"] + figures["kl"])


# Data


def test_cifar10_is_joined_once_all_its_parts_are_there(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (60_000, 32, 32, 3), dtype=np.uint8)
    y = np.arange(60_000) % 10
    np.savez(tmp_path / "cifar10-labels.npz", y_train=y[:50_000], y_test=y[50_000:])
    names = [*(f"cifar10-train-{k}" for k in range(5)), "cifar10-test"]
    for name, share in zip(names, np.split(x, 6), strict=True):
        assert not (tmp_path / "cifar10.npz").exists()
        sheet = share.reshape(100, 100, 32, 32, 3).swapaxes(1, 2).reshape(3200, 3200, 3)
        # the name does not matter to the reader, and noise cannot be compressed
        Image.fromarray(sheet).save(tmp_path / f"{name}.webp", "PNG", compress_level=0)
        gpu_data.join_cifar10(tmp_path, tmp_path)
    dataset = data.load("cifar10", tmp_path)
    assert torch.equal(dataset.x_train.permute(0, 2, 3, 1), torch.from_numpy(x[:50_000]))
    assert torch.equal(dataset.x_test.permute(0, 2, 3, 1), torch.from_numpy(x[50_000:]))
    assert torch.equal(dataset.y_train, torch.from_numpy(y[:50_000]))


def test_compressed_archives_are_stored_plainly_with_the_same_arrays(tmp_path):
    gpu_data.dry_data(tmp_path)
    path = tmp_path / "mnist.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez_compressed(path, **arrays)
    small, before = path.stat().st_size, data.load("mnist", tmp_path).sha256
    gpu_data.unpack(tmp_path)
    assert path.stat().st_size > small
    assert data.load("mnist", tmp_path).sha256 == before


def test_torchvision_reads_the_images_that_are_written_for_it(tmp_path):
    from torchvision import datasets

    gpu_data.dry_data(tmp_path)
    mnist = data.load("mnist", tmp_path)
    gpu_data.write_idx(mnist, tmp_path)
    theirs = datasets.MNIST(tmp_path, train=False)
    assert torch.equal(theirs.data, mnist.x_test[:, 0])
    assert torch.equal(theirs.targets, mnist.y_test)


# Packing


def test_everything_is_packed_in_files_below_the_limit(tmp_path):
    out = tmp_path / "out"
    (out / "failures").mkdir(parents=True)
    (out / "failures" / "a.txt").write_text("why")
    (out / "a.json").write_text("{}")
    noise, contents = np.random.default_rng(0), {}
    for k in range(5):
        contents[f"w{k}.safetensors"] = noise.bytes(400)
        (out / f"w{k}.safetensors").write_bytes(contents[f"w{k}.safetensors"])
    (out / "large.safetensors").write_bytes(noise.bytes(2000))  # does not fit: left out
    packed = gpu_pack.pack(out, tmp_path / "packed", limit=1000)
    assert [path.name for path in packed] == ["records.tar.gz", *(f"weights-{k}.tar.gz" for k in (1, 2, 3))]
    found = {}
    for path in packed:
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as tar:
            found |= {told.name: tar.extractfile(told).read() for told in tar.getmembers()}
    assert found == contents | {"a.json": b"{}", "failures/a.txt": b"why"}


def test_the_program_packs_what_a_run_has_left(done, tmp_path, capsys):
    assert gpu.main(["--out", str(done), "--pack", str(tmp_path)]) == 0
    assert "records.tar.gz" in capsys.readouterr().out
    with tarfile.open(tmp_path / "records.tar.gz") as tar:
        assert {f"{name}.json" for name in gpu_plan.DRY} | {"gpu-speed.json"} <= set(tar.getnames())
