"""Write the page "Performance" (part of every build).

It is made from `book/results/bench-*.json`, which `make bench` writes, and `gpu-speed.json`, which `make gpu` does.
"""

import json
from pathlib import Path

from reproduction import active, table

from vae_core.experiments.records import LOSSES, default_out, format_mean_std, valid_records
from vae_core.experiments.registry import find

PAGE = Path(__file__).with_name("performance.md")

INTRODUCTION = """# Performance

A training loop for small networks can lose most of its time to what is not arithmetic: decoding one image at a time,
copying batches, waiting for a number to print. The loop of `vae_core.training.fit` keeps the whole data set in memory
on the device, gathers each batch by index, and reads nothing out before the end of an epoch. How much is that worth,
and what is left to gain?

`make bench` measures it: images per second of one pass over 12,800 MNIST images at batch 128, ours and the other's in
turn, at least five rounds; the table shows medians, and the range of the ratio within one run. Only the ratios mean
anything on another machine.

- **The matrix products' rate** is the limit for dense layers: the products of a step alone, same shapes, nothing else.
- **The thesis' way** is its listing A.2, written anew: a `DataLoader`, one image at a time, `.item()` after each step.
- **PyTorch's example** and **Pythae's trainer** run their own networks (one hidden layer), and so do we beside them.
- **Linear models** are whole fits of the 60,000 images with 20 components, against scikit-learn's (three rounds).
- **The explorer** is measured in a browser: how soon it stands, how fast it draws; at the end of this page.
- **The preset fast** reaches the thesis network's own 20-epoch test loss sooner; its ratio is of
  the times to that loss, so it counts 20 epochs against 6 as well.
"""

FAST = """## The same loss sooner

`fast-mnist-d20` trains the thesis' network for {epochs} epochs instead of 20, with batches of {batch_size}, a learning
rate that rises to {learning_rate} and falls to nothing (one cycle), and a KL whose weight rises from 0 to 1 over the
first {warm_up} % of all steps; the second decay rate of Adam is {betas[1]}. The weight is 1 for the rest, so what is
optimised in the end, and what is tested, is the same bound. The warm-up matters most: it lets more latent units live
before the KL can close them.

{table}
"""


WHY = """The products of this network are so small that the many short operations around them
count: normalising, activating, adding up, and the bookkeeping of automatic differentiation, each of them a pass over
memory and a call. That is what keeps the first rows below their targets; a compiler
(`torch.compile`) merges some of these passes, larger batches make them rarer."""


def rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def short(value: float) -> str:
    """Two digits, readable: 6.3, 21,000, 2·10⁻¹³."""
    if 0 < value < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"${float(mantissa):g}\\cdot10^{{{int(exponent)}}}$"
    return rate(float(f"{value:.2g}"))


def bench_section(record: dict) -> str:
    unit = record.get("unit", "images/s")
    head = ["ours against", f"ours, {unit}", f"other, {unit}", "ratio", "from – to", "target", "met"]
    rows = []
    for row in record["rows"]:
        numbers = [*(rate(row[side]) for side in ("ours", "other")), f"{row['ratio']:.2f}"]
        met = "yes" if row["ratio"] >= row["target"] else f"no, {row['ratio'] / row['target'] - 1:+.0%}"
        rows.append([row["what"], *numbers, f"{row['low']:.2f} – {row['high']:.2f}", f"{row['target']:g}", met])
    told = f"torch {record['versions']['torch']}; median of {record['rounds']} rounds."
    text = f"## On {record['device']}\n\n{told}\n\n{table(head, rows)}\n"
    if "breakdown" in record:
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in record["breakdown"].items())
        text += f"\nWhere the processor's time goes in a pass of ours: {shares}. {WHY}\n"
    return text


GRADIENTS = """## What a gradient costs, and how much it varies

Estimators of the ELBO's gradient ({{doc}}`/notebooks/06_gradients`), {num_samples} draws each, {batch_size:,} gradients
at once, on a quadratic log p(x, z) and on a small decoder of 64 binary pixels. Averaging makes variance times time what
counts: the last column is that product over the pathwise estimator's (for the weighted bound, over its plain
gradient's). Below 1 is better. {device}, torch {torch}; median of {rounds} rounds.
"""


def gradients_section(record: dict) -> str:
    head = ["estimator", "µs each", "variance", "variance × time, relative"]
    rows = [
        [row["what"], f"{row['microseconds']:.1f}", short(row["variance"]), short(row["ratio"])]
        for row in record["rows"]
    ]
    return f"{GRADIENTS.format(**record, torch=record['versions']['torch'])}\n{table(head, rows)}\n"


CARD = """## On a GPU

The same ways of training on one {device}, {torch}, by `make gpu`: passes over the 60,000 MNIST images at
batch 128 unless the row says otherwise, 12,800 images for the thesis' way; the median of several passes, after one that
warms up. The thesis' way turns one image at a time into a tensor on the CPU and moves each batch to the card. The other
columns repeat what a CPU did, where that was measured (there is nothing to capture on a CPU); *×* is the rate over that
of the thesis' way on the same machine.

{table}

A step of this network keeps the card busy for a fraction of the time that Python needs to launch its kernels. So `fit`
captures the whole step in a CUDA graph, which is launched at once: that makes it {captured:.1f} times as fast as the
eager loop on this card. The target for our loop was 50 times the thesis' way at batch 128. It is {met}:
{best} reaches {ratio:.0f} times. Larger batches use the card better{batches}.
"""
OURS = "ours, captured"
ON_CPU = {  # a way of training on a card: the row of the CPU's table that is the same, and its side
    OURS: ("thesis' way", "ours"),
    "thesis' way": ("thesis' way", "other"),
    "ours on the example's network, captured": ("PyTorch's example", "ours"),
    "PyTorch's example": ("PyTorch's example", "other"),
    "ours, compiled and captured": ("thesis' way, objective under torch.compile", "ours"),
}
TARGET = 50  # times the rate of the thesis' way, on a card


def cpu_rates(record: dict) -> dict[str, float]:
    """What a CPU's record says of the ways that were measured on a card too, images per second."""
    rows = {row["what"]: row for row in record["rows"]}
    return {way: rows[what][side] for way, (what, side) in ON_CPU.items() if what in rows}


def beside(rates: dict[str, float], way: str) -> list[str]:
    """A rate and its multiple of the thesis' way, or dashes where it was not measured."""
    if way not in rates:
        return ["–", "–"]
    thesis = rates.get("thesis' way")
    return [rate(rates[way]), f"{rates[way] / thesis:.1f}" if thesis else "–"]


def card_section(record: dict, cpus: list[dict]) -> str:
    """The card's rates beside those of the CPUs."""
    shown = {way: row for way, row in record["rows"].items() if "left_out" not in row and not way.endswith(", again")}
    rates = {way: row["images_per_second"] for way, row in shown.items()}
    cpus = [cpu for cpu in cpus if cpu_rates(cpu)]
    columns = [*map(cpu_rates, cpus), rates]
    head = ["way of training"]
    for each in [*cpus, record]:
        head += [f"{each['device']}, images/s", "×"]
    rows = [
        [way, *(cell for column in columns for cell in beside(column, way))] for way in sorted(rates, key=rates.get)
    ]
    ratios = {way: value / rates["thesis' way"] for way, value in rates.items()}
    at_128 = {way: value for way, value in ratios.items() if "batches" not in way and "example" not in way}
    best = max(at_128, key=lambda way: at_128[way])
    large = ratios.get("ours, captured, batches of 1024")
    told = dict(device=record["device"].removeprefix("cuda: "), torch=f"torch {record['versions']['torch']}")
    told |= dict(table=table(head, rows), captured=rates[OURS] / rates["ours, eager"], best=best, ratio=at_128[best])
    told |= dict(met="met" if at_128[best] >= TARGET else "not met")
    told |= dict(batches=f": {large:.0f} times with 1024 images each" if large else "")
    return CARD.format(**told)


EXPLORER = """## The explorer in a reader's browser

What a reader of the static page waits for, {{doc}}`/notebooks/explorer_1_mnist_plane` and
{{doc}}`/notebooks/explorer_2_mnist_20`: times from the start of the page's script, one decode at a time, one move of
the code in every frame. The page of CIFAR's size has a dense decoder with 256 inputs and 3072 outputs; no page of the
book has one, and the targets are for MNIST. {device}; medians of {rounds} rounds.
"""


def explorer_section(record: dict) -> str:
    pages = record["pages"]
    rows = []
    for name, told in record["figures"].items():
        name_and_unit = told["what"] + (f", {told['unit']}" if told["unit"] else "")
        row = [name_and_unit, *(rate(page[name]) for page in pages.values())]
        rows.append([*row, *aim(told, [page[name] for what, page in pages.items() if what.startswith("MNIST")])])
    return f"{EXPLORER.format(**record)}\n{table(['', *pages, 'target', 'met'], rows)}\n"


def aim(told: dict, values: list[float]) -> list[str]:
    """A figure's target in words, and whether the worst of the values meets it."""
    target, less = told["target"], told["less"]
    if target is None:
        return ["", ""]
    worst = max(values) if less else min(values)
    met = worst <= target if less else round(worst) >= target  # 59.97 pictures a second are 60
    return [f"{'under' if less else 'at least'} {target:,}", "yes" if met else f"no, {worst / target - 1:+.0%}"]


def fast_section() -> str:
    fast, thesis = find("fast-mnist-d20"), find("chen-mnist-d20")
    rows = []
    for experiment in (thesis, fast):
        if records := valid_records(experiment, default_out()):
            figures = [format_mean_std(record["test"][f] for record in records) for f in LOSSES]
            rows.append([f"`{experiment.name}`", str(experiment.epochs), *figures, active(records), str(len(records))])
    if not rows:
        return ""
    head = ["experiment", "epochs", "test loss", "rec. error", "KL", "active units", "runs"]
    told = dict(epochs=fast.epochs, warm_up=f"{100 * fast.kl_warm_up:.0f}", table=table(head, rows), **fast.training)
    return FAST.format(**told)


def kind(record: dict) -> str:
    """Which of the sections shows a record."""
    return "explorer" if "pages" in record else "gradients" if "num_samples" in record else "speed"


def page() -> str:
    records = [json.loads(path.read_text()) for path in sorted(default_out().glob("bench-*.json"))]
    kinds = ("speed", "gradients", "explorer")
    speeds, gradients, explorers = ([record for record in records if kind(record) == wanted] for wanted in kinds)
    parts = [INTRODUCTION, *map(bench_section, speeds), fast_section(), *map(gradients_section, gradients)]
    card = default_out() / "gpu-speed.json"
    if card.exists():
        parts.insert(1 + len(speeds), card_section(json.loads(card.read_text()), speeds))
    parts += map(explorer_section, explorers)
    return "\n".join(parts)


def write() -> None:
    PAGE.write_text(page())


if __name__ == "__main__":
    write()
