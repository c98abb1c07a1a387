"""Under an output with a stated tolerance: how far its numbers may move and on how many code paths that was measured.

A Sphinx extension. The tolerance stands in the cell's metadata (tests/tolerance.py compares by it), the code paths in
tests/tolerances.json, which `make tolerances` writes.
"""

import json
from decimal import Decimal
from pathlib import Path

from docutils import nodes

RECORD = Path(__file__).resolve().parents[1] / "tests" / "tolerances.json"
COUNTS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def number(size: float) -> str:
    """A number without an exponent: 1e-06 as 0.000001."""
    return f"{Decimal(str(size)).normalize():f}"


def width(stated: dict | float) -> str:
    """One tolerance: ± 0.05, ± 2 %, or the wider of both."""
    stated = stated if isinstance(stated, dict) else {"abs": stated}
    sizes = [number(stated["abs"])] if "abs" in stated else []
    sizes += [f"{number(float(Decimal(str(stated['rel'])) * 100))} %"] if "rel" in stated else []
    return f"± {' or '.join(sizes)}"


def sentence(stated: dict, paths: int) -> str:
    """What a reader is told of a tolerance, measured on so many code paths."""
    count = COUNTS[paths] if paths < len(COUNTS) else str(paths)
    where = f"on {count} code path{'s' * (paths > 1)}" if paths else ""
    if stated.keys() <= {"abs", "rel"}:
        return f"checked to {width(stated)} {where}".strip()
    return ", ".join([f"checked: {', '.join(f'{label} {width(one)}' for label, one in stated.items())}", where]).strip(
        ", "
    )


def in_order(stated: dict, outputs: list[dict]) -> dict:
    """The labels in the order in which they are printed; notebooks keep them by the alphabet."""
    printed = json.dumps(outputs, ensure_ascii=False).casefold()
    return {label: stated[label] for label in sorted(stated, key=lambda label: printed.find(label.casefold()))}


def add(app, doctree: nodes.document) -> None:
    """Put the sentence below the output of every cell of this page that has a tolerance.

    The metadata is read from the notebook: the cache of executed notebooks keeps that of the cell's last run.
    """
    page = Path(app.env.doc2path(app.env.docname))
    if page.suffix != ".ipynb":
        return
    app.env.note_dependency(str(RECORD))
    known = json.loads(RECORD.read_text())["notebooks"] if RECORD.exists() else {}
    paths = len(known.get(page.stem, {"paths": ()})["paths"])
    cells = json.loads(page.read_text())["cells"]
    for output in [one for one in doctree.findall(nodes.container) if one.get("nb_element") == "cell_code_output"]:
        cell = cells[output.parent["cell_index"]]
        if stated := cell["metadata"].get("tolerance"):
            text = sentence(in_order(stated, cell["outputs"]), paths)
            output += nodes.paragraph(text, text, classes=["tolerance"])


def setup(app) -> dict:
    """Called by Sphinx."""
    app.connect("doctree-read", add)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
