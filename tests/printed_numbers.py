"""The numbers that a cell prints: each as it is written, with the words before it and the head of its column.

Plain text, Markdown tables and HTML; in HTML the text alone, not what stands in tags. A number is written with a point,
an exponent, commas between thousands, a minus of ASCII or of Unicode, or it is nan or inf.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

NUMBER = re.compile(  # in "[1., 2.]" stand decimals, in "of 3." an integer
    r"""(?<![\w.])[-+−]?(?:
    (?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+|\.(?=[\]),]|\s+[-−\d]))?(?:[eE][-+−]?\d+)?
    |(?i:inf|nan))(?!\w|\.\d)""",
    re.VERBOSE,
)
HTML = re.compile(
    r"<(style|script)\b.*?</\1>|<(?P<tag>/?\w+)(?P<attributes>[^>]*)>|(?P<text>[^<]+)", re.DOTALL | re.IGNORECASE
)
RULE = re.compile(r"[-=─+|: ]+")  # a line of a table without words
TYPES = ("text/plain", "text/markdown", "text/html")


@dataclass(frozen=True)
class Number:
    """A number as it is printed, where, and what stands before and above it."""

    text: str
    start: int
    end: int
    line: int
    before: str = ""
    head: str = ""

    @property
    def kind(self) -> str:
        if self.text.lstrip("-+−").lower() in ("nan", "inf"):
            return "special"
        return "decimal" if re.search("[.eE]", self.text) else "integer"

    @property
    def value(self) -> Decimal:
        return value(self.text)

    @property
    def unit(self) -> Decimal:
        """One unit of the last printed digit."""
        return Decimal((0, (1,), self.value.as_tuple().exponent))


def value(text: str) -> Decimal:
    """What a printed number says, exactly."""
    return Decimal(text.replace("−", "-").replace(",", ""))


def numbers(text: str, html: bool = False) -> list[Number]:
    """Every number of a text, in order."""
    return list(_in_html(text) if html else _in_text(text))


def _in_text(text: str) -> Iterator[Number]:
    start, lines = 0, text.split("\n")
    for k, line in enumerate(lines):
        for found in NUMBER.finditer(line):
            place = found.start() + start, found.end() + start, k + 1
            yield Number(found[0], *place, line[: found.start()], _head(lines, k, *found.span()))
        start += len(line) + 1


def _head(lines: list[str], k: int, start: int, end: int) -> str:
    """The head of the column that covers these characters of line k: in the nearest line above without a decimal."""
    for above in reversed(lines[:k]):
        if not above.strip():
            break
        if RULE.fullmatch(above) or any(re.search("[.eE]", one[0]) for one in NUMBER.finditer(above)):
            continue
        if "|" in above and "|" in lines[k]:
            cells = above.split("|")
            column = lines[k][:start].count("|")
            return cells[column].strip() if column < len(cells) else ""
        spans = [
            (min(end, cell.end()) - max(start, cell.start()), cell[0]) for cell in re.finditer(r"\S+(?: \S+)*", above)
        ]
        return max((span for span in spans if span[0] > 0), default=(0, ""))[1]
    return ""


def _in_html(text: str) -> Iterator[Number]:
    row, column, step, before, heads, in_head = 1, -1, 1, "", {}, False
    for piece in HTML.finditer(text):
        tag, plain = (piece["tag"] or "").lower(), piece["text"]
        if tag in ("tr", "p", "div", "br", "li", "table"):
            row, column, step, before = row + (tag == "tr"), -1, 1, ""
        elif tag in ("td", "th"):
            column, span = column + step, re.search(r"colspan=\W?(\d+)", piece["attributes"])
            step, before = int(span[1]) if span else 1, before + " "
        elif tag.strip("/") == "thead":
            in_head = tag == "thead"
        if plain is None:
            continue
        if column >= 0 and plain.strip() and (in_head or (row == 2 and not NUMBER.search(plain))):
            heads[column] = plain.strip()
        for found in NUMBER.finditer(plain):
            place = found.start() + piece.start(), found.end() + piece.start(), row - 1
            yield Number(found[0], *place, before + plain[: found.start()], heads.get(column, ""))
        before += plain


def texts(outputs: list) -> dict[str, list[tuple[dict, str]]]:
    """The texts of a cell's outputs by kind, each as a dictionary and the key under which it stands there."""
    found: dict[str, list[tuple[dict, str]]] = defaultdict(list)
    for output in outputs:
        if "text" in output:
            found[output.get("name", "")].append((output, "text"))
        for kind in TYPES:
            if kind in output.get("data", {}):
                found[kind].append((output["data"], kind))
    return found
