"""How chapters come by recorded results, and what VAE_CORE_FULL=1 changes."""

from dataclasses import replace
from pathlib import Path

import bounds
import explorer_codes
import measurements
import pytest
import representations
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


# Everything anew


PROGRAM = """
import json, os, sys
from vae_core.experiments.records import default_out, load_trained
model = load_trained("digits-d2")
number = model.decoder[-1].bias.double().sum().item()
record = {"figures": {"number": number, "argument": sys.argv[1]}, "command": "c", "device": "cpu"}
(default_out() / "measured-moons.json").write_text(json.dumps(record))
from safetensors.torch import save_file
save_file({"bias": model.decoder[-1].bias.detach()}, default_out() / "measured-moons.safetensors")
"""


@pytest.fixture
def program(folder, monkeypatch, tmp_path_factory):
    """A program in book/ that measures the one experiment of the folder; the names of what was called."""
    root = tmp_path_factory.mktemp("root")
    (root / "book").mkdir()
    patched = (
        "from dataclasses import replace\n"
        "from vae_core.experiments.registry import EXPERIMENTS, find\n"
        f"EXPERIMENTS['{NAME}'] = replace(find('{NAME}'), epochs=1, more_seeds=(7,), weights=True)\n"
    )
    (root / "book" / "moons.py").write_text(patched + PROGRAM)
    monkeypatch.setattr(results, "project_folder", lambda: root)
    monkeypatch.setitem(results.PROGRAMS, "measured-moons", results.Program("moons.py half", (NAME,)))
    called, call = [], results._call

    def counted(stem, *arguments):
        called.append(stem)
        call(stem, *arguments)

    monkeypatch.setattr(results, "_call", counted)
    return called


def test_at_full_scale_a_measurement_is_of_the_networks_trained_for_it(folder, program, monkeypatch):
    old, _ = run(NAME, seed=0, out=folder, device="cpu", progress=False)
    (folder / f"{NAME}.safetensors").write_bytes(b"old weights that nothing may read")
    monkeypatch.setenv("VAE_CORE_FULL", "1")
    figures, tensors, _ = measured("moons")
    bias = recorded_model(NAME).decoder[-1].bias
    torch.testing.assert_close(tensors["bias"], bias)
    assert figures == {"number": pytest.approx(bias.double().sum().item()), "argument": "half"}
    assert old == results.read_record(find(NAME), 0, folder)


def test_a_measurement_is_made_anew_where_its_networks_are_younger_and_only_then(folder, program, monkeypatch):
    monkeypatch.setenv("VAE_CORE_FULL", "1")
    for _ in range(2):
        measured("moons")
    assert program == ["measured-moons"]
    (folder / "full" / f"{NAME}.json").unlink()
    recorded(NAME)
    measured("moons")
    assert program == 2 * ["measured-moons"]


def test_the_time_is_estimated_before_anything_is_made(folder, program, monkeypatch, capsys):
    (folder / "measured-moons.json").write_text('{"wall_seconds": {"a": 100, "b": 200}, "device": "cpu: slow"}')
    run(NAME, out=folder, device="cpu", progress=False)
    capsys.readouterr()
    monkeypatch.setenv("VAE_CORE_FULL", "1")
    measured("moons")
    told = capsys.readouterr().err
    assert "measured-moons is made now" in told
    assert "that took 5 minutes on cpu: slow" in told
    assert f"{NAME} is made now" in told
    measured("moons")
    assert "is made now" not in capsys.readouterr().err


def test_a_program_that_fails_is_named_with_what_it_printed(folder, program, monkeypatch):
    (results.project_folder() / "book" / "moons.py").write_text("raise SystemExit('no moon tonight')")
    monkeypatch.setenv("VAE_CORE_FULL", "1")
    with pytest.raises(RuntimeError, match=r"(?s)python book/moons\.py half.*no moon tonight"):
        measured("moons")


def test_a_measurement_of_other_weights_than_those_beside_it_is_refused(folder):
    (folder / f"{NAME}.safetensors").write_bytes(b"new")
    (folder / "measured-moons.json").write_text('{"weights_sha256": {"digits-d2": "of the old ones"}}')
    with pytest.raises(ValueError, match=r"other weights than .*digits-d2\.safetensors; delete it"):
        measured("moons")


@pytest.mark.parametrize("stem", results.PROGRAMS)
def test_every_program_is_there_and_its_networks_keep_their_weights(stem):
    program = results.PROGRAMS[stem]
    assert (Path(results.__file__).parents[2] / "book" / program.command.split()[0]).exists()
    for name in program.networks:
        assert find(name).weights
    assert set(program.records) <= set(results.PROGRAMS)


def test_the_programs_networks_are_those_that_the_programs_name():
    assert results.BOUNDED == bounds.MODELS
    assert results.EXPLORED == explorer_codes.NAMES
    assert tuple(task.vae for task in representations.TASKS.values()) == results.THESIS
    assert {f"measured-{name}" for name in measurements.MEASUREMENTS} < set(results.PROGRAMS)


def test_all_that_is_measured_and_committed_can_be_made_anew():
    committed = {path.stem for path in results.default_out().glob("measured-*.json")}
    assert committed <= set(results.PROGRAMS)
