"""What chapter 11 says of Fashion-MNIST: its verdicts and numbers, recomputed from the records and by hand."""

from functools import cache
from math import log, sqrt
from statistics import mean, stdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recorded_runs import per_seed
from scipy import stats

from vae_core.data import load
from vae_core.evaluation import entropy_floor
from vae_core.experiments.results import measured, recorded

SIZES = (2, 5, 10, 15, 20, 25)
MEAN_PICTURE = {"mnist": 205.80, "fashion": 385.02}  # tests/chapters/test_09_mnist.py recomputes both


@cache
def figures(name: str = "fashion") -> dict:
    return measured(name)[0]


@pytest.mark.parametrize("d", SIZES)
def test_only_data_and_seed_differ_from_mnist(d):
    ours, theirs = (recorded(f"chen-{name}-d{d}")["config"] for name in ("fashion", "mnist"))
    assert {key for key in ours if ours[key] != theirs[key]} == {"name", "source", "dataset", "seed"}
    assert (ours["seed"], ours["epochs"]) == (237, 20)


def over_five(d: int, figure: str, name: str = "fashion") -> list[float]:
    """A test figure of the five recorded seeds."""
    own = {"fashion": 237, "mnist": 723}[name]
    return [recorded(f"chen-{name}-d{d}", seed)["test"][figure] for seed in (own, 0, 1, 2, 3)]


def gap(d: int, figure: str) -> tuple[float, float]:
    """Difference from d = 20 over five seeds each, and half of its 95 % interval (scipy's, not the chapter's)."""
    low, high = stats.ttest_ind(over_five(d, figure), over_five(20, figure)).confidence_interval(0.95)
    return (low + high) / 2, (high - low) / 2


@pytest.mark.parametrize("figure", ["loss", "reconstruction"])
def test_twenty_units_suffice_and_ten_too_but_not_five(figure):
    for d in (10, 15, 25):
        difference, half = gap(d, figure)
        assert abs(difference) < half
    for d in (2, 5):
        difference, half = gap(d, figure)
        assert difference > 4 * half


def test_the_numbers_of_the_sweeps_verdict():
    assert tuple(round(v, 2) for v in gap(25, "loss")) == (0.01, 0.39)
    assert tuple(round(v, 2) for v in gap(25, "reconstruction")) == (-0.20, 0.59)
    assert tuple(round(v, 2) for v in gap(10, "loss")) == (0.06, 0.63)
    assert tuple(round(v, 2) for v in gap(5, "loss")) == (1.86, 0.39)


def test_fewer_units_are_used_than_on_mnist():
    for d in (10, 15, 20, 25):
        assert set(over_five(d, "active_units")) <= {6, 7, 8}
        assert min(over_five(d, "active_units", "mnist")) > 8


def test_the_losses_that_a_reader_should_see():
    losses = over_five(20, "loss")
    assert (round(mean(losses), 2), round(stdev(losses), 2)) == (239.66, 0.33)
    assert round(mean(over_five(2, "loss"))) == 256
    assert round(mean(over_five(20, "kl")), 1) == 12.5
    assert round(mean(over_five(20, "reconstruction"))) == 227
    last = [recorded("chen-fashion-d20", seed)["history"][-1]["loss"] for seed in (237, 0, 1, 2, 3)]
    assert round(mean(losses) - mean(last), 2) == 0.71
    assert recorded("chen-mnist-d20")["history"][-1]["loss"] > recorded("chen-mnist-d20")["test"]["loss"]


def excess_and_share(name: str) -> tuple[float, float]:
    paid = mean(over_five(20, "reconstruction", name))
    floor = recorded(f"chen-{name}-d20")["test"]["entropy_floor"]
    return paid - floor, (MEAN_PICTURE[name] - paid) / (MEAN_PICTURE[name] - floor)


def test_classes_are_harder_to_tell_but_the_pictures_not_harder_to_rebuild():
    (excess, share), (excess_mnist, share_mnist) = excess_and_share("fashion"), excess_and_share("mnist")
    assert (round(excess, 1), round(excess_mnist, 1)) == (37.3, 34.1)
    assert (round(share, 3), round(share_mnist, 3)) == (0.809, 0.788)
    for kind in ("linear", "neighbours"):
        raw, raw_mnist = (figures(name)["probes"]["raw pixels"][kind] for name in ("fashion", "mnist"))
        assert raw < raw_mnist - 10 * sqrt(0.25 / 10_000)


def test_reconstructions_are_blurred_and_some_are_wrong():
    for name, d, low, high in (("fashion", 2, 0.1, 0.2), ("fashion", 20, 0.22, 0.33), ("mnist", 20, 0.4, 0.52)):
        table = figures(name)["sharpness"]
        for value in per_seed(table, d, name=name):
            assert low < value / table["originals"] < high
    for d in (2, 20):
        assert min(found["flipped"] for found in per_seed(figures()["flips"], d, name="fashion")) > 0.20
    assert figures()["thirty"]["d = 2"] != figures()["thirty"]["originals"]


def test_the_code_keeps_what_the_pixels_know_of_the_class():
    raw = figures()["probes"]["raw pixels"]["neighbours"]
    code = mean(p["neighbours"] for p in per_seed(figures()["probes"], 20, name="fashion"))
    assert 0.85 <= raw <= 0.86
    assert round(code, 2) == 0.84
    assert (1 - code) - (1 - raw) < 0.015  # the code adds little more than one point of errors


def test_the_t_sne_picture_is_trustworthy():
    assert figures()["t_sne"]["trustworthiness"] > 0.85


def test_the_thirty_images_are_the_first_of_each_batch(data_root):
    dataset, kept = load("fashion-mnist", data_root), measured("fashion")[1]
    assert torch.equal(kept["images"], dataset.x_test[torch.arange(30) * 128])
    assert torch.equal(kept["y_test"].long(), dataset.y_test)


# --- blur


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_the_best_answer_to_pictures_that_share_a_code_is_their_mean(values):
    x, p = torch.tensor(values), torch.linspace(0.001, 0.999, 999)
    loss = -(x[:, None] * p.log() + (1 - x[:, None]) * (1 - p).log()).mean(0)
    best, mean_x = p[loss.argmin()], x.mean().clamp(0.001, 0.999)
    assert abs(best - mean_x) < 1.5e-3
    entropy = -(torch.xlogy(mean_x, mean_x) + torch.xlogy(1 - mean_x, 1 - mean_x))
    assert loss.min() >= entropy - 0.01


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_sharing_a_code_never_saves(values):
    x = torch.tensor(values).reshape(-1, 1, 1, 1)
    assert entropy_floor(x.mean(0, keepdim=True)) >= entropy_floor(x) - 1e-9


@pytest.mark.parametrize("x", [0.1, 0.3, 0.5])
def test_a_wrong_shade_costs_a_square_on_grey_and_a_first_power_on_white(x):
    def cost(x, p):
        return x * log(x / p) + (1 - x) * log((1 - x) / (1 - p))

    assert cost(x, x + 1e-4) == pytest.approx(1e-8 / (2 * x * (1 - x)), rel=1e-2)
    assert -log(1 - 1e-4) == pytest.approx(1e-4, rel=1e-3)
