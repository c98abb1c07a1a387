"""The flipbook in Python: what is drawn when, what is kept, and what is refused."""

import io
import itertools
from xml.etree import ElementTree

import ipywidgets
import numpy as np
import pytest
import traitlets
from checks import refused
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vae_core.interactive import flipbook
from vae_core.interactive.flipbook import Flipbook, points, svg

SLIDERS = {"mean": [-1.5, 0, 0.3], "kind": ["wide", "narrow"]}


@pytest.fixture(autouse=True)
def widgets_are_closed():
    yield
    ipywidgets.Widget.close_all()


def drawing(mean, kind) -> tuple[str, str]:
    return svg(100, 50, "<path d='M0 0'/>", f"<text>{mean} {kind}</text>"), f"The mean is {mean}, the bell {kind}."


def png(*_values, shade: int = 7) -> tuple[bytes, str]:
    Image.new("L", (3, 2), shade).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue(), "A grey picture."


def pictures(book: Flipbook) -> list[str]:
    frames = book.frames
    return [frames["head"] + middle + frames["tail"] for middle in frames["middles"]]


def test_every_position_is_drawn_once_and_the_last_slider_runs_fastest():
    called = []
    book = Flipbook(SLIDERS, lambda *values: called.append(values) or drawing(*values))
    assert called == list(itertools.product(*SLIDERS.values()))
    assert pictures(book) == [drawing(*values)[0] for values in called]
    assert book.frames["words"] == [drawing(*values)[1] for values in called]
    book.values = (0.3, "narrow")
    assert len(called) == 6


def test_values_are_read_as_people_write_them():
    book = Flipbook({"step": [0.1 * k for k in range(4)], "n": range(0, 30, 10)}, drawing)
    assert book.labels == [["0", "0.1", "0.2", "0.3"], ["0", "10", "20"]]
    book.values = (0.3, 10.0)  # not 0.1 * 3
    assert book.position == [3, 1]
    assert book.values == (0.1 * 3, 10)


@given(st.lists(st.text("<ab>\ud7ff", max_size=8), min_size=1, max_size=9))
def test_what_pictures_have_in_common_is_kept_once_and_nothing_is_lost(texts):
    packed = flipbook._packed([(text, "words") for text in texts])
    assert [packed["head"] + middle + packed["tail"] for middle in packed["middles"]] == texts
    if len(set(texts)) > 1:
        assert len({middle[:1] for middle in packed["middles"]}) > 1
        assert len({middle[-1:] for middle in packed["middles"]}) > 1


def test_it_opens_at_its_start_and_else_at_the_first_of_each():
    assert Flipbook(SLIDERS, drawing).values == (-1.5, "wide")
    assert Flipbook(SLIDERS, drawing, start=(0, "narrow")).position == [1, 1]


def test_python_sees_the_position_and_sets_it():
    book, heard = Flipbook(SLIDERS, drawing), []
    book.observe(lambda change: heard.append(book.values), "position")
    book.position = [2, 0]  # what the page does
    book.values = (-1.5, "narrow")
    assert heard == [(0.3, "wide"), (-1.5, "narrow")]
    assert book.position == [0, 1]


@pytest.mark.parametrize("position", [[], [0], [0, 0, 0], [3, 0], [0, 2], [-1, 0], [0.5, 0], "ab", None, [None, 0]])
def test_a_position_that_no_slider_has_is_refused(position):
    book = Flipbook(SLIDERS, drawing, start=(0, "narrow"))
    with pytest.raises(traitlets.TraitError, match="position") as caught:
        book.position = position
    assert "\n" not in str(caught.value)
    assert book.position == [1, 1]


@pytest.mark.parametrize(
    ("values", "words"),
    [((0.5, "wide"), ["mean", "0.5", "from -1.5 to 0.3"]), ((0, "tall"), ["kind", "tall"]), ((0,), ["mean, kind"])],
)
def test_values_that_no_slider_has_are_refused(values, words):
    book = Flipbook(SLIDERS, drawing)
    with refused(ValueError, *words):
        book.values = values
    with refused(ValueError, *words):
        Flipbook(SLIDERS, drawing, start=values)
    assert book.position == [0, 0]


@pytest.mark.parametrize(
    ("sliders", "words"),
    [({}, "none"), ({"a": []}, "slider a"), ({"a": [1]}, "slider a"), ({"b": [1, 2, 1.0]}, "slider b")],
)
def test_a_slider_without_two_different_values_is_refused_before_anything_is_drawn(sliders, words):
    with refused(ValueError, words):
        Flipbook(sliders, lambda *_: pytest.fail("drawn"))


GOOD = svg(1, 1)
ANSWERS = {
    "a picture and the words": [None, GOOD, (GOOD,), (GOOD, ""), (GOOD, "  "), (GOOD, None), (GOOD, "a", "b")],
    "SVG text or the bytes of a PNG": [(b"GIF89a", "words"), (None, "words"), ("<p>no</p>", "words")],
    "cannot be read": [("<svg>", "words"), ("no", "words"), ("", "words"), ("<svg><g></svg>", "words")],
}


@pytest.mark.parametrize(("words", "answer"), [(words, answer) for words, all_ in ANSWERS.items() for answer in all_])
def test_an_answer_that_is_no_picture_with_words_is_refused(words, answer):
    with refused(ValueError, "draw(2)", words):
        Flipbook({"a": [1, 2]}, lambda a: (GOOD, "words") if a == 1 else answer)


def test_pictures_too_large_for_a_page_are_refused_with_their_size():
    def large(k):
        return svg(1, 1, f"<text>{k}{'x' * 600_000}{k}</text>"), "words"

    with refused(ValueError, "2 pictures", "1,200,112", "1,000,000"):
        Flipbook({"k": [1, 2]}, large)


def test_a_still_picture_is_the_present_one_and_stands_on_its_own():
    book = Flipbook(SLIDERS, drawing, start=(0.3, "narrow"))
    root = ElementTree.fromstring(book.still().data)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert (root.get("width"), root.get("viewBox")) == ("100", "0 0 100 50")
    assert "".join(root.itertext()) == "0.3 narrow"


def test_svg_without_a_namespace_gets_one():
    (first, second) = pictures(Flipbook({"a": [1, 2]}, lambda a: (f"\n<svg><g id='{a}'/></svg>\n", "words")))
    assert first == "<svg xmlns=\"http://www.w3.org/2000/svg\"><g id='1'/></svg>"
    assert ElementTree.fromstring(second)[0].get("id") == "2"


def test_pictures_may_be_pngs():
    book = Flipbook({"shade": [7, 9]}, lambda shade: png(shade=shade), start=[9])
    assert Image.open(io.BytesIO(book.still().data)).getpixel((0, 0)) == 9
    assert book.frames["head"].startswith('<img src="data:image/png;base64,')


def test_the_text_of_a_flipbook_is_the_same_in_every_session():
    texts = {Flipbook(SLIDERS, drawing)._repr_mimebundle_()[0]["text/plain"] for _ in range(2)}
    assert texts == {"Flipbook of 6 pictures: mean, kind"}


def test_corners_are_rounded_to_tenths_and_take_few_bytes():
    assert points([0, 1.04, -2.5], [10.0, 100.06, 0]) == "0,10 1,100.1 -2.5,0"
    assert points(np.array([1e6 / 3]), (0.049,)) == "333333,0"
    with pytest.raises(ValueError, match="argument 2"):
        points([1, 2], [1])
