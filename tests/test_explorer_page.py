"""The latent explorer as a reader without Python has it: its own page, in a real browser, the network blocked."""

import base64
import contextlib
import functools
import io
import json
import re
import shutil
import subprocess
import threading
from http.server import ThreadingHTTPServer
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from ipywidgets.embed import dependency_state, embed_data
from PIL import Image
from test_book import ROOT, Quiet, Visit
from test_explorer import lively, make_exact

from vae_core.explorer import FUNCTIONS, EncodedImages, LatentExplorer
from vae_core.records import default_out, load_trained

KIND = "application/vnd.jupyter.widget-"
SPY = "export default { render({ model }) { window.manager = model.widget_manager; } }"  # lets a test ask for a model
COUNT = """<script>window.converted = []; window.Uint16Array = class extends Uint16Array {
    constructor(...all) { super(...all); converted.push(this.length); } };</script>"""
STILL = "<img class='without-script' alt='a grid of decoded images' width=9 height=9>"
FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
GET = "(id) => manager.get_model(id).then((model) => model.get('z'))"
SET = "([id, z]) => manager.get_model(id).then((model) => model.set('z', z))"
LOAD = "const load = (text) => import(URL.createObjectURL(new Blob([text], { type: 'text/javascript' })));"
DECODE = f"""async ([id, z]) => {{ {LOAD}
    const model = await manager.get_model(id), weights = await manager.get_model(model.get("decoder").slice(10));
    const {{ Decoder }} = await load(model.get("_esm"));
    const images = new Uint8Array(new Decoder(weights.get("header"), weights.get("blob")).decode(z).buffer);
    return btoa(Array.from(images, (byte) => String.fromCharCode(byte)).join("")); }}"""
CHECK = f"""async ([units, explorer, cases]) => {{ {LOAD}
    return (await load(units)).check(await load(explorer), cases); }}"""
DRAWS = """async (button, id) => { const model = await manager.get_model(id), all = [];
    for (let k = 0; k < 500; k++) { button.click(); all.push(...model.get("z")); } return all; }"""
EDGES = "(all) => all.map((e) => e.getBoundingClientRect()).flatMap(({ left, right }) => [left, right])"


class Shown:
    """A page with these explorers, each beside a still picture."""

    def __init__(self, folder: Path, models, images, *, edit=lambda states: None):
        self.models = [model.double() for model in models]
        self.explorers = [LatentExplorer(model, image) for model, image in zip(models, images, strict=True)]
        state = dependency_state(self.explorers, drop_defaults=False)
        states = embed_data(self.explorers, drop_defaults=False, state=state)["manager_state"]
        states["state"]["spy"] = {"state": {"_esm": SPY}}
        edit(states["state"])
        self.ids = [explorer.model_id for explorer in self.explorers]
        spy, *views = (
            f"<script type='{KIND}view+json'>{json.dumps({'model_id': k})}</script>" for k in ("spy", *self.ids)
        )
        cells = "".join(f"<div class='cell_output'>{view}<figure>{STILL}</figure>{STILL}</div>" for view in views)
        text = json.dumps(states).replace("</", "<\\/")
        self.path = folder / "page.html"
        self.path.write_text(
            f"<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>{COUNT}"
            f"<meta name=color-scheme content='light dark'><body style='margin: 0'><script type='{KIND}state+json'>"
            f"{text}</script>{spy}{cells}<script src='hydrate.js'></script>"
        )
        shutil.copy(ROOT / "book" / "assets" / "hydrate.js", folder)

    def codes(self) -> np.ndarray:
        return np.frombuffer(self.explorers[0].codes, "<f2").astype("f4").reshape(-1, self.models[0].latent_dim)

    def decoded(self, z, k: int = 0) -> np.ndarray:
        with torch.no_grad():
            return self.models[k].decode(torch.as_tensor(np.array(z), dtype=torch.float64)).numpy()


def images_for(model, n: int = 30) -> EncodedImages:
    """Made-up codes, classes and images; the units lose nats one by one, and the second half of them has none."""
    d, shape, generator = model.latent_dim, model.input_shape, torch.Generator().manual_seed(1)
    codes = 5 * torch.rand(n, d, generator=generator) - 2.5
    kl = torch.tensor([0.001 if k >= d / 2 > 1 else 2 - 0.1 * k for k in range(d)])[
        torch.randperm(d, generator=generator)
    ]
    images = torch.randint(256, (4, *shape), generator=generator, dtype=torch.uint8)
    return EncodedImages(codes, (torch.arange(n) % 12).byte(), images, kl)


def small(latent_dim: int = 2, shape=(1, 6, 6)):
    """A model that loses nothing in half precision, so that pictures can be compared to the last grey level."""
    with torch.random.fork_rng():
        torch.manual_seed(latent_dim)
        return make_exact(lively(latent_dim, shape))


@pytest.fixture(scope="module")
def plane(tmp_path_factory) -> Shown:
    """Two explorers of one model, two numbers each."""
    model = small()
    return Shown(tmp_path_factory.mktemp("plane"), [model] * 2, [images_for(model)] * 2)


@pytest.fixture(scope="module")
def sliders(tmp_path_factory) -> Shown:
    """An explorer of twenty numbers, and one of three, of colour images and without test images."""
    models = [small(20), small(3, (3, 4, 5))]
    return Shown(tmp_path_factory.mktemp("sliders"), models, [images_for(models[0]), None])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Shown:
    names = ["chen-mnist-d2", "chen-mnist-d20"]
    images = [EncodedImages.load(default_out() / f"{name}.codes.safetensors") for name in names]
    return Shown(tmp_path_factory.mktemp("recorded"), list(map(load_trained, names)), images)


class Reader(Visit):
    """Somebody who reads such a page."""

    def __init__(self, browser, shown: Shown, url: str | None = None, **context):
        super().__init__(browser, url or shown.path.as_uri(), **context)
        self.shown, self.all = shown, self.page.locator(".latent-explorer")
        self.one, self.plane = self.all.first, self.all.first.locator(".plane")
        self.all.nth(len(shown.ids) - 1).wait_for()

    def settled(self) -> "Reader":
        self.page.evaluate(FRAMES)
        return self

    def z(self, k: int = 0) -> list[float]:
        return self.page.evaluate(GET, self.shown.ids[k])

    def words(self, k: int = 0) -> str:
        return self.settled().all.nth(k).locator("output").inner_text()

    def canvas(self, name: str, k: int = 0) -> np.ndarray:
        """Its colours, (3, H, W) in [0, 1]."""
        source = self.settled().all.nth(k).locator(f"canvas.{name}").evaluate("(c) => c.toDataURL()")
        image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB")
        return np.asarray(image).transpose(2, 0, 1) / 255

    def shows_what_pytorch_decodes(self, k: int = 0, tolerance: float = 0.51 / 255) -> bool:
        expected, seen = self.shown.decoded(self.z(k), k), self.canvas("picture", k)
        return np.abs(seen - (expected if len(expected) == 3 else 1 - expected)).max() < tolerance

    def place(self, *z: float, k: int = 0) -> tuple[float, float]:
        """Where on the screen a code lies."""
        box = self.all.nth(k).locator(".plane").bounding_box()
        return box["x"] + box["width"] * (3 + z[0]) / 6, box["y"] + box["height"] * (3 - z[1]) / 6

    def press(self, *keys: str) -> list[float]:
        for key in keys:
            self.page.keyboard.press(key)
        return self.z()

    def click(self, button: str) -> list[float]:
        self.one.get_by_role("button", name=re.compile(button)).click()
        return self.z()

    def complains(self) -> bool:
        return bool(self.blocked or self.complaints)


@pytest.fixture(params=["plane"])
def reader(request, browser):
    with Reader(browser, request.getfixturevalue(request.param)) as opened:
        yield opened


def of(*pages: str):
    """The test's reader reads these pages, one after another."""
    return pytest.mark.parametrize("reader", pages, indirect=True)


# The parts of the script


def text(values, kind: str) -> str:
    return base64.b64encode(np.asarray(values, kind).tobytes()).decode()


def case(rng, layers, n: int, scale: float = 1.0) -> dict:
    """An exported decoder, n codes, and the images that numpy makes of them in float64."""
    parts, header, x = [], [], (scale * rng.standard_normal((n, layers[0][0]))).astype("<f4")
    z = text(x, "<f4")
    for m, o, name in layers:
        W, b = (rng.standard_normal(shape).astype("<f2").astype(float) for shape in ((o, m), (o,)))
        x = FUNCTIONS[name](torch.tensor(x.astype(float) @ W.T + b)).numpy()
        parts += [W.ravel(), b]
        header.append({"inputs": m, "outputs": o, "activation": name})
    blob = text(np.concatenate(parts), "<f2")
    return {"header": {"shape": [1, 1, o], "layers": header}, "blob": blob, "z": z, "images": text(x, "<f4")}


@pytest.fixture(scope="module")
def cases() -> dict:
    rng = np.random.default_rng(0)
    stacks = [[(m, o, "none")] for m in (1, 2, 3, 4, 7, 8) for o in (1, 5)] + [[(3, 6, "relu"), (6, 5, "tanh")]]
    return {
        "halves": text(np.arange(65536, dtype="<u2").view("<f2"), "<f4"),
        "activations": [case(rng, [(4, 9, name)], 50, scale) for name in FUNCTIONS for scale in (1.0, 30.0)],
        "products": [case(rng, stack, n) for stack in stacks for n in (1, 2, 3, 4, 5, 225)],
    }


@pytest.fixture(scope="module", params=["node", "chromium"])
def units(request, cases, tmp_path_factory) -> dict[str, str]:
    """What tests/explorer_units.mjs says of each part, "" for nothing, in node and in the browser."""
    script, explorer = ROOT / "tests" / "explorer_units.mjs", ROOT / "vae_core" / "explorer.js"
    if request.param == "chromium":
        with contextlib.closing(request.getfixturevalue("browser").new_page()) as page:
            return page.evaluate(CHECK, [script.read_text(), explorer.read_text(), cases])
    if shutil.which("node") is None:
        pytest.skip("node is not installed; Chromium runs the same tests")
    folder = tmp_path_factory.mktemp("units")
    shutil.copy(explorer, folder / "explorer.mjs")
    (folder / "cases.json").write_text(json.dumps(cases))
    command = ["node", str(script), "explorer.mjs", "cases.json"]
    return json.loads(subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout)


@pytest.mark.parametrize("unit", ["halves", "activations", "products", "views", "lengths", "names", "repeats"])
def test_the_script_computes_as_numpy_does(units, unit):
    assert units[unit] == ""


# The page


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
        reader.page.evaluate(SET, [shown.ids[k], code])
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
    assert "nearest test image is of class 1" in reader.words()
    reader.one.get_by_label("go to").select_option(label="test image 4, of class 3")
    for t in (0.25, 1):
        reader.one.get_by_label("how far").fill(str(t))
        assert reader.z() == pytest.approx((1 - t) * start + t * end, abs=1e-6)
        assert reader.shows_what_pytorch_decodes()
    assert "nearest test image is of class 3" in reader.words()


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
        assert reader.words() == f"{', '.join(numbers)}; the nearest test image is of class {nearest}"
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
        assert "This explorer could not start" in cell.inner_text()
