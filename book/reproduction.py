"""Write the page "Reproduction" from the records in `book/results` (part of every build)."""

from itertools import groupby
from pathlib import Path
from statistics import mean

from vae_core.catalogue import EXPERIMENTS, Experiment
from vae_core.records import Record, default_out, spread, valid_records

PAGE = Path(__file__).with_name("reproduction.md")
FIGURES = ("loss", "reconstruction", "kl")

INTRODUCTION = """# Reproduction

Each experiment of the source documents has a name, and one command runs it:

```
python -m vae_core run NAME           # one of them
python -m vae_core reproduce          # all that have no valid record, cheapest first
python -m vae_core table              # this page's figures, in the terminal
```

The tables are made from the records that these commands wrote, in `book/results/`; a record also holds every epoch's
figures, the commit, the versions and the checksum of the data. All figures are **nats per test image**, mean ± standard
deviation over seeds where there are several runs; the last column is the mean training time in seconds. The loss is
reconstruction error plus KL. On grey pixels the reconstruction error cannot fall below the *entropy floor*
{eq}`eq:notation-floor`, so the mean *excess* over it is given too. A unit is *active* if its own KL, averaged over the
test images, is above 0.01 nats. Where a document printed a number, it stands beside ours; the thesis shows its MNIST
and Fashion-MNIST losses only as points in figures.
"""

HEAD = "| experiment | {printed}loss | rec. error | KL | excess | active | runs | s |\n|---|{rule}{columns}"


def row(experiment: Experiment, records: list[Record], with_printed: bool) -> str:
    tests = [record["test"] for record in records]
    printed = [" / ".join(f"{experiment.printed[f]:.2f}" for f in FIGURES if f in experiment.printed) or "–"]
    cells = [f"`{experiment.name}`", *(printed if with_printed else [])]
    cells += [spread(test[figure] for test in tests) for figure in FIGURES]
    cells.append(f"{mean(test['reconstruction'] - test['entropy_floor'] for test in tests):.2f}")
    cells.append(", ".join(str(test["active_units"]) for test in tests))
    cells.append(str(len(records)))
    cells.append(f"{mean(record['wall_seconds'] for record in records):.0f}")
    return f"| {' | '.join(cells)} |"


def section(source: str, group: list[tuple[Experiment, list[Record]]]) -> str:
    with_printed = any(experiment.printed for experiment, _ in group)
    head = HEAD.format(
        printed="printed (loss / rec. / KL) | " if with_printed else "",
        rule="---|" if with_printed else "",
        columns="---|" * 7,
    )
    _, records = group[0]
    floor, n = records[0]["test"]["entropy_floor"], records[0]["test"]["n"]
    devices = sorted({record["device"] for _, records in group for record in records})
    rows = "\n".join(row(experiment, records, with_printed) for experiment, records in group)
    told = f"{n:,} test images, entropy floor {floor:.2f} nats; trained on {' and on '.join(devices)}."
    return f"## {source[0].upper()}{source[1:]}\n\n{told}\n\n{head}\n{rows}\n"


def page() -> str:
    """The whole page; experiments without a valid record are named at its end."""
    recorded = [(e, valid_records(e, default_out())) for e in EXPERIMENTS.values()]
    groups = groupby(((e, records) for e, records in recorded if records), key=lambda pair: pair[0].source)
    parts = [INTRODUCTION, *(section(source, list(group)) for source, group in groups)]
    missing = [f"`{e.name}`" for e, records in recorded if not records]
    if missing:
        parts.append(f"## Not recorded yet\n\nDefined, and to be had by `run`: {', '.join(missing)}.\n")
    return "\n".join(parts)


def write() -> None:
    PAGE.write_text(page())


if __name__ == "__main__":
    write()
