"""The page that is generated from the records."""

from dataclasses import replace

import pytest
import reproduction

from vae_core import catalogue
from vae_core import records as kept


def made_record(seed: int, loss: float) -> dict:
    test = {"loss": loss, "reconstruction": loss - 10, "kl": 10.0, "n": 360, "entropy_floor": 5.0, "active_units": 2}
    return {"seed": seed, "device": "cpu: made up", "wall_seconds": 3.0, "test": test}


@pytest.fixture
def registry(monkeypatch) -> dict:
    """Two experiments of one source, one of them with a printed loss, and the records that `records` holds."""
    first = replace(catalogue.find("digits-d2"), name="first", source="A source", more_seeds=(1,))
    second = replace(first, name="second", more_seeds=(), printed={"loss": 31.5, "kl": 9.5})
    records = {
        ("first", 0): made_record(0, 30.0),
        ("first", 1): made_record(1, 32.0),
        ("second", 0): made_record(0, 31.0),
    }
    monkeypatch.setattr(reproduction, "EXPERIMENTS", {"first": first, "second": second})
    monkeypatch.setattr(kept, "read_record", lambda e, seed, _out: records.get((e.name, seed)))
    return records


def row_of(name: str) -> list[str]:
    line = next(line for line in reproduction.page().splitlines() if line.startswith(f"| `{name}`"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_gives_mean_and_spread_over_seeds_and_the_excess_over_the_floor(registry):
    spread = "± 1.41"  # of 30 and 32
    _, _, loss, reconstruction, kl, excess, active, seeds, seconds = row_of("first")
    assert (loss, reconstruction, excess) == (f"31.00 {spread}", f"21.00 {spread}", "16.00")
    assert (kl, active, seeds, seconds) == ("10.00 ± 0.00", "2, 2", "2", "3")


def test_printed_numbers_stand_beside_ours_and_a_dash_where_there_are_none(registry):
    assert row_of("first")[1] == "–"
    assert row_of("second")[1:3] == ["31.50 / 9.50", "31.00"]


def test_every_row_has_as_many_cells_as_its_head(registry):
    lines = [line for line in reproduction.page().splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_sources_become_sections_that_name_data_and_device(registry):
    text = reproduction.page()
    assert text.count("## A source") == 1
    assert "360 test images, entropy floor 5.00 nats; trained on cpu: made up" in text


def test_what_is_not_recorded_is_named(registry):
    del registry["second", 0]
    assert "Not recorded yet" in reproduction.page()
    assert "`second`" in reproduction.page().split("Not recorded yet")[1]
    assert "`first`" not in reproduction.page().split("Not recorded yet")[1]


def test_the_committed_page_names_every_experiment():
    text = reproduction.page()
    assert [name for name in catalogue.EXPERIMENTS if f"`{name}`" not in text] == []
