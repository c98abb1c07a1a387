"""Measure how far the numbers that the notebooks print move from one code path to another: `make tolerances`, or

    python tests/measure_tolerances.py [NOTEBOOK…]            measure what is not known yet, and propose tolerances
    python tests/measure_tolerances.py --write [NOTEBOOK…]    the same, and write them into the cells' metadata
    python tests/measure_tolerances.py --as NAME [NOTEBOOK…]  one more path: this Python and environment as they are

Another instruction set or another number of threads adds numbers up in another order, and training amplifies it.
Seeds stay as they are: they are part of a cell. Every run is kept at once in tests/tolerances.json; a second call goes
on where the first stopped, and a notebook whose code has changed begins anew. All notebooks take about forty minutes.
"""

import argparse
import copy
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from measured_numbers import code_cells, faults, is_current, load, merge, printed, propose, save
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
PLAIN = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
ONE, TWO = ({"OMP_NUM_THREADS": n, "MKL_NUM_THREADS": n, "OMP_WAIT_POLICY": "PASSIVE"} for n in "12")
PATHS = {
    "native, one thread": ONE,
    "native, two threads": TWO,
    "AVX2, one thread": AVX2 | ONE,
    "AVX2, two threads": AVX2 | TWO,
    "SSE, one thread": PLAIN | ONE,
}
SAMPLES = re.compile(
    r"\bfit\w*\(|\.r?sample\(|\brandn?(?:int|perm|_like)?\(|\b(?:multinomial|bernoulli|poisson|normal)\(|monte_carlo\("
)
ASK = """import torch
version, capability = torch.__version__.split("+")[0], torch.backends.cpu.get_cpu_capability()
print(f"torch {version}, {capability}, threads: {torch.get_num_threads()}")"""


def trains_or_samples(cell: dict) -> bool:
    return bool(SAMPLES.search("".join(cell["source"])))


def processor() -> str:
    """What the processor is and which of the instruction sets that matter it has."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    name = re.search(r"model name\s*: (.*)", text)
    has = [one for one in ("sse4_2", "avx2", "avx512f", "avx512_bf16", "amx_tile") if re.search(rf"\b{one}\b", text)]
    return f"{name[1] if name else 'unknown processor'} ({' '.join(has)})"


def run(path: Path, environment: dict[str, str]) -> tuple[dict, str]:
    """Run a notebook in its own folder under this environment; the result, and what torch says of it."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(ASK))
    resources = {"metadata": {"path": path.parent}}
    client = NotebookClient(notebook, timeout=1200, record_timing=False, resources=resources)
    client.execute(env=os.environ | {"TQDM_DISABLE": "1"} | environment)
    said = notebook.cells.pop().outputs[0].text.strip()
    return notebook, f"{said}, {processor()}"


def measure(path: Path, record: dict, paths: dict[str, dict], again: bool) -> None:
    """Run what is not known of one notebook, and keep each run."""
    committed = nbformat.read(path, as_version=4)
    measured = record["notebooks"].get(path.stem)
    if again or not is_current(measured, committed):
        measured = {"paths": {}, "cells": {}}
    for name in [name for name in paths if name not in measured["paths"]]:
        begin = time.perf_counter()
        result, description = run(path, paths[name])
        merge(measured, committed, result, name, description)
        record["notebooks"][path.stem] = measured
        save(record)
        print(f"{path.stem}, {name}: {description} ({time.perf_counter() - begin:.0f} s)", flush=True)


def report(path: Path, record: dict, write: bool) -> None:
    """Say what tolerance each cell should have that has none or a wrong one; write it if asked to."""
    notebook, measured = nbformat.read(path, as_version=4), record["notebooks"][path.stem]["cells"]
    before = copy.deepcopy(notebook)
    for name, cell in code_cells(notebook).items():
        if name not in measured:
            continue
        stated = cell.metadata.get("tolerance")
        wrong = faults(cell, measured[name])
        proposed = propose(cell, measured[name], trains_or_samples(cell))
        if wrong or (stated is None and proposed):
            print(f"  {path.stem}, cell {name}: {'; '.join(wrong) or 'no tolerance'}. Proposed: {proposed}", flush=True)
            if proposed is None:
                cell.metadata.pop("tolerance", None)
            else:
                cell.metadata["tolerance"] = proposed
    if write and notebook != before:
        part = path.with_suffix(".part")
        nbformat.write(notebook, part)
        part.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    parser.add_argument("--write", action="store_true", help="put the proposed tolerances into the metadata")
    parser.add_argument("--again", action="store_true", help="forget what is known of these notebooks")
    parser.add_argument("--as", dest="name", help="measure this Python as it is, under this name")
    options = parser.parse_args()
    record = load()
    print(f"This machine: {processor()}")
    for path in options.notebooks or sorted(ROOT.glob("notebooks/*.ipynb")):
        if any(printed(cell)[0] for cell in code_cells(nbformat.read(path, as_version=4)).values()):
            measure(path.resolve(), record, {options.name: {}} if options.name else PATHS, options.again)
            report(path.resolve(), record, options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
