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
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "tests", ROOT):  # there is no installed vae_core on a machine without network
    sys.path.insert(0, str(folder))

import torch  # noqa: E402
from gpu_data import dry_data, unpack  # noqa: E402
from gpu_pack import pack  # noqa: E402
from gpu_plan import SECONDS, TOTAL, TRAINED, Plan, is_recorded, items  # noqa: E402
from gpu_processes import in_child, sharing, survived  # noqa: E402
from gpu_speed import best_workers, measure_speed  # noqa: E402
from gpu_training import train  # noqa: E402

from vae_core import training  # noqa: E402
from vae_core.experiments.records import (  # noqa: E402
    commit,
    default_out,
    format_mean_std,
    record_path,
    versions,
    write_record,
)
from vae_core.experiments.registry import find  # noqa: E402
from vae_core.models import mlp_vae  # noqa: E402
from vae_core.objectives import elbo_terms  # noqa: E402
from vae_core.runtime import Runtime  # noqa: E402


def run_all(plan: Plan, parts: Sequence[str], mps: bool) -> None:
    if not first_steps_succeed(plan):
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


def first_steps_succeed(plan: Plan) -> bool:
    """Whether a captured step trains; on a card a process of its own tries, since an error would poison ours."""
    if plan.device == "cuda":
        return in_child(first_steps, plan, seconds=150) != 1
    with contextlib.suppress(SystemExit):
        first_steps(plan)
    return True


def first_steps(plan: Plan) -> None:
    """Train a little with a captured step, and write down the machine; exit status 1 if that does not work."""
    with survived(plan.out / "failures" / "first-steps.txt") as went:
        write_record(machine(plan), plan.out / "gpu-machine.json")
        model, x = mlp_vae((1, 28, 28), 2), torch.randint(0, 256, (1000, 1, 28, 28), dtype=torch.uint8)
        history = training.fit(model, x, elbo_terms, epochs=3, device=plan.device, progress=False)
        assert history[-1]["loss"] < history[0]["loss"]
    sys.exit(0 if went else 1)


def machine(plan: Plan) -> dict:
    """What the figures were measured on."""
    found = {"commit": commit(), "device": Runtime.detect(plan.device).describe(), "versions": versions()}
    found |= {"cpus": os.cpu_count(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    tf32 = {"matmul": torch.backends.cuda.matmul.allow_tf32, "convolutions": torch.backends.cudnn.allow_tf32}
    return found | {"tf32": tf32, "began": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())}


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


def summary(plan: Plan) -> dict:
    """What is there: for each experiment the seeds that are recorded; and what failed."""
    found: dict[str, list[int]] = {}
    for item in dict.fromkeys(("", *item[1:]) for item in items(plan, TRAINED)):
        if is_recorded(plan, item):
            found.setdefault(item[1], []).append(item[2])
    failed = sorted(path.stem for path in (plan.out / "failures").glob("*.txt"))
    return {"recorded": found, "failed": failed, "seconds_left": plan.end - time.time()}


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
