"""What chapter 10 proves, and the numbers that its verdicts state, from the records."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from vae_core.experiments.records import default_out, read_record
from vae_core.experiments.registry import find

PRINTED = {3: (133.74, 136.30), 50: (100.47, 100.78)}


@pytest.fixture(scope="module")
def runs() -> dict[int, dict]:
    """The records of the networks with 2, 3 and 50 codes."""
    experiments = {d: find(f"irvin-z{d}") for d in (2, 3, 50)}
    return {d: read_record(e, e.seed, default_out()) for d, e in experiments.items()}


def test_parameter_counts():
    counts = {d: sum(p.numel() for p in find(f"irvin-z{d}").network().parameters()) for d in (2, 3, 50)}
    assert counts == {2: 788_788, 3: 790_290, 50: 860_884}


@given(st.floats(0.01, 2.0))
def test_a_unit_gaussian_costs_at_least_its_floor_and_a_learned_one_has_none(e):
    floor = 392 * math.log(2 * math.pi)
    assert floor == pytest.approx(720.45, abs=0.005)
    x = torch.rand(784)
    assert -Normal(x + e, 1.0).log_prob(x).sum() >= floor  # any mean, a perfect copy included
    widths = torch.tensor([e, 0.1 * e, 10 * e])  # with an error of e, sigma = e is best, and a smaller e costs less
    losses = -Normal(torch.zeros(()), widths).log_prob(torch.tensor(e))
    assert losses.argmin() == 0
    assert losses[0] == pytest.approx(math.log(e) + 0.5 * math.log(2 * math.pi) + 0.5)


def test_lowest_losses_as_stated(runs):
    lowest = {d: (r["test"]["lowest_train_loss"], r["test"]["lowest_test_loss"]) for d, r in runs.items()}
    stated = {2: (133.21, 148.30), 3: (121.91, 135.16), 50: (97.61, 98.78)}
    assert {d: tuple(round(v, 2) for v in pair) for d, pair in lowest.items()} == stated
    for d, (epoch, test_loss) in {3: (38, 136.71), 50: (106, 100.89)}.items():
        row = next(row for row in runs[d]["history"] if row["loss"] <= PRINTED[d][0])
        assert (row["epoch"], round(row["test_loss"], 2)) == (epoch, test_loss)
    blank = runs[2]["history"][37]
    assert (round(blank["loss"], 1), round(blank["test_loss"], 1)) == (147.1, 149.7)


def test_gaps_as_stated(runs):
    test = {d: r["test"] for d, r in runs.items()}
    gaps = {d: round(t["lowest_test_loss"] - t["lowest_train_loss"], 2) for d, t in test.items()}
    assert gaps == {2: 15.09, 3: 13.24, 50: 1.17}
    at = {d: [round(r["history"][e - 1]["test_loss"] - r["history"][e - 1]["loss"], 2) for e in (40, 550)]
          for d, r in runs.items()}  # fmt: skip
    assert at == {2: [2.8, 24.19], 3: [2.8, 21.33], 50: [0.09, 1.16]}
    lowest = {d: min(r["history"], key=lambda row: row["test_loss"]) for d, r in runs.items()}
    assert {d: row["epoch"] for d, row in lowest.items()} == {2: 94, 3: 69, 50: 527}
    since = runs[3]["history"][-1]
    assert round(since["test_loss"] - lowest[3]["test_loss"]) == 8
    assert round(runs[2]["history"][-1]["test_loss"] - lowest[2]["test_loss"]) == 9
    assert 11 < runs[3]["history"][37]["loss"] - since["loss"] < 12


def test_selection_as_stated(runs):
    losses = {d: torch.tensor([row["test_loss"] for row in r["history"]]) for d, r in runs.items()}
    smooth = {d: v.unfold(0, 15, 1).mean(1) for d, v in losses.items()}
    assert round((smooth[50].min() - losses[50].min()).item(), 2) == 0.16
    assert round((losses[50][7:-7] - smooth[50]).std().item(), 2) == 0.27
    assert int((losses[50] < losses[50].min() + 0.1).sum()) == 13
    best = min(runs[3]["history"], key=lambda row: row["loss"])
    assert (best["epoch"], round(best["test_loss"], 2)) == (546, 143.01)
