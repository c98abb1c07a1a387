"""Our linear models against scikit-learn's, on all of MNIST (part of `make bench`).

Every figure is whole fits per second on the 60,000 × 784 pixels in float64 with d = 20, in turn within one run, so that
both sides see the same machine; a fit ends with its mean log p(x). PPCA is fitted in closed form, against both of
scikit-learn's exact solvers. Factor analysis (without the constant columns) takes as many steps of EM as it needs to
reach the likelihood that scikit-learn's ends with. It prints one table and writes `book/results/bench-linear.json`,
with the growth of a fit's time with n, p and d on made data: the slopes of log time, 1 where time is proportional.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from math import log
from pathlib import Path

import numpy as np
import torch
from sklearn import decomposition as scikit
from sklearn.exceptions import ConvergenceWarning

from vae_core.data import load
from vae_core.linear import PPCA, FactorAnalysis
from vae_core.records import commit, default_out, versions, write_record
from vae_core.runtime import Runtime

D = 20
Fit = Callable[[], float]  # fits anew and returns the mean log p(x)


def timed(fit: Fit) -> tuple[float, float]:
    """Seconds, and the mean log p(x) that the fit reached."""
    start = time.perf_counter()
    value = fit()
    return time.perf_counter() - start, value


def compare(mine: Fit, others: dict[str, Fit], rounds: int) -> list[dict]:
    """One row for each other: medians of both rates and of their ratio, with its range, and both likelihoods."""
    runs = [(timed(mine), {what: timed(other) for what, other in others.items()}) for _ in range(rounds)]
    rows = []
    for what in others:
        ours, theirs = [run[0][0] for run in runs], [run[1][what][0] for run in runs]
        ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
        row = {"what": what, "ours": 1 / statistics.median(ours), "other": 1 / statistics.median(theirs)}
        row |= {"ratio": statistics.median(ratios), "low": ratios[0], "high": ratios[-1], "target": 1}
        row |= {"rounds": rounds, "log_likelihoods": [runs[-1][0][1], runs[-1][1][what][1]]}
        print(f"{what:52s} {row['ours']:9.4f} {row['other']:9.4f} {row['ratio']:6.2f}", end=" ")
        reached = "log p(x) {:.4f} and {:.4f}".format(*row["log_likelihoods"])
        print(f"({ratios[0]:.2f} to {ratios[-1]:.2f}), {reached}", flush=True)
        rows.append(row)
    return rows


def ppca_rows(X: torch.Tensor, rounds: int) -> list[dict]:
    def theirs(solver: str) -> Fit:
        return lambda: scikit.PCA(D, svd_solver=solver).fit(X.numpy()).score(X.numpy())

    names = {"full": "SVD", "covariance_eigh": "eigenvectors of S"}
    others = {f"scikit-learn's PCA, {name}": theirs(solver) for solver, name in names.items()}
    return compare(lambda: PPCA(D).fit(X).score(X), others, rounds)


def factor_row(X: torch.Tensor, rounds: int, their_steps: int) -> list[dict]:
    found = []

    def theirs() -> float:
        found[:] = [scikit.FactorAnalysis(D, max_iter=their_steps, random_state=0).fit(X.numpy())]
        return found[0].score(X.numpy())

    target = theirs()
    values = FactorAnalysis(D, max_iter=2000).fit(X).log_likelihoods_
    steps = next((step for step, value in enumerate(values) if value >= target), len(values) - 1)
    what = f"its factor analysis after {found[0].n_iter_} steps (ours {steps})"
    return compare(lambda: FactorAnalysis(D, tol=0, max_iter=steps).fit(X).score(X), {what: theirs}, rounds)


SIZES = {"n": [(n, 200, 10) for n in (5_000, 10_000, 20_000)], "p": [(400, p, 10) for p in (2_000, 4_000, 8_000)]}
SIZES["d"] = [(400, 4_000, d) for d in (40, 80, 160)]


def slope(make: Callable[[int], PPCA | FactorAnalysis], sizes: list[tuple[int, int, int]]) -> float:
    """The slope of log time in log size, by least squares over sizes; each the best of three fits of noise."""
    varied = next(axis for axis in range(3) if len({size[axis] for size in sizes}) > 1)
    points = []
    for n, p, d in sizes:
        X = torch.randn(n, p, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        times = [timed(lambda d=d, X=X: make(d).fit(X).score(X))[0] for _ in range(3)]
        points.append((log((n, p, d)[varied]), log(min(times))))
    return float(np.polyfit(*zip(*points, strict=True), 1)[0])


def growth() -> dict[str, dict[str, float]]:
    """Ten steps of EM, so that the amount of work is fixed; n alone for the closed form."""
    em = {"PPCA by EM": lambda d: PPCA(d, "em", tol=-1, max_iter=10)}
    em["factor analysis"] = lambda d: FactorAnalysis(d, tol=-1, max_iter=10)
    slopes = {name: {axis: slope(make, sizes) for axis, sizes in SIZES.items()} for name, make in em.items()}
    slopes["PPCA, closed"] = {"n": slope(PPCA, SIZES["n"])}
    for name, axes in slopes.items():
        print(f"time of {name:16s} grows as", ", ".join(f"{axis}^{value:.2f}" for axis, value in axes.items()))
    return slopes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path(__file__).resolve().parent.parent / "data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--factor-rounds", type=int, default=1)
    parser.add_argument("--their-steps", type=int, default=20, help="scikit-learn's max_iter for factor analysis")
    parser.add_argument("--out", type=Path, default=default_out())
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    device = f"{Runtime.detect('cpu').describe()}, linear models"
    print(f"{device}; fits per second\n{'':52s} {'ours':>9s} {'other':>9s}  ratio")
    X = load("mnist", options.data_root).x_train.flatten(1).double() / 255
    rows = ppca_rows(X, options.rounds)
    rows += factor_row(X[:, X.amax(0) > X.amin(0)], options.factor_rounds, options.their_steps)
    record = {"command": "make bench", "commit": commit(), "device": device, "unit": "fits/s", "versions": versions()}
    record |= {"rounds": options.rounds, "rows": rows, "growth": growth()}
    write_record(record, options.out / "bench-linear.json")


if __name__ == "__main__":
    main()
