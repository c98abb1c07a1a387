"""Flipbooks as a reader without Python has them: in a real browser, the network blocked."""

import functools
import io
import re
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from book_pages import Quiet, Visit
from PIL import Image
from widget_pages import FRAMES, GET, SET, write_page

from vae_core.interactive.flipbook import Flipbook, svg

MEANS, WIDTHS = [-1.5, 0, 0.5], [0.25, 1, 2, 3]


def box(mean, width) -> tuple[str, str]:
    return svg(400, 100, f'<rect x="{100 * (mean + 2)}" width="{100 * width}" height="100"/>'), f"{mean} and {width}."


def shade(level) -> tuple[bytes, str]:
    Image.new("L", (30, 20), level).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue(), f"Grey level {level}."


class Shown:
    """A page with two flipbooks, one of SVG with two sliders and one of PNGs."""

    def __init__(self, folder: Path, **options):
        sliders = {"mean of the bell": MEANS, "width": WIDTHS}
        self.books = [Flipbook(sliders, box, start=(0, 2)), Flipbook({"shade": [0, 100, 200]}, shade)]
        self.path = write_page(folder, self.books, **options)
        self.ids = [book.model_id for book in self.books]


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> Shown:
    return Shown(tmp_path_factory.mktemp("flipbooks"))


class Reader(Visit):
    """Somebody who turns the pictures over."""

    def __init__(self, browser, shown: Shown, url: str | None = None, **context):
        super().__init__(browser, url or shown.path.as_uri(), **context)
        self.shown, self.all = shown, self.page.locator(".flipbook")
        self.sliders = self.all.first.locator("input[type=range]")
        self.all.nth(1).wait_for()

    def position(self) -> list[int]:
        return self.page.evaluate(GET, [self.shown.ids[0], "position"])

    def shows(self, mean, width) -> bool:
        """Picture, words, alternative text and the sliders' own values are those of this position."""
        words, one = f"{mean} and {width}.", self.all.first
        said = [one.locator("output").inner_text(), one.locator(".picture").get_attribute("aria-label")]
        values = [slider.get_attribute("aria-valuetext") for slider in self.sliders.all()]
        drawn = one.locator("rect").evaluate("(r) => [r.x.baseVal.value, r.width.baseVal.value]")
        return (said, values, drawn) == ([words] * 2, [f"{mean:g}", f"{width:g}"], [100 * (mean + 2), 100 * width])


@pytest.fixture
def reader(browser, shown):
    with Reader(browser, shown) as opened:
        yield opened
        assert (opened.blocked, opened.complaints) == ([], [])


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_a_page_with_flipbooks_opens_without_a_network_and_without_complaint(browser, shown, scheme):
    handler = functools.partial(Quiet, directory=str(shown.path.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = {"http": f"http://127.0.0.1:{server.server_port}/page.html", "file": shown.path.as_uri()}[scheme]
        with Reader(browser, shown, url) as reader:
            assert reader.shows(0, 2)
            reader.sliders.nth(0).press("ArrowRight")
            assert reader.shows(0.5, 2)
            assert (reader.blocked, reader.complaints) == ([], [])
        server.shutdown()


def test_keys_move_one_slider_and_the_picture_and_the_words_follow(reader):
    reader.page.keyboard.press("Tab")
    assert reader.sliders.nth(0).evaluate("(e) => e === document.activeElement && e.matches(':focus-visible')")
    steps = {"ArrowLeft": (-1.5, 2), "End": (0.5, 2), "Home": (-1.5, 2), "ArrowUp": (0, 2)}
    for key, expected in steps.items():
        reader.page.keyboard.press(key)
        assert reader.shows(*expected)
    reader.page.keyboard.press("Tab")
    for key, width in {"End": 3, "ArrowLeft": 2, "Home": 0.25}.items():
        reader.page.keyboard.press(key)
        assert reader.shows(0, width)
    assert reader.position() == [1, 0]


def test_every_position_shows_the_picture_that_was_drawn_for_it(reader):
    for mean in range(len(MEANS)):
        for width in range(len(WIDTHS)):
            for slider, k in zip(reader.sliders.all(), (mean, width), strict=True):
                slider.fill(str(k))
            assert reader.shows(MEANS[mean], WIDTHS[width])


def test_a_finger_moves_a_slider(browser, shown):
    with Reader(browser, shown, has_touch=True, viewport={"width": 390, "height": 700}) as reader:
        slider = reader.sliders.nth(1)
        slider.tap(position={"x": slider.bounding_box()["width"] - 3, "y": 10})
        assert reader.shows(0, 3)


def test_what_python_sets_is_shown(reader):
    reader.page.evaluate(SET, [reader.shown.ids[0], "position", [2, 1]])
    assert reader.shows(0.5, 1)
    assert [slider.input_value() for slider in reader.sliders.all()] == ["2", "1"]


def test_two_flipbooks_of_one_page_move_apart_and_pngs_are_shown(reader):
    second = reader.all.nth(1)
    for level, key in ((100, "ArrowRight"), (200, "End"), (0, "Home")):
        second.locator("input").press(key)
        assert second.locator("output").inner_text() == f"Grey level {level}."
        size = second.locator(".picture img").evaluate("async (i) => { await i.decode(); return i.naturalWidth; }")
        assert size == 30
    assert reader.shows(0, 2)


def test_everything_has_a_name_and_changes_are_announced(reader):
    tree = reader.page.locator("body").aria_snapshot()
    assert [name in tree for name in ('slider "mean of the bell"', 'slider "width"', 'img "0 and 2."')] == [True] * 3
    assert not re.findall(r"^\s*- (?:slider|img)(?: \[.*\])?:?$", tree, re.MULTILINE)
    assert {o.get_attribute("aria-live") for o in reader.page.locator(".flipbook output").all()} == {"polite"}


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_every_screen_and_its_picture_stays_dark_on_light(browser, shown, scheme, width):
    with Reader(browser, shown, color_scheme=scheme, viewport={"width": width, "height": 700}) as reader:
        assert reader.page.evaluate("document.documentElement.scrollWidth") <= width
        picture = reader.all.first.locator(".picture")
        colours = picture.evaluate("(e) => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]")
        paper, ink = (max(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
        assert paper - ink > 200  # of 255: black is drawn on white in both schemes


def test_the_still_pictures_go_when_the_flipbooks_stand(reader):
    reader.page.wait_for_function("[...document.querySelectorAll('figure')].every((figure) => figure.hidden)")
    assert not any(still.is_visible() for still in reader.page.locator("img.without-script").all())


def test_a_flipbook_that_misses_pictures_says_so_and_leaves_the_still_ones(browser, tmp_path):
    def cut(states):
        next(s for s in states.values() if len(s["state"].get("names", ())) == 2)["state"]["frames"]["middles"].pop()

    with Visit(browser, Shown(tmp_path, edit=cut).path.as_uri()) as visit:
        cell = visit.page.locator(".cell_output").first
        cell.locator("div", has_text=re.compile("11.* 12.* 12")).wait_for()
        assert [still.is_visible() for still in cell.locator("img.without-script").all()] == [True, True]
        visit.page.locator(".flipbook").wait_for()  # the other one


def test_a_view_that_is_taken_away_no_longer_listens(reader):
    """Jupyter calls what `render` gave back when an output is cleared."""
    assert (
        reader.page.evaluate(
            """async (id) => {
            const model = await manager.get_model(id), el = document.createElement("div");
            const url = URL.createObjectURL(new Blob([model.get("_esm")], { type: "text/javascript" }));
            const leave = (await import(url)).default.render({ model, el });
            model.set("position", [0, 0]);
            const before = el.querySelector("output").textContent;
            leave();
            model.set("position", [2, 3]);
            return [before, el.querySelector("output").textContent]; }""",
            reader.shown.ids[0],
        )
        == ["-1.5 and 0.25."] * 2
    )
    reader.page.evaluate(FRAMES)
    assert reader.shows(0.5, 3)
