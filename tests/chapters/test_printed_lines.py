"""Over all notebooks: how many printed lines end in True or False, and how many cells train or sample unchecked.

The tables hold what was there when tolerances were introduced. They only shrink: whoever turns a verdict into a number
lowers them, and at zero a chapter leaves them.
"""

import re
from pathlib import Path

import nbformat
import pytest
from measure_tolerances import trains_or_samples
from measured_numbers import code_cells, printed, read
from printed_numbers import numbers

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
VERDICT = re.compile(r"\b(?:True|False)\b\W*$")

VERDICTS = {
    "02_linear_models": 42,
    "03_nonlinear_models": 32,
    "04_the_elbo": 29,
    "06_gradients": 39,
    "07_inference": 51,
    "08_the_vae": 30,
    "14_likelihoods": 31,
    "15_beta_and_collapse": 40,
    "16_conditions_and_priors": 41,
    "17_how_good_is_it": 33,
    "18_representations": 25,
}
UNCHECKED = {
    "02_linear_models": 14,
    "03_nonlinear_models": 9,
    "04_the_elbo": 7,
    "06_gradients": 10,
    "07_inference": 17,
    "08_the_vae": 7,
    "14_likelihoods": 6,
    "15_beta_and_collapse": 2,
    "16_conditions_and_priors": 8,
    "17_how_good_is_it": 2,
    "18_representations": 5,
}


def verdicts(notebook: dict) -> list[str]:
    """The printed lines that end in True or False; "True, False" in a row is one."""
    outputs = [output for cell in code_cells(notebook).values() for output in cell["outputs"]]
    texts = ["".join(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in outputs]
    return [line for text in texts for line in text.splitlines() if VERDICT.search(line)]


def unchecked(notebook: dict) -> list[str]:
    """The cells that train or sample, print decimal numbers, and state no tolerance."""
    return [
        name
        for name, cell in code_cells(notebook).items()
        if trains_or_samples(cell)
        and any(one.kind == "decimal" for one in printed(cell)[0])
        and "tolerance" not in cell["metadata"]
    ]


QUOTED = {  # in chapters whose prose is compared with their output: what is computed from several numbers, and how
    "00_start_here": {
        "1.44": "1 / log 2, bits in a nat",
        "10.0": "a value to try",
    },
    "01_divergences": {
        "2.30": "log 10",
        "5.25": "where the flipbook's reverse fit jumps",
        "30.0": "a value to try",
    },
    "05_gaussian_kl": {
        "3.27": "the sum of the five busiest units",
        "0.000045": "exp(-10)",
        "3.7": "(0.9560 - 0.9433) / 0.0034",
        "0.9428": "the mean of the last four estimates",
    },
    "09_mnist": {
        "-1.645": "minus the printed edge of the grid",
        "0.0047": "1e-5 * 60,000 / 128, in a formula",
        "0.84": "a change that the reader makes",
        "0.95": "a quantile of the exercise",
        "2.31": "Student's quantile for eight degrees of freedom",
        "88.0": "100 times 0.880, in per cent",
        "89.0": "the lowest of three seeds whose mean is printed, in per cent; the chapter's tests",
        "91.1": "the highest of them, in per cent; the chapter's tests",
        "91.7": "minus a printed -91.71",
        "92.6": "minus a printed -92.58, and 100 times 0.926, in per cent",
        "96.7": "100 times 0.967, in per cent",
        "96.8": "100 times 0.968, in per cent",
        "97.0": "100 times 0.970, in per cent",
        "99.2": "a second implementation of the thesis' listing, not recorded",
        "4.1": "a section of the thesis",
        "4.2": "a section of the thesis",
        "4.4": "a figure of the thesis",
    },
    "10_five_hundred_units": {
        "0.001": "Adam's learning rate in the recorded runs",
        "0.16": "98.94 - 98.78",
        "45.53": "the floor of MNIST, in chapter 9",
        "73.2": "0.732 in per cent",
        "84.3": "in chapter 13",
    },
    "11_fashion_mnist": {
        "14.8": "100 (1 - 0.852), in per cent",
        "16.0": "100 (1 - 0.840), in per cent",
        "61.2": "100 times 0.612, in per cent",
        "63.0": "100 times 0.630, in per cent",
        "96.7": "100 times 0.967, in per cent",
        "2.3": "log(10)",
        "1.5": "a pixel outside of [0, 1]",
        "4.3": "a section of the thesis",
        "4.8": "a figure of the thesis",
    },
    "12_cifar10": {
        "0.15": "25.24 - 25.09",
        "0.86": "1822 / 2129.35",
        "28.0": "0.280 in per cent",
        "4.1": "a table of the thesis",
        "4.10": "a figure of the thesis",
        "4.3": "a table of the thesis",
        "45.53": "the floor of MNIST, in chapter 9",
        "76.6": "0.766 in per cent",
        "96.5": "0.965 in per cent",
    },
    "13_dimension_reduction": {
        "1.46": "sqrt(128 / 60)",
        "2.17": "one of sixty recorded sums, checked in test_13_dimension_reduction",
        "4.1": "a section of the report",
        "69.6": "100 * 0.696",
        "72.5": "100 * 0.725",
        "73.5": "100 * 0.735",
        "84.3": "100 * 0.843",
    },
}


def unsupported(notebook: dict) -> list[str]:
    """The decimal numbers of the prose, formulas apart, that are neither printed, as rounded there, nor in the code."""
    cells = code_cells(notebook).values()
    values = [one.value for cell in cells for one in printed(cell)[0] if one.kind == "decimal"]
    code = " ".join(cell["source"] for cell in cells)
    prose = "\n".join(cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    found = [one for one in numbers(re.sub(r"\$\$.*?\$\$", "", prose, flags=re.DOTALL)) if one.kind == "decimal"]
    near = {one.text for one in found for value in values if abs(value - one.value) <= one.unit / 2}
    return [one.text for one in found if one.text not in near and one.text not in code]


@pytest.mark.parametrize("stem", QUOTED)
def test_a_number_of_the_prose_is_one_that_the_chapter_prints(stem):
    assert sorted(set(unsupported(read(ROOT / "notebooks" / f"{stem}.ipynb")))) == sorted(QUOTED[stem])


@pytest.mark.parametrize(
    ("text", "count"), [("0.52", 0), ("0.5", 0), ("0.53", 1), ("$$0.9$$", 0), ("v1.2.3", 0), ("3", 0)]
)
def test_a_number_that_nothing_supports_is_found(text, count):
    cell = {"id": "b", "cell_type": "markdown", "source": f"It is {text} nats.", "metadata": {}}
    notebook = made("x = 1", "loss 0.5204")
    notebook["cells"].append(nbformat.from_dict(cell))
    assert len(unsupported(notebook)) == count


def shrinks(found: list[str], allowance: int, name: str, table: str) -> None:
    assert len(found) <= allowance, f"{name}: {len(found)}, allowed are {allowance}:\n" + "\n".join(found)
    assert len(found) == allowance, f"only {len(found)} are left: write {len(found)} for {name} in {table}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_fewer_lines_are_verdicts(path):
    shrinks(verdicts(read(path)), VERDICTS.get(path.stem, 0), path.stem, "VERDICTS")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_fewer_cells_train_or_sample_without_a_tolerance(path):
    shrinks(unchecked(read(path)), UNCHECKED.get(path.stem, 0), path.stem, "UNCHECKED")


def test_no_table_names_a_notebook_that_is_done_or_gone():
    for table in (VERDICTS, UNCHECKED):
        assert set(table) <= {path.stem for path in NOTEBOOKS}
        assert 0 not in table.values()


def made(source: str, text: str, **metadata) -> dict:
    output = {"output_type": "stream", "name": "stdout", "text": text}
    cell = {"id": "a", "cell_type": "code", "source": source, "outputs": [output], "metadata": metadata}
    return nbformat.from_dict({"cells": [cell]})


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("equal: True\n", 1),
        ("equal: False.\nagain: True\n", 2),
        ("[True, False]\n", 1),
        ("True: 0.5\n", 0),
        ("Untrue\n", 0),
        ("0.5\n", 0),
    ],
)
def test_a_verdict_is_recognised(text, count):
    assert len(verdicts(made("", text))) == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("fit(vae, x)", 1),
        ("model.fit(X)", 1),
        ("z = q.rsample((5,))", 1),
        ("z = q.sample()", 1),
        ("torch.randn(5)", 1),
        ("torch.randn_like(x)", 1),
        ("torch.rand(5)", 1),
        ("torch.randperm(5)", 1),
        ("torch.bernoulli(x)", 1),
        ("kl_monte_carlo(q, p)", 1),
        ("q.log_prob(z)", 0),
        ("profit(x)", 0),
        ("operand(x)", 0),
    ],
)
def test_a_cell_that_trains_or_samples_is_recognised(source, count):
    assert len(unchecked(made(source, "loss 0.5"))) == count
    assert unchecked(made(source, "loss 5")) == []
    assert unchecked(made(source, "loss 0.5", tolerance={"abs": 0.1})) == []
