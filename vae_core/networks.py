"""Bare maps. They know nothing of distributions."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "elu": nn.ELU}


def mlp(
    widths: Sequence[int], out_features: int | None = None, activation: str = "relu", batch_norm: bool = True
) -> nn.Sequential:
    """A multilayer perceptron (N, widths[0]) -> (N, out_features or widths[-1]).

    Each step between two widths is a block Linear, BatchNorm (if asked for), activation; `out_features`
    appends one bare Linear, so that its output is unbounded (logits, means, log-variances).
    Raises ValueError for fewer than two widths, a width below 1, or an unknown activation.
    Source: Chen Table 4.1; the order inside a block is that of listing A.1.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must be at least two positive integers, got {tuple(widths)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        norm = [nn.BatchNorm1d(n_out)] if batch_norm else []
        layers += [nn.Linear(n_in, n_out), *norm, ACTIVATIONS[activation]()]
    if out_features is not None:
        layers.append(nn.Linear(widths[-1], out_features))
    return nn.Sequential(*layers)


def conv_encoder(input_shape: Sequence[int], channels: Sequence[int] = (32, 64, 128)) -> nn.Sequential:
    """A convolutional encoder (N, C, H, W) -> (N, F), F = channels[-1] · H/2ᵏ · W/2ᵏ for k = len(channels).

    Each step halves height and width: a block Conv2d (kernel 4, stride 2, padding 1), BatchNorm2d, ReLU.
    Raises ValueError for no channels, or a height or width that 2ᵏ does not divide.
    Source: Chen Table 4.2 (which prints stride 1; its own 2048 features need stride 2, as in listing A.1).
    """
    feature_map(input_shape, channels)  # refuses what cannot be halved
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise((input_shape[0], *channels)):
        layers += [nn.Conv2d(n_in, n_out, 4, 2, 1), nn.BatchNorm2d(n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten())


def conv_decoder(
    latent_dim: int, output_shape: Sequence[int], channels: Sequence[int] = (128, 64, 32)
) -> nn.Sequential:
    """The mirror image of `conv_encoder`: codes (N, d) -> (N, C, H, W), unbounded.

    A block Linear, BatchNorm1d, ReLU makes the smallest feature map; each step then doubles height and width
    by a transposed convolution (kernel 4, stride 2, padding 1), all but the last with BatchNorm2d and ReLU.
    Raises ValueError as `conv_encoder` does. Source: Chen Table 4.2, listing A.1.
    """
    smallest = feature_map(output_shape, tuple(reversed(channels)))
    layers: list[nn.Module] = [*mlp((latent_dim, prod(smallest))), nn.Unflatten(1, smallest)]
    for n_in, n_out in pairwise(channels):
        layers += [nn.ConvTranspose2d(n_in, n_out, 4, 2, 1), nn.BatchNorm2d(n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(channels[-1], output_shape[0], 4, 2, 1))


def feature_map(input_shape: Sequence[int], channels: Sequence[int]) -> tuple[int, int, int]:
    """The shape (C, H, W) after one halving convolution per entry of `channels`; errors as in `conv_encoder`."""
    factor = 2 ** len(channels)
    if not channels or min(channels) < 1:
        raise ValueError(f"channels must be at least one positive integer, got {tuple(channels)}")
    if len(tuple(input_shape)) != 3 or min(input_shape) < 1:
        raise ValueError(f"input_shape must be (C, H, W), all positive, got {tuple(input_shape)}")
    _, height, width = input_shape
    if height % factor or width % factor:
        raise ValueError(
            f"{len(channels)} halvings need a height and a width that {factor} divides, got {height} and {width}"
        )
    return channels[-1], height // factor, width // factor


def validate_images(x: Tensor, input_shape: Sequence[int]) -> Tensor:
    """x itself, if it is what an encoder takes: float, (B, C, H, W). Raises ValueError for another shape or dtype."""
    if tuple(x.shape[1:]) != tuple(input_shape) or not x.is_floating_point():
        expected = ", ".join(map(str, input_shape))
        raise ValueError(f"x must be float images of shape (B, {expected}), got {x.dtype} {tuple(x.shape)}")
    return x
