"""Convolutional maps: halvings there and doublings back, one block like the next, and a bare last layer."""

from itertools import pairwise
from math import prod

import pytest
import torch
from checks import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vae_core.networks import conv_decoder, conv_encoder, feature_map

THESIS = (3, 32, 32)  # Table 4.2
BLOCK, BLOCK_BACK = ([layer, nn.BatchNorm2d, nn.ReLU] for layer in (nn.Conv2d, nn.ConvTranspose2d))


def kinds(network: nn.Sequential) -> list[type]:
    return [type(layer) for layer in network]


def chain(network: nn.Sequential, x: Tensor, kind: type) -> list[tuple[int, ...]]:
    """The shape of one image after each layer of a kind."""
    shapes = []
    for layer in network.eval():
        x = layer(x)
        shapes += [tuple(x.shape[1:])] if isinstance(layer, kind) else []
    return shapes


def convolutions(network: nn.Sequential) -> list[nn.Module]:
    return [layer for layer in network if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]


# Shapes


def test_conv_encoder_of_the_thesis_halves_32_three_times_and_flattens_to_2048():
    encoder, x = conv_encoder(THESIS), torch.rand(2, *THESIS)
    assert chain(encoder, x, nn.Conv2d) == [(32, 16, 16), (64, 8, 8), (128, 4, 4)]
    assert encoder(x).shape == (2, 2048)


def test_conv_decoder_of_the_thesis_doubles_back_to_32():
    decoder, z = conv_decoder(256, THESIS), torch.randn(2, 256)
    assert chain(decoder, z, nn.Unflatten) == [(128, 4, 4)]
    assert chain(decoder, z, nn.ConvTranspose2d) == [(64, 8, 8), (32, 16, 16), (3, 32, 32)]


@settings(deadline=None, max_examples=30)
@given(
    channels=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    smallest=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    colours=st.integers(1, 4),
    latent_dim=st.integers(1, 9),
)
def test_conv_encoder_and_conv_decoder_go_to_the_feature_map_and_back_for_all_sizes_that_can_be_halved(
    channels, smallest, colours, latent_dim
):
    shape = (colours, *(side * 2 ** len(channels) for side in smallest))
    assert feature_map(shape, channels) == (channels[-1], *smallest)
    with torch.device("meta"):
        features = conv_encoder(shape, channels).eval()(torch.zeros(1, *shape))
        image = conv_decoder(latent_dim, shape, channels[::-1]).eval()(torch.zeros(1, latent_dim))
    assert features.shape == (1, prod(feature_map(shape, channels)))
    assert image.shape == (1, *shape)


# Layers


def test_conv_encoder_is_blocks_of_convolution_norm_activation():
    assert kinds(conv_encoder(THESIS)) == [*BLOCK, *BLOCK, *BLOCK, nn.Flatten]


def test_conv_decoder_is_a_dense_block_then_blocks_of_transposed_convolution_and_its_last_layer_is_bare():
    dense = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Unflatten]
    assert kinds(conv_decoder(256, THESIS)) == [*dense, *BLOCK_BACK, *BLOCK_BACK, nn.ConvTranspose2d]


def test_conv_encoder_and_conv_decoder_normalise_the_channels_of_each_convolution():
    for network in (conv_encoder(THESIS), conv_decoder(256, THESIS)):
        pairs = [(a, b) for a, b in pairwise(network) if isinstance(b, nn.BatchNorm2d)]
        assert pairs
        assert [convolution.out_channels for convolution, _ in pairs] == [norm.num_features for _, norm in pairs]


def test_conv_decoder_is_linear_in_its_last_layer_and_so_unbounded():
    decoder, z = conv_decoder(2, (1, 8, 8), (4, 3)).eval(), torch.randn(5, 2)
    with torch.no_grad():
        before = decoder(z)
        for parameter in decoder[-1].parameters():
            parameter *= -1000
        torch.testing.assert_close(decoder(z), -1000 * before, rtol=1e-12, atol=1e-9)


def test_conv_decoder_has_steps_that_are_adjoint_to_those_of_conv_encoder():
    steps = convolutions(conv_encoder(THESIS))
    mirrored = list(reversed(convolutions(conv_decoder(256, THESIS))))
    size = 32
    for step, back in zip(steps, mirrored, strict=True):
        x, size = torch.randn(1, step.in_channels, size, size), size // 2
        y = torch.randn(1, step.out_channels, size, size)
        back.load_state_dict({"weight": step.weight, "bias": torch.zeros_like(back.bias)})
        forward = step(x) - step.bias[:, None, None]
        assert (forward * y).sum().item() == pytest.approx((x * back(y)).sum().item(), rel=1e-10)


# Refusals


def encode(shape, channels):
    return conv_encoder(shape, channels)


def decode(shape, channels):
    return conv_decoder(2, shape, channels[::-1] if isinstance(channels, tuple) else channels)


@pytest.mark.parametrize("build", [encode, decode, feature_map])
@pytest.mark.parametrize(
    ("shape", "channels", "words"),
    [
        ((1, 28, 28), (32, 64, 128), ["3 halvings", "8 divides", "28 and 28", "channels=(32, 64)"]),  # 28 = 4·7, E-C22
        ((3, 32, 30), (8, 8), ["2 halvings", "4 divides", "32 and 30", "channels=(8,)"]),
        ((1, 7, 28), (8, 8), ["2 halvings", "7 and 28", "resize the images"]),
        ((3, 30, 32), (8, 8), ["2 halvings", "4 divides", "30 and 32"]),
        ((3, 2, 2), (8, 8), ["2 halvings", "4 divides", "2 and 2"]),
        ((3, 32, 32), (), ["channels must be at least one positive integer", "got ()"]),
        ((3, 32, 32), (8, 0), ["channels must be at least one positive integer", "0"]),
        ((32, 32), (8,), ["input_shape must be (C, H, W)", "got (32, 32)"]),
        ((1, 3, 32, 32), (8,), ["input_shape must be (C, H, W)", "got (1, 3, 32, 32)"]),
        ((), (8,), ["input_shape must be (C, H, W)", "got ()"]),
        ((0, 32, 32), (8,), ["input_shape must be (C, H, W)", "got (0, 32, 32)"]),
        ((3, 32.0, 32), (8,), ["input_shape must be (C, H, W)", "got (3, 32.0, 32)"]),
        ((3, 32, 32), 8, ["channels must be at least one positive integer", "got 8"]),
        ((3, 32, 32), (8, True), ["channels must be at least one positive integer", "True"]),
        ((3, 32, 32), (8.0,), ["channels must be at least one positive integer", "8.0"]),
        (32, (8,), ["input_shape must be (C, H, W)", "got 32"]),
        ((3, -32, 32), (8,), ["input_shape must be (C, H, W)", "got (3, -32, 32)"]),
    ],
)
def test_conv_encoder_conv_decoder_and_feature_map_refuse_what_cannot_be_halved(build, shape, channels, words):
    with refused(ValueError, *words):
        build(shape, channels)


def test_feature_map_halves_28_twice():
    assert feature_map((1, 28, 28), (32, 64)) == (64, 7, 7)


def test_conv_decoder_refuses_codes_of_no_number():
    with refused(ValueError, "positive", "0"):
        conv_decoder(0, THESIS)
