"""How chapters come by recorded results, and what VAE_CORE_FULL=1 changes."""

from dataclasses import replace

import pytest
import torch

from vae_core.experiments import results
from vae_core.experiments.registry import EXPERIMENTS, find
from vae_core.experiments.results import measured, recorded, recorded_model, recorded_seeds
from vae_core.experiments.run import run

pytestmark = pytest.mark.usefixtures("float32")
NAME = "digits-d2"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of results, and an experiment of one epoch and two seeds."""
    monkeypatch.setattr(results, "default_out", lambda: tmp_path)
    monkeypatch.delenv("VAE_CORE_FULL", raising=False)
    monkeypatch.setitem(EXPERIMENTS, NAME, replace(find(NAME), epochs=1, more_seeds=(7,), weights=True))
    return tmp_path


def test_a_record_is_read_and_nothing_is_trained(folder, monkeypatch):
    made = [run(NAME, seed=seed, out=folder, device="cpu", progress=False)[0] for seed in (0, 7)]
    monkeypatch.setattr(results, "run", lambda *_args, **_kwargs: pytest.fail("trained"))
    assert recorded(NAME) == made[0]
    assert recorded_seeds(NAME) == made
    assert not (folder / "full").exists()


def test_a_run_that_is_not_recorded_is_named_with_its_command(folder):
    with pytest.raises(FileNotFoundError, match="python -m vae_core run digits-d2 --seed 7"):
        recorded(NAME, 7)


def test_at_full_scale_the_run_is_made_once_beside_the_committed_records(folder, monkeypatch):
    monkeypatch.setenv("VAE_CORE_FULL", "1")
    first = recorded(NAME)
    assert recorded(NAME) == first
    assert {path.name for path in (folder / "full").glob("*.json")} == {f"{NAME}.json"}
    assert not list(folder.glob("*.json"))


def test_the_model_at_full_scale_is_that_of_the_run(folder, monkeypatch):
    monkeypatch.setenv("VAE_CORE_FULL", "1")
    model = recorded_model(NAME)
    monkeypatch.delenv("VAE_CORE_FULL")
    run(NAME, out=folder, device="cpu", progress=False)
    again = recorded_model(NAME)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_measurement_comes_with_its_command():
    figures, tensors, command = measured("boots")
    assert command.startswith("python book/measurements.py boots (")
    assert figures
    assert tensors


def test_a_missing_measurement_is_named_with_its_command(folder):
    with pytest.raises(FileNotFoundError, match=r"measured-moons\.json.*make reproduce"):
        measured("moons")
