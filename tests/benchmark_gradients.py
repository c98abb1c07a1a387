"""What a gradient costs and how much it varies, for each estimator (part of `make bench`).

An estimator is worth the product of the two: at a given time, averaging makes the variance of the mean that product
over the time. All estimate the gradient of an ELBO in the mean and log variance of q, with K draws each, for BATCH
q's at once, in float32: a quadratic log p(x, z), and a small decoder of 64 binary pixels; d = 2 and 20. The bound with
K weights has other gradients, so `doubly_reparameterized` stands beside the plain gradient of that bound. Cost and
variance (its trace) come from the same gradients, the estimators in turn within each round; ratios are medians over
rounds of what one round gives. It prints one table and writes `book/results/bench-gradients.json`; `ratio` is the
estimator's product of variance and seconds over the path's.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from math import log
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent

from vae_core.distributions import diagonal_normal, standard_normal
from vae_core.experiments.records import commit, default_out, versions, write_record
from vae_core.gradients import (
    doubly_reparameterized,
    implicit,
    inverse_cdf,
    pathwise,
    replicates,
    score_function,
    sticking_the_landing,
    stop_gradient,
    taylor_control_variate,
)
from vae_core.networks import mlp
from vae_core.runtime import Runtime

BATCH, K = 1000, 8
Function = Callable[[Tensor], Tensor]  # z (K, B, d) -> (K, B)
Estimator = Callable[[Function, Distribution], Tensor]


def quadratic(d: int) -> Function:
    """log p(x, z) = log N(z; 1, ½I)."""
    target = diagonal_normal(torch.ones(d), torch.full((d,), -log(2)))
    return target.log_prob


def decoder(d: int) -> Function:
    """log p(x, z) for one made image under a decoder d -> 64 -> 64 pixels with random weights, the same in each run."""
    draws = torch.Generator().manual_seed(0)
    network = mlp([d, 64], 64, activation="tanh", batch_norm=False).requires_grad_(False)
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=draws) * parameter.shape[-1] ** -0.5)
    x = torch.randint(2, (64,), generator=draws).float()
    prior = standard_normal(d)
    return lambda z: prior.log_prob(z) + Independent(Bernoulli(logits=network(z), validate_args=False), 1).log_prob(x)


def weighted(f: Function, q: Distribution) -> Tensor:
    """The plain path gradient of the bound with K weights."""
    z = q.rsample((K,))
    return (f(z) - q.log_prob(z)).logsumexp(0) - log(K)


def bound(f: Function, q: Distribution) -> Function:
    """What the ELBO is the expectation of; log q as a function of z alone, which leaves out a term of mean 0."""
    fixed = stop_gradient(q)
    return lambda z: f(z) - fixed.log_prob(z)


def score(f: Function, q: Distribution, baseline: float | str = 0.0) -> Tensor:
    return score_function(bound(f, q), q, K, baseline)


def taylor(f: Function, q: Distribution) -> Tensor:
    """With the value at the mean as baseline, so that the whole second-order expansion is taken off."""
    g = bound(f, q)
    return score_function(g, q, K, g(q.mean[None])[0], taylor_control_variate(g, q))


def path(f: Function, q: Distribution, draw: Callable | None = None) -> Tensor:
    return pathwise(lambda z: f(z) - q.log_prob(z), q, K, draw)


PATH, WEIGHTED = "pathwise", "importance weighted, plain"
ESTIMATORS: dict[str, Estimator] = {
    PATH: path,
    "pathwise, inverse CDF": lambda f, q: path(f, q, inverse_cdf),
    "pathwise, implicit": lambda f, q: path(f, q, implicit),
    "sticking the landing": lambda f, q: sticking_the_landing(f, q, K),
    "score function": score,
    "score function, leave-one-out": lambda f, q: score(f, q, "leave-one-out"),
    "score function, Taylor control variate": taylor,
    WEIGHTED: weighted,
    "importance weighted, doubly reparam.": lambda f, q: doubly_reparameterized(f, q, K),
}


def measure(estimator: Estimator, f: Function, parameters: tuple[Tensor, ...]) -> tuple[float, float]:
    """Seconds per gradient, and the trace of its covariance, from one batch of gradients."""
    start = time.perf_counter()
    found = replicates(lambda m, v: estimator(f, diagonal_normal(m, v)), parameters, BATCH)
    seconds = (time.perf_counter() - start) / BATCH
    return seconds, sum(each.var(0).sum().item() for each in found)


def compare(problem: str, f: Function, d: int, rounds: int) -> list[dict]:
    """One row for each estimator: medians of cost, variance and their product, and the last over the path's."""
    parameters = (torch.linspace(-0.5, 0.5, d), torch.full((d,), -1.0))
    for estimator in ESTIMATORS.values():
        measure(estimator, f, parameters)  # warm up
    runs = [{name: measure(each, f, parameters) for name, each in ESTIMATORS.items()} for _ in range(rounds)]
    return [row(problem, name, runs) for name in ESTIMATORS]


def row(problem: str, name: str, runs: list[dict]) -> dict:
    base = WEIGHTED if name.startswith("importance") else PATH
    products = {
        each: [seconds * variance for seconds, variance in (run[each] for run in runs)] for each in (base, name)
    }
    ratios = sorted(other / ours for ours, other in zip(products[base], products[name], strict=True))
    seconds, variances = ([run[name][part] for run in runs] for part in (0, 1))
    variance, others = statistics.mean(variances), statistics.mean(run[base][1] for run in runs)
    found = {"what": f"{problem}: {name}", "against": base}
    found |= {"ratio": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]}
    found |= {"microseconds": 1e6 * statistics.median(seconds), "variance": variance}
    found["variance_error"] = statistics.stdev(variances) / len(runs) ** 0.5 if len(runs) > 1 else None
    found["cost_ratio"] = statistics.median(run[name][0] / run[base][0] for run in runs)
    found["variance_ratio"] = variance / others
    print(f"{found['what']:62s} {found['microseconds']:8.2f} {variance:11.4g} {found['cost_ratio']:7.2f}", end=" ")
    print(f"{found['variance_ratio']:9.4g} {found['ratio']:9.4g} ({ratios[0]:.4g} to {ratios[-1]:.4g})", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=default_out())
    options = parser.parse_args()
    torch.manual_seed(0)
    device = f"{Runtime.detect('cpu').describe()}, gradient estimators"
    print(f"{device}; K = {K} draws, {BATCH} gradients at once; relative to the path (or the plain weighted gradient)")
    print(f"{'':62s} {'µs each':>8s} {'variance':>11s} {'cost':>7s} {'variance':>9s} {'product':>9s}")
    problems = {"quadratic": quadratic, "decoder": decoder}
    rows = []
    for name, make in problems.items():
        for d in (2, 20):
            rows += compare(f"{name}, d = {d}", make(d), d, options.rounds)
    record = {"command": "make bench", "commit": commit(), "device": device}
    record |= {"versions": versions(), "num_samples": K, "batch_size": BATCH, "rounds": options.rounds, "rows": rows}
    write_record(record, options.out / "bench-gradients.json")


if __name__ == "__main__":
    main()
