"""Write the page "Claims and errata" from `book/ledger.yml` and `book/errata.yml` (part of every build)."""

from pathlib import Path

import yaml
from reproduction import table

HERE = Path(__file__).resolve().parent
PAGE = HERE / "claims.md"
DOCUMENTS = {"C": "Chen's thesis", "L": "the lecture notes", "S": "Saleh's report", "I": "Irvin's report"}
DOCUMENTS |= {"D": "Linderman's slides", "X": "all documents"}
VERDICTS = {"holds": "hold", "holds in part": "hold in part", "does not hold here": "do not hold here"}
SEVERITIES = ("major", "minor", "nit", "cleared")

INTRODUCTION = """# Claims and errata

Five documents are the source of this book ({doc}`bibliography`), and all of them taught us something. Where they make a
claim about an experiment, a chapter repeats the experiment and says whether the claim holds, with the number that
decides. Where a formula or a statement is not right as printed, a chapter says what is right, and a cell there proves
it. This page is the index of both, made from the same files as the chapters' tests.

## Claims

{claims}

## Errata

Of {count} entries {counts}. *Major* ones change a result, or a formula that one would copy; *minor* ones are wrong or
incomplete with a small effect; a *nit* is a letter; *cleared* is what looked wrong and is right. A row without
a section is about letters only, or about derivations spread over several chapters.

{errata}
"""


def load(name: str) -> dict[str, dict]:
    return yaml.safe_load((HERE / name).read_text())


def cell(text: str) -> str:
    """Text for a table, in which a bar of a formula is no border."""
    return text.replace("|", "\\|")


def section(label: str | None) -> str:
    """A link to a labelled section, under the section's own title."""
    return f"{{ref}}`{label}`" if label else "–"


def claims_table(items: dict[str, dict]) -> str:
    """One row for each item that carries a verdict, document by document."""
    judged = {name: item for name, item in items.items() if "verdict" in item}
    if not judged:
        return "No claim has been judged yet."
    counts = [f"{sum(item['verdict'] == v for item in judged.values())} {plural}" for v, plural in VERDICTS.items()]
    rows = [
        [cell(item["claim"]), f"**{item['verdict']}**", cell(item["because"]), section(item["section"])]
        for _, item in sorted(judged.items(), key=lambda pair: (list(DOCUMENTS).index(pair[0][0]), number(pair[0])))
    ]
    found = f"Of {len(judged)} claims {', '.join(counts[:2])}, and {counts[2]}."
    return "\n\n".join((found, table(["claim", "verdict", "what decides", "section"], rows)))


def number(name: str) -> list[int]:
    """The numbers in an identifier: C-4.2.10 -> [4, 2, 10]; those of an appendix come last."""
    parts = name.split("-")[-1].split(".")
    return [int(part) if part.isdigit() else 99 for part in parts]


def errata_tables(entries: dict[str, dict]) -> str:
    """A table for each document."""
    parts = []
    for letter, document in DOCUMENTS.items():
        rows = [
            [*(cell(entry[part]) for part in ("where", "severity", "said", "right")), section(entry["section"])]
            for name, entry in entries.items()
            if name.startswith(f"E-{letter}")
        ]
        title = document[0].upper() + document[1:]
        parts.append(f"### {title}\n\n" + table(["where", "weight", "printed", "right", "section"], rows))
    return "\n\n".join(parts)


def page() -> str:
    errata = load("errata.yml")
    counts = [f"{sum(e['severity'] == s for e in errata.values())} are {s}" for s in SEVERITIES[:2]]
    counts += [f"{sum(e['severity'] == 'nit' for e in errata.values())} nits"]
    counts += [f"{sum(e['severity'] == 'cleared' for e in errata.values())} cleared"]
    text = INTRODUCTION.replace("{claims}", claims_table(load("ledger.yml"))).replace("{count}", str(len(errata)))
    return text.replace("{counts}", ", ".join(counts)).replace("{errata}", errata_tables(errata))


def write() -> None:
    PAGE.write_text(page())


if __name__ == "__main__":
    write()
