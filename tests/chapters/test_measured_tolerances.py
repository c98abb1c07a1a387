"""Tolerances are measured, not guessed: at least twice the range over the code paths and at most five times it."""

import copy
from decimal import Decimal
from pathlib import Path

import measure_tolerances
import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured_numbers import code_cells, digest, faults, is_current, load, merge, printed, propose, read, rounded, save

ROOT = Path(__file__).resolve().parents[2]
RECORD = load()["notebooks"]
STATED = [
    (path.stem, name)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    for name, cell in code_cells(read(path)).items()
    if "tolerance" in cell["metadata"]
]


@pytest.mark.parametrize(("stem", "name"), STATED)
def test_a_tolerance_is_twice_to_five_times_the_measured_range(stem, name):
    """Or one unit of the last printed digit. `make tolerances` measures again after a change of the code."""
    cell = code_cells(read(ROOT / "notebooks" / f"{stem}.ipynb"))[name]
    measured = RECORD[stem]["cells"][name]
    assert measured["source"] == digest(cell), "the cell has changed: make tolerances"
    assert faults(cell, measured) == []


@pytest.mark.parametrize("stem", RECORD)
def test_a_measured_notebook_was_run_on_at_least_four_paths(stem):
    assert len(RECORD[stem]["paths"]) >= 4


@pytest.mark.parametrize("stem", RECORD)
def test_a_number_that_moves_has_a_tolerance(stem):
    for name, cell in code_cells(read(ROOT / "notebooks" / f"{stem}.ipynb")).items():
        if "tolerance" not in cell["metadata"] and name in RECORD[stem]["cells"]:
            assert faults(cell, RECORD[stem]["cells"][name]) == [], name


def notebook(*texts: str, **metadata) -> dict:
    """One cell for each text; all with this metadata."""
    cells = []
    for k, text in enumerate(texts):
        output = {"output_type": "stream", "name": "stdout", "text": text}
        cells.append({"id": f"c{k}", "cell_type": "code", "source": f"cell {k}", "outputs": [output]})
        cells[-1]["metadata"] = copy.deepcopy(metadata)
    return nbformat.from_dict({"cells": cells})


def measured(*runs: str) -> dict:
    """The record of one cell whose committed output is the first of these."""
    record: dict = {"paths": {}, "cells": {}}
    for k, text in enumerate(runs):
        merge(record, notebook(runs[0]), notebook(text), f"path {k}", "")
    return record["cells"]["c0"]


def test_runs_are_merged_to_the_lowest_and_highest_value():
    record = measured("loss 0.50, of 10", "loss 0.53, of 10", "loss 0.48, of 10")
    assert record["numbers"] == ["0.48 0.53", "10"]
    assert record["unstable"] == []


@pytest.mark.parametrize("other", ["loss 0.50, of 11", "cost 0.50, of 10", "loss 0.50", "loss nan, of 10"])
def test_a_path_with_other_words_or_integers_is_named(other):
    record = measured("loss 0.50, of 10", other, "loss 0.51, of 10")
    assert record["unstable"] == ["path 1"]
    assert record["numbers"] == ["0.50 0.51", "10"]
    cell = code_cells(notebook("loss 0.50, of 10", tolerance={"abs": 0.02}))["c0"]
    assert faults(cell, record) == ["not the same text or integers on: path 1"]


@pytest.mark.parametrize(
    ("runs", "stated", "fault"),
    [
        (["a 0.50", "a 0.54"], {"abs": 0.08}, None),
        (["a 0.50", "a 0.54"], {"abs": 0.2}, None),
        (["a 0.50", "a 0.54"], {"abs": 0.07}, "less than twice"),
        (["a 0.50", "a 0.54"], {"abs": 0.21}, "more than five times"),
        (["a 0.50", "a 0.50"], {"abs": 0.01}, None),
        (["a 0.50", "a 0.50"], {"abs": 0.011}, "more than five times"),
        (["a 0.50", "a 0.54"], None, "moved by 0.04 and has no tolerance"),
        (["a 0.50", "a 0.50"], None, None),
        (["a 100.0", "a 101.0"], {"rel": 0.02}, None),
        (["a 100.0", "a 101.0"], {"rel": 0.051}, "more than five times"),
        (["a 100.0", "a 101.0"], {"rel": 0.019}, "less than twice"),
        (["a 0.50\nb 9.5", "a 0.54\nb 9.5"], {"a": 0.1}, None),
        (["a 0.50\nb 9.5", "a 0.54\nb 9.6"], {"a": 0.1}, "9.5 moved by 0.1 and has no tolerance"),
        (["a 0.50\nb 9.5", "a 0.54\nb 9.6"], {"a": 0.1, "b": 0.6}, "more than five times"),
        (["a 0.50\nb 9.5", "a 0.54\nb 9.6"], {"a": 0.1, "b": 0.5}, None),
        (["a 1.2e-05", "a 1.3e-05"], {"abs": 2e-06}, None),
        (["a 1.2e-05", "a 1.2e-05"], {"abs": 1e-06}, None),
    ],
)
def test_faults_of_a_tolerance(runs, stated, fault):
    cell = code_cells(notebook(runs[0], **({"tolerance": stated} if stated else {})))["c0"]
    found = faults(cell, measured(*runs))
    assert len(found) == (fault is not None), found
    assert fault is None or fault in found[0]


def test_a_committed_number_outside_of_the_measured_range_widens_it():
    cell = code_cells(notebook("a 0.60", tolerance={"abs": 0.1}))["c0"]
    assert "less than twice 0.1" in faults(cell, measured("a 0.50", "a 0.54"))[0]


numbers_of_runs = st.lists(st.lists(st.integers(1, 9_999), min_size=3, max_size=3), min_size=2, max_size=4)


@given(numbers_of_runs, st.booleans())
def test_every_proposal_is_without_fault(runs, sampled):
    texts = ["\n".join(f"{name} {value / 100:.2f}" for name, value in zip("abc", run, strict=True)) for run in runs]
    cell, record = code_cells(notebook(texts[0]))["c0"], measured(*texts)
    proposed = propose(cell, record, sampled)
    moved = any(len(set(column)) > 1 for column in zip(*runs, strict=True))
    assert (proposed is None) == (not moved and not sampled)
    cell["metadata"] = {} if proposed is None else {"tolerance": proposed}
    assert faults(cell, record) == []


@given(st.integers(1, 10**9), st.integers(-9, 3))
def test_a_rounded_tolerance_lies_between_twice_and_five_times_the_range(digits, power):
    width = Decimal(digits).scaleb(power)
    assert 2 * width <= Decimal(str(rounded(width))) <= 5 * width


def test_the_record_is_kept_and_a_changed_cell_makes_it_old(tmp_path):
    first = notebook("a 0.50", "b 0.7")
    record: dict = {"notebooks": {"n": {"paths": {}, "cells": {}}}}
    merge(record["notebooks"]["n"], first, notebook("a 0.52", "b 0.7"), "one", "torch, ± 1")
    save(record, tmp_path / "record.json")
    assert load(tmp_path / "record.json") == record
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
    assert is_current(record["notebooks"]["n"], first)
    first["cells"][1]["source"] = "other code"
    assert not is_current(record["notebooks"]["n"], first)
    assert not is_current(None, first)


def test_measuring_goes_on_where_it_stopped_and_writes_what_it_proposes(tmp_path, monkeypatch, capsys):
    """Two paths; the second fails at first. The runs are pretended: each path prints its own number."""
    path, ran = tmp_path / "n.ipynb", []
    cell = nbformat.v4.new_code_cell("fit(x)", execution_count=1, outputs=[])
    cell.outputs = [nbformat.v4.new_output("stream", text="loss 0.50\n")]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)

    def run(path, environment):
        if environment["value"] == "fails":
            raise RuntimeError("the machine went down")
        ran.append(environment["value"])
        result = read(path)
        result.cells[0].outputs[0].text = f"loss {environment['value']}\n"
        return result, "a machine"

    monkeypatch.setattr(measure_tolerances, "run", run)
    monkeypatch.setattr(measure_tolerances, "load", lambda: load(tmp_path / "record.json"))
    monkeypatch.setattr(measure_tolerances, "save", lambda record: save(record, tmp_path / "record.json"))
    monkeypatch.setattr("sys.argv", ["measure_tolerances.py", "--write", str(path)])
    for second in ("fails", "0.54"):
        monkeypatch.setattr(measure_tolerances, "PATHS", {"a": {"value": "0.50"}, "b": {"value": second}})
        if second == "fails":
            with pytest.raises(RuntimeError):
                measure_tolerances.main()
        else:
            assert measure_tolerances.main() == 0
    assert ran == ["0.50", "0.54"]
    assert read(path).cells[0].metadata["tolerance"] == {"abs": 0.2}
    assert "0.50 moved by 0.04 and has no tolerance. Proposed: {'abs': 0.2}" in capsys.readouterr().out


def test_numbers_of_figures_are_not_of_interest():
    assert printed(code_cells(notebook("<Figure size 600x400 with 4 Axes>"))["c0"])[0] != []  # a stream is what it is
    shown = {"output_type": "display_data", "data": {"text/plain": "<Figure size 600x400 with 4 Axes>"}, "metadata": {}}
    cell = nbformat.from_dict({"id": "a", "cell_type": "code", "source": "", "outputs": [shown], "metadata": {}})
    assert printed(cell) == ([], [])
