"""The index of claims and errata: every judged item says why, every erratum leads to where it is shown."""

import re
from itertools import chain

import claims
import pytest
from ledger import ROOT, labels

ITEMS, ERRATA = claims.load("ledger.yml"), claims.load("errata.yml")
JUDGED = {name: item for name, item in ITEMS.items() if "verdict" in item}


@pytest.mark.parametrize("name", JUDGED)
def test_a_verdict_names_the_claim_and_the_number_that_decides(name):
    item = JUDGED[name]
    assert item["verdict"] in claims.VERDICTS
    assert len(item["claim"]) > 10
    assert re.search(r"\d|\b(one|two|three|four|none|every|no)\b", item["because"], re.IGNORECASE)


@pytest.mark.parametrize("name", ERRATA)
def test_an_erratum_says_what_is_printed_and_what_is_right(name):
    entry = ERRATA[name]
    assert set(entry) == {"where", "severity", "said", "right", "section"}
    assert entry["severity"] in claims.SEVERITIES
    assert entry["where"]
    assert entry["said"]
    assert entry["right"]


def test_every_section_of_an_erratum_exists():
    known = set(chain.from_iterable(labels(path.stem) for path in ROOT.glob("notebooks/*.ipynb")))
    assert {entry["section"] for entry in ERRATA.values() if entry["section"]} <= known


def test_a_major_erratum_of_a_written_chapter_is_shown():
    missing = [name for name, e in ERRATA.items() if e["severity"] == "major" and not e["section"]]
    assert missing == []


def test_the_page_holds_one_row_for_each():
    rows = [line for line in claims.page().splitlines() if line.startswith("| ") and "---" not in line]
    heads = len(claims.DOCUMENTS) + bool(JUDGED)
    assert len(rows) == len(ERRATA) + len(JUDGED) + heads


def test_a_bar_in_a_formula_is_no_border():
    rows = [line for line in claims.page().splitlines() if line.startswith("| ")]
    assert {len(re.split(r"(?<!\\)\|", row)) - 2 for row in rows} == {4, 5}
    assert r"p(x\|z)" in claims.page()


def test_claims_stand_in_the_documents_order():
    made = {"section": "sec:x", "claim": "more is more", "verdict": "holds", "because": "2 > 1"}
    items = {"S-4.1.8": made | {"claim": "third"}, "C-4.2.10": made | {"claim": "second"}, "C-4.2.9": made}
    text = claims.claims_table(items)
    assert text.index("more is more") < text.index("second") < text.index("third")
    assert re.findall(r"\d+", next(line for line in text.splitlines() if "claims" in line)) == ["3", "3", "0", "0"]
