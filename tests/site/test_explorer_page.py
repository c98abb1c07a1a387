"""The latent explorer as a reader without Python has it: its own page, in a real browser, the network blocked."""

import base64
import functools
import re
import threading
from http.server import ThreadingHTTPServer

import numpy as np
import pytest
from book_pages import Quiet, Visit
from explorer_pages import Reader, Shown, of, plane, reader, recorded, sliders, small
from widget_pages import SET

DECODE = """async ([id, z]) => {
    const load = (text) => import(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
    const model = await manager.get_model(id), weights = await manager.get_model(model.get("decoder").slice(10));
    const { Decoder } = await load(model.get("_esm"));
    const images = new Uint8Array(new Decoder(weights.get("header"), weights.get("blob")).decode(z).buffer);
    return btoa(Array.from(images, (byte) => String.fromCharCode(byte)).join("")); }"""
EDGES = "(all) => all.map((e) => e.getBoundingClientRect()).flatMap(({ left, right }) => [left, right])"


@of("recorded")
@pytest.mark.parametrize("k", [0, 1])
def test_a_recorded_model_decodes_in_the_page_as_in_pytorch(reader, k):
    """200 random codes each, of two and of twenty numbers; then a few of them as they are painted."""
    shown = reader.shown
    codes = np.random.default_rng(k).normal(size=(200, shown.models[k].latent_dim))
    images = base64.b64decode(reader.page.evaluate(DECODE, [shown.ids[k], codes.ravel().tolist()]))
    expected = shown.decoded(codes, k)
    assert np.abs(np.frombuffer(images, "<f4").reshape(expected.shape) - expected).max() < 2e-3
    for code in codes[:3].tolist():
        reader.page.evaluate(SET, [shown.ids[k], "z", code])
        assert reader.shows_what_pytorch_decodes(k, 1 / 255 + 2e-3)
    assert not reader.complains()


@pytest.mark.parametrize("scheme", ["file", "http"])
@pytest.mark.parametrize("name", ["plane", "sliders"])
def test_a_page_with_explorers_opens_without_a_network_and_without_complaint(request, browser, name, scheme):
    shown = request.getfixturevalue(name)
    handler = functools.partial(Quiet, directory=str(shown.path.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = {"http": f"http://127.0.0.1:{server.server_port}/page.html", "file": shown.path.as_uri()}[scheme]
        with Reader(browser, shown, url) as reader:
            assert all(reader.shows_what_pytorch_decodes(k) for k in (0, 1))
            assert np.any(reader.click("Draw"))
            assert reader.shows_what_pytorch_decodes()
            assert not reader.complains()
        server.shutdown()


def test_two_explorers_of_one_page_move_apart(reader):
    reader.page.mouse.click(*reader.place(1.0, 2.0, k=1))
    assert reader.settled().z(0) == [0, 0]
    assert reader.z(1) == pytest.approx([1, 2], abs=0.03)
    assert reader.words(0) != reader.words(1)
    assert reader.shows_what_pytorch_decodes(0)
    assert reader.shows_what_pytorch_decodes(1)


def test_two_explorers_of_one_page_share_one_decoder(reader):
    numbers = len(reader.shown.explorers[0].decoder.blob) // 2
    assert reader.page.evaluate("converted").count(numbers) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["plane", "sliders"])
def test_nothing_sticks_out_of_the_narrowest_phone(request, browser, name, scheme):
    phone = {"color_scheme": scheme, "viewport": {"width": 320, "height": 700}}
    with Reader(browser, request.getfixturevalue(name), **phone) as reader:
        for summary in reader.page.locator("summary").all():
            summary.click()
        edges = reader.page.locator(".latent-explorer *:visible").evaluate_all(EDGES)
        assert (min(edges) >= 0, max(edges) <= 320) == (True, True)
        assert reader.page.evaluate("document.documentElement.scrollWidth") <= 320
        assert not reader.complains()


def test_words_tell_the_code_and_the_nearest_class(reader):
    output, picture = reader.one.locator("output"), reader.one.locator(".picture")
    assert output.get_attribute("aria-live") == "polite"
    for z in ((1.0, -2.0), (-2.4, 0.7), (0.3, 0.3)):
        reader.page.mouse.click(*reader.place(*z))
        nearest = ((reader.shown.codes() - reader.settled().z()) ** 2).sum(1).argmin() % 12
        numbers = [f"z{unit + 1} = {reader.z()[unit]:.2f}" for unit in reader.shown.explorers[0].order]
        code, _, neighbour = reader.words().partition(";")
        assert code == ", ".join(numbers)
        assert neighbour.endswith(f" {nearest}")
        assert picture.get_attribute("aria-label").endswith(reader.words())


def test_the_legend_names_every_class_once_and_in_order(reader):
    legend = reader.one.locator(".swatch").locator("xpath=..").all_inner_texts()
    assert [int(re.search(r"\d+", entry)[0]) for entry in legend] == list(range(12))


@of("plane", "sliders")
def test_everything_that_can_be_looked_at_or_operated_has_a_name(reader):
    tree = reader.page.locator("body").aria_snapshot()
    assert len(re.findall(r"- (?:button|slider|combobox|img|application) \"", tree)) > 10
    assert not re.findall(r"^\s*- (?:button|slider|combobox|img|application)(?: \[.*\])?:?$", tree, re.MULTILINE)


def test_the_still_pictures_go_when_the_explorer_stands(reader):
    reader.page.wait_for_function("[...document.querySelectorAll('figure')].every((figure) => figure.hidden)")
    assert [still.is_visible() for still in reader.page.locator("img.without-script").all()] == [False] * 4


def test_an_explorer_that_cannot_start_says_so_and_leaves_the_still_pictures(browser, tmp_path):
    def cut(states):
        buffers = (buffer for entry in states.values() for buffer in entry.get("buffers", []))
        (buffer,) = (buffer for buffer in buffers if buffer["path"] == ["blob"])
        buffer["data"] = base64.b64encode(base64.b64decode(buffer["data"])[:-2]).decode()

    shown = Shown(tmp_path, [small()], [None], edit=cut)
    with Visit(browser, shown.path.as_uri()) as visit:
        cell = visit.page.locator(".cell_output")
        cell.locator("div", has_text="bytes, not").wait_for()
        assert [still.is_visible() for still in cell.locator("img.without-script").all()] == [True, True]
