"""Sliders for notebooks. They decode with the running kernel, so they work with any decoder on any device.

`explorer.LatentExplorer` decodes in the browser instead, for dense decoders.
"""

import asyncio
import base64
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from vae_core.runtime import evaluation_mode

if TYPE_CHECKING:
    import ipywidgets

    from vae_core.models import VAE

PAUSE = 0.03  # seconds that a redraw waits for more changes


def latent_sliders(model: "VAE", extent: float = 3.0, size: int = 224) -> "ipywidgets.Widget":
    """Return one slider per latent coordinate, next to the image that the decoder returns for them.

    The widget needs a running kernel. It has `.sliders`, a list, and `.image`, an HTML widget; moving a slider decodes
    and redraws, once for all changes within a short pause. Needs ipywidgets (`pip install "vae_core[widgets]"`).

    Args:
        model: Any VAE or autoencoder of images; for a conditional one, `model.given(y)`.
        extent: Each slider runs over [−extent, extent].
        size: The width of the image in pixels of the screen.

    Raises:
        ValueError: The data are not images of one or three channels.
    """
    import ipywidgets

    _check_images(model)
    names = [f"z{k + 1}" for k in range(model.latent_dim)]
    sliders = [
        ipywidgets.FloatSlider(0.0, min=-extent, max=extent, step=0.05, description=name, readout_format=".2f")
        for name in names
    ]
    image = ipywidgets.HTML()  # not ipywidgets.Image, which has no alternative text

    def redraw() -> None:
        code = [slider.value for slider in sliders]
        told = ", ".join(f"{value:.2f}" for value in code)
        image.value = _img(_decode(model, [code])[0], size, f"the decoder's mean image at z = ({told})")

    _redraw_on_change(sliders, redraw)
    box = ipywidgets.HBox([image, ipywidgets.VBox(sliders)])
    box.sliders, box.image = sliders, image
    return box


def latent_grid(model: "VAE", extent: float = 3.0, n: int = 15, size: int = 448) -> "ipywidgets.Widget":
    """Return the n×n grid of decoded images of a two-dimensional code, with sliders for its range and resolution.

    The widget needs a running kernel. It has `.extent`, `.n`, `.spacing` and `.image`; `spacing` is linear on
    [−extent, extent]² or by the prior's quantiles, as in `plots.grid_codes`. Needs ipywidgets.

    Args:
        model: A VAE or autoencoder of images with two latent units; for a conditional one, `model.given(y)`.
        extent: The initial range.
        n: The initial number of images on a side.
        size: The width of the grid in pixels of the screen.

    Raises:
        ValueError: The model has another number of latent units, or its data are not images of one or three channels.
    """
    import ipywidgets

    from vae_core.plots import grid_codes, tile

    _check_images(model)
    if model.latent_dim != 2:
        raise ValueError(f"a grid needs a model with two latent units, got {model.latent_dim}; use latent_sliders")
    reach = ipywidgets.FloatSlider(extent, min=0.5, max=6.0, step=0.1, description="extent")
    count = ipywidgets.IntSlider(n, min=2, max=30, description="n")
    spacing = ipywidgets.Dropdown(options=["linear", "quantile"], description="spacing")
    image = ipywidgets.HTML()

    def redraw() -> None:
        codes = grid_codes(count.value, reach.value if spacing.value == "linear" else None, spacing.value)
        picture = tile(_decode(model, codes.tolist()), count.value)
        told = f"[−{reach.value:.1f}, {reach.value:.1f}]²" if spacing.value == "linear" else "the prior's quantiles"
        picture = np.atleast_3d(picture).transpose(2, 0, 1)
        image.value = _img(picture, size, f"{count.value} × {count.value} decoded images, {spacing.value} over {told}")

    _redraw_on_change([reach, count, spacing], redraw)
    box = ipywidgets.HBox([image, ipywidgets.VBox([reach, count, spacing])])
    box.extent, box.n, box.spacing, box.image = reach, count, spacing, image
    return box


def _check_images(model: "VAE") -> None:
    if len(model.input_shape) != 3 or model.input_shape[0] not in (1, 3):
        raise ValueError(f"sliders draw images of 1 or 3 channels, (C, H, W), got shape {model.input_shape}")


def _redraw_on_change(controls: list, redraw: Callable[[], None]) -> None:
    """Draw now and after changes: once for all that arrive within a pause, so that old images do not queue up."""
    waiting: list[asyncio.TimerHandle] = []

    def later(_change: dict) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no kernel: draw at once
            redraw()
            return
        if not waiting:
            waiting.append(loop.call_later(PAUSE, draw_newest))

    def draw_newest() -> None:
        waiting.clear()
        redraw()

    for control in controls:
        control.observe(later, names="value")
    redraw()


@torch.no_grad()
def _decode(model: "VAE", codes: list[list[float]]) -> np.ndarray:
    """Return the mean images (N, C, H, W) at the codes."""
    parameter = next(model.parameters())
    with evaluation_mode(model):
        images = model.decode(torch.tensor(codes, dtype=parameter.dtype, device=parameter.device))
    return images.cpu().double().numpy()


def _img(pixels: np.ndarray, size: int, told: str) -> str:
    """Return an HTML image of pixels (C, H, W) in [0, 1]: dark on light if grey; nan is paper."""
    from PIL import Image

    paper = 0.0 if len(pixels) == 1 else 1.0
    levels = (255 * np.clip(np.nan_to_num(pixels, nan=paper), 0, 1)).round().astype("u1").transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(255 - levels[..., 0] if levels.shape[-1] == 1 else levels).save(buffer, "PNG")
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="{source}" width="{size}" style="image-rendering: pixelated" alt="{told}">'
