"""Figures: arrays in, Axes out. Nothing here takes or trains a model.

Tensors from any device, with or without gradients, arrays and lists are accepted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from scipy.special import ndtri
from torch import Tensor

from vae_core.runtime import positive_int

# Ten colours that colour-blind readers can tell apart (Paul Tol's "muted" set and a mid grey).
PALETTE = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#888888")

# Five of them for lines: blue, red, green, olive, wine. Each has a contrast of 3 to 1 with white paper, and readers who
# are colour-blind can tell any two of them apart.
LINES = tuple(PALETTE[k] for k in (0, 6, 3, 4, 7))


def style() -> None:
    """Draw all later figures as the book does: `LINES`, no frame at the top and the right, white paper.

    The paper stays white on dark pages, so that colours mean the same on both.
    """
    plt.rcParams["axes.prop_cycle"] = cycler(color=LINES)
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
    plt.rcParams.update({"figure.facecolor": "white", "savefig.facecolor": "white"})


def grid_codes(n: int, extent: float | None = None, spacing: str = "linear") -> np.ndarray:
    """Return an n×n grid of two-dimensional codes in reading order, (n·n, 2): the top row has the largest z₂.

    Args:
        n: The number of codes on a side, at least 2.
        extent: "linear" covers [−extent, extent]², 3 if None; "quantile" has none.
        spacing: "linear" takes equal steps (Chen 4, Irvin 3); "quantile" takes the prior's quantiles from 0.05 to 0.95
            (Saleh), so that each cell has the same prior probability.

    Raises:
        ValueError: n is below 2, or the spacing is unknown.
    """
    n = positive_int("n", n, least=2)
    if spacing == "linear":
        extent = 3.0 if extent is None else extent
        ticks = np.linspace(-extent, extent, n)
    elif spacing == "quantile":
        ticks = ndtri(np.linspace(0.05, 0.95, n))
    else:
        raise ValueError(f"spacing must be 'linear' or 'quantile', got {spacing!r}")
    z1, z2 = np.meshgrid(ticks, ticks[::-1])
    return np.stack([z1.ravel(), z2.ravel()], axis=1)


def _array(values: Any) -> np.ndarray:
    """Return values as an array; masked entries become nan, which is not drawn."""
    if isinstance(values, list | tuple) and any(isinstance(value, Tensor) for value in values):
        values = np.stack([_array(value) for value in values])
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray(values.numpy() if values.dtype.itemsize != 2 else values.double().numpy())
    return np.ma.filled(values.astype(float), np.nan) if isinstance(values, np.ma.MaskedArray) else np.asarray(values)


def _images(images: Any) -> np.ndarray:
    """Return images (N, C, H, W) with values around [0, 1]: bytes are divided by 255, first axes may be missing."""
    stack = _array(images)
    shape = stack.shape
    stack = stack[None] if stack.ndim == 2 else stack
    stack = stack[None] if stack.ndim == 3 and len(stack) in (1, 3) else stack
    if stack.ndim != 4 or stack.shape[1] not in (1, 3) or 0 in shape:
        cure = ""
        if stack.ndim == 3:
            cure = "; give grey images an axis of channels, images[:, None]"
        elif stack.ndim == 4 and shape[-1] in (1, 3):
            cure = "; put the channels first, by images.transpose(0, 3, 1, 2)"
        raise ValueError(f"images must be (N, C, H, W) with 1 or 3 channels, N at least 1, got {shape}{cure}")
    if stack.dtype == np.uint8:
        return np.asarray(stack / 255)
    finite = stack[np.isfinite(stack)]
    if finite.size and finite.max() > 1 and (finite == np.round(finite)).all():
        largest = f"whole numbers up to {finite.max():g}"
        raise ValueError(f"images must have values in [0, 1], got {largest}; divide by 255, or by the largest count")
    return stack


def tile(images: Any, columns: int, gap: int = 1) -> np.ndarray:
    """Return images in reading order as one array, (rows·(H + gap), columns·(W + gap)[, 3]).

    Every image is at the upper left of its cell. Gaps and empty cells are nan, which is drawn as paper in any colour
    map. torchvision's `make_grid` is not used: it turns grey images into colour and puts a frame around them all.

    Args:
        images: (N, C, H, W).
        columns: The number of images in a row.
        gap: The number of pixels between two images.
    """
    images = _array(images).astype(float)
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * columns, channels, height + gap, width + gap), np.nan)
    canvas[:n, :, :height, :width] = images
    canvas = canvas.reshape(rows, columns, channels, height + gap, width + gap).transpose(0, 3, 1, 4, 2)
    canvas = canvas.reshape(rows * (height + gap), columns * (width + gap), channels)
    return canvas[..., 0] if channels == 1 else canvas


def show_images(images: Any, columns: int, ax: Axes | None = None, gap: int = 1) -> Axes:
    """Draw images side by side; ink is dark, as on paper.

    Args:
        images: (N, C, H, W) with values in [0, 1], or uint8; one image may be (C, H, W) or (H, W). Values outside of
            [0, 1], as samples of a Gaussian have, are drawn as black or white.
        columns: The number of images in a row.
        ax: Where to draw; the current Axes if None.
        gap: The number of pixels between two images.

    Raises:
        ValueError: The shape is wrong, or the values are whole numbers above 1.
    """
    images, columns = _images(images), positive_int("columns", columns)
    ax = ax or plt.gca()
    canvas = np.clip(tile(images, columns, gap), 0, 1)
    if canvas.ndim == 3:  # colour images cannot be masked: their gaps become white
        canvas = np.nan_to_num(canvas, nan=1.0)
    ax.imshow(canvas, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    return ax


def reconstructions(x: Any, *decoded: Any, labels: Sequence[str] = (), ax: Axes | None = None) -> Axes:
    """Draw a row of images, and below it one row for each further set of images.

    Args:
        x: (N, C, H, W).
        decoded: Each of the shape of `x`.
        labels: One for each row.
        ax: Where to draw; the current Axes if None.

    Raises:
        ValueError: The shapes differ, or as `show_images` does.
    """
    rows = [_images(images) for images in (x, *decoded)]
    if len({row.shape for row in rows}) > 1:
        raise ValueError(f"decoded must have the shape of x, got {[row.shape for row in rows]}")
    ax = show_images(np.concatenate(rows), columns=len(rows[0]), ax=ax)
    cell = rows[0].shape[2] + 1
    for row, label in enumerate(labels):
        ax.text(-0.5, (row + 0.5) * cell - 0.5, f"{label} ", ha="right", va="center")
    return ax


def latent_scatter(z: Any, y: Any = None, ax: Axes | None = None, class_names: Sequence[str] = ()) -> Axes:
    """Draw the first two coordinates of codes, coloured by class; one-dimensional codes against their class.

    Args:
        z: Codes (N, d).
        y: Classes (N,), numbers or names; without them all dots have one colour.
        ax: Where to draw; the current Axes if None.
        class_names: The name of class k at place k, for the legend.

    Raises:
        ValueError: z is not (N, d), y has another length or more than a hundred classes, or a class has no name.
    """
    z = _array(z)
    y = np.zeros(len(z), int) if y is None else _array(y)
    if z.ndim != 2 or z.shape[1] < 1 or y.shape != z.shape[:1]:
        raise ValueError(f"z must be codes (N, d) and y classes (N,), got shapes {z.shape} and {y.shape}")
    ax = ax or plt.gca()
    classes, place = np.unique(
        y.astype(int) if y.dtype.kind == "f" and (y == np.round(y)).all() else y, return_inverse=True
    )
    labels = _legend(classes, class_names)
    heights = z[:, 1] if z.shape[1] > 1 else place
    for k, colour in enumerate(_colours(classes)):
        ax.scatter(z[place == k, 0], heights[place == k], s=12, color=colour, label=labels[k], linewidths=0)
    ax.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
    if z.shape[1] == 1:
        ax.set(ylabel="class", aspect="auto", yticks=[])
    if len(classes) > 1:
        columns = -(-len(classes) // 15)
        place_beside = dict[str, Any](loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        ax.legend(title="class", markerscale=2, ncols=columns, **place_beside)
    return ax


def _legend(classes: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Return the name of each class."""
    if len(classes) > 100:
        raise ValueError(f"y must be classes, at most 100, got {len(classes)}; draw numbers by ax.scatter(*z.T, c=y)")
    if not len(class_names):
        return [str(k) for k in classes]
    if classes.dtype.kind not in "iub" or not 0 <= classes.min() <= classes.max() < len(class_names):
        raise ValueError(f"class_names must name every class of y, got {len(class_names)} names for {classes.tolist()}")
    return [class_names[int(k)] for k in classes]


def _colours(classes: np.ndarray) -> list[Any]:
    """Return a colour for each class: `PALETTE[k]` for numbers below ten, else colours of a colour map in order."""
    if classes.dtype.kind in "iufb" and len(classes) and classes.min() >= 0 and classes.max() < len(PALETTE):
        return [PALETTE[int(k)] for k in classes]
    if len(classes) <= len(PALETTE):
        return list(PALETTE[: len(classes)])
    return list(plt.get_cmap("turbo")(np.linspace(0.02, 0.98, len(classes))))


def manifold_grid(images: Any, codes: Any, ax: Axes | None = None, gap: int = 1) -> Axes:
    """Draw decoded images at the codes of `grid_codes`, with z₁ and z₂ on the axes.

    Args:
        images: (n·n, C, H, W).
        codes: (n·n, 2).
        ax: Where to draw; the current Axes if None.
        gap: The number of pixels between two images.

    Raises:
        ValueError: There are not n·n of both, or as `show_images` does.
    """
    images, codes = _images(images), _array(codes)
    n = round(len(codes) ** 0.5)
    if codes.shape != (n * n, 2) or len(images) != n * n:
        raise ValueError(f"codes must be (n·n, 2), with an image each, got {codes.shape} and {len(images)} images")
    height, width = images.shape[2:]
    ax = show_images(images, columns=n, ax=ax, gap=gap)
    ax.set_axis_on()
    chosen = np.linspace(0, n - 1, min(n, 5)).round().astype(int)
    ax.set_xticks(chosen * (width + gap) + (width - 1) / 2, [f"{v:.1f}" for v in codes[:n, 0][chosen]])
    ax.set_yticks(chosen * (height + gap) + (height - 1) / 2, [f"{v:.1f}" for v in codes[::n, 1][chosen]])
    ax.set(xlabel="$z_1$", ylabel="$z_2$")
    return ax


def loss_curves(
    history: Sequence[Mapping[str, float]], names: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw means per datum (nats) against the epoch, from the rows that `training.fit` returns.

    Args:
        history: One row per epoch; a row may lack a name that others have.
        names: What to draw. None draws `loss` and `kl`, where the rows have them, and, dashed in the same colour, those
            of a validation or test set (`validation_loss`, `test_loss`).
        ax: Where to draw; the current Axes if None.

    Raises:
        ValueError: The history is empty, or no row has one of the names.
    """
    known = list(dict.fromkeys(name for row in history for name in row))
    if names is None:
        names = [
            f"{prefix}{name}" for name in ("loss", "kl") for prefix in ("", *HELD_OUT) if f"{prefix}{name}" in known
        ]
    missing = [name for name in names if name not in known]
    if missing or not names:
        raise ValueError(f"history must have {', '.join(missing) or 'loss or kl'}, got rows of {known}")
    ax = ax or plt.gca()
    bases = list(dict.fromkeys(_base(name) for name in names))
    for name in names:
        epochs, values = zip(*[(row["epoch"], row[name]) for row in history if name in row], strict=True)
        colour, line = PALETTE[3 * bases.index(_base(name)) % len(PALETTE)], "--" if name != _base(name) else "-"
        ax.plot(epochs, values, line, color=colour, label=name)
    ax.set(xlabel="epoch", ylabel="nats per image")
    ax.legend(frameon=False)
    return ax


HELD_OUT = ("validation_", "test_")


def _base(name: str) -> str:
    """Return `loss` for `test_loss`."""
    return next((name.removeprefix(prefix) for prefix in HELD_OUT if name.startswith(prefix)), name)
