"""A pytest plugin over nbval: how far the decimal numbers that a cell prints may move, as the cell's metadata states.

    "tolerance": {"abs": 0.05}                                 every decimal number of the cell within ± 0.05
    "tolerance": {"rel": 0.02}                                 within 2 % of the committed number; with both, the wider
    "tolerance": {"loss": 0.2, "accuracy": {"rel": 0.02}}      by the label of the line or column; all others exactly

Text, integers and how many numbers there are stay exact, nan and inf equal only themselves, and a cell without this
metadata is compared as nbval always did. The comparison is of what is printed: 24.76 is within 0.05 of 24.71, 24.77 is
not. The padding of columns counts only while every number is as wide as before. Streams, text/plain, text/markdown and
text/html are compared this way; within HTML, the text alone: what stands in tags is exact.

The label of a number is the last of the stated labels in its line before it ("loss 24.71, accuracy 0.93"), else the
head of its column, with or without a unit in parentheses; upper and lower case are the same.
"""

import copy
import functools
import re
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real

from printed_numbers import Number, numbers, texts


@dataclass(frozen=True)
class Tolerance:
    absolute: Decimal = Decimal(0)
    relative: Decimal = Decimal(0)

    def allows(self, wanted: Decimal) -> Decimal:
        return max(self.absolute, self.relative * abs(wanted))


# --- What the metadata states ----------------------------------------------------------------------------------------


def parse(stated: object) -> dict[str, Tolerance]:
    """The tolerances by label; the label "" stands for every number.

    Raises:
        ValueError: it is none of the three forms.
    """
    if not isinstance(stated, dict) or not stated:
        raise ValueError(f'a tolerance is {{"abs": 0.05}}, {{"rel": 0.02}} or by label {{"loss": 0.2}}, not {stated!r}')
    if stated.keys() <= {"abs", "rel"}:
        return {"": _one(stated)}
    if mixed := stated.keys() & {"abs", "rel"}:
        raise ValueError(f"a tolerance has {min(mixed)!r} or labels, not both; got {stated!r}")
    rules = {_label(label): _one(one if isinstance(one, dict) else {"abs": one}) for label, one in stated.items()}
    if len(rules) < len(stated):
        raise ValueError(f"a tolerance names one label twice, in upper and lower case or other spaces: {stated!r}")
    return rules


def _label(label: str) -> str:
    if not label.strip():
        raise ValueError("a tolerance has an empty label; name the line or the column")
    return " ".join(label.split()).casefold()


def _one(stated: dict) -> Tolerance:
    if not stated or not stated.keys() <= {"abs", "rel"}:
        raise ValueError(f"a tolerance is abs or rel, not {stated!r}")
    for name, size in stated.items():
        if isinstance(size, bool) or not isinstance(size, Real) or not 0 < size < float("inf"):
            raise ValueError(f"the tolerance {name} must be a positive number, not {size!r}")
    return Tolerance(*(Decimal(str(stated.get(name, 0))) for name in ("abs", "rel")))


def label_of(number: Number, rules: dict[str, Tolerance]) -> str | None:
    """Which of the rules' labels this number has; None where none fits, or if it is no decimal number."""
    if number.kind != "decimal":
        return None
    if "" in rules:
        return ""
    before, fitting = " ".join(number.before.split()).casefold(), []
    for label in rules:
        ends = [found.end() for found in re.finditer(rf"(?<!\w){re.escape(label)}(?!\w)", before)]
        fitting += [(ends[-1], len(label), label)] if ends else []
    if fitting:
        return max(fitting)[2]
    head = " ".join(number.head.split()).casefold()
    return next((name for name in (head, re.sub(r" ?\([^()]*\)$", "", head)) if name in rules), None)


# --- The comparison --------------------------------------------------------------------------------------------------


def compare(reference: str, got: str, rules: dict[str, Tolerance], html: bool = False) -> tuple[str, list[str]]:
    """What was got, written as the reference writes it wherever that is allowed, and what is not allowed."""
    wanted, found = numbers(reference, html), numbers(got, html)
    if len(wanted) != len(found):
        return got, [f"{len(found)} numbers were printed where the reference has {len(wanted)}"]
    complaints, written, done = [], "", 0
    for one, other in zip(wanted, found, strict=True):
        wrong = _complaint(one, other, rules)
        complaints += [f"{'row' if html else 'line'} {one.line}{_name(one, rules)}: {wrong}"] if wrong else []
        written, done = written + got[done : other.start] + (other.text if wrong else one.text), other.end
    written += got[done:]
    wider = any(len(one.text) != len(other.text) for one, other in zip(wanted, found, strict=True))
    if not complaints and wider and layout(reference, wanted) == layout(got, found):
        return reference, []
    return written, complaints


def _complaint(wanted: Number, found: Number, rules: dict[str, Tolerance]) -> str:
    if wanted.text == found.text:
        return ""
    changed = f"{found.text} for {wanted.text}"
    if "special" in (wanted.kind, found.kind):
        same = wanted.kind == found.kind and (
            wanted.value == found.value or wanted.value.is_nan() & found.value.is_nan()
        )
        return "" if same else f"{changed}; nan and inf equal only themselves"
    if wanted.kind != found.kind or wanted.kind == "integer":
        return f"{changed}; an integer is compared exactly"
    label = label_of(wanted, rules)
    if label is None:
        return f"{changed}; no label of the tolerance is its own, so it is compared exactly"
    off, allowed = abs(wanted.value - found.value), rules[label].allows(wanted.value)
    return "" if off <= allowed else f"{changed}, off by {off:g}; the tolerance is {allowed.normalize():g}"


def _name(number: Number, rules: dict[str, Tolerance]) -> str:
    label = label_of(number, rules) or natural_label(number)
    return f' ("{label}")' if label else ""


def natural_label(number: Number) -> str:
    """The words just before a number in its line, else the head of its column; empty if it has neither."""
    return re.split(r"[\d,;|]", number.before.strip(" :=|"))[-1].strip(" :=()[]±") or number.head


def layout(text: str, found: list[Number]) -> list[str]:
    """The text between the numbers without padding, and lines of tables at one length."""
    starts, ends = [0, *(one.end for one in found)], [*(one.start for one in found), len(text)]
    parts = [re.sub(r"[ \t]+", " ", text[start:end]) for start, end in zip(starts, ends, strict=True)]
    return [re.sub(r"([-=─])\1{2,}", r"\1", re.sub(r" ?\n ?", "\n", part)).strip(" ") for part in parts]


def check(stated: object, outputs: list) -> dict[str, Tolerance]:
    """The tolerances, if each of them has a decimal number in these outputs; ValueError otherwise."""
    rules = parse(stated)
    used = {label_of(one, rules) for kind, those in texts(outputs).items() for place, key in those
            for one in numbers("".join(place[key]), kind == "text/html")}  # fmt: skip
    if unused := rules.keys() - used:
        label = min(unused)
        raise ValueError(f"no decimal number of the output has the label {label!r}" if label else
                         "a tolerance is stated, but no decimal number is printed")  # fmt: skip
    return rules


def compare_outputs(cell, test: list, ref: list, skip_compare=None) -> bool:
    """nbval's comparison, after the numbers within their tolerance are written as in the reference."""
    exactly = functools.partial(type(cell).compare_outputs, cell)
    if "tolerance" not in cell.cell.metadata:
        return exactly(test, ref, skip_compare)
    try:
        rules = check(cell.cell.metadata["tolerance"], ref)
    except ValueError as error:
        cell.raise_cell_error(f"{error} (metadata of the cell with the id {cell.cell.get('id')})")
    test, complaints = copy.deepcopy(test), []
    written, wanted = texts(test), texts(ref)
    for kind in wanted.keys() & written.keys():
        for (place, key), (other, _) in zip(written[kind], wanted[kind], strict=False):
            clean = cell.sanitize(other[key]), cell.sanitize(place[key])
            place[key], wrong = compare(*clean, rules, kind == "text/html")
            complaints += wrong
    same = exactly(test, ref, skip_compare)
    cell.comparison_traceback[:0] = complaints
    return same


def pytest_itemcollected(item) -> None:
    """Give every cell that nbval collects this comparison."""
    if type(item).__name__ == "IPyNbCell":
        item.compare_outputs = functools.partial(compare_outputs, item)
