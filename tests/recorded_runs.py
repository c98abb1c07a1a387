"""What the tests of chapters 09 and 11 ask of recorded runs."""

from math import sqrt
from statistics import mean, stdev

from scipy import stats

from vae_core.experiments.registry import find
from vae_core.experiments.results import recorded_seeds


def over_seeds(name: str, figure: str) -> list[float]:
    """A test figure of every recorded seed."""
    return [record["test"][figure] for record in recorded_seeds(name)]


def interval(values: list[float]) -> tuple[float, float]:
    """Where one more run lies with a probability of 95 %."""
    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * stdev(values) * sqrt(1 + 1 / n)
    return mean(values) - half, mean(values) + half


def per_seed(table: dict, d: int, ending: str = "", name: str = "mnist") -> list:
    """The entries of a measurement's table that belong to the seeds of `chen-NAME-d20`."""
    return [table[f"d = {d}, seed {seed}{ending}"] for seed in find(f"chen-{name}-d20").seeds]
