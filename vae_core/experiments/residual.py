"""A residual convolutional VAE whose code is a small feature map: a GPU trains it in a minute or two."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from vae_core import likelihoods
from vae_core.models import VAE
from vae_core.networks import feature_map

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Residual(nn.Module):
    """Return x + f(x), where f is two 3×3 convolutions, each after batch norm and SiLU.

    Source: He et al. (2016), fig. 4e.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.BatchNorm2d(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
        self.change = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x)


class Autocast(nn.Module):
    """A network that is computed in lower precision where torch's autocast allows it; float32 in, float32 out."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner.to(memory_format=torch.channels_last), dtype

    def forward(self, x: Tensor) -> Tensor:
        enabled = self.dtype != torch.float32
        # without its cache, which would keep the weights of an earlier step in a captured graph
        with torch.autocast(x.device.type, self.dtype, enabled=enabled, cache_enabled=False):
            return self.inner(x).to(x.dtype)


class FlatConv(nn.Conv2d):
    """A 1×1 convolution whose output is flattened, (B, C, H, W) -> (B, C'·H·W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(1)


class ResidualVAE(VAE):
    """A VAE whose heads are 1×1 convolutions, so that the code is a flattened map of `latent_channels` channels."""

    def __init__(self, *arguments: Any, latent_channels: int, **keywords: Any) -> None:
        self.latent_channels = latent_channels
        super().__init__(*arguments, **keywords)

    def _add_heads(self, feature_dim: int) -> None:
        self.mean = FlatConv(feature_dim, self.latent_channels, 1)  # type: ignore[assignment]
        self.log_variance = FlatConv(feature_dim, self.latent_channels, 1)  # type: ignore[assignment]


def residual_vae(
    input_shape: Sequence[int],
    latent_channels: int = 32,
    channels: Sequence[int] = (128, 256),
    blocks: int = 2,
    likelihood: str | likelihoods.Likelihood = "discretized_logistic",
    precision: str = "float32",
) -> ResidualVAE:
    """Return a `ResidualVAE`: a halving convolution for each of `channels`, each followed by residual blocks.

    The decoder mirrors the encoder. With two `channels` an image of 32×32 has a code of 8·8·`latent_channels` numbers.

    Args:
        input_shape: (C, H, W).
        latent_channels: the number of channels of the code.
        channels: the number of channels after each halving convolution.
        blocks: the number of residual blocks after each of them.
        likelihood: a name in `likelihoods.LIKELIHOODS`, or a callable.
        precision: "bfloat16" computes encoder and decoder under autocast; heads, likelihood and KL stay in float32.

    Raises:
        ValueError: for an unknown precision, and as `networks.conv_encoder` does.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {sorted(PRECISIONS)}, got {precision!r}")
    _, height, width = feature_map(input_shape, channels)
    outputs = input_shape[0] * likelihoods.parameters_per_dimension(likelihoods.resolve(likelihood))
    code = (latent_channels, height, width)
    encoder = _encoder(input_shape[0], channels, blocks)
    decoder = nn.Sequential(
        nn.Unflatten(1, code), _decoder(latent_channels, outputs, tuple(reversed(channels)), blocks)
    )
    maps = (Autocast(encoder, PRECISIONS[precision]), Autocast(decoder, PRECISIONS[precision]))
    return ResidualVAE(*maps, channels[-1], prod(code), input_shape, likelihood, latent_channels=latent_channels)


def _encoder(inputs: int, channels: Sequence[int], blocks: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in zip((inputs, *channels), channels, strict=False):
        layers += [nn.Conv2d(n_in, n_out, 4, 2, 1), *(Residual(n_out) for _ in range(blocks))]
    return nn.Sequential(*layers, nn.BatchNorm2d(channels[-1]), nn.SiLU())


def _decoder(inputs: int, outputs: int, channels: Sequence[int], blocks: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, channels[0], 1)]
    for n_in, n_out in zip(channels, (*channels[1:], outputs), strict=True):
        layers += [*(Residual(n_in) for _ in range(blocks)), nn.BatchNorm2d(n_in), nn.SiLU()]
        layers.append(nn.ConvTranspose2d(n_in, n_out, 4, 2, 1))
    return nn.Sequential(*layers)
