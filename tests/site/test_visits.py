"""Every page of the built book, opened in a real browser with the network blocked, and looked at from all sides.

A page is opened twice for all of its tests: over http on a desk, and from its file on a phone. Whoever wants another
width or colour scheme says so.
"""

import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from book_pages import FLIPBOOKS, NUMBERED, PAGES, Visit, html, served, widgets

MATHS = [*NUMBERED, "book/notation", "book/identities", "book/api"]
ALIKE = (Path(__file__).parents[1] / "alike.js").read_text()
DESKTOP, PHONE = {"width": 1280, "height": 844}, {"width": 390, "height": 844}


@pytest.fixture(scope="module", params=PAGES)
def opened(request, browser, served):
    """A visit to this page, with its name."""
    with Visit(browser, f"{served}/{request.param}.html", viewport=DESKTOP, color_scheme="light") as visit:
        visit.name = request.param
        yield visit


@pytest.fixture(scope="module", params=PAGES)
def on_phone(request, browser, html):
    """The same on a phone, without a server."""
    with Visit(browser, f"{html.as_uri()}/{request.param}.html", viewport=PHONE) as visit:
        visit.name = request.param
        yield visit


def check_opened(visit: Visit, name: str) -> None:
    assert visit.blocked == []
    assert visit.complaints == []
    assert visit.page.locator("article h1").count() == 1
    if name in MATHS:
        assert visit.page.locator("mjx-container").count() > 10
        assert visit.page.locator("mjx-merror, .math.notranslate:not(:has(mjx-container))").count() == 0


def test_a_page_opens_without_a_network_and_without_complaint(opened):
    check_opened(opened, opened.name)


def test_a_page_opens_from_its_file(on_phone):
    check_opened(on_phone, on_phone.name)


def test_pictures_are_loaded_and_described(opened):
    if not opened.name.startswith("notebooks/"):
        pytest.skip("not a notebook")
    pictures = opened.page.locator("article img:not([aria-hidden=true])")  # a flipbook's words stand for its picture
    assert pictures.count() >= 1
    for picture in pictures.all():
        assert len(picture.get_attribute("alt") or "") > 40
        assert picture.evaluate("async (i) => { i.loading = 'eager'; await i.decode(); return i.naturalWidth }") > 100


def check_sliders(visit: Visit) -> None:
    """By keys, each of them: the picture, its alternative text and the slider's value change, and come back."""
    book = visit.page.locator(".flipbook").first
    book.wait_for()
    pictures = book.locator(".picture")
    for slider in book.locator("input[type=range]").all():
        seen = [(slider.get_attribute("aria-valuetext"), pictures.get_attribute("aria-label"), pictures.inner_html())]
        for key in ("ArrowRight", "ArrowLeft"):
            slider.press(key)
            picture = pictures.get_attribute("aria-label"), pictures.inner_html()
            seen.append((slider.get_attribute("aria-valuetext"), *picture))
        assert seen[0] == seen[2]
        assert [before != after for before, after in zip(*seen[:2], strict=True)] == [True] * 3
        assert len(seen[1][1]) > 40
        assert book.locator("output").inner_text() == seen[2][1]
    assert visit.page.locator("img.without-script").first.is_hidden()
    assert (visit.blocked, visit.complaints) == ([], [])


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_sliders_of_a_chapter_move_without_a_kernel(opened, size):
    if opened.name not in FLIPBOOKS:
        pytest.skip("no such sliders")
    opened.page.set_viewport_size(size)  # ends at its own
    check_sliders(opened)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_sliders_of_a_chapter_move_from_its_file(on_phone, size):
    if on_phone.name not in FLIPBOOKS:
        pytest.skip("no such sliders")
    on_phone.page.set_viewport_size(size)
    check_sliders(on_phone)


def serious_faults(page) -> dict[str, list[str]]:
    """What axe-core calls serious or critical: by rule, the elements. Of plain words that look alike it sees one.

    It asks for a style sheet in the wrong place: what the page complains of is looked at before.
    """
    show_all = page.evaluate_handle(ALIKE)
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    show_all.evaluate("back => back()")
    serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    return {fault["id"]: [node["html"][:200] for node in fault["nodes"]] for fault in serious}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_accessible(opened, scheme):
    opened.page.emulate_media(color_scheme=scheme)
    opened.page.wait_for_function("scheme => document.documentElement.dataset.theme == scheme", arg=scheme)
    opened.page.wait_for_function("document.getAnimations().every(one => one.playState == 'finished')")  # colours fade
    assert serious_faults(opened.page) == {}


@pytest.mark.parametrize(
    "change",
    [
        "(word) => word.className = 'faint'",
        "(word) => word.style.color = '#ddd'",
        "(word) => word.parentElement.style.background = '#888'",
        "(word) => word.parentElement.style.opacity = 0.2",
    ],
)
def test_one_faint_word_among_many_is_found(browser, served, change):
    """The change is made to the last listing that is open to the eye; words like its own stand in others."""
    with Visit(browser, f"{served}/notebooks/00_start_here.html", viewport=DESKTOP) as visit:
        listing = visit.page.locator("article .cell_input pre").filter(visible=True).last
        word = listing.locator("span:not(:has(*))", has_text=re.compile(r"\w{3}")).last
        visit.page.add_style_tag(content=".faint { color: #ddd }")
        word.evaluate(change)
        assert "color-contrast" in serious_faults(visit.page)


CUT = """() => [...document.querySelectorAll("article span.math, article code, .prev-next-area *")]
  .filter((one) => one.clientWidth && one.scrollWidth > one.clientWidth + 1)
  .filter((one) => getComputedStyle(one).overflowX == "hidden")
  .map((one) => one.textContent.slice(0, 50))"""  # what is wider than its place and cannot be scrolled


@pytest.mark.parametrize("width", [320, PHONE["width"]])
def test_nothing_sticks_out_of_a_phone(on_phone, width):
    on_phone.page.set_viewport_size(PHONE | {"width": width})
    assert on_phone.page.evaluate("document.documentElement.scrollWidth") <= width
    assert on_phone.page.evaluate(CUT) == []


def test_sliders_that_need_python_say_so(opened):
    if opened.name not in NUMBERED:
        pytest.skip("not a chapter")
    assert opened.page.locator(".needs-kernel").count() == widgets(opened.name).count(None)


def test_a_solution_unfolds(opened):
    if opened.name not in NUMBERED:
        pytest.skip("not a chapter")
    solution = opened.page.locator(".solution.dropdown").first
    inner = solution.locator("p").nth(1)
    assert not inner.is_visible()
    solution.locator("button, summary").first.click()
    inner.wait_for(state="visible")
