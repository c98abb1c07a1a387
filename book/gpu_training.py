"""Training in `gpu.py`: several processes that take the next run from one list."""

import multiprocessing
import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from gpu_data import images_there
from gpu_plan import GRACE, TRAINED, Item, Plan, failure, is_recorded, items, settled
from gpu_processes import eagerly, spawn, stop, survived

from vae_core.data import Dataset, load
from vae_core.experiments import run as experiment_run
from vae_core.experiments.records import RunInProgressError
from vae_core.experiments.registry import find


def train(plan: Plan, parts: Sequence[str]) -> dict:
    """Run all items that are not recorded; how many there are now, and what failed."""
    todo = items(plan, parts)
    starts = spawn.Array("d", len(TRAINED))
    threads = max(1, (os.cpu_count() or 1) // plan.workers)

    def start() -> Any:
        process = spawn.Process(target=work, args=(plan, todo, starts, threads))
        process.start()
        return process

    workers, spares = [start() for _ in range(plan.workers)], 4 * plan.workers
    while any(worker.is_alive() for worker in workers) and time.time() < plan.end + GRACE:
        time.sleep(0.2)
        for k, worker in enumerate(workers):
            if not worker.is_alive() and worker.exitcode != 0 and spares and time.time() < plan.end:
                workers[k], spares = start(), spares - 1
    for worker in workers:
        stop(worker)
    recorded = [item for item in todo if is_recorded(plan, item)]
    return {"asked": len(todo), "recorded": len(recorded), "done": len(recorded) == len(todo), "workers": plan.workers}


def work(plan: Plan, todo: list[Item], starts: Any, threads: int) -> None:
    """One process: walk the list until everything is recorded, has failed, or the time is over."""
    torch.set_num_threads(threads)
    sets: dict[str, Dataset] = {}
    waiting = True
    while waiting:
        waiting = False
        for item in todo:
            if orphaned():
                return
            if not in_time(plan, item[0], starts) or settled(plan, item):
                continue
            needed = find(item[1]).dataset
            if needed not in sets and not images_there(plan, needed):
                waiting = waiting or (plan.wait and needed == "cifar10")
                continue
            attempt(plan, item, sets, starts)
        time.sleep(1 if waiting else 0)


def orphaned() -> bool:
    """Whether the process that started this one is gone: killed, say."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def attempt(plan: Plan, item: Item, sets: dict[str, Dataset], starts: Any) -> None:
    """One run; on a card a second time without graphs if the first one failed."""
    part, name, _ = item
    again = failure(plan, item).exists()
    with survived(failure(plan, item, again)) as went:
        needed = find(name).dataset
        if needed not in sets:
            sets[needed] = load(needed, plan.data)
        begin(part, starts)
        with eagerly(plan.eager or again):
            run_item(plan, item, sets[needed])
    if not went and plan.device == "cuda":
        os._exit(3)  # after an error of the card nothing works in the same process: another one takes its place


def in_time(plan: Plan, part: str, starts: Any) -> bool:
    """Whether another run of this part may begin: its time counts from its first run on."""
    since = starts[TRAINED.index(part)]
    return time.time() < plan.end and (since == 0 or time.time() < since + dict(plan.limits)[part])


def begin(part: str, starts: Any) -> None:
    with starts.get_lock():
        starts[TRAINED.index(part)] = starts[TRAINED.index(part)] or time.time()


def run_item(plan: Plan, item: Item, dataset: Dataset) -> None:
    _, name, seed = item
    began = time.time()
    try:
        record, _ = experiment_run.run(
            name, seed=seed, epochs=plan.epochs, device=plan.device, out=plan.out, dataset=dataset, progress=False,
            resume=True, checkpoints=find(name).epochs > 200,
        )  # fmt: skip
    except RunInProgressError:
        return
    seconds = f"{record['wall_seconds']:.1f} s of training, {time.time() - began:.1f} s in all"
    print(f"{name}, seed {seed}: test loss {record['test']['loss']:.3f}, {seconds}", flush=True)
