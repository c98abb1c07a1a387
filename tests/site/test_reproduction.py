"""The page that is generated from the records."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import reproduction

from vae_core.experiments import records as kept
from vae_core.experiments import registry


def made_record(seed: int, loss: float) -> dict:
    test = {"loss": loss, "reconstruction": loss - 10, "kl": 10.0, "n": 360, "entropy_floor": 5.0, "active_units": 2}
    return {"seed": seed, "device": "cpu: made up", "wall_seconds": 3.0, "test": test, "history": 7 * [{}]}


@pytest.fixture
def two_recorded(monkeypatch) -> dict:
    """Two experiments of one source, one of them with a printed loss, and the records that `records` holds."""
    first = replace(registry.find("digits-d2"), name="first", source="A source", more_seeds=(1,))
    second = replace(first, name="second", more_seeds=(), printed={"loss": 31.5, "kl": 9.0})
    records = {
        ("first", 0): made_record(0, 30.0),
        ("first", 1): made_record(1, 32.0),
        ("second", 0): made_record(0, 31.0),
    }
    monkeypatch.setattr(reproduction, "EXPERIMENTS", {"first": first, "second": second})
    for module in (kept, reproduction):
        monkeypatch.setattr(module, "read_record", lambda e, seed, out: records.get((e.name, seed, *card(out))))
    return records


def card(folder: Path) -> tuple[str, ...]:
    """What tells the keys of the card's records from the others'."""
    return ("cuda",) if folder.name == "cuda" else ()


def rows_of(name: str) -> list[list[str]]:
    lines = [line for line in reproduction.page().splitlines() if line.startswith(f"| `{name}`")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_row_gives_mean_and_spread_over_seeds_and_the_excess_over_the_floor(two_recorded):
    spread = "± 1.41"  # of 30 and 32
    ((_, loss, reconstruction, kl, excess, active, seeds, epochs, seconds, card),) = rows_of("first")
    assert (loss, reconstruction, excess) == (f"31.00 {spread}", f"21.00 {spread}", "16.00")
    assert (kl, active, seeds, epochs, seconds) == ("10.00 ± 0.00", "2, 2", "0, 1", "7", "3")
    assert card == "–"


def on_card(seed: int, loss: float) -> dict:
    return made_record(seed, loss) | {"device": "cuda: made up"}


def test_the_card_stands_beside_the_cpu_with_all_its_seeds(two_recorded):
    two_recorded |= {("first", 0, "cuda"): on_card(0, 29.0), ("first", 2): on_card(2, 31.0)}
    (row,) = rows_of("first")
    assert row[-1] == "30.00 ± 1.41 (2)"
    assert row[1] == "31.00 ± 1.41"  # the CPU's two, as before
    two_recorded["second", 0, "cuda"] = on_card(0, 30.5)
    loss, kl, _ = rows_of("second")
    assert (loss[6], kl[6]) == ("30.50 (1)", "10.00 (1)")


def test_the_wall_times_of_runs_that_shared_the_card_are_left_out(two_recorded):
    assert reproduction.seconds([on_card(0, 1.0), on_card(1, 1.0)]) == "–"
    assert reproduction.seconds([on_card(0, 1.0) | {"wall_seconds": 99.0}, made_record(1, 1.0)]) == "3"
    del two_recorded["first", 0], two_recorded["first", 1]
    two_recorded["first", 0, "cuda"] = on_card(0, 29.0)
    (row,) = rows_of("first")
    assert row[1] == "29.00"
    assert row[-2:] == ["–", "29.00 (1)"]


def test_printed_numbers_stand_beside_ours_with_difference_and_verdict(two_recorded):
    loss, kl, _ = rows_of("second")
    assert loss[1:] == ["loss", "31.50", "31.00", "-0.50", "agrees", "–", "3", "cpu: made up"]
    assert kl[1:6] == ["KL", "9.00", "10.00", "+1.00", "ours is higher"]


@pytest.mark.parametrize(
    ("printed", "values", "verdict"),
    [
        (10.0, [10.4], "agrees"),
        (10.0, [10.6], "ours is higher"),
        (10.0, [9.0, 11.5], "agrees"),
        (10.0, [8.9, 9.0, 9.1], "ours is lower"),
    ],
)
def test_the_verdict_allows_for_what_seeds_do(printed, values, verdict):
    assert reproduction.verdict(printed, values) == verdict


def test_the_two_models_of_the_robustness_sweep_stand_side_by_side(monkeypatch):
    def pair(kind: str, mse: float) -> tuple:
        record = made_record(1, 30.0) | {"history": [{}]}
        return registry.find(f"saleh-robustness-{kind}-k10-n30"), [record | {"test": {"mse": mse}}]

    text = reproduction.robustness_section([pair("vae", 0.02), pair("autoencoder", 0.01)])
    assert "| 10 | 0.3 | 20.00 | 10.00 | 20.00 | 10.00 | 1 + 1 |" in text
    assert reproduction.robustness_section([pair("vae", 0.02)]) == ""


def test_the_page_says_where_our_curve_passes_a_printed_training_loss():
    rows = [{"epoch": k, "loss": 160.0 - 10 * k, "test_loss": 162.0 - 10 * k} for k in (1, 2, 3, 4)]
    record = made_record(0, 125.0) | {"history": rows}
    experiment = registry.find("irvin-z3")
    text = reproduction.passing_note([(experiment, [record])])
    assert reproduction.passing_note([(experiment, [])]) == ""
    numbers = re.findall(r"\b\d+\.\d+|\b\d+\b", text.split("133.74", 1)[1])
    assert numbers == ["3", "132.00", "136.30", "4", "120.00", "125.00"]  # where it passes, and how it ends


def test_an_ablation_is_set_against_the_run_that_it_changes():
    changed = made_record(723, 33.0)
    changed["test"] |= {"loss_at_mean_code": 28.0, "loss_with_batch_statistics": 35.0}
    group = [(registry.find("ablation-no-batch-norm"), [changed])]
    text = reproduction.ablation_section(group, [made_record(0, 30.0), made_record(1, 32.0)])
    assert "| `chen-mnist-d20` | 31.00 ± 1.41 | +0.00 | – | – | 2, 2 |" in text
    assert "| `ablation-no-batch-norm` | 33.00 | +2.00 | 28.00 | 35.00 | 2 |" in text


def test_every_row_has_as_many_cells_as_its_head(two_recorded):
    tables = [part for part in reproduction.page().split("\n\n") if part.startswith("|")]
    assert len(tables) == 2
    for part in tables:
        assert len({line.count("|") for line in part.splitlines()}) == 1


def test_sources_become_sections_that_name_data_and_device(two_recorded):
    text = reproduction.page()
    assert text.count("## A source") == 1
    section = text.split("## A source")[1]
    assert [word for word in ("360", "digits", "5.00", "cpu: made up") if word not in section] == []


def test_no_floor_is_told_of_a_density(two_recorded):
    density = replace(registry.find("digits-d2"), model={"likelihood": "learned_gaussian"})
    assert "floor" in reproduction.images([(registry.find("digits-d2"), [made_record(0, 30.0)])])
    assert "floor" not in reproduction.images([(density, [made_record(0, 30.0)])])
    assert reproduction.row(density, [made_record(0, 30.0)])[4] == "–"


def test_what_is_not_recorded_is_named(two_recorded):
    del two_recorded["second", 0]
    assert rows_of("second") == []
    missing = reproduction.page().rpartition("\n## ")[2]
    assert "`second`" in missing
    assert "`first`" not in missing


def test_the_committed_page_names_every_experiment():
    text = reproduction.page()
    assert [name for name in registry.EXPERIMENTS if f"`{name}`" not in text] == []


def test_the_robustness_verdict_asks_for_alike_at_the_smallest_code_and_worse_at_the_largest():
    holds = reproduction.robustness_verdict({2: [1.01, 1.04], 50: [1.9, 2.7], 10: [1.5]})
    numbers = ["1.01", "1.04", "2", "1.50", "1.50", "10", "1.90", "2.70", "50"]  # by code: smallest, largest, K
    assert re.search(r"\D+".join(map(re.escape, numbers)), holds)
    assert "**holds**" in holds
    for ratios in ({2: [1.2], 50: [2.0]}, {2: [1.0], 50: [1.05, 2.0]}):
        assert "**does not hold**" in reproduction.robustness_verdict(ratios)
