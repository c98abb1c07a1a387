"""Our training loop against other people's and against the limit of the machine (`make bench`).

Every figure is images per second of one pass over the first 12,800 real MNIST images at batch 128, the
median of interleaved rounds, so that both sides see the same machine. It prints one table and writes
`book/results/bench-cpu-THREADS.json` (or `bench-cuda.json`), from which the page "Performance" is made. Pythae is
measured where it is installed (`pip install pythae`); it is no requirement of the book.

The limit is the matrix products of a step alone, with the same shapes: forward x Wᵀ, backward gᵀ x and
g W, for each dense layer of the thesis' network with d = 20 (the first layer needs no g W).
"""

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import other_trainers
import torch
from torch import Tensor, nn

from vae_core.data import load
from vae_core.experiments.records import commit, default_out, versions, write_record
from vae_core.experiments.registry import find
from vae_core.experiments.run import fit_settings
from vae_core.models import mlp_vae
from vae_core.objectives import elbo_terms
from vae_core.runtime import Runtime
from vae_core.training import fit

N, BATCH = 12_800, 128
Pass = Callable[[], None]


def ours(x: Tensor, runtime: Runtime, network: dict, training: dict, objective: Callable = elbo_terms) -> Pass:
    model = mlp_vae((1, 28, 28), **network)
    training = {"epochs": 1, "progress": False, "device": runtime} | training
    return lambda: fit(model, x, objective, **training)


def products(runtime: Runtime) -> Pass:
    """The matrix products of all steps of a pass, and nothing else."""
    layers = [m for m in mlp_vae((1, 28, 28), 20).modules() if isinstance(m, nn.Linear)]
    weights = [layer.weight.detach().to(runtime.device) for layer in layers]
    inputs = [torch.randn(BATCH, w.shape[1], device=runtime.device) for w in weights]
    gradients = [torch.randn(BATCH, w.shape[0], device=runtime.device) for w in weights]

    def one_pass() -> None:
        for _ in range(N // BATCH):
            for k, (x, w, g) in enumerate(zip(inputs, weights, gradients, strict=True)):
                torch.mm(x, w.t())
                torch.mm(g.t(), x)
                if k > 0:
                    torch.mm(g, w)

    return one_pass


def rate(one_pass: Pass, runtime: Runtime) -> float:
    start = time.perf_counter()
    one_pass()
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()
    return N / (time.perf_counter() - start)


def compare(what: str, mine: Pass, other: Pass, target: float, rounds: int, runtime: Runtime) -> dict:
    """One row: medians of both rates and of their ratio, with its range."""
    mine(), other()  # warm up
    pairs = [(rate(mine, runtime), rate(other, runtime)) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in pairs)
    row = {
        "what": what,
        "ours": statistics.median(a for a, _ in pairs),
        "other": statistics.median(b for _, b in pairs),
    }
    row |= {"ratio": statistics.median(ratios), "low": ratios[0], "high": ratios[-1], "target": target}
    print(f"{what:52s} {row['ours']:9.0f} {row['other']:9.0f} {row['ratio']:6.2f}", end=" ")
    print(f"({ratios[0]:.2f} to {ratios[-1]:.2f}), target {target:.2f}", flush=True)
    return row


def rows(x: Tensor, root: Path, runtime: Runtime, rounds: int) -> list[dict]:
    def against(what: str, peer: other_trainers.Peer, target: float) -> dict:
        network, training, their_pass = peer
        return compare(what, ours(x, runtime, network, training), their_pass, target, rounds, runtime)

    on_cuda, network = runtime.device.type == "cuda", dict(latent_dim=20)
    limit, thesis = products(runtime), other_trainers.thesis_way(root, N, runtime.device)
    plain = ours(x, runtime, network, other_trainers.THESIS)
    table = [compare("share of the matrix products' rate", plain, limit, 0.75, rounds, runtime)]
    if shutil.which("g++") and not on_cuda:
        compiled = ours(x, runtime, network, other_trainers.THESIS, torch.compile(elbo_terms))
        table.append(compare("the same, objective under torch.compile", compiled, limit, 0.75, rounds, runtime))
        table.append(compare("thesis' way, objective under torch.compile", compiled, thesis[2], 3, rounds, runtime))
    table.append(against("thesis' way", thesis, 50 if on_cuda else 3))
    table.append(against("PyTorch's example", other_trainers.pytorch_example(root, N, runtime.device), 1))
    if peer := other_trainers.pythae(x, runtime.device):
        table.append(against("Pythae's trainer", peer, 1))
    return [*table, *quality(x, thesis[2], runtime, rounds)]


def quality(x: Tensor, way: Pass, runtime: Runtime, rounds: int) -> list[dict]:
    """The preset `fast` against the thesis' 20 epochs, in our loop and in its own: ratios of whole wall times."""
    thesis, fast = find("chen-mnist-d20"), find("fast-mnist-d20")
    fast_pass, thesis_pass = (ours(x, runtime, e.model, fit_settings(e.training)) for e in (fast, thesis))
    table, scale = [], thesis.epochs / fast.epochs
    for what, other in ((f"time of {thesis.epochs} epochs of ours", thesis_pass), ("time of the thesis' way", way)):
        row = compare(f"preset fast ({fast.epochs} epochs): {what}", fast_pass, other, 4 / scale, rounds, runtime)
        table.append(row | {key: row[key] * scale for key in ("ratio", "low", "high", "target")})
    return table


KINDS = {
    "matrix products": ("aten::mm", "aten::addmm"),
    "Adam": ("Optimizer.step#Adam.step", "aten::_fused_adam_", "Optimizer.zero_grad#Adam.zero_grad"),
    "batch norm": ("aten::native_batch_norm", "aten::native_batch_norm_backward"),
    "logarithm of the sigmoid": ("aten::log_sigmoid_forward",),
}


def breakdown(one_pass: Pass) -> dict[str, float]:
    """Where the processor's time goes in one pass of ours: shares of it by kind of operation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        one_pass()
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    shares = {kind: sum(times.get(key, 0) for key in keys) / sum(times.values()) for kind, keys in KINDS.items()}
    return shares | {"all else": 1 - sum(shares.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path(__file__).resolve().parent.parent / "data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=default_out())
    options = parser.parse_args()
    runtime = Runtime.detect(options.device)
    x = load("mnist", options.data_root).x_train[:N]
    print(f"{runtime.describe()}; images per second\n{'':52s} {'ours':>9s} {'other':>9s}  ratio")
    table = rows(x, options.data_root, runtime, options.rounds)
    record = {"command": "make bench", "commit": commit(), "device": runtime.describe(), "versions": versions()}
    if runtime.device.type == "cpu":
        record["breakdown"] = breakdown(ours(x, runtime, dict(latent_dim=20), other_trainers.THESIS))
    where = "cuda" if runtime.device.type == "cuda" else f"cpu-{torch.get_num_threads()}"
    write_record(record | {"rounds": options.rounds, "rows": table}, options.out / f"bench-{where}.json")


if __name__ == "__main__":
    main()
