"""The table of what the records say: each figure against the records themselves, and the committed file."""

from statistics import mean, stdev

import pytest
import results_table
from results_claims import COMPUTED
from results_runs import beginning, degradation, overfitting, records, runs, spread

from vae_core.experiments.records import default_out
from vae_core.experiments.registry import EXPERIMENTS, find


def test_the_committed_file_is_what_the_script_writes():
    assert results_table.PAGE.read_text() == results_table.page(), "run `python book/results_table.py`"


def test_a_spread_is_the_mean_and_the_deviation_of_a_sample():
    assert spread([1.0, 2.0, 6.0]) == f"3.00 ± {stdev([1.0, 2.0, 6.0]):.2f}"
    assert spread([-1.0]) == "−1.00"
    assert spread([0.12345], 3) == "0.123"


def test_the_devices_are_never_mixed():
    for name in EXPERIMENTS:
        for device in ("cpu", "cuda"):
            assert all(record["device"].startswith(device) for record in records(name, device))
        assert len({record["device"].split(":")[0] for record in runs(name)}) <= 1


@pytest.mark.parametrize(
    "name", ["chen-mnist-d2", "chen-mnist-d5", "chen-fashion-d20", "chen-cifar10-fc", "chen-cifar10-cnn"]
)
def test_the_thesis_rows_have_five_seeds_on_the_card(name):
    found = records(name, "cuda")
    assert len({record["seed"] for record in found}) == 5
    assert found[0]["seed"] == find(name).seed
    assert COMPUTED["loss"](name) == f"{spread(record['test']['loss'] for record in found)} (n = 5)"


def test_the_gap_compares_both_losses_in_evaluation_mode():
    last = [record["history"][-1] for record in runs("irvin-z2-e100")]
    gaps = [row["test_loss"] - row["train_eval_loss"] for row in last]
    assert overfitting(runs("irvin-z2-e100")) == gaps
    assert min(gaps) > 5  # two units overfit most, in each seed


def test_a_degradation_is_over_the_same_seeds_error_without_noise():
    found = degradation("vae", 50, 30)
    by_hand = []
    for seed in (1, 2, 3):
        noisy, clean = (
            next(r for r in runs(f"saleh-robustness-vae-k50-n{p}") if r["seed"] == seed)["test"]["mse"] for p in (30, 0)
        )
        by_hand.append(noisy / clean)
    assert found == pytest.approx(by_hand)


def test_without_noise_nothing_degrades():
    assert degradation("autoencoder", 10, 0) == [1.0, 1.0, 1.0]


def test_the_rate_falls_and_the_distortion_rises_with_beta():
    names = sorted(["binary-mnist-d20", *beginning("beta-binary")], key=lambda name: find(name).beta)
    for figure, sign in (("kl", -1), ("reconstruction", 1)):
        values = [sign * mean(record["test"][figure] for record in runs(name)) for name in names]
        assert values == sorted(values)


def test_every_record_that_a_table_shows_is_in_the_folder():
    for name in beginning("chen-", "units-", "beta-binary", "bits-"):
        for record in runs(name):
            stem = name if record["seed"] == find(name).seed else f"{name}-s{record['seed']}"
            assert any((default_out() / place / f"{stem}.json").exists() for place in (".", "cuda"))
