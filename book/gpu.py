"""What a CUDA card is for, in one resumable program that needs no network: `make gpu`, or `python book/gpu.py`.

    python book/gpu.py --data DIR --out DIR [--only PART ...] [--workers N] [--mps]
    python book/gpu.py --out DIR --pack DIR2     what is there, in few files
    python book/gpu.py --dry                     the same on a CPU with tiny settings, in less than two minutes

The parts, in this order, each with its own limit of seconds:

tests      the tests marked `gpu`
speed      the training loop against the thesis' way, PyTorch's example and variants of itself; several runs at once
rows       the thesis' rows on MNIST, Fashion-MNIST and CIFAR-10, five seeds each
residual   a residual network on CIFAR-10 (SVHN too, where it is there), in bfloat16 and float32
further    the other runs of the registry that need error bars or are controls

Every run is an ordinary record of `python -m vae_core run`, in the folder `--out`, beside `gpu-*.json`, which say what
was measured and how it went, and `failures/`. Each item is written when it ends; started again, the program goes on
with what is missing. `--data` holds NAME.npz or torchvision's files, or CIFAR-10 in parts (cifar10-train-0.webp to -4,
cifar10-test.webp, cifar10-labels.npz: sheets of 100 by 100 images).
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "tests", ROOT):  # there is no installed vae_core on a machine without network
    sys.path.insert(0, str(folder))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from vae_core import _steps, training  # noqa: E402
from vae_core.data import Dataset, load  # noqa: E402
from vae_core.experiments import run as experiment_run  # noqa: E402
from vae_core.experiments.records import (  # noqa: E402
    RunInProgressError,
    commit,
    default_out,
    format_mean_std,
    locked,
    provenance,
    read_record,
    record_path,
    versions,
    write_record,
)
from vae_core.experiments.registry import EXPERIMENTS, find  # noqa: E402
from vae_core.models import mlp_vae  # noqa: E402
from vae_core.objectives import elbo_terms  # noqa: E402
from vae_core.runtime import Runtime, replacing  # noqa: E402

SECONDS = {"tests": 75, "speed": 120, "rows": 240, "residual": 240, "further": 300}
TOTAL, GRACE = 480, 40  # seconds for all parts; and for what has begun by then
TRAINED = ("rows", "residual", "further")
Item = tuple[str, str, int]  # part, experiment, seed
spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Plan:
    """How one call of the program works."""

    data: Path
    out: Path
    device: str = "cpu"
    dry: bool = False
    workers: int = 0  # as many as were fastest
    limits: tuple[tuple[str, float], ...] = tuple(SECONDS.items())
    end: float = 0.0  # of all parts, in seconds of the system's clock
    eager: bool = False  # without CUDA graphs
    wait: bool = False  # for CIFAR-10, which may come in parts while the program runs

    @property
    def epochs(self) -> int | None:
        """The epochs of each run: its own number, or one."""
        return 1 if self.dry else None


# What is run


def rows() -> Iterator[tuple[str, int]]:
    """The thesis' experiments, five seeds each, a seed at a time; CIFAR-10 last."""
    dense = [name for name in EXPERIMENTS if name.startswith(("chen-mnist", "chen-fashion"))]
    for names in (dense, ["chen-cifar10-cnn", "chen-cifar10-fc"]):
        for k in range(5):
            yield from ((name, seeds(name, 5)[k]) for name in names)


def residual() -> Iterator[tuple[str, int]]:
    yield from (("residual-cifar10-bf16", 0), ("residual-cifar10", 0))
    yield from ((name, find(name).seed) for name in ("bits-cifar10-cnn", "residual-svhn-bf16"))


def further() -> Iterator[tuple[str, int]]:
    """Runs that conclusions of the chapters need, those of most worth first."""

    def named(*beginnings: str) -> list[str]:
        return [name for name in EXPERIMENTS if name.startswith(beginnings)]

    for names, n in (
        (["binary-mnist-d20", *named("beta-binary-mnist")], 3),
        (["ablation-no-batch-norm", *named("units-mnist"), "binary-fashion-d20"], 5),
        (["cifar10-cnn-permuted", *named("cifar10-fc-d"), *named("bits-cifar10")], 3),
        ([f"irvin-z{d}-e100" for d in (2, 3, 50)], 3),
        (["iwae-mnist-k50", *named("bits-mnist")], 3),
        (["residual-cifar10-bf16"], 2),
        (["static-iwae-mnist-k1", "static-iwae-mnist-k5", "iwae-mnist-k5", "iwae-mnist-k1"], 3),
        (named("beta-mnist", "fast-mnist", "ablation-mean", "ablation-no-weight"), 3),
    ):
        for k in range(n):
            yield from ((name, seeds(name, n)[k]) for name in names)


def seeds(name: str, n: int) -> list[int]:
    """The experiment's own n seeds, and the smallest others where it has fewer."""
    own = find(name).seeds
    return [*own, *(seed for seed in range(n) if seed not in own)][:n]


DRY = ("chen-mnist-d2", "chen-fashion-d20", "units-mnist-warm-up", "beta-binary-mnist-3", "bits-mnist-shared-gaussian")


def items(plan: Plan, parts: Sequence[str]) -> list[Item]:
    """All runs in the order in which they are begun; of a dry run a few."""
    made = dict(rows=rows, residual=residual, further=further)
    found = [(part, *run) for part in TRAINED if part in parts for run in made[part]()]
    return [item for item in found if item[1] in DRY and item[2] == find(item[1]).seed] if plan.dry else found


# Data


def join_cifar10(folder: Path, root: Path) -> None:
    """Put CIFAR-10 together in `root` from its parts, once they are all there: ROOT/cifar10.npz."""
    parts = {"train": [folder / f"cifar10-train-{k}.webp" for k in range(5)], "test": [folder / "cifar10-test.webp"]}
    labels, whole = folder / "cifar10-labels.npz", root / "cifar10.npz"
    if whole.exists() or not all(path.exists() for path in (labels, *parts["train"], *parts["test"])):
        return
    with contextlib.suppress(RunInProgressError), locked(whole):  # one of several processes does it
        with np.load(labels) as y:
            arrays = {f"y_{split}": y[f"y_{split}"] for split in parts}
        arrays |= {f"x_{split}": np.concatenate([tiles(path) for path in paths]) for split, paths in parts.items()}
        save_arrays(whole, arrays)


def tiles(path: Path) -> np.ndarray:
    """A sheet of 100 by 100 images as (10000, 32, 32, 3)."""
    from PIL import Image

    sheet = np.asarray(Image.open(path).convert("RGB"))
    return sheet.reshape(100, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def images_there(plan: Plan, name: str) -> bool:
    """Whether a data set can be loaded without a network."""
    if name == "cifar10":
        join_cifar10(plan.data, plan.data)
    folder = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}.get(name, "-")
    return (plan.data / f"{name}.npz").exists() or (plan.data / folder / "raw").exists()


def unpack(root: Path) -> None:
    """Store compressed archives without compression, so that they are read at once."""
    for path in root.glob("*.npz"):
        with zipfile.ZipFile(path) as archive:
            packed = any(told.compress_type != zipfile.ZIP_STORED for told in archive.infolist())
        if packed and path.stem in ("mnist", "fashion-mnist", "svhn"):
            with np.load(path) as arrays:
                save_arrays(path, dict(arrays))


def write_idx(dataset: Dataset, root: Path) -> None:
    """MNIST as torchvision reads it, for the loops that it is compared with."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for split, short in (("train", "train"), ("test", "t10k")):
        x, y = getattr(dataset, f"x_{split}")[:, 0].numpy(), getattr(dataset, f"y_{split}").numpy().astype(np.uint8)
        for array, what in ((x, "images-idx3"), (y, "labels-idx1")):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (raw / f"{short}-{what}-ubyte").write_bytes(head + array.tobytes())


def dry_data(root: Path) -> None:
    """The digits as images of 28×28, under the names of MNIST and Fashion-MNIST: 512 and 20 of them."""
    digits = load("digits")
    root.mkdir(parents=True, exist_ok=True)

    def images(x: torch.Tensor) -> np.ndarray:
        large = torch.nn.functional.interpolate(x, (28, 28), mode="bilinear")
        return (255 * large[:, 0]).byte().numpy()

    arrays = {"x_train": images(digits.x_train[:512]), "x_test": images(digits.x_test[:20])}
    arrays |= {"y_train": digits.y_train[:512].numpy(), "y_test": digits.y_test[:20].numpy()}
    for name in ("mnist", "fashion-mnist"):
        if not (root / f"{name}.npz").exists():
            save_arrays(root / f"{name}.npz", arrays)


# Training: processes that take the next run from one list


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
            if not in_time(plan, item[0], starts) or settled(plan, item):
                continue
            needed = find(item[1]).dataset
            if needed not in sets and not images_there(plan, needed):
                waiting = waiting or (plan.wait and needed == "cifar10")
                continue
            attempt(plan, item, sets, starts)
        time.sleep(1 if waiting else 0)


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


def failure(plan: Plan, item: Item, again: bool = False) -> Path:
    return plan.out / "failures" / f"{item[1]}-s{item[2]}{'-eager' if again else ''}.txt"


def settled(plan: Plan, item: Item) -> bool:
    """Whether a run is recorded or has failed, on a card twice."""
    on_card = plan.device == "cuda" and not plan.eager
    return failure(plan, item, again=on_card).exists() or is_recorded(plan, item)


def is_recorded(plan: Plan, item: Item) -> bool:
    experiment = find(item[1])
    return read_record(replace(experiment, epochs=plan.epochs or experiment.epochs), item[2], plan.out) is not None


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


@contextlib.contextmanager
def survived(path: Path) -> Iterator[list[bool]]:
    """Write the traceback of whatever goes wrong to `path` and go on; yields a list that is [True] if nothing did."""
    went: list[bool] = []
    try:
        yield went
        went.append(True)
    except Exception as error:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc())
        print(f"{path.stem} failed: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)


@contextlib.contextmanager
def eagerly(wanted: bool = True) -> Iterator[None]:
    """Without CUDA graphs."""
    kept = training.GraphedStep
    if wanted:
        training.GraphedStep = _steps.Step  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        training.GraphedStep = kept  # type: ignore[misc]


def in_child(function: Callable, *arguments: Any, seconds: float) -> int | None:
    """Call it in a process of its own, stopped when the time is over: its exit status, None if it was stopped."""
    process = spawn.Process(target=function, args=arguments)
    process.start()
    process.join(seconds)
    over = process.is_alive()
    stop(process)
    return None if over else process.exitcode


def stop(process: Any) -> None:
    process.join(0.1)
    if process.is_alive():
        process.terminate()
        process.join(5)
    if process.is_alive():
        process.kill()


# Tests


def run_tests(plan: Plan) -> dict:
    """The tests marked `gpu`: how many passed, failed and were skipped, and the end of what pytest printed."""
    files = [str(p) for p in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in p.read_text()]
    xml = plan.out / "gpu-tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-o", "addopts=", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "VAE_CORE_DATA": str(plan.data)}
    began = time.time()
    try:
        done = subprocess.run(
            [*command, f"--junitxml={xml}", *files], cwd=ROOT, env=environment, capture_output=True, text=True,
            timeout=dict(plan.limits)["tests"],
        )  # fmt: skip
        code, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        code, text = -1, (error.stdout or b"").decode(errors="replace") + "\nthe time was over"
    found = {"exit_code": code, "done": code in (0, 1, 5), "seconds": time.time() - began, "tail": text[-6000:]}
    return found | (counted(xml) if xml.exists() else {})


def counted(xml: Path) -> dict:
    from xml.etree import ElementTree

    suite = ElementTree.parse(xml).getroot().find("testsuite")
    assert suite is not None
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed = [case.get("name") for case in suite if case.find("failure") is not None or case.find("error") is not None]
    xml.unlink()
    return counts | {"failed": failed}


# Speed


def measure_speed(plan: Plan, shared: bool) -> dict:
    """All figures of the part `speed`; they are measured in processes of their own, stopped when the time is over."""
    path, end = plan.out / "gpu-speed.json", time.time() + dict(plan.limits)["speed"]
    status: int | None = 3
    while status == 3 and time.time() < end:  # after an error of the card another process goes on with the next way
        status = in_child(speeds, plan, path, shared, seconds=end - time.time())
    found = json.loads(path.read_text()) if path.exists() else {}
    return found | {"done": status == 0}


def speeds(plan: Plan, path: Path, shared: bool) -> None:
    """Measure one way of training after another; the file is written anew after each."""
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


# The whole


def first_steps(plan: Plan) -> None:
    """Train a little with a captured step, and write down the machine; exit status 1 if that does not work."""
    with survived(plan.out / "failures" / "first-steps.txt") as went:
        write_record(machine(plan), plan.out / "gpu-machine.json")
        model, x = mlp_vae((1, 28, 28), 2), torch.randint(0, 256, (1000, 1, 28, 28), dtype=torch.uint8)
        history = training.fit(model, x, elbo_terms, epochs=3, device=plan.device, progress=False)
        assert history[-1]["loss"] < history[0]["loss"]
    sys.exit(0 if went else 1)


@contextlib.contextmanager
def sharing(plan: Plan, wanted: bool) -> Iterator[bool]:
    """CUDA's multi-process service while this runs: kernels of several processes then run side by side.

    It is a program of its own, and no setting of the card; where it cannot be had, everything runs without it.
    """
    program = shutil.which("nvidia-cuda-mps-control")
    if not (wanted and program and plan.device == "cuda"):
        yield False
        return
    folder = plan.out / ".mps"
    folder.mkdir(parents=True, exist_ok=True)
    names = {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}
    os.environ |= names
    ask = [sys.executable, "-c", "import torch; print(torch.ones(3, device='cuda').sum().item())"]
    with contextlib.suppress(subprocess.SubprocessError, OSError):
        subprocess.run([program, "-d"], timeout=20, check=True)
    try:
        works = subprocess.run(ask, timeout=60, capture_output=True).stdout.strip() == b"3.0"
    except subprocess.SubprocessError:
        works = False
    if not works:
        end_sharing(program, names)
    try:
        yield works
    finally:
        if works:
            end_sharing(program, names)


def end_sharing(program: str, names: dict[str, str]) -> None:
    with contextlib.suppress(subprocess.SubprocessError, OSError):
        subprocess.run([program], input=b"quit\n", timeout=20)
    for name in names:
        os.environ.pop(name, None)


def machine(plan: Plan) -> dict:
    """What the figures were measured on."""
    found = {"commit": commit(), "device": Runtime.detect(plan.device).describe(), "versions": versions()}
    found |= {"cpus": os.cpu_count(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    tf32 = {"matmul": torch.backends.cuda.matmul.allow_tf32, "convolutions": torch.backends.cudnn.allow_tf32}
    return found | {"tf32": tf32, "began": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())}


def part_of(plan: Plan, part: str, function: Callable[[], dict]) -> None:
    """One part, unless it is done: its figures are written to OUT/gpu-PART.json, or its failure."""
    path = plan.out / f"gpu-{part}.json"
    if part != "trained" and path.exists() and json.loads(path.read_text()).get("done"):
        return
    began = time.time()
    print(f"-- {part}", flush=True)
    with survived(plan.out / "failures" / f"{part}.txt"):
        found = function() | {"took": time.time() - began}
        write_record(found, path)
        print(f"-- {part}: {found['took']:.0f} s", flush=True)


def run_all(plan: Plan, parts: Sequence[str], mps: bool) -> None:
    if in_child(first_steps, plan, seconds=150) == 1 and plan.device == "cuda":
        plan = replace(plan, eager=True)
        print("a captured step does not train here; going on without graphs", flush=True)
    if "tests" in parts:
        part_of(plan, "tests", lambda: run_tests(plan))
    if "speed" in parts:
        part_of(plan, "speed", lambda: measure_speed(plan, shared=False))
    with sharing(plan, mps) as shared:
        if "speed" in parts and shared:
            part_of(plan, "speed-sharing", lambda: measure_speed(plan, shared=True))
        plan = replace(plan, workers=plan.workers or (best_workers(plan, shared) if plan.device == "cuda" else 1))
        if chosen := [part for part in TRAINED if part in parts]:
            part_of(plan, "trained", lambda: train(plan, chosen) | {"sharing": shared})
    write_record(summary(plan), plan.out / "gpu-summary.json")


def summary(plan: Plan) -> dict:
    """What is there: for each experiment the seeds that are recorded; and what failed."""
    found: dict[str, list[int]] = {}
    for item in dict.fromkeys(("", *item[1:]) for item in items(plan, TRAINED)):
        if is_recorded(plan, item):
            found.setdefault(item[1], []).append(item[2])
    failed = sorted(path.stem for path in (plan.out / "failures").glob("*.txt"))
    return {"recorded": found, "failed": failed, "seconds_left": plan.end - time.time()}


def pack(out: Path, folder: Path, limit: int = 15 * 2**20) -> list[Path]:
    """Everything in `out` in few files: records and messages in one, weights in as many as their size asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [path for path in sorted(out.rglob("*")) if path.suffix in (".json", ".txt", ".log")]
    packed = [archive(folder / "records.tar.gz", texts, out)]
    share: list[Path] = []
    weights = sorted(out.glob("*.safetensors"), key=lambda path: (("-e" in path.stem), path.name))
    for path in weights:
        if path.stat().st_size > limit:
            continue
        if share and sum(p.stat().st_size for p in [*share, path]) > limit:
            packed.append(archive(folder / f"weights-{len(packed)}.tar.gz", share, out))
            share = []
        share.append(path)
    return [*packed, archive(folder / f"weights-{len(packed)}.tar.gz", share, out)] if share else packed


def archive(path: Path, files: Sequence[Path], root: Path) -> Path:
    with replacing(path) as part, tarfile.open(part, "w:gz", compresslevel=5) as tar:
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # a file of a run that is going on
                content = file.read_bytes()
                told = tarfile.TarInfo(str(file.relative_to(root)))
                told.size, told.mtime = len(content), int(file.stat().st_mtime)
                tar.addfile(told, io.BytesIO(content))
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.pack:
        for path in pack(options.out, options.pack):
            print(f"{path} {path.stat().st_size / 2**20:.1f} MiB")
        return 0
    limits = {part: options.budget or seconds for part, seconds in SECONDS.items()}
    device = "cuda" if torch.cuda.is_available() and not options.dry else "cpu"
    plan = Plan(options.data, options.out, device, options.dry, options.workers, tuple(limits.items()))
    plan = replace(plan, end=time.time() + options.total, wait=options.wait)
    plan.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(plan.out / "failures", ignore_errors=True)  # what failed before is tried again
    if plan.dry:
        dry_data(plan.data)
    unpack(plan.data)
    run_all(plan, options.only or tuple(SECONDS), options.mps)
    told = json.loads((plan.out / "gpu-summary.json").read_text())
    failed = told["failed"]
    for name, seeds_recorded in told["recorded"].items():
        losses = [
            json.loads(record_path(find(name), seed, plan.out).read_text())["test"]["loss"] for seed in seeds_recorded
        ]
        print(f"{name}: {format_mean_std(losses)} ({len(losses)})")
    print(f"{len(failed)} failures{': ' + ', '.join(failed) if failed else ''}", flush=True)
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="DIR", help="where data sets are (VAE_CORE_DATA, data/)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where records go (book/results/gpu)")
    parser.add_argument("--only", action="append", choices=list(SECONDS), help="this part alone; may be repeated")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="for each part, instead of its own limit")
    parser.add_argument("--total", type=float, metavar="SECONDS", default=TOTAL, help="for all together (480)")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        default=0,
        help="processes that train at once (the fastest number; 1 on a CPU)",
    )
    parser.add_argument("--mps", action="store_true", help="let their kernels run side by side, through CUDA's MPS")
    parser.add_argument("--wait", action="store_true", help="for CIFAR-10, whose parts may come while this runs")
    parser.add_argument("--dry", action="store_true", help="tiny settings on a CPU: does everything work?")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="pack what is in --out into DIR, and do nothing else")
    options = parser.parse_args(arguments)
    folder = default_out() / ("gpu-dry" if options.dry else "gpu")
    options.out = options.out or folder
    options.data = options.data or (options.out / ".data" if options.dry else ROOT / "data")
    return options


if __name__ == "__main__":
    sys.exit(main())
