"""Write `book/results/README.md`: what the chapters said, and what the runs on a card and further seeds say.

`python book/results_table.py` computes each number from the records, so that the table can be made again when a run is
added. What follows for the text is written by hand, in `results_claims.yml`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev

from reproduction import table
from results_claims import claims_table
from results_runs import KINDS, beginning, degradation, figures, overfitting, read, records, runs, spread

from vae_core.experiments.records import Record
from vae_core.experiments.registry import EXPERIMENTS, find

PAGE = Path(__file__).parent / "results" / "README.md"

INTRODUCTION = """# What the records say

This file is written by `python book/results_table.py` from the records in this folder; do not edit it. The first table
sets what the chapters said before beside what the runs say now, and names what changes in the text. The tables after it
hold the figures. `controls.md` does the same for four further measurements: variational EM at equal work (chapter 07),
a full-covariance q (15), contrastive codes where views matter (18), and a Fréchet distance of samples.

Records in `cuda/` are of runs that a CPU had recorded before, with the same settings and seeds; those in this folder
that name a CUDA device are of new names or seeds. All of them come from one NVIDIA H100. Up to twelve processes trained
there at once, so their `wall_seconds` are no times of single runs, which would have been shorter. Losses are in nats
per test image, mean ± standard deviation over *n* seeds. *Test − training* is the test loss minus the loss of the
training images, both in evaluation mode after the last epoch. A unit is active if its mean KL on test images is above
0.01 nats.
"""


def where(name: str, found: list[Record]) -> str:
    """The records' names, with their seeds."""
    return f"`{name}` (seeds {', '.join(str(record['seed']) for record in found)})"


Column = tuple[str, Callable[[list[Record]], str]]
LOSS: Column = ("loss", lambda found: spread(figures(found, "loss")))
TERMS: tuple[Column, ...] = (
    ("rec. error", lambda found: spread(figures(found, "reconstruction"))),
    ("KL", lambda found: spread(figures(found, "kl"))),
)
GAP: Column = ("test − training", lambda found: spread(overfitting(found)) if overfitting(found) else "–")
ACTIVE: Column = ("active units", lambda found: ", ".join(str(n) for n in figures(found, "active_units")))
LOG_P: Column = ("log p(x)", lambda found: spread(figures(found, "log_likelihood")))
BITS: Column = ("bits per dimension", lambda found: spread(figures(found, "bits_per_dimension"), 3))
MSE: Column = ("mse × 1000", lambda found: spread((1000 * value for value in figures(found, "mse")), 2))


def run_table(names: Sequence[str], *columns: Column) -> str:
    """A row for each experiment: n, the columns, and where its records are."""
    rows = []
    for name in names:
        found = runs(name)
        rows.append([str(len(found)), *(column(found) for _, column in columns), where(name, found)])
    return table(["n", *(title for title, _ in columns), "records"], rows)


def units_section() -> str:
    """How many units are active at d = 20, and under which settings."""
    names = ["chen-mnist-d20", *beginning("units-mnist"), "ablation-no-batch-norm", "fast-mnist-d20"]
    text = run_table(names, ACTIVE, LOSS, *TERMS, GAP)
    fashion = run_table(["chen-fashion-d20", "binary-fashion-d20"], ACTIVE, LOSS, *TERMS, GAP)
    return f"{text}\n\nGrey and binarised Fashion-MNIST:\n\n{fashion}"


def devices_section() -> str:
    """The same seeds and settings on a CPU and on the card, beside what seeds do."""
    rows = []
    for name in EXPERIMENTS:
        cpu, cuda = ({r["seed"]: r["test"]["loss"] for r in records(name, device)} for device in ("cpu", "cuda"))
        if not (both := [seed for seed in cpu if seed in cuda]):
            continue
        differences = ", ".join(f"{cuda[seed] - cpu[seed]:+.2f}" for seed in both)
        seeds = f"{stdev(cuda.values()):.2f} (n = {len(cuda)})" if len(cuda) > 1 else "–"
        rows.append([f"`{name}`", ", ".join(map(str, both)), differences, seeds])
    return table(["experiment", "seeds", "loss on the card − on the CPU", "standard deviation over seeds"], rows)


def robustness_section() -> str:
    """The errors on clean images as multiples of the error without noise."""
    rows = []
    for size in (2, 10, 50):
        clean = [spread((1000 * v for v in figures(runs(f"saleh-robustness-{k}-k{size}-n0"), "mse")), 2) for k in KINDS]
        for percent in (10, 30):
            cells = [spread(degradation(kind, size, percent)) for kind in KINDS]
            rows.append([str(size), f"{percent / 100:.1f}", *clean, *cells, "3 + 3"])
    head = ["K", "ν", "VAE, ν = 0", "AE, ν = 0", "VAE, ratio", "AE, ratio", "n"]
    return table(head, rows)


def binarised_once() -> str:
    """log p(x) of new digits: training images drawn once, minus drawn afresh, seed by seed."""
    rows = []
    for k in (1, 5, 50):
        fresh = {r["seed"]: r["test"]["log_likelihood"] for r in runs(f"iwae-mnist-k{k}")}
        once = {r["seed"]: r["test"]["log_likelihood"] for r in runs(f"static-iwae-mnist-k{k}")}
        both = sorted(fresh.keys() & once.keys())
        differences = [once[seed] - fresh[seed] for seed in both]
        rows.append([str(k), str(len(both)), spread(differences), ", ".join(f"{d:+.2f}" for d in differences)])
    return table(["K", "n", "once − afresh", "by seed"], rows)


def pca_section() -> str:
    """PCA of CIFAR-10 beside the networks."""
    rows = [
        [f"`{name}`" if name in EXPERIMENTS else name, f"{1000 * row['mse']:.2f}", f"{100 * row['linear']:.1f} %"]
        for name, row in read("pca-cifar10")["rows"].items()
    ]
    measured = read("measured-cifar10")["figures"]
    rows.append(
        [
            "`chen-cifar10-fc` *",
            f"{1000 * measured['mse']['fc']:.2f}",
            f"{100 * measured['probes']['fc']['linear']:.1f} %",
        ]
    )
    rows.append(["raw pixels *", "–", f"{100 * measured['probes']['raw pixels']['linear']:.1f} %"])
    text = table(["codes", "mse × 1000", "linear classifier, accuracy"], rows)
    return (
        f"{text}\n\n\\* from `measured-cifar10.json`, without a checksum of its data; all else from `pca-cifar10.json`."
    )


def best_codes_section() -> str:
    """What a search for the best q gains on training and on test images, over seeds."""
    found: dict[tuple[str, int], list[dict]] = {}
    for key, row in sorted(read("best-codes")["rows"].items()):
        name, _, epoch = key.split(", ")
        found.setdefault((name, int(epoch.split()[1])), []).append(row)
    rows = []
    for (name, epoch), each in sorted(found.items()):
        whole = [row["test"]["whole_set"] - row["train"]["whole_set"] for row in each]
        gains = {split: [row[split]["gain"]["mean"] for row in each] for split in ("train", "test")}
        share = [test - train for train, test in zip(gains["train"], gains["test"], strict=True)]
        error = mean((row["train"]["gain"]["error"] ** 2 + row["test"]["gain"]["error"] ** 2) ** 0.5 for row in each)
        cells = [spread(values) for values in (whole, gains["train"], gains["test"], share)]
        part = f"{100 * mean(share) / mean(whole):.0f} %" if mean(whole) > 3 * error else "–"
        rows.append([f"`{name}`", str(epoch), str(len(each)), *cells, f"{error:.2f}", part])
    head = ["network", "epoch", "n", "gap", "gain, training", "gain, test", "the encoder's", "error", "share"]
    images = next(iter(found.values()))[0]["images"]
    return f"{table(head, rows)}\n\n{BEST_CODES.format(images=images)}"


BEST_CODES = """*Gap* is the test loss minus the training loss, on whole sets; *gain* is what the search gains over the
encoder's q, on the first {images} images of each set; *the encoder's* is their difference, and *error* its standard
error over images in one network. The share has no entry where the gap is within three of these errors."""


def residual_section() -> str:
    """Bits per dimension on CIFAR-10."""
    return run_table(["bits-cifar10-shared-gaussian", "bits-cifar10-cnn", "residual-cifar10"], BITS, *TERMS, GAP, MSE)


SECTIONS: dict[str, Callable[[], str]] = {
    "Chapters 09 and 11: the thesis' rows": lambda: run_table(
        beginning("chen-mnist", "chen-fashion"), LOSS, *TERMS, ACTIVE, GAP
    ),
    "Chapters 09 and 11: what decides how many units are active, d = 20": units_section,
    "Chapter 10: Irvin's networks after 100 epochs": lambda: run_table(
        beginning("irvin-z2-e", "irvin-z3-e", "irvin-z50-e"), LOSS, *TERMS, ACTIVE, GAP
    ),
    "Chapter 10: how much of the gap is the encoder's": best_codes_section,
    "Chapter 12: dense against convolutional on CIFAR-10": lambda: run_table(
        [*beginning("chen-cifar10"), *beginning("cifar10-")], LOSS, *TERMS, ACTIVE, GAP, MSE
    ),
    "Chapter 12: PCA as a control": pca_section,
    "Chapter 12: a proper likelihood, and a residual network": residual_section,
    "Chapter 13: robustness, errors as multiples of those without noise": robustness_section,
    "Chapter 14: bits per dimension on MNIST": lambda: run_table(beginning("bits-mnist"), BITS, *TERMS, ACTIVE, GAP),
    "Chapter 14: binarised once or afresh": binarised_once,
    "Chapter 15: β on binarised MNIST, d = 20": lambda: run_table(
        sorted(["binary-mnist-d20", *beginning("beta-binary")], key=lambda name: find(name).beta),
        ("β", lambda found: f"{found[0]['config'].get('beta', 1):g}"),
        ("D", TERMS[0][1]),
        ("R", TERMS[1][1]),
        ("−ELBO = D + R", LOSS[1]),
        LOG_P,
        ACTIVE,
    ),
    "Chapter 17: the number of draws K": lambda: run_table(
        beginning("iwae", "static-iwae"), ("−ELBO", LOSS[1]), *TERMS, LOG_P, ACTIVE, GAP
    ),
    "The card against a CPU": devices_section,
}


def page() -> str:
    """The whole file."""
    parts = [INTRODUCTION, claims_table(), *(f"\n## {title}\n\n{section()}" for title, section in SECTIONS.items())]
    return "\n".join(parts) + "\n"


def write() -> None:
    PAGE.write_text(page())


if __name__ == "__main__":
    write()
