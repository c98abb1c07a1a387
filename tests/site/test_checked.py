"""Under each output with a tolerance the page says what was checked: in the built page, on a phone and on paper."""

import io
import json
import re

import checked
import pdf
import pytest
from book_pages import ROOT, Visit, html, served

PAGE = "notebooks/05_gaussian_kl"
CELLS = json.loads((ROOT / f"{PAGE}.ipynb").read_text())["cells"]
STATED = [
    checked.in_order(cell["metadata"]["tolerance"], cell["outputs"])
    for cell in CELLS
    if "tolerance" in cell["metadata"] and cell["outputs"]
]
PATHS = len(json.loads(checked.RECORD.read_text())["notebooks"]["05_gaussian_kl"]["paths"])


@pytest.mark.parametrize(
    ("stated", "paths", "text"),
    [
        ({"abs": 0.05}, 4, "checked to ± 0.05 on four code paths"),
        ({"abs": 1e-06}, 1, "checked to ± 0.000001 on one code path"),
        ({"abs": 100.0}, 12, "checked to ± 100 on 12 code paths"),
        ({"rel": 0.02}, 4, "checked to ± 2 % on four code paths"),
        ({"rel": 0.0007}, 0, "checked to ± 0.07 %"),
        ({"abs": 1, "rel": 0.5}, 5, "checked to ± 1 or 50 % on five code paths"),
        ({"loss": 0.2}, 0, "checked: loss ± 0.2"),
        ({"loss": 0.2, "hits": {"rel": 0.1}}, 5, "checked: loss ± 0.2, hits ± 10 %, on five code paths"),
    ],
)
def test_the_sentence_of_a_tolerance(stated, paths, text):
    assert checked.sentence(stated, paths) == text


def test_every_output_with_a_tolerance_is_followed_by_its_sentence(html):
    text = (html / f"{PAGE}.html").read_text()
    shown = re.findall(r'</pre></div>\s*</div>\s*<p class="tolerance">([^<]*)</p>\s*</div>', text)
    assert [one.replace("&#39;", "'") for one in shown] == [checked.sentence(stated, PATHS) for stated in STATED]
    assert text.count('class="tolerance"') == len(shown) > 10
    assert shown[0].startswith("checked: busiest five ± 0.1, last three ± 0.01, sum of the eight ± 0.05, ")


def test_a_page_without_tolerances_says_nothing(html):
    assert 'class="tolerance"' not in (html / "book" / "glossary.html").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_sentence_is_small_grey_and_wraps_on_a_phone(browser, served, scheme):
    size = {"width": 320, "height": 700}
    with Visit(browser, f"{served}/{PAGE}.html", viewport=size, color_scheme=scheme) as visit:
        lines = visit.page.locator("article p.tolerance")
        boxes = [line.bounding_box() for line in lines.all() if line.is_visible()]
        assert boxes
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= size["width"] for box in boxes)
        assert max(box["height"] for box in boxes) > 1.5 * min(box["height"] for box in boxes)  # the longest wraps
        style = "one => [getComputedStyle(one).fontSize, getComputedStyle(one).color]"
        (small, grey), (normal, ink) = (
            visit.page.locator(f"article {name}").first.evaluate(style) for name in ("p.tolerance", "section > p")
        )
        assert float(small[:-2]) < 0.85 * float(normal[:-2])
        assert grey != ink


def test_the_sentence_is_on_paper(browser, html, tmp_path):
    from pypdf import PdfReader

    page = browser.new_page(color_scheme="light")
    page.goto((html / f"{PAGE}.html").resolve().as_uri(), wait_until="load")
    page.wait_for_function(pdf.READY)
    page.evaluate(pdf.UNFOLD)
    sheets = PdfReader(io.BytesIO(page.pdf(format="A4", margin=pdf.MARGINS, print_background=True))).pages
    text = " ".join(" ".join(sheet.extract_text() for sheet in sheets).split())
    assert len(re.findall("checked(?: to|:) ", text)) == len(STATED)
    page.close()
