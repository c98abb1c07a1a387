"""Bare maps of tensors, without distributions: a multilayer perceptron, a convolutional encoder and its mirror."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import prod
from typing import Any

from torch import Tensor, nn

from vae_core.runtime import as_int

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "elu": nn.ELU}


def mlp(
    widths: Sequence[int], out_features: int | None = None, activation: str = "relu", batch_norm: bool = True
) -> nn.Sequential:
    """Return a multilayer perceptron (N, widths[0]) -> (N, out_features or widths[-1]).

    Each step between two widths is a block Linear, BatchNorm (if asked for), activation; `out_features` appends one
    bare Linear, so that its output is unbounded (logits, means, log-variances).

    Args:
        widths: At least two, from the input on.
        out_features: The width of a last, bare Linear; None appends none.
        activation: "relu", "tanh", "sigmoid" or "elu".
        batch_norm: Whether each block normalises over the batch.

    Raises:
        ValueError: There are fewer than two widths, one is not a positive integer, or the activation is unknown.

    Source: Chen Table 4.1; the order inside a block is that of listing A.1.
    """
    sizes = positive_integers("widths", widths, "at least two positive integers", 2)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        norm = [nn.BatchNorm1d(n_out)] if batch_norm else []
        layers += [nn.Linear(n_in, n_out), *norm, ACTIVATIONS[activation]()]
    if out_features is not None:
        layers.append(nn.Linear(sizes[-1], out_features))
    return nn.Sequential(*layers)


def conv_encoder(input_shape: Sequence[int], channels: Sequence[int] = (32, 64, 128)) -> nn.Sequential:
    """Return a convolutional encoder (N, C, H, W) -> (N, F), F = channels[-1] · H/2ᵏ · W/2ᵏ for k = len(channels).

    Each step halves height and width: a block Conv2d (kernel 4, stride 2, padding 1), BatchNorm2d, ReLU.

    Args:
        input_shape: (C, H, W).
        channels: The number of channels after each step.

    Raises:
        ValueError: As `feature_map` does.

    Source: Chen Table 4.2 (which prints stride 1; its own 2048 features need stride 2, as in listing A.1).
    """
    feature_map(input_shape, channels)  # raises an error where a step cannot halve
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(map(int, (input_shape[0], *channels))):
        layers += [nn.Conv2d(n_in, n_out, 4, 2, 1), nn.BatchNorm2d(n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten())


def conv_decoder(
    latent_dim: int, output_shape: Sequence[int], channels: Sequence[int] = (128, 64, 32)
) -> nn.Sequential:
    """Return the mirror image of `conv_encoder`, codes (N, d) -> (N, C, H, W), unbounded.

    A block Linear, BatchNorm1d, ReLU makes the smallest feature map; each step then doubles height and width by a
    transposed convolution (kernel 4, stride 2, padding 1), all but the last with BatchNorm2d and ReLU.

    Args:
        latent_dim: d.
        output_shape: (C, H, W).
        channels: The number of channels before each step.

    Raises:
        ValueError: As `feature_map` does.

    Source: Chen Table 4.2, listing A.1.
    """
    widths = positive_integers("channels", channels, "at least one positive integer")
    smallest = feature_map(output_shape, widths[::-1])
    layers: list[nn.Module] = [*mlp((latent_dim, prod(smallest))), nn.Unflatten(1, smallest)]
    for n_in, n_out in pairwise(widths):
        layers += [nn.ConvTranspose2d(n_in, n_out, 4, 2, 1), nn.BatchNorm2d(n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], output_shape[0], 4, 2, 1))


def feature_map(input_shape: Sequence[int], channels: Sequence[int]) -> tuple[int, int, int]:
    """Return the shape (C, H, W) after one halving convolution for each entry of `channels`.

    Args:
        input_shape: (C, H, W) of an image.
        channels: The number of channels after each step.

    Raises:
        ValueError: `channels` is empty or holds no positive integers, `input_shape` is not (C, H, W), or a height or
            width cannot be halved that often; the message names channels that fit.
    """
    widths = positive_integers("channels", channels, "at least one positive integer")
    shape = positive_integers("input_shape", input_shape, "(C, H, W), all positive integers")
    if len(shape) != 3:
        raise ValueError(f"input_shape must be (C, H, W), all positive integers, got {input_shape!r}")
    _, height, width = shape
    halvings = [k for k in range(len(widths) + 1) if height % 2**k == width % 2**k == 0]
    if halvings[-1] < len(widths):
        needed = f"{len(widths)} halvings need a height and a width that {2 ** len(widths)} divides"
        fitting = f"choose channels={widths[: halvings[-1]]}" if halvings[-1] else "resize the images"
        raise ValueError(f"{needed}, got {height} and {width}; {fitting}")
    return widths[-1], height // 2 ** len(widths), width // 2 ** len(widths)


def positive_integers(name: str, values: Any, allowed: str, least: int = 1) -> tuple[int, ...]:
    """Return `values` as Python integers.

    Args:
        name: The argument's name, for the message.
        values: What the caller passed.
        allowed: What the message says is allowed.
        least: The smallest number of integers.

    Raises:
        ValueError: They are not a sequence of at least that many positive integers.
    """
    sizes = tuple(map(as_int, values)) if isinstance(values, Iterable) else ()
    if len(sizes) < least or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"{name} must be {allowed}, got {values!r}")
    return sizes


def validate_images(x: Tensor, input_shape: Sequence[int]) -> Tensor:
    """Return `x` if it is float data of shape (B, *input_shape), as encoders take it.

    Raises:
        TypeError: `x` is not a tensor.
        ValueError: It has another shape or dtype.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}; use torch.as_tensor(x)")
    if tuple(x.shape[1:]) != tuple(input_shape) or not x.is_floating_point():
        expected = (
            f"float {'images' if len(input_shape) == 3 else 'data'} of shape (B, {', '.join(map(str, input_shape))})"
        )
        cure = "; runtime.unit_interval(x) divides bytes by 255" if str(x.dtype) == "torch.uint8" else ""
        cure = "; x[None] is a batch of one" if tuple(x.shape) == tuple(input_shape) else cure
        raise ValueError(f"x must be {expected}, got {x.dtype} {tuple(x.shape)}{cure}")
    return x
