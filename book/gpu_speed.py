"""How fast `gpu.py` finds ways of training: ours and its variants, the thesis' and PyTorch's, several runs at once."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_data import write_idx
from gpu_plan import Plan
from gpu_processes import eagerly, in_child, spawn, stop, survived

from vae_core import training
from vae_core.data import Dataset, load
from vae_core.experiments.records import provenance, write_record
from vae_core.models import mlp_vae
from vae_core.objectives import elbo_terms
from vae_core.runtime import Runtime


def measure_speed(plan: Plan, shared: bool) -> dict:
    """All figures of the part `speed`; they are measured in processes of their own, stopped when the time is over."""
    path, end = plan.out / "gpu-speed.json", time.time() + dict(plan.limits)["speed"]
    status: int | None = 3
    while status == 3 and time.time() < end:  # after an error of the card another process goes on with the next way
        status = in_child(speeds, plan, path, shared, seconds=end - time.time())
    found = json.loads(path.read_text()) if path.exists() else {}
    return found | {"done": status == 0}


def speeds(plan: Plan, path: Path, shared: bool) -> None:
    """Measure one way of training after another, in a process of its own; the file is written anew after each."""
    multiprocessing.set_start_method("fork", force=True)  # or a DataLoader spawns its workers, as we were
    runtime, dataset = Runtime.detect(plan.device), load("mnist", plan.data)
    table = json.loads(path.read_text())["rows"] if path.exists() else {}
    write_idx(dataset, plan.data)
    for name, way in (shared_ways(plan) if shared else ways(plan, dataset, runtime)).items():
        trouble = plan.out / "failures" / f"speed-{name.replace(' ', '-')}.txt"
        if name in table or trouble.exists():
            continue
        began = time.time()
        with survived(trouble) as went:
            table[name] = way() | {"measuring_took": time.time() - began}
            print(f"{name}: {table[name]['images_per_second']:,.0f} images/s", flush=True)
        told = provenance("gpu-speed", "python book/gpu.py --only speed", runtime)
        write_record(told | {"rows": beside_thesis(table)}, path)
        if not went and plan.device == "cuda":
            os._exit(3)


def beside_thesis(table: dict[str, dict]) -> dict[str, dict]:
    """The same rows with their rate over that of the thesis' way, if it is known."""
    thesis = table.get("thesis' way", {}).get("images_per_second")
    return {
        name: row | ({"over_thesis": row["images_per_second"] / thesis} if thesis else {})
        for name, row in table.items()
    }


def ways(plan: Plan, dataset: Dataset, runtime: Runtime) -> dict[str, Callable[[], dict]]:
    """The ways of training: each returns its images per second, the median of several passes, and all of them."""
    import other_trainers

    x, n, rounds = dataset.x_train, *((256, 1) if plan.dry else (12_800, 3))
    network, example = dict(latent_dim=20), dict(latent_dim=20, hidden=(400,), batch_norm=False)
    passes = 2 if plan.dry else 8  # the first one captures, and is not counted

    def ours(model: dict = network, objective: Callable = elbo_terms, graph: bool = True, **settings) -> dict:
        with eagerly(plan.eager or not graph):
            return passes_of_fit(
                x, runtime, model, objective, **(dict(epochs=passes) | other_trainers.THESIS | settings)
            )

    def compiled(**settings) -> dict:
        torch.compiler.reset()
        return ours(objective=torch.compile(elbo_terms), **settings)

    found: dict[str, Callable[[], dict]] = {"ours, captured": ours}
    found["thesis' way"] = lambda: passes_of(other_trainers.thesis_way(plan.data, n, runtime.device)[2], n, rounds)
    found["PyTorch's example"] = lambda: passes_of(
        other_trainers.pytorch_example(plan.data, n, runtime.device)[2], n, rounds
    )
    found["ours on the example's network, captured"] = lambda: ours(example)
    found["ours, eager"] = lambda: ours(graph=False, epochs=2 if plan.dry else 3)
    found["ours, captured, again"] = ours
    found["ours, captured, batches of 1024"] = lambda: ours(batch_size=1024)
    found |= {"2 runs at once": lambda: at_once(plan, 2)} if plan.dry else {"4 runs at once": lambda: at_once(plan, 4)}
    if not plan.dry:
        found["ours, compiled and captured"] = compiled
        found["ours, compiled"] = lambda: compiled(graph=False, epochs=3)
    return found


def shared_ways(plan: Plan) -> dict[str, Callable[[], dict]]:
    return {f"{k} runs at once, sharing": lambda k=k: at_once(plan, k) for k in (4, 12)}


def best_workers(plan: Plan, shared: bool) -> int:
    """The number of runs at once that was fastest where it was measured, 4 where it was not."""
    path = plan.out / "gpu-speed.json"
    table = json.loads(path.read_text())["rows"] if path.exists() else {}
    ending = " runs at once, sharing" if shared else " runs at once"
    rates = {int(n.split()[0]): row["images_per_second"] for n, row in table.items() if n.endswith(ending)}
    return max(rates, key=lambda k: rates[k], default=4)


def passes_of_fit(x: torch.Tensor, runtime: Runtime, model: dict, objective: Callable, **settings) -> dict:
    """Epochs of `fit`; the first one, with its warm-up and capture, is told apart."""
    torch.manual_seed(0)
    history = training.fit(
        mlp_vae((1, 28, 28), **model), x, objective, device=runtime, progress=False, **settings
    )  # fmt: skip
    first, *rest = (len(x) / row["seconds"] for row in history)
    return {"images_per_second": median(rest), "passes": rest, "first_pass": first, "loss": history[-1]["loss"]}


def passes_of(one_pass: Callable[[], Any], n: int, rounds: int) -> dict:
    """Rounds of somebody else's pass over n images; each ends by reading a loss, so the card has finished then."""
    one_pass()  # warm up
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        one_pass()
        found.append(n / (time.perf_counter() - start))
    return {"images_per_second": median(found), "passes": found}


def at_once(plan: Plan, k: int) -> dict:
    """k processes that train at the same time: their images per second together."""
    barrier, queue = spawn.Barrier(k), spawn.Queue()
    processes = [spawn.Process(target=one_of_many, args=(plan, barrier, queue)) for _ in range(k)]
    for process in processes:
        process.start()
    try:
        found = [queue.get(timeout=60) for _ in processes]
    finally:
        for process in processes:
            stop(process)
    return {"images_per_second": sum(found), "passes": found}


def one_of_many(plan: Plan, barrier: Any, queue: Any) -> None:
    torch.set_num_threads(1)
    x, runtime = load("mnist", plan.data).x_train, Runtime.detect(plan.device)
    passes_of_fit(x, runtime, dict(latent_dim=20), elbo_terms, epochs=2)
    barrier.wait(60)
    start, epochs = time.perf_counter(), 2 if plan.dry else 5
    passes_of_fit(x, runtime, dict(latent_dim=20), elbo_terms, epochs=epochs)
    queue.put(epochs * len(x) / (time.perf_counter() - start))
