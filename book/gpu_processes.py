"""Processes of `gpu.py`: what fails is written down, what takes too long is stopped, and how several share a card."""

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpu_plan import Plan

from vae_core import training
from vae_core._training.steps import Step

spawn = multiprocessing.get_context("spawn")


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
        training.GraphedStep = Step  # type: ignore[misc, assignment]
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
