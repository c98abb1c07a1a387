"""The latent explorer: a widget whose decoder runs in the reader's browser, with a kernel or without.

Needs anywidget (`pip install "vae_core[widgets]"`); the JavaScript is `explorer.js`.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakValueDictionary

import anywidget
import ipywidgets
import numpy as np
import torch
import traitlets
from safetensors.torch import load_file
from torch import Tensor, nn

from vae_core.evaluation import kl_per_unit
from vae_core.plots import PALETTE
from vae_core.runtime import evaluation_mode, save_tensors

if TYPE_CHECKING:
    from vae_core.models import VAE, Autoencoder

NAMES = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}
FUNCTIONS = {"none": lambda y: y, "relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


def export_decoder(model: "Autoencoder") -> tuple[dict[str, Any], bytes]:
    r"""A dense decoder as a small header and one float16 blob: for each layer W (outputs × inputs), then b.

    Batch norm is folded into the layer before it, by its running averages:

    .. math:: W' = \operatorname{diag}(s)\,W, \qquad b' = s\odot(b-\bar\mu)+\beta, \qquad
              s = \gamma/\sqrt{\bar\sigma^2+\epsilon}

    The header holds `shape`, [C, H, W], and `layers`, a list of {"inputs", "outputs", "activation"}; the last
    activation makes the likelihood's mean of the decoder's output. Raises ValueError, naming what stands in the way,
    for a decoder that is not a stack of Linear, BatchNorm1d, ReLU, tanh and sigmoid, or for a likelihood whose mean is
    another function; `widgets.latent_sliders` takes any decoder.
    """
    layers: list[tuple[Tensor, Tensor]] = []
    activations: list[str] = []
    for module in _stack(model.decoder):
        if isinstance(module, nn.Linear):
            bias = module.weight.new_zeros(module.out_features) if module.bias is None else module.bias
            layers.append((module.weight.detach().double(), bias.detach().double()))
            activations.append("none")
        elif isinstance(module, nn.BatchNorm1d) and layers and activations[-1] == "none":
            layers[-1] = _folded(*layers[-1], module)
        elif type(module) in NAMES and layers and activations[-1] == "none":
            activations[-1] = NAMES[type(module)]
        else:
            raise ValueError(
                f"the decoder has a {type(module).__name__} where none can be exported; use latent_sliders"
            )
    activations = _with_output(model, layers, activations)
    sizes = [{"inputs": W.shape[1], "outputs": W.shape[0]} for W, _ in layers]
    header: dict[str, Any] = {"shape": list(model.input_shape)}
    header["layers"] = [size | {"activation": name} for size, name in zip(sizes, activations, strict=True)]
    flat = torch.cat([part.flatten() for layer in layers for part in layer]).cpu().numpy()
    if np.abs(flat).max() > np.finfo(np.float16).max:
        raise ValueError(
            f"the decoder has a weight of {np.abs(flat).max():.0f}, too large for float16; use latent_sliders"
        )
    return header, flat.astype("<f2").tobytes()


def _stack(decoder: nn.Module) -> list[nn.Module]:
    if not isinstance(decoder, nn.Sequential) or not len(decoder):
        raise ValueError(f"the decoder is a {type(decoder).__name__}, not a stack of layers; use latent_sliders")
    return list(decoder)


def _folded(W: Tensor, b: Tensor, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    if norm.running_var is None or norm.running_mean is None:
        raise ValueError("the decoder's batch norm keeps no running averages; use latent_sliders")
    gamma = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight.detach()
    beta = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias.detach()
    scale = (gamma.double() / (norm.running_var.double() + norm.eps).sqrt()).to(W.device)
    return scale[:, None] * W, scale * (b - norm.running_mean.double()) + beta.double()


def _apply(layers: list[tuple[Tensor, Tensor]], activations: list[str], z: Tensor) -> Tensor:
    for (W, b), name in zip(layers, activations, strict=True):
        z = FUNCTIONS[name](z @ W.T + b)
    return z


@torch.no_grad()
def _with_output(model: "Autoencoder", layers: list[tuple[Tensor, Tensor]], activations: list[str]) -> list[str]:
    """The activations with the last one such that they give `model.decode`; found by trying it."""
    W = layers[0][0]
    z = torch.randn(8, model.latent_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(W.device)
    with evaluation_mode(model):
        expected = model.decode(z.to(next(model.parameters()).dtype)).flatten(1).double()
    for name in ("none", "sigmoid") if activations[-1] == "none" else (activations[-1],):
        tried = [*activations[:-1], name]
        if torch.allclose(_apply(layers, tried, z), expected, atol=1e-4):
            return tried
    raise ValueError("the likelihood's mean is neither the decoder's output nor its sigmoid; use latent_sliders")


class DecoderWeights(ipywidgets.Widget):
    """An exported decoder, which explorers refer to. Made by `LatentExplorer`, one for each set of weights."""

    header = traitlets.Dict().tag(sync=True)
    blob = traitlets.Bytes().tag(sync=True)
    _kept: ClassVar[WeakValueDictionary[str, "DecoderWeights"]] = WeakValueDictionary()

    @classmethod
    def of(cls, model: "Autoencoder") -> "DecoderWeights":
        """The weights of this model as they are now."""
        header, blob = export_decoder(model)
        digest = hashlib.sha256(repr(header).encode() + blob).hexdigest()
        widget = cls._kept.get(digest)
        if widget is None or widget.comm is None:  # never made, or closed
            widget = cls._kept[digest] = cls(header=header, blob=blob)
        return widget


@dataclass(frozen=True)
class EncodedImages:
    """What an explorer shows of test images: their codes, classes, a few of themselves, and the units' KL.

    `codes` (N, d) are means of q(z|x), `labels` (N,) classes below 256, `images` (M, C, H, W) the first M ≤ N images in
    uint8, `kl` (d,) the mean KL of each unit, nats. Raises ValueError where these do not fit together.
    """

    codes: Tensor
    labels: Tensor
    images: Tensor
    kl: Tensor

    def __post_init__(self) -> None:
        n, d = self.codes.shape
        if self.labels.shape != (n,) or self.kl.shape != (d,) or len(self.images) > n:
            shapes = {name: tuple(value.shape) for name, value in vars(self).items()}
            raise ValueError(f"codes (N, d), labels (N,), images (at most N, C, H, W) and kl (d,) do not fit: {shapes}")

    @classmethod
    @torch.no_grad()
    def of(cls, model: "VAE", x: Tensor, y: Tensor, *, starts: int = 10, max_codes: int = 1000) -> "EncodedImages":
        """Encode float images x (N, C, H, W) of classes y; the KL is over all of them, `max_codes` codes are kept."""
        y = torch.as_tensor(y)
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) <= 255:
            raise ValueError(f"y must be classes from 0 to 255, got {int(y.min())} to {int(y.max())}")
        with evaluation_mode(model):
            codes = model.encode(x[:max_codes].to(next(model.parameters()).device))
        images = (255 * x[:starts]).round().byte()
        return cls(codes.cpu(), y[:max_codes].cpu().byte(), images.cpu(), kl_per_unit(model, x).to(codes).cpu())

    def save(self, path: Path) -> None:
        """Write them as safetensors, codes in half precision; atomically."""
        fields = {name: getattr(self, name) for name in ("labels", "images")}
        save_tensors(fields | {"codes": self.codes.half(), "kl": self.kl.float()}, path)

    @classmethod
    def load(cls, path: Path) -> "EncodedImages":
        """What `save` has written."""
        fields = load_file(path)
        return cls(fields["codes"].float(), fields["labels"], fields["images"], fields["kl"])

    def traits(self) -> dict[str, Any]:
        """As the JavaScript wants them."""
        return {
            "codes": self.codes.numpy().astype("<f2").tobytes(),
            "labels": self.labels.numpy().tobytes(),
            "images": self.images.numpy().tobytes(),
            "kl": [round(value, 4) for value in self.kl.tolist()],
            "order": self.kl.argsort(descending=True).tolist(),
        }


class LatentExplorer(anywidget.AnyWidget):
    r"""Move through the latent space of a dense VAE and see what its decoder makes of each code.

    With two latent units: a plane to drag in, with the codes of test images behind it; with more: a slider for each. It
    draws from the prior, starts from a test image, goes on to another, and sweeps one unit. `explorer.z` is the code, a
    list of d floats; setting it moves the picture.

    `encoded` (`EncodedImages.of(model, x, y)`) are test images: their codes lie behind the plane, and the first few can
    be started from. With them the units are sorted by their KL, and those with at most 0.01 nats are folded away. Each
    number runs over [−extent, extent]. Raises ValueError where `export_decoder` does, and for codes or images of
    another model.
    """

    _esm = Path(__file__).with_name("explorer.js")
    _css = Path(__file__).with_name("explorer.css")
    decoder = traitlets.Instance(DecoderWeights).tag(sync=True, **ipywidgets.widget_serialization)
    z = traitlets.List(traitlets.Float()).tag(sync=True)
    extent = traitlets.Float(3.0).tag(sync=True)
    kl = traitlets.List(traitlets.Float()).tag(sync=True)
    order = traitlets.List(traitlets.Int()).tag(sync=True)
    codes = traitlets.Bytes().tag(sync=True)
    labels = traitlets.Bytes().tag(sync=True)
    images = traitlets.Bytes().tag(sync=True)
    palette = traitlets.List(list(PALETTE)).tag(sync=True)

    def __init__(self, model: "VAE", encoded: EncodedImages | None = None, *, extent: float = 3.0) -> None:
        if encoded is not None:
            theirs = (encoded.codes.shape[1], *encoded.images.shape[1:])
            ours = (model.latent_dim, *model.input_shape)
            if theirs != ours:
                raise ValueError(f"encoded is of another model: (d, C, H, W) is {theirs}, and the model's is {ours}")
        fields = {} if encoded is None else encoded.traits()
        super().__init__(decoder=DecoderWeights.of(model), z=[0.0] * model.latent_dim, extent=extent, **fields)

    @traitlets.validate("z")
    def _check_z(self, proposal: dict) -> list[float]:
        value, d = proposal["value"], self.decoder.header["layers"][0]["inputs"]
        if len(value) != d or not np.isfinite(value).all():
            raise traitlets.TraitError(f"z must be {d} finite numbers, got {value!r}")
        return value

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """As any widget's, but for a text that is the same in every session."""
        bundle = super()._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if data:
            data["text/plain"] = f"LatentExplorer of {len(self.z)} latent units"
        return bundle
