"""What the chapters said beside what the runs say: the first table of book/results/README.md.

The texts are in `results_claims.yml`; each {figure[experiment]} in them is computed here from the records.
"""

from collections.abc import Callable
from pathlib import Path

import yaml
from reproduction import table
from results_runs import beginning, degradation, figures, overfitting, read, records, runs, spread

CLAIMS = Path(__file__).with_name("results_claims.yml")


class Computed:
    """`computed[argument]` in a text's {computed[argument]}: the function's value there."""

    def __init__(self, function: Callable[[str], str]) -> None:
        self.function = function

    def __getitem__(self, argument: str) -> str:
        return self.function(argument)


def with_n(values: list[float], digits: int = 2) -> str:
    return f"{spread(values, digits)} (n = {len(values)})"


def units(name: str) -> str:
    """The range of active units over seeds."""
    counts = figures(runs(name), "active_units")
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def share(key: str) -> str:
    """The gap of `NAME, EPOCH` and what the search gains on both sets, over seeds."""
    name, epoch = key.split(", ")
    found = [
        row
        for key, row in read("best-codes")["rows"].items()
        if key.startswith(f"{name}, ") and key.endswith(f" {epoch}")
    ]
    if not found:
        return "not measured"
    gap = spread(row["test"]["whole_set"] - row["train"]["whole_set"] for row in found)
    train, test = (spread(row[split]["gain"]["mean"] for row in found) for split in ("train", "test"))
    return f"gap {gap}, gains {train} (training) and {test} (test), n = {len(found)}"


def pairs(beginnings: str) -> str:
    """Loss on the card minus loss on the CPU, over all pairs of the same settings and seed."""
    found = []
    for name in beginning(*beginnings.split(", ")):
        cpu = {record["seed"]: record["test"]["loss"] for record in records(name, "cpu")}
        found += [r["test"]["loss"] - cpu[r["seed"]] for r in records(name, "cuda") if r["seed"] in cpu]
    return with_n(found)


def ratio(key: str) -> str:
    """The degradation of `KIND, K` with three tenths of the pixels hit."""
    kind, size = key.split(", ")
    return spread(degradation(kind, int(size), 30))


def once_minus_afresh(k: str) -> str:
    fresh = {r["seed"]: r["test"]["log_likelihood"] for r in runs(f"iwae-mnist-k{k}")}
    once = runs(f"static-iwae-mnist-k{k}")
    return with_n([r["test"]["log_likelihood"] - fresh[r["seed"]] for r in once if r["seed"] in fresh])


COMPUTED: dict[str, Callable[[str], str]] = {
    **{
        figure: lambda name, figure=figure: with_n(figures(runs(name), figure))  # type: ignore[misc]
        for figure in ("loss", "reconstruction", "kl", "log_likelihood")
    },
    "gap": lambda name: with_n(overfitting(runs(name))),
    "bits": lambda name: with_n(figures(runs(name), "bits_per_dimension"), 3),
    "units": units,
    "share": share,
    "pairs": pairs,
    "ratio": ratio,
    "once": once_minus_afresh,
    "linear": lambda row: f"{100 * read('pca-cifar10')['rows'][row]['linear']:.1f} %",
    "mse": lambda row: f"{1000 * read('pca-cifar10')['rows'][row]['mse']:.2f}",
}


def claims_table() -> str:
    """The first table: said before, measured now, what changes."""
    computed = {name: Computed(function) for name, function in COMPUTED.items()}
    claims = sorted(yaml.safe_load(CLAIMS.read_text()), key=lambda claim: claim["chapter"])
    rows = [[c["chapter"], c["said"], c["now"].format(**computed), c["change"]] for c in claims]
    return table(["chapter", "said before", "the runs now", "what changes in the text"], rows)
