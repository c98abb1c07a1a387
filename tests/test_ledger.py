"""The index of the source documents' items: each one names a chapter, a section in it, and a test, and all exist."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest
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


def test_identifiers_are_those_of_the_documents():
    assert all(re.fullmatch(r"[CLSID](-[A-Z])?-?[\d.]+", name) for name in ITEMS), sorted(ITEMS)


@pytest.mark.parametrize("name", ITEMS)
def test_an_item_leads_to_its_section_and_its_test(name):
    item = ITEMS[name]
    assert set(item) in ({"chapter", "section", "test"}, {"chapter", "section", "test", "claim", "verdict", "because"})
    assert item["section"] in labels(item["chapter"])
    path, _, function = item["test"].partition("::")
    assert (ROOT / path).exists()
    if path.endswith(".py"):
        assert re.sub(r"\[.*", "", function) in functions(path)
    else:
        assert path == f"notebooks/{item['chapter']}.ipynb"
