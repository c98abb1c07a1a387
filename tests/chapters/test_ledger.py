"""The index of the source documents' items: each one names a chapter, a section in it, and a test, and all exist."""

import re

import pytest
from ledger import ITEMS, ROOT, functions, labels


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
