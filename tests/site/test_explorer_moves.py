"""The latent explorer as a reader without Python moves it: by mouse, finger and keys, by its buttons and sliders."""

from itertools import pairwise, product

import numpy as np
import pytest
from explorer_pages import Reader, of, plane, reader, sliders

DRAWS = """async (button, id) => { const model = await manager.get_model(id), all = [];
    for (let k = 0; k < 500; k++) { button.click(); all.push(...model.get("z")); } return all; }"""

WAY = [(-1.0, 0.5), (0.4, 1.2), (1.5, -2.0)]


def test_the_point_follows_a_drag_and_the_picture_follows_the_point(reader):
    mouse = reader.page.mouse
    mouse.move(*reader.place(2.0, 2.0))
    assert reader.settled().z() == [0, 0]
    for z in WAY:
        mouse.move(*reader.place(*z))
        mouse.down()
        assert reader.settled().z() == pytest.approx(z, abs=0.03)
        assert reader.shows_what_pytorch_decodes()
    mouse.move(*reader.place(5.0, 0.6), steps=5)
    assert reader.settled().z() == pytest.approx([3, 0.6], abs=0.03)
    assert reader.shows_what_pytorch_decodes()
    mouse.up()
    mouse.move(*reader.place(0.0, 0.0))
    assert reader.settled().z() == pytest.approx([3, 0.6], abs=0.03)


def test_a_finger_moves_the_point_and_not_the_page(browser, plane):
    with Reader(browser, plane, has_touch=True, viewport={"width": 390, "height": 500}) as reader:
        session = reader.context.new_cdp_session(reader.page)
        for k, z in enumerate([*WAY, None]):
            x, y = reader.place(*(z or (0, 0)))
            kind = "touchEnd" if z is None else "touchMove" if k else "touchStart"
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}] if z else []})
            assert reader.settled().z() == pytest.approx(z or WAY[-1], abs=0.03)
            assert reader.shows_what_pytorch_decodes()
        assert reader.page.evaluate("scrollY") == 0


def test_the_plane_is_reached_and_moved_by_keys(reader):
    reader.press("Tab")
    focused = reader.one.locator(".plane:focus-visible")
    assert focused.evaluate("(e) => getComputedStyle(e).outlineStyle") == "solid"
    for key, z in {"ArrowLeft": (-1, 0), "ArrowUp": (-1, 1), "ArrowRight": (0, 1), "ArrowDown": (0, 0)}.items():
        assert reader.press(key) == pytest.approx([0.15 * value for value in z])  # a twentieth of the extent
    assert reader.press("Shift+ArrowUp", "Shift+ArrowRight") == pytest.approx([0.015, 0.015])
    assert reader.press(*["ArrowRight"] * 25, "a") == pytest.approx([3, 0.015])
    assert reader.shows_what_pytorch_decodes()
    reader.press("Tab")
    assert focused.count() == 0


@of("plane", "sliders")
def test_draws_are_from_the_prior_and_reset_goes_back_to_the_origin(reader):
    draws = reader.one.get_by_role("button", name="Draw from the prior").evaluate(DRAWS, reader.shown.ids[0])
    assert max(map(abs, draws)) <= 3
    assert abs(np.mean(draws)) < 6 / np.sqrt(len(draws))
    assert abs(np.std(draws) - 0.997) < 6 / np.sqrt(2 * len(draws))  # of N(0, 1), cut off at 3
    assert not np.any(reader.click("Reset"))
    assert reader.shows_what_pytorch_decodes()


@of("plane", "sliders")
def test_a_reader_starts_from_a_test_image_and_goes_on_to_another(reader):
    start, end = reader.shown.codes()[[1, 3]]
    assert reader.click("test image 2, of class 1") == start.tolist()
    assert reader.words().endswith(" 1")
    reader.one.get_by_label("go to").select_option(label="test image 4, of class 3")
    for t in (0.25, 1):
        reader.one.get_by_label("how far").fill(str(t))
        assert reader.z() == pytest.approx((1 - t) * start + t * end, abs=1e-6)
        assert reader.shows_what_pytorch_decodes()
    assert reader.words().endswith(" 3")


def test_the_way_to_an_image_starts_from_where_the_reader_stands(reader):
    way, target = reader.one.get_by_label("how far"), reader.shown.codes()[0]
    way.fill("0.5")
    reader.click("Reset")
    assert way.input_value() == "0"
    reader.page.mouse.click(*reader.place(1.0, 1.0))
    way.fill("0.5")
    assert reader.z() == pytest.approx((target + 1) / 2, abs=0.03)


@of("sliders")
def test_the_strip_shows_one_number_swept_and_a_click_sets_it(reader):
    before, strip = reader.click("test image 2"), reader.one.locator(".strip")
    reader.one.get_by_label("the unit that is swept").select_option(label="z5")
    swept = np.array([[value if k == 4 else old for k, old in enumerate(before)] for value in np.linspace(-3, 3, 9)])
    expected = 1 - np.concatenate([*reader.shown.decoded(swept)], axis=2)
    assert np.abs(reader.canvas("strip") - expected).max() < 0.51 / 255
    assert "z5 from -3 to 3" in strip.get_attribute("aria-label")
    strip.click(position={"x": strip.evaluate("(c) => c.clientWidth") * 6.5 / 9, "y": 5})
    assert reader.z() == pytest.approx(swept[6])


def test_a_click_on_the_border_of_the_strip_sets_a_number_too(reader):
    strip = reader.one.locator(".strip")
    for x in (strip.evaluate("(c) => c.clientWidth") + 0.5, -0.5):
        strip.click(position={"x": x, "y": 5})
        assert sorted(map(abs, reader.z())) == [0, 3]


@of("sliders")
def test_of_twenty_numbers_those_that_carry_nothing_are_folded_away(reader):
    explorer, every = reader.shown.explorers[0], reader.one.locator("input[aria-label^=z]").all()
    names = [slider.get_attribute("aria-label") for slider in every]
    assert names == [f"z{unit + 1} (KL {explorer.kl[unit]:.2f})" for unit in explorer.order]
    assert [slider.is_visible() for slider in every] == [True] * 10 + [False] * 10
    reader.one.locator("summary", has_text="units that carry nothing: 10").click()
    for k, value in ((0, 1.25), (19, -2.5)):
        every[k].fill(str(value))
        assert reader.z()[explorer.order[k]] == value
    every[1].press("ArrowRight")
    assert [reader.z()[unit] for unit in explorer.order] == [1.25, 0.01] + [0] * 17 + [-2.5]
    assert reader.shows_what_pytorch_decodes()
    assert [float(slider.input_value()) for slider in every] == [reader.z()[unit] for unit in explorer.order]


@of("sliders")
def test_colours_are_painted_as_colours_and_every_number_has_a_slider(reader):
    every = reader.all.nth(1).locator("input[type=range]")
    assert [slider.get_attribute("aria-label") for slider in every.all()] == ["z1", "z2", "z3"]
    every.nth(2).fill("1.5")
    assert reader.z(1) == [0, 0, 1.5]
    assert reader.words(1) == "z1 = 0.00, z2 = 0.00, z3 = 1.50"
    assert reader.canvas("picture", 1).std(axis=0).max() > 0.05
    assert reader.shows_what_pytorch_decodes(1)


def test_behind_the_point_stands_in_each_place_what_is_decoded_there(reader):
    ticks, edges = (np.arange(15) + 0.5) / 7.5 - 1, np.linspace(0, 512, 16).astype(int)
    codes = [[3 * across, -3 * down] for down, across in product(ticks, ticks)]
    expected = 1 - reader.shown.decoded(codes).mean((1, 2, 3)).reshape(15, 15)
    behind = reader.one.get_by_label("behind the point")
    coloured = reader.canvas("plane")
    behind.select_option("decoded images")
    image = reader.canvas("plane")[0]
    seen = np.array([[image[a:b, c:d].mean() for c, d in pairwise(edges)] for a, b in pairwise(edges)])
    assert np.abs(seen - expected)[[0, 1, 2, 3, 11, 12, 13, 14]].max() < 0.03  # the ring lies in the middle
    behind.select_option("nothing")
    assert reader.canvas("plane")[:, :200].min() == 1 > coloured[:, :200].min()
