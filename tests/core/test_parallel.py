"""`fit` and `run` in more than one process; the schedule of a run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import with_idle_parameters
from torch import nn
from trained_together import train

from vae_core.models import mlp_vae
from vae_core.objectives import beta_elbo_terms, elbo_terms, linear_warm_up
from vae_core.runtime import Runtime, device_of
from vae_core.training import fit

SCRIPT = Path(__file__).parents[1] / "trained_together.py"


def torchrun(processes: int, *arguments: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


REDUCTIONS = ["mean", "sum"]


@pytest.fixture(scope="module")
def together() -> dict[str, list]:
    """By reduction: history and weights of what two processes have trained."""
    return dict(zip(REDUCTIONS, map(json.loads, torchrun(2, str(SCRIPT), *REDUCTIONS).splitlines()), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_fit_two_processes_train_as_one_with_the_same_global_batch(together, reduction):
    """500 images in batches of 32: the last batch of 20 is split too, and every row of the curve agrees."""
    history, weights = together[reduction]
    alone, expected = train(Runtime(torch.device("cpu")), reduction)
    assert len(history) == len(alone) == 3
    for row, own in zip(history, alone, strict=True):
        for figure in ("loss", "reconstruction", "kl"):
            assert row[figure] == pytest.approx(own[figure], rel=1e-9)
    assert weights == pytest.approx(expected, rel=1e-7, abs=1e-9)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each of two processes is left with."""
    out = tmp_path_factory.mktemp("ranks")
    torchrun(2, str(SCRIPT.with_name("ranks.py")), str(out))
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_fit_leaves_the_same_state_in_each_process_batch_norms_averages_included(ranks):
    first, second = (rank["batch norm"] for rank in ranks)
    assert any("running_mean" in name for name in first["state"])
    assert first == second


@pytest.mark.slow
def test_fit_treats_idle_parameters_in_two_processes_as_in_one(ranks, float32):
    """Not even weight decay moves a parameter without a gradient, used by nothing or by a recorded term alone."""
    first, second = (rank["idle"] for rank in ranks)
    alone = with_idle_parameters(Runtime(torch.device("cpu")))
    assert first == second
    assert first["state"]["unused"] == first["state"]["recorded"] == [1.0] * 3
    assert first["others"] == pytest.approx(alone["others"], rel=1e-9)
    for name, values in alone["state"].items():
        assert first["state"][name] == pytest.approx(values, rel=1e-7, abs=1e-9)


@pytest.mark.slow
def test_fit_stops_early_in_all_processes_together(ranks):
    first, second = (rank["early"] for rank in ranks)
    assert first == second
    losses = first["losses"]
    best, loss = first["best"]
    assert 2 < len(losses) < 300
    assert (len(losses), losses[best - 1], min(losses)) == (best + 2, loss, loss)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "word"),
    [
        ("other images", "sha256 of x"),
        ("other numbers of images", "its n is 96"),
        ("other epochs", "its epochs is 3"),
        ("other seeds", "its seed is 1"),
        ("other objectives", "its objective is 'objective 1'"),
    ],
)
def test_fit_refuses_processes_that_do_not_train_the_same_in_each_of_them(what, word, ranks):
    for rank in ranks:
        assert "processes must" in rank[what]
        assert word in rank[what]


@pytest.mark.slow
def test_run_with_two_processes_writes_one_record(tmp_path):
    run = ["run", "digits-d2", "--epochs", "2", "--device", "cpu", "--out", str(tmp_path)]
    told = torchrun(2, "-m", "vae_core", *run)
    assert [path.name for path in tmp_path.iterdir()] == ["digits-d2.json"]
    record = json.loads((tmp_path / "digits-d2.json").read_text())
    assert record["device"].endswith("2 processes")
    assert len(record["history"]) == 2
    assert record["history"][1]["loss"] < record["history"][0]["loss"]
    assert told.count("record: ") == 1
    again = torchrun(2, "-m", "vae_core", *run, "--resume")  # a finished run: nobody waits for anybody
    assert [line for line in again.splitlines() if line not in told.splitlines()] == []
    assert again.count("record: ") == 1
    assert json.loads((tmp_path / "digits-d2.json").read_text()) == record


def test_fit_a_batch_that_leaves_a_process_without_images_is_refused():
    runtime = Runtime(torch.device("cpu"), rank=0, world_size=4)
    model = mlp_vae((1, 2, 2), 1, hidden=(4,), batch_norm=False)
    with pytest.raises(ValueError, match="leaves one of 4 processes without any of 35 images"):
        fit(model, torch.rand(35, 1, 2, 2), elbo_terms, epochs=1, batch_size=16, device=runtime)


def test_fit_a_share_of_one_image_is_refused_with_batch_norm():
    runtime = Runtime(torch.device("cpu"), rank=0, world_size=2)
    with pytest.raises(ValueError, match="batch norm needs two"):
        fit(
            mlp_vae((1, 2, 2), 1, hidden=(4,)), torch.rand(18, 1, 2, 2), elbo_terms, epochs=1, batch_size=16,
            device=runtime,
        )  # fmt: skip


@pytest.mark.parametrize("model", [object(), nn.ReLU()])
def test_device_of_a_model_without_parameters_is_the_default(model):
    assert device_of(model) == torch.device("cpu")
    assert device_of(model, torch.device("meta")) == torch.device("meta")
    assert device_of(nn.Linear(1, 1), torch.device("meta")) == torch.device("cpu")


def test_fit_the_annealed_weight_rises_over_all_steps(float32):
    model = mlp_vae((1, 8, 8), 2, hidden=(32,))
    settings = dict(epochs=4, batch_size=64, progress=False)
    history = fit(model, torch.rand(640, 1, 8, 8), beta_elbo_terms, anneal=linear_warm_up(1.0), **settings)
    weights = [(row["loss"] - row["reconstruction"]) / row["kl"] for row in history]
    assert weights == sorted(weights)
    assert weights == pytest.approx([0.125, 0.375, 0.625, 0.875], abs=0.1)


def test_fit_with_one_cycle_moves_parameters_by_the_rate_of_its_step(float32):
    """Adam's first step is the learning rate itself, up to its epsilon: half a step into a warm-up of 6 of 20 steps."""
    model = nn.Linear(1, 1, bias=False)
    before = model.weight.item()

    def objective(linear: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return linear(batch.flatten(1)[:, :1]).squeeze(1)

    x = torch.ones(20, 1, 1, 1)
    moves = []

    def watch(linear: nn.Module) -> dict[str, float]:
        moves.append(linear.weight.item())
        return {}

    fit(model, x, objective, epochs=20, batch_size=20, learning_rate=0.1, schedule="one-cycle", after_epoch=watch,
        progress=False)  # fmt: skip
    rates = torch.tensor([before, *moves]).diff().double()
    progress = (torch.arange(20, dtype=torch.float64) + 0.5) / 20
    rising = 0.04 + 0.96 * (0.5 - 0.5 * torch.cos(torch.pi * progress / 0.3))
    falling = 0.5 + 0.5 * torch.cos(torch.pi * (progress - 0.3) / 0.7)
    assert torch.allclose(rates, 0.1 * torch.where(progress < 0.3, rising, falling), atol=1e-5)
