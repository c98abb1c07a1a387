"""Pictures: arrays in, Axes out. Nothing here knows a model or trains one."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from scipy.special import ndtri

# Ten colours that stay apart for colour-blind eyes (Paul Tol's "muted" set and a mid grey).
PALETTE = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#888888")

# Five of them for lines: blue, red, green, olive, wine. Each stands out from white paper (3 to 1), and any two of them
# from each other, for colour-blind eyes too.
LINES = tuple(PALETTE[k] for k in (0, 6, 3, 4, 7))


def style() -> None:
    """Draw all later pictures as the book does: `LINES`, no frame at the top and the right, white paper.

    The paper stays white where the page is dark, so that ink and colours mean the same on both.
    """
    plt.rcParams["axes.prop_cycle"] = cycler(color=LINES)
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
    plt.rcParams.update({"figure.facecolor": "white", "savefig.facecolor": "white"})


def grid_codes(n: int, extent: float | None = None, spacing: str = "linear") -> np.ndarray:
    """An n×n grid of two-dimensional codes in reading order, (n·n, 2): the top row has the largest z₂.

    `spacing="linear"` takes equal steps on [−extent, extent]² (default 3; Chen 4, Irvin 3).
    `spacing="quantile"` takes the prior's quantiles from 0.05 to 0.95 (Saleh), so that each cell stands
    for the same prior mass; it knows no extent. Raises ValueError for n < 2 or another spacing.
    """
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}")
    if spacing == "linear":
        extent = 3.0 if extent is None else extent
        ticks = np.linspace(-extent, extent, n)
    elif spacing == "quantile":
        ticks = ndtri(np.linspace(0.05, 0.95, n))
    else:
        raise ValueError(f"spacing must be 'linear' or 'quantile', got {spacing!r}")
    z1, z2 = np.meshgrid(ticks, ticks[::-1])
    return np.stack([z1.ravel(), z2.ravel()], axis=1)


def tile(images, columns: int, gap: int = 1) -> np.ndarray:
    """Images (N, C, H, W) in reading order as one array, (rows·(H + gap), columns·(W + gap)[, 3]).

    Every image stands at the upper left of its cell; gaps and empty cells are nan, which plots as paper.
    """
    images = np.asarray(images, dtype=float)
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * columns, channels, height + gap, width + gap), np.nan)
    canvas[:n, :, :height, :width] = images
    canvas = canvas.reshape(rows, columns, channels, height + gap, width + gap).transpose(0, 3, 1, 4, 2)
    canvas = canvas.reshape(rows * (height + gap), columns * (width + gap), channels)
    return canvas[..., 0] if channels == 1 else canvas


def _in_unit_interval(images) -> np.ndarray:
    """Stored images are uint8."""
    images = np.asarray(images)
    return images / 255 if images.dtype == np.uint8 else images


def show_images(images, columns: int, ax: Axes | None = None, gap: int = 1) -> Axes:
    """Images (N, C, H, W) with values in [0, 1], or uint8, as one picture; ink is dark, as on paper."""
    ax = ax or plt.gca()
    canvas = np.clip(tile(_in_unit_interval(images), columns, gap), 0, 1)
    if canvas.ndim == 3:  # colour pictures cannot be masked: their gaps become white
        canvas = np.nan_to_num(canvas, nan=1.0)
    ax.imshow(canvas, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    return ax


def reconstructions(x, *decoded, labels: Sequence[str] = (), ax: Axes | None = None) -> Axes:
    """A row of images `x` (N, C, H, W) above one row for each further array of the same shape."""
    ax = show_images(np.concatenate([_in_unit_interval(a) for a in (x, *decoded)]), columns=len(x), ax=ax)
    cell = np.asarray(x).shape[2] + 1
    for row, label in enumerate(labels):
        ax.text(-0.5, (row + 0.5) * cell - 0.5, f"{label} ", ha="right", va="center")
    return ax


def latent_scatter(z, y, ax: Axes | None = None) -> Axes:
    """Codes z (N, d ≥ 2): the first two coordinates, coloured by the class y (N,), with a legend."""
    ax = ax or plt.gca()
    z, y = np.asarray(z), np.asarray(y)
    classes = np.unique(y)
    colours = ListedColormap(PALETTE)
    for k in classes:
        ax.scatter(z[y == k, 0], z[y == k, 1], s=12, color=colours(int(k) % len(PALETTE)), label=str(k), linewidths=0)
    ax.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
    ax.legend(title="class", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, markerscale=2)
    return ax


def manifold_grid(images, codes, ax: Axes | None = None, gap: int = 1) -> Axes:
    """Decoded images (n·n, C, H, W) at the codes of `grid_codes`, with z₁ and z₂ on the axes."""
    ax = ax or plt.gca()
    codes = np.asarray(codes)
    n = round(len(codes) ** 0.5)
    height, width = np.asarray(images).shape[2:]
    show_images(images, columns=n, ax=ax, gap=gap).set_axis_on()
    chosen = np.linspace(0, n - 1, min(n, 5)).round().astype(int)
    ax.set_xticks(chosen * (width + gap) + (width - 1) / 2, [f"{v:.1f}" for v in codes[:n, 0][chosen]])
    ax.set_yticks(chosen * (height + gap) + (height - 1) / 2, [f"{v:.1f}" for v in codes[::n, 1][chosen]])
    ax.set(xlabel="$z_1$", ylabel="$z_2$")
    return ax


def loss_curves(history: Sequence[dict], names: Sequence[str] = ("loss", "kl"), ax: Axes | None = None) -> Axes:
    """Training means per datum (nats) against the epoch, from the rows that `training.fit` returns."""
    ax = ax or plt.gca()
    for k, name in enumerate(names):
        colour = PALETTE[3 * k % len(PALETTE)]
        ax.plot([row["epoch"] for row in history], [row[name] for row in history], color=colour, label=name)
    ax.set(xlabel="epoch", ylabel="nats per image")
    ax.legend(frameon=False)
    return ax
