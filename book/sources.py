"""Write the page "From the sources to the sections" from `book/ledger.yml` (part of every build)."""

import json
from functools import cache
from itertools import pairwise
from pathlib import Path

from claims import cell, load, number
from reproduction import table

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
PAGE = Path(__file__).with_name("sources.md")
# How many items each document has. They were numbered once, when the documents were read, before a chapter was written.
TOTALS = {"C": 153, "L": 51, "S": 55, "I": 18, "D": 31}
TITLES = {
    "C": ("Chen's thesis", "chen2020variational"),
    "L": ("The lecture notes", "lecturenotes"),
    "S": ("Saleh's report", "saleh2019variational"),
    "I": ("Irvin's report", "irvin2016auto"),
    "D": ("Linderman's slides", "linderman2023vae"),
}

INTRODUCTION = """(ledger)=
# From the sources to the sections

Before the first chapter was written, the five source documents were read line by line, and all that they define,
derive, run, show or claim was numbered: {total} items, by the sections of each document. Each has a place in this book
and a test. **{placed} of {total}** are in place. A test that is a notebook means the cells of that
section, whose printed results are compared. Of a claim the table also gives our verdict; {{doc}}`claims` says what
decided it.
"""


@cache
def headings(chapter: str) -> dict[str, str]:
    """Labels that stand in the middle of a section, before a box for instance, and the heading of that section."""
    cells = json.loads((NOTEBOOKS / f"{chapter}.ipynb").read_text())["cells"]
    lines = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown").splitlines()
    found, heading = {}, ""
    for line, following in pairwise([*lines, ""]):
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("(") and line.endswith(")=") and not following.startswith("#"):
            found[line[1:-2]] = heading
    return found


def link(item: dict) -> str:
    """A link to the item's section, by its heading; a label on a heading finds that by itself."""
    label, heading = item["section"], headings(item["chapter"]).get(item["section"])
    return f"{{ref}}`{heading} <{label}>`" if heading else f"{{ref}}`{label}`"


def row(name: str, item: dict) -> list[str]:
    claim = f"<br>*{cell(item['claim'])}* **{item['verdict'].capitalize()}.**" if "claim" in item else ""
    return [name, link(item) + claim, f"`{item['test']}`"]


def section(letter: str, items: dict[str, dict]) -> str:
    """One document: how many of its items are in place, and a row for each of them."""
    title, source = TITLES[letter]
    names = sorted((name for name in items if name[0] == letter), key=number)
    heading = f"## {title}\n\n{len(names)} of {TOTALS[letter]} items of {{cite:t}}`{source}`."
    return heading + "\n\n" + table(["item", "section", "test"], [row(name, items[name]) for name in names])


def page() -> str:
    items, total = load("ledger.yml"), sum(TOTALS.values())
    head = INTRODUCTION.format(total=total, placed=len(items))
    return "\n\n".join((head.rstrip(), *(section(letter, items) for letter in TOTALS))) + "\n"


def write() -> None:
    PAGE.write_text(page())


if __name__ == "__main__":
    write()
