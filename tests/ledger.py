"""The ledger of the source documents' items, and what it points to."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


ITEMS = yaml.safe_load((ROOT / "book" / "ledger.yml").read_text())


@cache
def labels(chapter: str) -> set[str]:
    """The labels (…)= of a chapter's sections."""
    cells = json.loads((ROOT / "notebooks" / f"{chapter}.ipynb").read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return set(re.findall(r"^\(([\w:-]+)\)=$", text, re.MULTILINE))


@cache
def functions(path: str) -> set[str]:
    return {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}
