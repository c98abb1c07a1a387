"""The latent explorer: a widget whose decoder runs in the browser, with or without a kernel.

It needs anywidget (`pip install "vae_core[widgets]"`); the JavaScript is `explorer.js`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod
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

from vae_core._checks.inputs import as_images, as_labels
from vae_core.evaluation import kl_per_unit
from vae_core.plots import PALETTE
from vae_core.runtime import device_of, dtype_of, evaluation_mode, save_tensors, unit_interval

if TYPE_CHECKING:
    from vae_core.models import VAE, Autoencoder

NAMES = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}
FUNCTIONS = {"none": lambda y: y, "relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


def export_decoder(model: "Autoencoder") -> tuple[dict[str, Any], bytes]:
    r"""Return a dense decoder as a small header and one float16 blob: for each layer W (outputs × inputs), then b.

    Batch norm is folded into the layer before it, with its running averages:

    .. math:: W' = \operatorname{diag}(s)\,W, \qquad b' = s\odot(b-\bar\mu)+\beta, \qquad
              s = \gamma/\sqrt{\bar\sigma^2+\epsilon}

    The header holds `shape`, [C, H, W], and `layers`, a list of {"inputs", "outputs", "activation"}; the last
    activation turns the decoder's output into the likelihood's mean.

    Args:
        model: A VAE or autoencoder of images with a dense decoder.

    Raises:
        ValueError: The data are not images of one or three channels, the decoder is not a stack of Linear, BatchNorm1d,
            ReLU, tanh and sigmoid, takes a condition, or has more than one output for each pixel, or the likelihood's
            mean is another function of the output. The message says which; `sliders.latent_sliders` takes any decoder.
    """
    if len(model.input_shape) != 3 or model.input_shape[0] not in (1, 3):
        raise ValueError(f"an explorer draws images of 1 or 3 channels, (C, H, W), got shape {model.input_shape}")
    layers, activations = _layers(model.decoder)
    _check_sizes(model, layers)
    activations = _with_output(model, layers, activations)
    sizes = [{"inputs": W.shape[1], "outputs": W.shape[0]} for W, _ in layers]
    header: dict[str, Any] = {"shape": list(model.input_shape)}
    header["layers"] = [size | {"activation": name} for size, name in zip(sizes, activations, strict=True)]
    flat = torch.cat([part.flatten() for layer in layers for part in layer]).cpu().numpy()
    if not np.abs(flat).max() <= np.finfo(np.float16).max:  # false for nan as well
        raise ValueError(
            f"the decoder has a weight of {np.abs(flat).max():.0f}, too large for float16; use latent_sliders"
        )
    return header, flat.astype("<f2").tobytes()


def _layers(decoder: nn.Module) -> tuple[list[tuple[Tensor, Tensor]], list[str]]:
    """Return the weights and biases of the decoder's layers, with batch norm folded in, and their activations."""
    layers: list[tuple[Tensor, Tensor]] = []
    activations: list[str] = []
    for module in _stack(decoder):
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
    return layers, activations


def _check_sizes(model: "Autoencoder", layers: list[tuple[Tensor, Tensor]]) -> None:
    """Raise ValueError unless the decoder maps a code alone to one number for each pixel."""
    inputs, outputs, pixels = layers[0][0].shape[1], layers[-1][0].shape[0], prod(model.input_shape)
    if inputs != model.latent_dim:
        told = f"the decoder takes {inputs} numbers where the code has {model.latent_dim}, as with a condition"
        raise ValueError(f"{told}; use latent_sliders(model.given(y))")
    if outputs != pixels:
        raise ValueError(f"the decoder outputs {outputs} numbers for images of {pixels} pixels; use latent_sliders")


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
    """Return the activations, the last one replaced by the one that reproduces `model.decode`, found by trial."""
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
    """The exported decoder that explorers share. `LatentExplorer` makes one for each set of weights."""

    header = traitlets.Dict().tag(sync=True)
    blob = traitlets.Bytes().tag(sync=True)
    _kept: ClassVar[WeakValueDictionary[str, "DecoderWeights"]] = WeakValueDictionary()

    @classmethod
    def of(cls, model: "Autoencoder") -> "DecoderWeights":
        """Return the widget for the current weights of this model."""
        header, blob = export_decoder(model)
        digest = hashlib.sha256(repr(header).encode() + blob).hexdigest()
        widget = cls._kept.get(digest)
        if widget is None or widget.comm is None:  # not created yet, or closed
            widget = cls._kept[digest] = cls(header=header, blob=blob)
        return widget


@dataclass(frozen=True)
class EncodedImages:
    """What an explorer shows of test images: their codes and classes, some of the images, and the units' KL.

    Args:
        codes: Means of q(z|x), (N, d).
        labels: Classes from 0 to 255, (N,), uint8.
        images: The first M ≤ N images, (M, C, H, W), uint8.
        kl: The mean KL of each unit, (d,), nats.
        class_names: The name of class k at place k; empty if the classes are numbers.

    Raises:
        ValueError: The shapes do not match.
    """

    codes: Tensor
    labels: Tensor
    images: Tensor
    kl: Tensor
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n, d = self.codes.shape
        if self.labels.shape != (n,) or self.kl.shape != (d,) or len(self.images) > n:
            shapes = {name: tuple(value.shape) for name, value in vars(self).items() if name != "class_names"}
            raise ValueError(f"codes (N, d), labels (N,), images (at most N, C, H, W) and kl (d,) do not fit: {shapes}")
        if self.class_names and n and len(self.class_names) <= int(self.labels.max()):
            classes = int(self.labels.max()) + 1
            raise ValueError(f"class_names must name {classes} classes, got {len(self.class_names)}")

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: "VAE",
        x: Any,
        y: Any,
        *,
        starts: int = 10,
        max_codes: int = 1000,
        class_names: Sequence[str] = (),
    ) -> "EncodedImages":
        """Return the codes of images, with what an explorer shows beside them.

        Args:
            model: A VAE.
            x: Images (N, C, H, W), float in [0, 1] or uint8, as a tensor, an array, a list or a Dataset.
            y: Their classes (N,), from 0 to 255, in any of these forms.
            starts: How many images are kept, to start from.
            max_codes: How many codes are kept; the KL is the mean over all images.
            class_names: The name of class k at place k.

        Raises:
            TypeError: The model has no posterior; x or y hold a mask, complex numbers or strings.
            ValueError: A value of x is outside of [0, 1], a class is fractional, negative or above 255, or the numbers
                of images and classes differ.
        """
        if not hasattr(model, "posterior"):
            raise TypeError(f"model must be a VAE, whose units have a KL, got {type(model).__name__}")
        x, dtype = as_images(x, dtype=dtype_of(model)), dtype_of(model)
        x, y = unit_interval(x, dtype), as_labels(y, len(x))
        for name, values, low, high in (("x must hold values", x, 0, 1), ("y must be classes", y, 0, 255)):
            if len(values) and not low <= values.min() <= values.max() <= high:
                got = f"{values.min().item():g} to {values.max().item():g}"
                raise ValueError(f"{name} from {low} to {high}, got {got}")
        with evaluation_mode(model):
            codes = model.encode(x[:max_codes].to(device_of(model)))
        images, kl = (255 * x[:starts]).round().byte(), kl_per_unit(model, x).to(codes)
        return cls(codes.cpu(), y[:max_codes].cpu().byte(), images.cpu(), kl.cpu(), tuple(class_names))

    def save(self, path: Path) -> None:
        """Write them as safetensors, codes in half precision, atomically."""
        fields = {name: getattr(self, name) for name in ("labels", "images")}
        if self.class_names:
            fields["class_names"] = torch.tensor(list("\n".join(self.class_names).encode()), dtype=torch.uint8)
        save_tensors(fields | {"codes": self.codes.half(), "kl": self.kl.float()}, path)

    @classmethod
    def load(cls, path: Path) -> "EncodedImages":
        """Return what `save` has written."""
        fields = load_file(path)
        names = bytes(fields["class_names"].tolist()).decode().split("\n") if "class_names" in fields else ()
        return cls(fields["codes"].float(), fields["labels"], fields["images"], fields["kl"], tuple(names))

    def traits(self) -> dict[str, Any]:
        """Return the traits that the JavaScript reads."""
        return {
            "codes": self.codes.numpy().astype("<f2").tobytes(),
            "labels": self.labels.numpy().tobytes(),
            "images": self.images.numpy().tobytes(),
            "kl": [round(value, 4) for value in self.kl.tolist()],
            "order": self.kl.argsort(descending=True).tolist(),
            "class_names": list(self.class_names),
        }


class LatentExplorer(anywidget.AnyWidget):
    r"""Move through the latent space of a dense VAE and see the image that its decoder returns for each code.

    With two latent units it is a plane to drag in, on which the codes of test images are drawn; with more, it has a
    slider for each unit. Buttons draw from the prior, start from a test image, move to another, and sweep one unit.
    `explorer.z` is the code, a list of d floats; setting it changes the image. With test images the units are sorted by
    their KL, and those with at most 0.01 nats are folded away.

    Args:
        model: A VAE whose decoder `export_decoder` takes.
        encoded: Test images, `EncodedImages.of(model, x, y)`.
        extent: Each number of the code runs over [−extent, extent].

    Raises:
        ValueError: As `export_decoder` does; `encoded` is of another model, or `extent` is not positive.
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
    class_names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    palette = traitlets.List(list(PALETTE)).tag(sync=True)

    def __init__(self, model: "VAE", encoded: EncodedImages | None = None, *, extent: float = 3.0) -> None:
        if encoded is not None:
            theirs = (encoded.codes.shape[1], *encoded.images.shape[1:])
            ours = (model.latent_dim, *model.input_shape)
            if theirs != ours:
                raise ValueError(f"encoded is of another model: (d, C, H, W) is {theirs}, and the model's is {ours}")
        if not 0 < extent < inf:
            raise ValueError(f"extent must be positive and finite, got {extent!r}")
        fields = {} if encoded is None else encoded.traits()
        super().__init__(decoder=DecoderWeights.of(model), z=[0.0] * model.latent_dim, extent=extent, **fields)

    @traitlets.validate("z")
    def _check_z(self, proposal: dict) -> list[float]:
        value, d = proposal["value"], self.decoder.header["layers"][0]["inputs"]
        if len(value) != d or not np.isfinite(value).all():
            raise traitlets.TraitError(f"z must be {d} finite numbers, got {value!r}")
        return value

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """Return the bundle of any widget, with a text that is the same in every session."""
        bundle = super()._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if data:
            data["text/plain"] = f"LatentExplorer of {len(self.z)} latent units"
        return bundle
