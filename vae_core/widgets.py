"""Sliders for notebooks. They decode with the running kernel, so any decoder and any device will do."""

import base64
import io
from typing import TYPE_CHECKING

import torch

from vae_core.runtime import evaluation_mode

if TYPE_CHECKING:
    import ipywidgets

    from vae_core.models import VAE


def latent_sliders(model: "VAE", extent: float = 3.0, size: int = 224) -> "ipywidgets.Widget":
    """One slider per latent coordinate beside the image that the decoder makes of them.

    Each slider runs over [−extent, extent]; `size` is the picture's width in pixels. The widget needs a
    running kernel. It has `.sliders`, a list, and `.image`, an HTML widget; moving a slider decodes and redraws.
    Needs ipywidgets (`pip install "vae_core[widgets]"`).
    """
    import ipywidgets

    names = [f"z{k + 1}" for k in range(model.latent_dim)]
    sliders = [
        ipywidgets.FloatSlider(0.0, min=-extent, max=extent, step=0.05, description=name, readout_format=".2f")
        for name in names
    ]
    image = ipywidgets.HTML()  # not ipywidgets.Image, which can carry no alternative text

    def redraw(_change=None) -> None:
        code = [slider.value for slider in sliders]
        source = "data:image/png;base64," + base64.b64encode(_decode_png(model, code)).decode()
        told = ", ".join(f"{value:.2f}" for value in code)
        image.value = (
            f'<img src="{source}" width="{size}" style="image-rendering: pixelated" '
            f'alt="the decoder\'s mean image at z = ({told})">'
        )

    for slider in sliders:
        slider.observe(redraw, names="value")
    redraw()
    box = ipywidgets.HBox([image, ipywidgets.VBox(sliders)])
    box.sliders, box.image = sliders, image
    return box


def _decode_png(model: "VAE", code: list[float]) -> bytes:
    """The decoder's mean image at one code, as the bytes of a PNG, dark on light where it is grey."""
    from PIL import Image

    parameter = next(model.parameters())
    with evaluation_mode(model), torch.no_grad():
        pixels = model.decode(torch.tensor([code], dtype=parameter.dtype, device=parameter.device))[0]
    pixels = pixels.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()  # (H, W, C)
    buffer = io.BytesIO()
    Image.fromarray(255 - pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()
