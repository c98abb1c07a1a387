"""How the notebooks' outputs are compared: decimal numbers within the stated tolerance, everything else exactly."""

import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook, new_output
from printed_numbers import numbers
from tolerance import check, compare, parse

TESTS = Path(__file__).resolve().parents[1]
HTML = (
    '<table style="width: 1.5em"><thead><tr><th></th><th>loss</th><th>hits</th></tr></thead><tbody>{}</tbody></table>'
)
ROW = "<tr><th>model {}</th><td>{}</td><td>{}</td></tr>"
TABLE = (
    "model      loss   accuracy (%)\n------------------------------\nA         {:>5s}          {:>5s}\nB         24.90"
)
BARS = "| d | loss |\n|---|---|\n| 2 | {} |"
BOTH = "loss {}, accuracy {}"
TESTED = "test loss {}, loss {}"


def complaints(reference: str, got: str, stated: dict, html: bool = False) -> list[str]:
    """What is not allowed; the result is the reference where nothing is."""
    written, wrong = compare(reference, got, parse(stated), html)
    assert wrong or written == reference
    return wrong


def same_text(reference: str, got: str, stated: dict) -> bool:
    return compare(reference, got, parse(stated)) == (reference, [])


@pytest.mark.parametrize(
    ("reference", "within", "beyond", "stated"),
    [
        ("loss 24.71", "loss 24.76", "loss 24.77", {"abs": 0.05}),
        ("loss 24.71", "loss 24.66", "loss 24.65", {"abs": 0.05}),
        ("1e-05", "1.5e-05", "1.7e-05", {"abs": 6e-6}),
        ("2.42583e+08", "2.42600e+08", "2.43583E+08", {"rel": 1e-3}),
        ("97.3 %, 12.0%", "97.4 %, 12.1%", "97.4 %, 12.2%", {"abs": 0.1}),
        ("mean −0.1660", "mean −0.1650", "mean 0.1660", {"abs": 0.001}),
        ("mean −0.0001", "mean  0.0001", "mean  0.0010", {"abs": 0.0005}),
        ("0.31 ± 0.05 nats", "0.33 ± 0.06 nats", "0.31 ± 0.08 nats", {"abs": 0.02}),
        ("0.31 ±0.05 nats", "0.31 ±0.06 nats", "0.31 ±0.08 nats", {"abs": 0.02}),
        ("[nan, inf, -inf, 0.5]", "[nan, inf, -inf, 0.6]", "[nan, inf, inf, 0.5]", {"abs": 0.1}),
        ("tensor([1., 2.])", "tensor([1., 2.])", "tensor([1., 3.])", {"abs": 0.5}),
        ("tensor([1.0000, 2.5000])", "tensor([1.0003, 2.4999])", "tensor([1.0006, 2.5000])", {"abs": 5e-4}),
        ("1,234.50 images", "1,235.00 images", "1,236.00 images", {"abs": 0.5}),
        ("200.0 and 2.0", "202.0 and 2.02", "202.0 and 2.03", {"rel": 0.01}),
        ("200.0 and 2.0", "202.0 and 2.04", "203.0 and 2.0", {"rel": 0.01, "abs": 0.05}),
        ("loss  9.98\nrate 0.1", "loss 10.01\nrate 0.1", "loss 10.04\nrate 0.1", {"abs": 0.05}),
        (BOTH.format(24.7, 0.93), BOTH.format(24.9, 0.95), BOTH.format(24.7, 0.97), {"loss": 0.2, "accuracy": 0.02}),
        ("Loss 24.7\nhits 0.93", "Loss 24.8\nhits 0.93", "Loss 24.7\nhits 0.94", {"loss": 0.2}),
        (TESTED.format(3.0, 2.0), TESTED.format(3.4, 2.1), TESTED.format(3.0, 2.4), {"test loss": 0.5, "loss": 0.1}),
        ("A 24.7", "A 24.9", "A 25.7", {"a": {"rel": 0.01}}),
        (TABLE.format("24.71", "92.5"), TABLE.format("24.80", "92.5"), TABLE.format("24.71", "92.6"), {"loss": 0.1}),
        (TABLE.format("24.71", "9.5"), TABLE.format("24.71", "9.9"), TABLE.format("24.72", "9.5"), {"accuracy": 0.5}),
        (BARS.format(0.5), BARS.format(0.6), BARS.format(0.7), {"loss": 0.1}),
    ],
)  # fmt: skip
def test_decimal_numbers_within_the_tolerance_pass_and_beyond_it_fail(reference, within, beyond, stated):
    assert complaints(reference, within, stated) == []
    assert complaints(reference, beyond, stated) != []


@pytest.mark.parametrize(
    ("reference", "got"),
    [
        ("17 of 360: 0.5", "18 of 360: 0.5"),
        ("0.5 in 1,234", "0.5 in 1,235"),
        ("0.5", "nan"),
        ("inf 0.5", "-inf 0.5"),
        ("nan 0.5", "inf 0.5"),
        ("0.5", "1"),
        ("1 0.5", "1.0 0.5"),
        ("0.5 0.6", "0.5"),
        ("0.5", "0.5 0.6"),
        ("0.5 1", "0.51"),
        ("1 0.5", "10.5"),
    ],
)
def test_integers_infinities_and_the_count_of_numbers_are_exact(reference, got):
    assert complaints(reference, got, {"abs": 100.0}) != []
    assert complaints(got, reference, {"abs": 100.0}) != []


@pytest.mark.parametrize(
    ("reference", "got"),
    [
        ("loss 0.5", "cost 0.5"),
        ("loss 0.5\n", "loss 0.5"),
        ("loss 0.5", "loss  0.5"),
        ("v1.2.3 0.5", "v1.2.4 0.5"),
        ("600x400 0.5", "600x401 0.5"),
        ("0.5\n0.6", "0.5 0.6"),
        ("loss 9.5 a b", "loss 10.5 a c"),
        ("loss 9.5\n0.5", "loss 10.5 0.5"),
    ],
)
def test_text_is_exact(reference, got):
    assert not same_text(reference, got, {"abs": 1.0})


@pytest.mark.parametrize(
    ("reference", "got"),
    [
        ("  9.98", " 10.02"),
        ("loss: 9.98", "loss:10.02"),
        ("a  loss\n0  9.98\n1  1.00", "a   loss\n0  10.02\n1   1.00"),  # a table as wide as its widest number
        ("| a | loss |\n|---|------|\n| 0 | 9.98 |", "| a | loss  |\n|---|-------|\n| 0 | 10.02 |"),
        ("loss\n----\n9.98", "loss \n-----\n10.02"),
        ("-0.01  0.50", " 0.01  0.50"),
    ],
)
def test_a_number_may_become_wider_and_move_the_padding(reference, got):
    assert same_text(reference, got, {"abs": 0.05})
    assert same_text(got, reference, {"abs": 0.05})
    assert not same_text(reference, got, {"abs": 0.01})


def test_html_is_compared_by_its_text_and_by_the_heads_of_its_columns():
    def table(loss, hits, inside=ROW):
        return HTML.format(inside.format("A", loss, hits) + inside.format("B 1.5", "0.25", "0.75"))

    reference = table("24.71", "0.93")
    assert complaints(reference, table("24.80", "0.93"), {"loss": 0.1}, html=True) == []
    assert complaints(reference, table("24.71", "0.94"), {"loss": 0.1}, html=True) != []
    assert complaints(reference, table("24.80", "0.94"), {"model a": 0.1}, html=True) == []
    assert complaints(reference, table("24.80", "0.94"), {"model b": 0.1}, html=True) != []
    assert complaints(reference, table("24.80", "0.94"), {"abs": 0.1}, html=True) == []
    style = reference.replace("1.5em", "1.6em")
    assert compare(reference, style, parse({"abs": 10}), html=True) == (style, [])  # stays as it is: nbval refuses it
    (wrong,) = complaints(reference, table("24.91", "0.93"), {"loss": 0.1}, html=True)
    assert wrong == 'row 2 ("loss"): 24.91 for 24.71, off by 0.20; the tolerance is 0.1'


def test_a_cell_that_spans_columns_moves_the_heads():
    head = '<tr><th colspan="2">model</th><th>loss</th></tr>'
    text = f"<table><thead>{head}</thead><tbody><tr><td>A</td><td>0.10</td><td>0.20</td></tr></tbody></table>"
    assert [one.head for one in numbers(text, html=True)] == ["", "loss"]


def test_a_script_or_style_holds_no_numbers():
    assert numbers("<style>p { margin: 0.5em }</style><p>0.5</p><script>x = 1.5</script>", html=True) == numbers(
        "<style>p { margin: 0.7em }</style><p>0.5</p><script>x = 2.5</script>", html=True
    )


def test_the_complaint_says_which_number_by_how_much_and_the_tolerance():
    reference = "epoch 1\ntest loss 24.71 nats\nspread 0.50"
    assert complaints(reference, reference.replace("24.71", "24.93"), {"abs": 0.05}) == [
        'line 2 ("test loss"): 24.93 for 24.71, off by 0.22; the tolerance is 0.05'
    ]
    assert complaints(reference, reference.replace("h 1", "h 2"), {"abs": 0.05}) == [
        'line 1 ("epoch"): 2 for 1; an integer is compared exactly'
    ]
    assert complaints(reference, reference.replace("24.71", "nan"), {"abs": 0.05}) == [
        'line 2 ("test loss"): nan for 24.71; nan and inf equal only themselves'
    ]
    assert complaints(reference, reference.replace("0.50", "0.51"), {"test loss": 0.05}) == [
        'line 3 ("spread"): 0.51 for 0.50; no label of the tolerance is its own, so it is compared exactly'
    ]
    assert complaints(reference, "1.0", {"abs": 1}) == ["1 numbers were printed where the reference has 3"]


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (0.05, r'^a tolerance is \{"abs": 0.05\}, .*, not 0.05$'),
        ({}, r"^a tolerance is .*, not \{\}$"),
        ([0.05], "^a tolerance is "),
        (None, "^a tolerance is "),
        ({"abs": 0}, r"^the tolerance abs must be a positive number, not 0$"),
        ({"abs": -0.1}, "must be a positive number, not -0.1$"),
        ({"rel": "0.1"}, "must be a positive number, not '0.1'$"),
        ({"abs": True}, "must be a positive number, not True$"),
        ({"abs": float("nan")}, "must be a positive number, not nan$"),
        ({"abs": float("inf")}, "must be a positive number, not inf$"),
        ({"abs": 0.1, "loss": 0.2}, "^a tolerance has 'abs' or labels, not both"),
        ({"loss": {"absolute": 0.2}}, "^a tolerance is abs or rel, not"),
        ({"loss": {}}, "^a tolerance is abs or rel, not"),
        ({"loss": "0.2"}, "must be a positive number, not '0.2'$"),
        ({"Loss": 0.2, "loss": 0.1}, "^a tolerance names one label twice"),
        ({" ": 0.2}, "^a tolerance has an empty label"),
    ],
)
def test_a_malformed_tolerance_is_an_error(stated, message):
    with pytest.raises(ValueError, match=message):
        parse(stated)


@pytest.mark.parametrize(
    ("stated", "message"), [({"los": 0.2}, "has the label 'los'$"), ({"abs": 1}, "no decimal number")]
)
def test_a_tolerance_of_nothing_is_an_error(stated, message):
    text = "loss 1" if "abs" in stated else "loss 1.0"
    with pytest.raises(ValueError, match=message):
        check(stated, [{"output_type": "stream", "name": "stdout", "text": text}])


hundredths = st.integers(-99_999, 99_999)


@given(st.lists(hundredths, min_size=1, max_size=6), st.integers(1, 500), st.data())
def test_what_passes_is_exactly_what_differs_by_no_more_than_the_tolerance(values, width, data):
    """Numbers of two digits after the point, in a column of any width: an independent count in whole hundredths."""
    moved = [value + data.draw(st.integers(-width - 3, width + 3)) for value in values]
    pad = data.draw(st.integers(0, 9))
    reference, got = ("\n".join(f"x {value / 100:{pad}.2f}" for value in those) for those in (values, moved))
    allowed = all(abs(one - other) <= width for one, other in zip(values, moved, strict=True))
    assert (complaints(reference, got, {"abs": float(Decimal(width) / 100)}) == []) == allowed


@given(st.text(alphabet="ab 01.,-+−e|%\n±[]nif", max_size=60))
def test_every_text_equals_itself(text):
    assert compare(text, text, parse({"abs": 1})) == (text, [])
    assert "".join(text[one.start : one.end] for one in numbers(text)) == "".join(one.text for one in numbers(text))


# --- In nbval --------------------------------------------------------------------------------------------------------

SHOW = "from IPython.display import HTML, display; display(HTML({!r}))"


def cell(source: str, text: str, tolerance=None, kind: str = "stdout"):
    """A cell whose committed output is this text."""
    made = new_code_cell(source, execution_count=1, metadata={} if tolerance is None else {"tolerance": tolerance})
    data = {kind: text, "text/plain": text if kind == "text/plain" else "<IPython.core.display.HTML object>"}
    stream = kind == "stdout"
    made.outputs = [new_output("stream", text=text) if stream else new_output("display_data", data=data)]
    return made


def rows(loss: str) -> str:
    return HTML.format(ROW.format("A", loss, "0.93"))


CELLS = {  # with the words that its failure must hold, None where it passes
    "exact": (cell("print(0.71)", "0.71\n"), None),
    "exact, off": (cell("print(0.72)", "0.71\n"), "mismatch 'stdout'"),
    "within": (cell("print('loss', 10.01)", "loss 9.99\n", {"abs": 0.05}), None),
    "beyond": (cell("print('loss', 10.06)", "loss 9.99\n", {"loss": 0.05}), '("loss"): 10.06 for 9.99, off by 0.07'),
    "text": (cell("print('cost', 9.98)", "loss 9.99\n", {"abs": 0.05}), "loss 9.99"),
    "result": (cell("1.25", "1.24", {"abs": 0.05}, "text/plain"), None),
    "table": (cell(SHOW.format(rows("24.80")), rows("24.71"), {"loss": 0.1}, "text/html"), None),
    "table, off": (
        cell(SHOW.format(rows("24.82")), rows("24.71"), {"loss": 0.1}, "text/html"), 'row 2 ("loss"): 24.82 for 24.71'
    ),
    "malformed": (cell("print(0.5)", "0.5\n", {"absolute": {"x": 1}}), "Cell 8: a tolerance is abs or rel"),
    "label": (cell("print('loss', 0.5)", "loss 0.5\n", {"los": 1}), "Cell 9: no decimal number of the output has"),
    "no output": (cell("pass", "0.5\n", {"abs": 1}), "Missing output fields"),
}  # fmt: skip


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, str | None]:
    """nbval's report of each cell: None if it passed. One kernel runs them all."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = new_notebook(cells=[made for made, _ in CELLS.values()])
    nbformat.write(notebook, folder / "cells.ipynb")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tolerance", "--nbval"]
    command += ["--nbval-current-env", "--color=no", "--junitxml=report.xml", "cells.ipynb"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    cases = ElementTree.parse(folder / "report.xml").findall(".//testcase")
    assert len(cases) == len(CELLS), done.stdout
    failures = [case.find("failure") for case in cases]
    return {name: None if one is None else one.text for name, one in zip(CELLS, failures, strict=True)}


@pytest.mark.parametrize("name", CELLS)
def test_nbval_passes_and_fails_a_cell_by_its_tolerance(reports, name):
    words = CELLS[name][1]
    assert (reports[name] is None) == (words is None), reports[name]
    assert words is None or words in reports[name]


def test_a_failure_shows_no_difference_that_is_allowed(reports):
    assert "loss 9.99" in reports["text"]
    assert "cost 9.98" not in reports["text"]  # 9.98 is allowed: only the word is wrong
