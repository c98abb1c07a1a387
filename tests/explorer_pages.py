"""Pages with latent explorers, and a reader of them: what the tests of the explorer in a browser share."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from book_pages import Visit
from explorer_models import lively, make_exact
from PIL import Image
from widget_pages import FRAMES, GET, write_page

from vae_core.experiments.records import default_out, load_trained
from vae_core.interactive.explorer import EncodedImages, LatentExplorer

COUNT = """<script>window.converted = []; window.Uint16Array = class extends Uint16Array {
    constructor(...all) { super(...all); converted.push(this.length); } };</script>"""


class Shown:
    """A page with these explorers, each beside a still picture."""

    def __init__(self, folder: Path, models, images, *, edit=lambda states: None):
        self.models = [model.double() for model in models]
        self.explorers = [LatentExplorer(model, image) for model, image in zip(models, images, strict=True)]
        self.path = write_page(folder, self.explorers, edit=edit, head=COUNT)
        self.ids = [explorer.model_id for explorer in self.explorers]

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
        return self.page.evaluate(GET, [self.shown.ids[k], "z"])

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
