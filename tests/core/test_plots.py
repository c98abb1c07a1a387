"""Sliders that decode, and pictures: what is drawn where."""

import asyncio
import base64
import io
import re
from itertools import combinations
from statistics import NormalDist

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from checks import refused
from colorspacious import cspace_convert, deltaE
from matplotlib.colors import to_hex, to_rgb
from PIL import Image
from torchvision.utils import make_grid

from vae_core import plots
from vae_core.interactive.sliders import PAUSE, latent_grid, latent_sliders
from vae_core.models import VAE, mlp_vae


@pytest.fixture(autouse=True)
def figures_are_closed_and_never_shown(monkeypatch):
    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", lambda *_args, **_kwargs: pytest.fail("a plot called show"))
    yield
    plt.close("all")


# Sliders

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def untrained(shape=(1, 8, 8), latent_dim: int = 3, likelihood: str = "bernoulli") -> VAE:
    return mlp_vae(shape, latent_dim, hidden=(16,), likelihood=likelihood)


def png_of(widget: ipywidgets.Widget) -> bytes:
    """The picture that the widget shows now."""
    source = re.search(r'<img src="data:image/png;base64,([^"]+)"', widget.image.value)[1]
    return base64.b64decode(source, validate=True)


def pixels_of(widget: ipywidgets.Widget) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png_of(widget)))) / 255


def move(widget: ipywidgets.Widget, code: list[float]) -> torch.Tensor:
    for slider, value in zip(widget.sliders, code, strict=True):
        slider.value = value
    return torch.tensor([code])


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_latent_sliders_has_one_slider_per_coordinate_from_minus_extent_to_extent(latent_dim):
    widget = latent_sliders(untrained(latent_dim=latent_dim), extent=2.5)
    assert [s.description for s in widget.sliders] == [f"z{k + 1}" for k in range(latent_dim)]
    assert {(s.min, s.max, s.value) for s in widget.sliders} == {(-2.5, 2.5, 0.0)}


def test_latent_sliders_shows_sliders_and_an_image_of_the_asked_width():
    widget = latent_sliders(untrained(), size=100)
    shown = [widget, *widget.children, *(c for child in widget.children for c in getattr(child, "children", ()))]
    assert all(part in shown for part in (widget.image, *widget.sliders))
    assert 'width="100"' in widget.image.value


def test_latent_sliders_describes_the_image_with_its_code():
    widget = latent_sliders(untrained())
    move(widget, [1.5, -2.0, 0.5])
    assert re.search(r'alt="[^"]* z = \(1\.50, -2\.00, 0\.50\)"', widget.image.value)


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_latent_sliders_draws_another_png_when_any_slider_moves(moved):
    widget = latent_sliders(untrained())
    before = png_of(widget)
    widget.sliders[moved].value = 1.5
    after = png_of(widget)
    assert (before[:8], after[:8]) == (SIGNATURE, SIGNATURE)
    assert after != before


def test_latent_sliders_draws_the_decoded_image_with_dark_ink():
    model = untrained()
    widget = latent_sliders(model)
    code = move(widget, [1.5, -2.0, 0.5])
    expected = 1 - model.eval().decode(code)[0, 0].detach().numpy()
    assert np.abs(pixels_of(widget) - expected).max() <= 1 / 255
    assert np.ptp(expected) > 10 / 255


def test_latent_sliders_starts_with_the_image_at_the_origin():
    model = untrained()
    expected = 1 - model.eval().decode(torch.zeros(1, 3))[0, 0].detach().numpy()
    assert np.abs(pixels_of(latent_sliders(model)) - expected).max() <= 1 / 255


def test_latent_sliders_keeps_colours_and_an_oblong_shape():
    model = untrained((3, 6, 9))
    widget = latent_sliders(model)
    code = move(widget, [1.5, -2.0, 0.5])
    expected = model.eval().decode(code)[0].permute(1, 2, 0).detach().numpy()
    assert np.abs(pixels_of(widget) - expected).max() <= 1 / 255


def test_latent_sliders_draws_means_outside_the_unit_interval_as_black_or_white():
    model = untrained(likelihood="gaussian").eval()
    with torch.no_grad():
        model.decoder[-1].bias.copy_(torch.linspace(-3, 4, 64))
    expected = 1 - model.decode(torch.zeros(1, 3))[0, 0].detach().clamp(0, 1).numpy()
    found = pixels_of(latent_sliders(model))
    assert np.abs(found - expected).max() <= 1 / 255
    assert (found.min(), found.max()) == (0, 1)


@pytest.mark.parametrize("training", [True, False])
def test_latent_sliders_decodes_in_evaluation_mode_and_leaves_the_model_as_it_was(training):
    model = untrained().train(training)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    move(latent_sliders(model), [1.0, 1.0, 1.0])
    assert model.training == training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_latent_sliders_takes_a_model_of_another_dtype_than_the_default():
    assert png_of(latent_sliders(untrained().float()))[:8] == SIGNATURE


@pytest.mark.parametrize("make", [latent_sliders, latent_grid])
def test_latent_sliders_and_latent_grid_draw_a_burst_of_changes_once_with_the_newest_values(make, monkeypatch):
    model, decoded = untrained(latent_dim=2), []
    widget = make(model)
    control = widget.sliders[0] if make is latent_sliders else widget.extent
    monkeypatch.setattr(model, "decode", lambda z: decoded.append(z) or torch.zeros(len(z), 1, 8, 8))

    async def burst():
        for value in (1.0, 1.5, 2.0, 2.5):
            control.value = value
        before = len(decoded)
        await asyncio.sleep(4 * PAUSE)
        control.value = 1.0
        await asyncio.sleep(4 * PAUSE)
        return before

    assert asyncio.run(burst()) == 0
    assert [z[:, 0].max().item() for z in decoded] == [2.5, 1.0]


# The grid of a plane


def test_latent_grid_shows_the_decoded_images_of_its_codes():
    model = untrained(latent_dim=2).eval()
    widget = latent_grid(model, extent=2.0, n=4)
    for spacing in ("linear", "quantile"):
        widget.spacing.value = spacing
        codes = torch.tensor(plots.grid_codes(4, 2.0 if spacing == "linear" else None, spacing))
        expected = 1 - np.nan_to_num(plots.tile(model.decode(codes).detach().numpy(), 4))
        assert np.abs(pixels_of(widget) - expected).max() <= 1 / 255
    assert "4 × 4 decoded images, quantile" in widget.image.value


@pytest.mark.parametrize(("control", "value", "size"), [("n", 7, 63), ("extent", 1.0, 45)])
def test_latent_grid_follows_resolution_and_range(control, value, size):
    widget = latent_grid(untrained(latent_dim=2), n=5)
    before = png_of(widget)
    getattr(widget, control).value = value
    assert png_of(widget) != before
    assert pixels_of(widget).shape == (size, size)  # images of 8 × 8 and a gap of 1


def test_latent_grid_of_colour_images_keeps_its_colours():
    model = untrained((3, 6, 9), latent_dim=2).eval()
    found = pixels_of(latent_grid(model, n=2))
    expected = model.decode(torch.tensor(plots.grid_codes(2)))[0].permute(1, 2, 0).detach().numpy()
    assert np.abs(found[:6, :9] - expected).max() <= 1 / 255
    assert (found[6] == 1).all()


def test_latent_grid_needs_two_latent_units():
    with pytest.raises(ValueError, match="two latent units, got 3; use latent_sliders"):
        latent_grid(untrained(latent_dim=3))


# Codes on a grid


def test_grid_codes_are_in_reading_order_with_the_largest_z2_on_top():
    codes = plots.grid_codes(3, extent=2.0)
    assert codes.tolist() == [[z1, z2] for z2 in (2.0, 0.0, -2.0) for z1 in (-2.0, 0.0, 2.0)]


@pytest.mark.parametrize(("extent", "edge"), [(None, 3.0), (4.0, 4.0), (0.5, 0.5)])
def test_grid_codes_take_equal_steps_over_the_extent(extent, edge):
    codes = plots.grid_codes(7, extent).reshape(7, 7, 2)
    assert codes[0, :, 0] == pytest.approx(-edge + np.arange(7) * edge / 3)
    assert codes[:, 0, 1] == pytest.approx(edge - np.arange(7) * edge / 3)


def test_grid_codes_run_over_the_priors_quantiles():
    codes = plots.grid_codes(10, spacing="quantile").reshape(10, 10, 2)
    expected = [NormalDist().inv_cdf(p) for p in np.linspace(0.05, 0.95, 10)]
    assert codes[4, :, 0] == pytest.approx(expected)
    assert codes[::-1, 6, 1] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 1}, ["n must", "got 1"]),
        ({"n": 0}, ["n must", "got 0"]),
        ({"n": 3, "spacing": "log"}, ["spacing", "'log'", "'quantile'"]),
    ],
)
def test_grid_codes_refuse_bad_grids(arguments, words):
    with pytest.raises(ValueError, match=words[0]) as caught:
        plots.grid_codes(**arguments)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


# Images side by side


@pytest.mark.parametrize("gap", [0, 1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_tile_puts_every_image_in_its_place_and_leaves_the_rest_blank(channels, gap):
    images = np.random.default_rng(0).random((5, channels, 4, 6))
    canvas = plots.tile(images, columns=3, gap=gap)
    height, width = 4 + gap, 6 + gap
    assert canvas.shape == (2 * height, 3 * width) + ((3,) if channels == 3 else ())
    for k, image in enumerate(images):
        top, left = height * (k // 3), width * (k % 3)
        cell = canvas[top : top + 4, left : left + 6].reshape(4, 6, channels)
        assert (cell == image.transpose(1, 2, 0)).all()
    assert np.isfinite(canvas).sum() == images.size


def test_tile_takes_tensors_and_leaves_no_row_empty():
    canvas = plots.tile(torch.ones(6, 1, 2, 2), columns=3, gap=0)
    assert canvas.shape == (4, 6)
    assert (canvas == 1).all()


def pixel(ax: plt.Axes, x: float, y: float) -> list[int]:
    """The drawn colour at data coordinates x, y; drawing is where matplotlib would warn."""
    ax.figure.canvas.draw()
    column, row = ax.transData.transform((x, y))
    return np.asarray(ax.figure.canvas.buffer_rgba())[int(ax.figure.bbox.height - row), int(column), :3].tolist()


def test_reconstructions_draw_stored_images_as_their_grey_values_beside_others():
    stored = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    shown = plots.reconstructions(stored, stored / 255).images[0].get_array()
    assert np.allclose(shown[:2, :2], [[0, 0.2], [0.4, 1]])
    assert np.allclose(shown[3:5, :2], shown[:2, :2])


@pytest.mark.parametrize(("channels", "ink", "colour"), [(1, 0, 255), (1, 1, 0), (3, 0, 0), (3, 1, 255)])
def test_show_images_draws_grey_ink_dark_and_colours_as_they_are(channels, ink, colour):
    ax = plots.show_images(np.full((1, channels, 4, 4), float(ink)), columns=1)
    assert pixel(ax, 1.5, 1.5) == [colour] * 3


@pytest.mark.parametrize("channels", [1, 3])
def test_show_images_leaves_gaps_and_empty_cells_as_paper(channels):
    ink = float(channels == 1)  # black either way
    ax = plots.show_images(np.full((3, channels, 4, 4), ink), columns=2, gap=2)
    assert [pixel(ax, x, 1.5) for x in (1.5, 4.5, 7.5)] == [[0] * 3, [255] * 3, [0] * 3]
    assert [pixel(ax, x, 7.5) for x in (1.5, 4.5, 7.5)] == [[0] * 3, [255] * 3, [255] * 3]
    assert not ax.axison


def test_show_images_clips_values_outside_the_unit_interval():
    ax = plots.show_images(np.array([-2.0, 0.25, 3.0]).reshape(1, 1, 1, 3), columns=1, gap=0)
    assert ax.images[0].get_array().tolist() == [[0.0, 0.25, 1.0]]
    assert ax.images[0].get_clim() == (0, 1)


# Whole pictures


def test_reconstructions_are_rows_below_their_originals_with_labels():
    values, labels = (0.1, 0.2, 0.3), ["data", "d = 2", "d = 20"]
    x, first, second = (np.full((4, 1, 5, 3), value) for value in values)
    ax = plots.reconstructions(x, first, second, labels=labels)
    picture = ax.images[0].get_array().filled(np.nan)
    rows = np.split(picture, 3)
    assert [np.unique(row[np.isfinite(row)]).tolist() for row in rows] == [[value] for value in values]
    assert [np.isfinite(row).sum() for row in rows] == [4 * 5 * 3] * 3
    assert [text.get_text().strip() for text in ax.texts] == labels
    centres = [np.isfinite(picture[:, 0]).nonzero()[0].reshape(3, 5)[row].mean() for row in range(3)]
    assert [text.get_position()[1] for text in ax.texts] == pytest.approx(centres, abs=0.5)


def test_latent_scatter_has_one_colour_and_one_legend_entry_per_class():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(30, 3)), np.repeat([0, 3, 9], 10)
    ax = plots.latent_scatter(z, y)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$z_1$", "$z_2$")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "3", "9"]
    assert len({to_hex(points.get_facecolor()[0]) for points in ax.collections}) == 3
    for points, k in zip(ax.collections, (0, 3, 9), strict=True):
        assert (points.get_offsets() == z[y == k, :2]).all()


def test_latent_scatter_gives_a_class_the_same_colour_whichever_others_are_there():
    z = np.zeros((2, 2))
    colours = [
        to_hex(plots.latent_scatter(z, classes, ax=plt.figure().gca()).collections[-1].get_facecolor()[0])
        for classes in ([0, 7], [3, 7])
    ]
    assert colours[0] == colours[1]


def test_palette_has_ten_colours_for_ten_classes():
    assert len(set(plots.PALETTE)) == 10


@pytest.mark.parametrize("gap", [0, 1])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n", [2, 5, 8])
def test_manifold_grid_has_ticks_at_the_centres_of_its_cells(n, channels, gap):
    codes = plots.grid_codes(n, extent=3.0)
    height, width = 4, 6
    ax = plots.manifold_grid(np.zeros((n * n, channels, height, width)), codes, gap=gap)
    ax.figure.canvas.draw()
    assert ax.axison
    assert ax.images[0].get_array().shape[:2] == (n * (height + gap), n * (width + gap))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$z_1$", "$z_2$")
    for axis, size, coordinate, step in ((ax.xaxis, width, 0, 1), (ax.yaxis, height, 1, n)):
        cells = [int(tick / (size + gap)) for tick in axis.get_ticklocs()]
        assert [cell * (size + gap) + (size - 1) / 2 for cell in cells] == axis.get_ticklocs().tolist()
        labels = [float(label.get_text()) for label in axis.get_ticklabels()]
        assert labels == pytest.approx([codes[cell * step, coordinate] for cell in cells], abs=0.05)
        assert (cells[0], cells[-1]) == (0, n - 1)


# What people have in place of arrays

IMAGE = torch.rand(3, 1, 4, 4)
FORMS = {
    "a gradient": IMAGE.clone().requires_grad_(),
    "an array": IMAGE.numpy(),
    "half precision": IMAGE.bfloat16(),
    "a list of tensors": list(IMAGE),
    "lists": IMAGE.tolist(),
    "bytes": (255 * IMAGE).byte(),
    "bool": IMAGE > 0.5,
    "a view": IMAGE.double().transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("images", FORMS.values(), ids=FORMS)
def test_show_images_reconstructions_and_tile_take_every_form(images):
    expected = IMAGE > 0.5 if images is FORMS["bool"] else IMAGE
    drawn = plots.show_images(images, columns=3, gap=0).images[0].get_array()
    assert np.allclose(drawn, plots.tile(expected, 3, gap=0), atol=1 / 255)
    assert plots.reconstructions(images, images, ax=plt.figure().gca()).images[0].get_array().shape == (10, 15)


def test_show_images_and_latent_scatter_take_what_a_model_returns():
    model, x = untrained(latent_dim=2), torch.rand(5, 1, 8, 8)
    assert plots.show_images(model.reconstruct(x), 5).has_data()
    assert plots.show_images(model.likelihood(model.encode(x)).mean, 5).has_data()
    assert plots.latent_scatter(model.encode(x), torch.arange(5), ax=plt.figure().gca()).has_data()
    codes = torch.tensor(plots.grid_codes(3))
    assert plots.manifold_grid(model.decode(codes), codes, ax=plt.figure().gca()).has_data()


@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (1, 1, 4, 6)])
def test_show_images_takes_one_grey_image_of_any_rank(shape):
    image = torch.rand(4, 6)
    assert np.allclose(plots.show_images(image.reshape(shape), 1, gap=0).images[0].get_array(), image)


def test_show_images_takes_one_colour_image():
    image = torch.rand(3, 4, 6)
    assert np.allclose(plots.show_images(image, 1, gap=0).images[0].get_array(), image.permute(1, 2, 0))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((5, 4, 6)), ["(N, C, H, W)", "got (5, 4, 6)", "images[:, None]"]),
        (np.zeros((5, 4, 6, 3)), ["got (5, 4, 6, 3)", "transpose(0, 3, 1, 2)"]),
        (np.zeros((5, 4, 2, 2)), ["1 or 3 channels", "got (5, 4, 2, 2)"]),
        (np.zeros((0, 1, 2, 2)), ["N at least 1", "got (0, 1, 2, 2)"]),
        (np.zeros(64), ["got (64,)"]),
        (np.zeros((1, 1, 1, 1, 4, 4)), ["got (1, 1, 1, 1, 4, 4)"]),
        (255.0 * IMAGE.round(), ["whole numbers up to 255", "divide by 255"]),
        ((255 * IMAGE).long(), ["whole numbers up to", "divide by 255"]),
        (torch.poisson(5 * IMAGE + 2), ["whole numbers up to", "largest count"]),
    ],
)
def test_show_images_refuses_other_shapes_and_scales(images, words):
    with refused(ValueError, "images must", *words):
        plots.show_images(images, 2)


@pytest.mark.parametrize("columns", [0, -1, 2.5, True])
def test_show_images_refuses_columns_that_are_no_positive_integer(columns):
    with refused(ValueError, "columns must be a positive integer", columns):
        plots.show_images(IMAGE, columns)


def test_show_images_leaves_masked_pixels_blank():
    masked = np.ma.array(IMAGE.numpy(), mask=IMAGE.numpy() > 0.5)
    drawn = plots.show_images(masked, 3, gap=0).images[0].get_array()
    assert (drawn.mask == plots.tile(IMAGE > 0.5, 3, gap=0).astype(bool)).all()


def test_tile_keeps_what_make_grid_of_torchvision_does_not():
    """The same images in the same order; but torchvision turns grey into three channels and frames the whole."""
    images = torch.rand(5, 1, 4, 6)
    theirs = make_grid(images, nrow=3, padding=1, pad_value=float("nan")).numpy()
    ours = plots.tile(images, 3)
    assert theirs.shape == (3, *np.add(ours.shape, 1))
    assert np.array_equal(theirs[0, 1:, 1:], ours, equal_nan=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((IMAGE, IMAGE[:2]), ["the shape of x", "(3, 1, 4, 4)", "(2, 1, 4, 4)"]),
        ((IMAGE, torch.zeros(3, 3, 4, 4)), ["the shape of x", "(3, 3, 4, 4)"]),
    ],
)
def test_reconstructions_refuse_images_of_another_shape(arguments, words):
    with refused(ValueError, *words):
        plots.reconstructions(*arguments)


@pytest.mark.parametrize(
    ("images", "codes"),
    [
        (np.zeros((3, 1, 2, 2)), np.zeros((3, 2))),
        (np.zeros((3, 1, 2, 2)), np.zeros((4, 2))),
        (IMAGE[:1], np.zeros((1, 3))),
    ],
)
def test_manifold_grid_refuses_what_is_no_square(images, codes):
    with refused(ValueError, "codes must be (n·n, 2)"):
        plots.manifold_grid(images, codes)


def legend(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("count", [11, 26, 100])
def test_latent_scatter_tells_many_classes_apart(count):
    y = torch.arange(count).repeat(3)
    ax = plots.latent_scatter(torch.randn(3 * count, 2), y)
    assert legend(ax) == [str(k) for k in range(count)]
    assert len({to_hex(points.get_facecolor()[0]) for points in ax.collections}) == count


def test_latent_scatter_takes_names_in_the_labels_or_beside_them():
    z, names = torch.randn(4, 2), ["ankle boot", "bag", "coat"]
    assert legend(plots.latent_scatter(z, [names[k] for k in (2, 0, 2, 1)])) == names
    assert legend(plots.latent_scatter(z, [2, 0, 2, 0], plt.figure().gca(), names)) == ["ankle boot", "coat"]
    assert legend(plots.latent_scatter(z, torch.tensor([2.0, 0.0, 2.0, 1.0]), plt.figure().gca())) == ["0", "1", "2"]
    assert legend(plots.latent_scatter(z, z[:, 0] > 0, plt.figure().gca())) == ["False", "True"]


def test_latent_scatter_without_classes_has_no_legend():
    ax = plots.latent_scatter(torch.randn(4, 2))
    assert ax.get_legend() is None
    assert len(ax.collections[0].get_offsets()) == 4


def test_latent_scatter_of_one_number_stands_over_its_class():
    z, y = torch.randn(6, 1), np.array([5, 7, 5, 9, 9, 7])
    ax = plots.latent_scatter(z, y)
    for height, (points, k) in enumerate(zip(ax.collections, (5, 7, 9), strict=True)):
        assert points.get_offsets()[:, 0].tolist() == pytest.approx(z[y == k, 0].tolist())
        assert set(points.get_offsets()[:, 1]) == {height}
    assert ax.get_ylabel() == "class"


@pytest.mark.parametrize(
    ("z", "y", "options", "words"),
    [
        (torch.zeros(4), [0] * 4, {}, ["codes (N, d)", "(4,)"]),
        (torch.zeros(4, 0), [0] * 4, {}, ["codes (N, d)", "(4, 0)"]),
        (torch.zeros(4, 2), [0] * 3, {}, ["(4, 2)", "(3,)"]),
        (torch.zeros(4, 2), torch.zeros(4, 1), {}, ["(4, 2)", "(4, 1)"]),
        (torch.zeros(200, 2), torch.rand(200), {}, ["y must be classes", "200", "c=y"]),
        (torch.zeros(2, 2), [0, 2], {"class_names": ["a", "b"]}, ["class_names must name every class", "2 names"]),
        (torch.zeros(2, 2), [-1, 0], {"class_names": ["a", "b"]}, ["class_names must name every class"]),
        (torch.zeros(2, 2), ["a", "b"], {"class_names": ["a", "b"]}, ["class_names must name every class"]),
    ],
)
def test_latent_scatter_refuses_what_is_no_code_or_class(z, y, options, words):
    with refused(ValueError, *words):
        plots.latent_scatter(z, y, **options)


HISTORY = [
    {"epoch": k + 1, "loss": 9.0 - k, "reconstruction": 7.0 - k, "kl": 2.0, "a": 1.0, "b": 0.5, "seconds": 0.1}
    for k in range(4)
]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_loss_curves_draws_every_name_against_the_epoch(count):
    names = ["kl", "loss", "reconstruction", "a", "b"][:count]
    ax = plots.loss_curves(HISTORY, names)
    assert [line.get_label() for line in ax.lines] == names
    assert [text.get_text() for text in ax.get_legend().get_texts()] == names
    for line, name in zip(ax.lines, names, strict=True):
        assert line.get_xdata().tolist() == [1, 2, 3, 4]
        assert line.get_ydata().tolist() == [row[name] for row in HISTORY]
    assert len({line.get_color() for line in ax.lines}) == len(names)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "nats per image")


def rows(**curves) -> list[dict]:
    return [{"epoch": k + 1, **{name: value + k for name, value in curves.items()}} for k in range(3)]


@pytest.mark.parametrize(
    ("curves", "drawn"),
    [
        (dict(loss=1.0, kl=2.0, seconds=3.0), ["loss", "kl"]),
        (dict(loss=1.0, reconstruction=1.0), ["loss"]),  # of an autoencoder
        (dict(loss=1.0), ["loss"]),  # of the importance-weighted bound
        (dict(loss=1.0, kl=2.0, test_loss=3.0, test_n=4.0), ["loss", "test_loss", "kl"]),
        (
            dict(kl=2.0, loss=1.0, validation_loss=3.0, validation_kl=4.0),
            ["loss", "validation_loss", "kl", "validation_kl"],
        ),
    ],
)
def test_loss_curves_draws_what_is_there(curves, drawn):
    ax = plots.loss_curves(rows(**curves))
    assert [line.get_label() for line in ax.lines] == drawn
    lines = {line.get_label(): line for line in ax.lines}
    for name, line in lines.items():
        held_out = name.startswith(("test_", "validation_"))
        assert line.get_linestyle() == ("--" if held_out else "-")
        assert not held_out or line.get_color() == lines[name.split("_")[1]].get_color()
    assert lines["loss"].get_color() == plots.PALETTE[0]


def test_loss_curves_draws_what_is_recorded_every_other_epoch():
    history = rows(loss=1.0)
    history[1]["test_loss"] = 5.0
    ax = plots.loss_curves(history)
    assert [line.get_xdata() for line in ax.lines][1] == (2,) or list(ax.lines[1].get_xdata()) == [2]


@pytest.mark.parametrize(
    ("history", "names", "words"),
    [
        ([], None, ["history must have loss or kl", "rows of []"]),
        (rows(accuracy=0.5), None, ["history must have loss or kl", "accuracy"]),
        (rows(loss=1.0), ["loss", "kl"], ["history must have kl", "['epoch', 'loss']"]),
        (rows(loss=1.0), [], ["history must have loss or kl"]),
    ],
)
def test_loss_curves_names_what_is_missing(history, names, words):
    with refused(ValueError, *words):
        plots.loss_curves(history, names)


IMAGES = np.zeros((4, 1, 8, 8))
PICTURES = {
    "show_images": lambda ax: plots.show_images(IMAGES, 2, ax=ax),
    "reconstructions": lambda ax: plots.reconstructions(IMAGES, IMAGES, labels=("x", "y"), ax=ax),
    "latent_scatter": lambda ax: plots.latent_scatter(np.zeros((4, 2)), np.arange(4), ax=ax),
    "manifold_grid": lambda ax: plots.manifold_grid(IMAGES, plots.grid_codes(2), ax=ax),
    "loss_curves": lambda ax: plots.loss_curves(HISTORY, ax=ax),
}


@pytest.mark.parametrize("picture", PICTURES)
def test_plots_draw_on_the_axes_they_are_given_and_open_no_figure(picture):
    _, (left, right) = plt.subplots(1, 2)  # right is current
    assert PICTURES[picture](left) is left
    left.figure.canvas.draw()
    assert left.has_data()
    assert not right.has_data()
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("picture", PICTURES)
def test_plots_without_axes_draw_on_the_current_ones(picture):
    _, (_left, right) = plt.subplots(1, 2)
    assert PICTURES[picture](None) is right


# The look of all pictures


@pytest.mark.parametrize("eyes", [None, "deuteranomaly", "protanomaly", "tritanomaly"])
def test_lines_differ_for_all_eyes(eyes):
    """By 14 steps of CAM02-UCS at least, where 2 can be seen side by side; matplotlib's own orange and green: 1.6."""
    colours = np.array([to_rgb(colour) for colour in plots.LINES])
    if eyes:
        colours = cspace_convert(colours, {"name": "sRGB1+CVD", "cvd_type": eyes, "severity": 100}, "sRGB1").clip(0, 1)
    assert min(deltaE(a, b, input_space="sRGB1") for a, b in combinations(colours, 2)) > 14


@pytest.mark.parametrize("colour", plots.LINES)
def test_lines_stand_out_from_their_paper(colour):
    """3 to 1, as WCAG 2.2 wants of graphics."""
    luminance = cspace_convert(to_rgb(colour), "sRGB1", "XYZ1")[1]
    assert 1.05 / (luminance + 0.05) >= 3


def test_style_reaches_later_figures_only_when_it_is_asked_for():
    with plt.rc_context():
        plt.rcdefaults()
        assert plt.subplots()[1].plot([0, 1])[0].get_color() not in plots.LINES
        plots.style()
        figure, axes = plt.subplots()
        lines = [axes.plot([0, 1])[0].get_color() for _ in plots.LINES]
        assert tuple(lines) == plots.LINES
        assert not axes.spines["top"].get_visible()
        assert figure.get_facecolor() == (1, 1, 1, 1)
    plt.close("all")
