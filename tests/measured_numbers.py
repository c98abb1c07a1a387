"""How far printed numbers moved between code paths, as tests/tolerances.json keeps it, and what a tolerance may be.

    {"notebooks": {"05_gaussian_kl": {
        "paths": {"native, one thread": "torch 2.14.1, AVX512, 1 thread, …"},
        "cells": {"id": {"source": "digest of the code", "numbers": ["0.8163", "0.51 0.53"], "unstable": []}}}}}

A number that moved stands there with its lowest and highest value. `unstable` names the code paths on which the cell
printed other words, other integers or more or fewer numbers than on the first one: no tolerance helps against that.
"""

import copy
import hashlib
import json
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path

import nbformat
from nbval.plugin import coalesce_streams
from printed_numbers import Number, numbers, texts, value
from tolerance import check, label_of, layout, natural_label

RECORD = Path(__file__).with_name("tolerances.json")
STEPS = [Decimal(step) for step in (1, 2, 5)]


def load(path: Path = RECORD) -> dict:
    return json.loads(path.read_text()) if path.exists() else {"notebooks": {}}


def save(record: dict, path: Path = RECORD) -> None:
    """Write the record, one cell a line, to a temporary name first."""
    blocks = []
    for stem, one in sorted(record["notebooks"].items()):
        cells = ",\n".join(f"   {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in one["cells"].items())
        paths = json.dumps(one["paths"], ensure_ascii=False, indent=3).replace("\n}", "\n  }")
        blocks.append(f' {json.dumps(stem)}: {{\n  "paths": {paths},\n  "cells": {{\n{cells}\n  }}\n }}')
    part = path.with_suffix(".part")
    part.write_text('{"notebooks": {\n' + ",\n".join(blocks) + "\n}}\n")
    part.replace(path)


def read(notebook: Path) -> dict:
    return nbformat.read(notebook, as_version=4)


def digest(cell: dict) -> str:
    return hashlib.sha256("".join(cell["source"]).encode()).hexdigest()[:12]


def printed(cell: dict) -> tuple[list[Number], list[str]]:
    """All numbers of a cell's outputs, in the order of nbval's comparison, and the words between them."""
    found, words = [], []
    outputs = coalesce_streams(copy.deepcopy(cell["outputs"]))
    for kind, places in sorted(texts(outputs).items()):
        for place, key in places:
            text = "".join(place[key])
            if kind == "text/plain" and text.startswith("<"):
                continue  # <Figure size 600x400 with 1 Axes>
            found += (those := numbers(text, kind == "text/html"))
            words += layout(text, those)
    return found, words


def code_cells(notebook: dict) -> dict[str, dict]:
    return {cell["id"]: cell for cell in notebook["cells"] if cell["cell_type"] == "code"}


def is_current(measured: dict | None, notebook: dict) -> bool:
    """Whether these measurements are of this code: another cell before it may change what a cell prints."""
    sources = {name: digest(cell) for name, cell in code_cells(notebook).items() if printed(cell)[0]}
    return measured is not None and {name: cell["source"] for name, cell in measured["cells"].items()} == sources


def merge(measured: dict, first: dict, run: dict, name: str, description: str) -> None:
    """Add one run of a notebook to its measurements; `first` is the committed notebook."""
    measured["paths"][name] = description
    committed = code_cells(first)
    for cell_id, cell in code_cells(run).items():
        if cell_id not in committed or not printed(committed[cell_id])[0]:
            continue
        (wanted, words), (found, others) = printed(committed[cell_id]), printed(cell)
        known = measured["cells"].setdefault(
            cell_id, {"source": digest(cell), "numbers": [one.text for one in wanted], "unstable": []}
        )
        if words != others or _exact(wanted) != _exact(found):
            known["unstable"].append(name)
            continue
        known["numbers"] = [_wider(old, one) for old, one in zip(known["numbers"], found, strict=True)]


def _exact(found: list[Number]) -> list[str]:
    """The integers, nan and inf of a list of numbers, and where the decimals stand in it."""
    return [one.kind if one.kind == "decimal" else one.text for one in found]


def _wider(old: str, new: Number) -> str:
    """The range "low high" of a number, or its one value, with another value of it."""
    if new.kind != "decimal":
        return old
    values = sorted([*old.split(), new.text], key=value)
    return values[0] if value(values[0]) == value(values[-1]) else f"{values[0]} {values[-1]}"


def ranges(cell: dict, measured: dict) -> list[tuple[Number, Decimal]]:
    """Each decimal number that the cell shows, and how far it and the measured ones lie apart."""
    apart = []
    for one, old in zip(printed(cell)[0], measured["numbers"], strict=True):
        if one.kind == "decimal":
            values = [one.value, *(value(text) for text in old.split())]
            apart.append((one, max(values) - min(values)))
    return apart


def faults(cell: dict, measured: dict) -> list[str]:
    """Where the cell's tolerance is less than twice the range, more than five times, or missing."""
    wrong = [f"not the same text or integers on: {name}" for name in measured["unstable"]]
    stated = cell["metadata"].get("tolerance")
    rules = check(stated, coalesce_streams(copy.deepcopy(cell["outputs"]))) if stated else {}
    by_rule: dict[str, list] = {label: [] for label in rules}
    for one, apart in ranges(cell, measured):
        label = label_of(one, rules)
        if label is None:
            wrong += [f"{one.text} moved by {apart:g} and has no tolerance"] if apart else []
        else:
            by_rule[label].append((rules[label].allows(one.value), apart, one))
    for those in by_rule.values():
        wrong += [f"{one.text}: ± {a:g} is less than twice {apart:g}" for a, apart, one in those if a < 2 * apart]
        if not any(a <= 5 * apart for a, apart, _ in those) and not all(a <= one.unit for a, _, one in those):
            wrong.append(f"± {those[0][0]:g} is more than five times {max(apart for _, apart, _ in those):g}")
    return wrong


def rounded(range_: Decimal) -> float:
    """The largest of 1, 2, 5, 10, 20 … that is at most five times the range; it is more than twice the range."""
    power = Decimal(10) ** (5 * range_).adjusted()
    return float(max(step * power for step in STEPS if step * power <= 5 * range_))


def propose(cell: dict, measured: dict, sampled: bool) -> dict | None:
    """A tolerance for this cell: by label if some of its numbers moved and others did not.

    One unit of the last printed digit if the cell trains or samples and nothing moved; else None.
    """
    apart = ranges(cell, measured)
    moved = [(one, width) for one, width in apart if width]
    if not moved:
        return {"abs": float(min(one.unit for one, _ in apart))} if sampled and apart else None
    labels = {natural_label(one) for one, _ in moved}
    if len(moved) < len(apart) and "" not in labels:
        stated = {label: rounded(_widest(moved, label)) for label in sorted(labels)}
        if not faults({**cell, "metadata": {"tolerance": stated}}, {**measured, "unstable": []}):
            return stated
    sizes = [abs(one.value) for one, _ in moved if one.value]
    if sizes and max(sizes) > 100 * min(sizes) and len(sizes) == len(moved):
        return {"rel": rounded(max(width / abs(one.value) for one, width in moved))}
    return {"abs": rounded(max(width for _, width in moved))}


def _widest(moved: Iterable[tuple[Number, Decimal]], label: str) -> Decimal:
    return max(width for one, width in moved if natural_label(one) == label)
