"""Contrastive learning: objectives that give two views of one image similar codes, the encoders, and the views."""

from collections.abc import Callable, Sequence
from math import log, pi, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_core.networks import conv_encoder, feature_map, mlp, validate_images

Views = Callable[[Tensor], Tensor]


def triplet(code: Tensor, positive: Tensor, negative: Tensor, normalised: bool = False) -> Tensor:
    r"""Return the similarity to one code minus that to another, as inner products: three (B, d) -> (B,), maximised.

    .. math:: f(x)^\top f(x_+) - f(x)^\top f(x_-)

    It has no maximum: with c·f instead of f it is c² times as large. `normalised` puts every code on the unit sphere
    first; then it lies in [−2, 2].

    Args:
        code: f(x), (B, d).
        positive: f(x₊), the code of a similar image, (B, d).
        negative: f(x₋), the code of another image, (B, d).
        normalised: whether the codes are divided by their lengths.

    Source: Chen §2.3.
    """
    if normalised:
        code, positive, negative = (F.normalize(each, dim=-1) for each in (code, positive, negative))
    return (code * (positive - negative)).sum(-1)


def info_nce(scores: Tensor) -> Tensor:
    r"""Return a lower bound on mutual information, one value per pair, in nats: scores (..., N, N) -> (..., N).

    .. math:: I(U;V)\ \ge\ \mathbb E\Big[\log\frac{e^{s(u_i,v_i)}}{\frac1N\sum_j e^{s(u_i,v_j)}}\Big],
              \qquad\text{and never more than }\log N

    It is tight for N → ∞ where s is log p(v|u)/p(v), up to a function of u.

    Args:
        scores: `scores[i, j]` is s(u_i, v_j) for N independent pairs, any function s.

    Raises:
        ValueError: unless the last two sizes are equal.

    Source: van den Oord et al. (2018); Poole et al. (2019), eq. (10).
    """
    if scores.dim() < 2 or scores.shape[-1] != scores.shape[-2]:
        raise ValueError(f"scores must be those of N by N pairs, got shape {tuple(scores.shape)}")
    return log(scores.shape[-1]) + scores.log_softmax(-1).diagonal(dim1=-2, dim2=-1)


def nt_xent(u: Tensor, v: Tensor, temperature: float = 0.5) -> Tensor:
    r"""Return minus the normalised, temperature-scaled cross-entropy of two views' codes: (B, d) both -> (B,), nats.

    .. math:: \frac12\sum_{a\in\{u_n,v_n\}}\log\frac{e^{\cos(u_n,v_n)/\tau}}{\sum_{b\ne a}e^{\cos(a,b)/\tau}}

    b runs over the other 2B − 1 codes of the batch: which of them is the other view of the same image? It is to be
    maximised, and lies between :math:`-\log(1+(2B-2)e^{\pm2/\tau})`.

    Args:
        u, v: the codes of the two views, (B, d).
        temperature: τ > 0.

    Raises:
        ValueError: for codes of different shape, fewer than two images, or a temperature that is not positive.

    Source: Chen, Kornblith et al. (2020), eq. (1).
    """
    if u.shape != v.shape or u.dim() != 2 or len(u) < 2:
        raise ValueError(f"both views need codes (B, d) of at least two images, got {tuple(u.shape)}, {tuple(v.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    codes, n = F.normalize(torch.cat((u, v)), dim=-1), len(u)
    scores = codes @ codes.T / temperature
    scores = scores.masked_fill(torch.eye(2 * n, dtype=torch.bool, device=u.device), -torch.inf)
    log_p = scores.log_softmax(-1)
    return (log_p.diagonal(n) + log_p.diagonal(-n)) / 2


class ContrastiveEncoder(nn.Module):
    """An encoder with the layers of a VAE's, followed by a small projector that only training uses.

    `encode` maps (B, C, H, W) to codes (B, d), as `models.Autoencoder` does; the objective compares `project`
    of them, (B, p). Without the projector (p = 0) it compares the codes themselves.

    Args:
        encoder: a map (B, C, H, W) -> (B, feature_dim).
        feature_dim: the number of features that the encoder returns.
        latent_dim: d.
        input_shape: (C, H, W).
        projection: p.

    Source: Chen, Kornblith et al. (2020) §4.2 (the projector).
    """

    def __init__(
        self, encoder: nn.Module, feature_dim: int, latent_dim: int, input_shape: Sequence[int], projection: int = 64
    ) -> None:
        super().__init__()
        self.encoder, self.latent_dim, self.input_shape = encoder, latent_dim, tuple(input_shape)
        self.mean = nn.Linear(feature_dim, latent_dim)
        self.project = mlp((latent_dim, 2 * projection), projection) if projection else nn.Identity()

    def encode(self, x: Tensor) -> Tensor:
        """Return the code of x, (B, C, H, W) in [0, 1] -> (B, d)."""
        return self.mean(self.encoder(validate_images(x, self.input_shape)))


def mlp_contrastive(
    input_shape: Sequence[int], latent_dim: int, hidden: Sequence[int] = (512, 256, 128), projection: int = 64
) -> ContrastiveEncoder:
    """Return a `ContrastiveEncoder` with the layers of `models.mlp_vae`.

    Args:
        input_shape: (C, H, W).
        latent_dim: d.
        hidden: the widths of the hidden layers.
        projection: p, the width of the projector's output.

    Raises:
        ValueError: as `networks.mlp` does.
    """
    encoder = nn.Sequential(nn.Flatten(), *mlp((prod(input_shape), *hidden)))
    return ContrastiveEncoder(encoder, hidden[-1], latent_dim, input_shape, projection)


def conv_contrastive(
    input_shape: Sequence[int], latent_dim: int, channels: Sequence[int] = (32, 64, 128), projection: int = 128
) -> ContrastiveEncoder:
    """Return a `ContrastiveEncoder` with the layers of `models.conv_vae`.

    Args:
        input_shape: (C, H, W).
        latent_dim: d.
        channels: the number of channels of each feature map.
        projection: p, the width of the projector's output.

    Raises:
        ValueError: as `networks.conv_encoder` does.
    """
    encoder = conv_encoder(input_shape, channels)
    return ContrastiveEncoder(encoder, prod(feature_map(input_shape, channels)), latent_dim, input_shape, projection)


def simclr_objective(model: ContrastiveEncoder, x: Tensor, views: Views, temperature: float = 0.5) -> Tensor:
    """Return `nt_xent` of two new views of each image, for `training.fit`: x (B, C, H, W) -> (B,), to be maximised.

    Both views go through the network in one batch, so that batch norm has the same statistics for both.

    Args:
        model: the encoder.
        x: images (B, C, H, W).
        views: `views(x)` draws a view of each image from torch's random state, which `fit` seeds.
        temperature: τ > 0.

    Source: Chen, Kornblith et al. (2020), algorithm 1.
    """
    u, v = model.project(model.encode(torch.cat((views(x), views(x))))).chunk(2)
    return nt_xent(u, v, temperature)


def resample(x: Tensor, matrices: Tensor, offsets: Tensor) -> Tensor:
    """Return images sampled at other places, zero outside: x (B, C, H, W), matrices (B, 2, 2), offsets (B, 2).

    The pixel at p in [−1, 1]², p = (across, down), shows the image at A p + b, linearly interpolated.
    """
    grid = F.affine_grid(torch.cat((matrices, offsets[..., None]), -1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def random_affine(x: Tensor, degrees: float = 0, smallest: float = 1, shift: float = 0) -> Tensor:
    """Return each image rotated, cropped and shifted at random: (B, C, H, H) -> (B, C, H, H), zero outside.

    Args:
        x: square images.
        degrees: the angle is uniform in ±degrees.
        smallest: the smallest share of the area that is cropped and scaled up to full size; the crop's place is uniform
            within the image.
        shift: the largest further shift, as a share of the side.
    """
    angle, side = _uniform(x, -1, 1) * degrees * pi / 180, _uniform(x, smallest, 1).sqrt()
    c, s = side * angle.cos(), side * angle.sin()
    offsets = torch.stack((_uniform(x, -1, 1), _uniform(x, -1, 1)), -1) * (1 - side + 2 * shift)[:, None]
    return resample(x, torch.stack((c, -s, s, c), -1).view(-1, 2, 2), offsets)


def random_horizontal_flip(x: Tensor) -> Tensor:
    """Return the images with left and right exchanged in half of them, at random."""
    return torch.where((_uniform(x, 0, 1) < 0.5).view(-1, 1, 1, 1), x.flip(-1), x)


def color_jitter(x: Tensor, strength: float = 0.4, grey: float = 0.2) -> Tensor:
    """Return images whose brightness, contrast and channels change by up to `strength`, grey with probability `grey`.

    Values stay in [0, 1]. In grey images only brightness and contrast change.

    Args:
        x: (B, C, H, W).
        strength: the largest relative change.
        grey: the probability that an image loses its colour.
    """
    mean = x.mean((1, 2, 3), keepdim=True)
    contrast, brightness = (_uniform(x, 1 - strength, 1 + strength).view(-1, 1, 1, 1) for _ in range(2))
    weights = 1 + strength * (2 * torch.rand(*x.shape[:2], 1, 1, dtype=x.dtype, device=x.device) - 1)
    changed = (mean + contrast * (x - mean)) * brightness * weights
    without = (_uniform(x, 0, 1) < grey).view(-1, 1, 1, 1)
    return torch.where(without, changed.mean(1, keepdim=True), changed).clamp(0, 1)


def grey_views(x: Tensor) -> Tensor:
    """Return views of grey images of one object: rotated by up to 20°, cropped to 70 % or more, shifted by 5 %."""
    return random_affine(x, degrees=20, smallest=0.7, shift=0.05)


def colour_views(x: Tensor) -> Tensor:
    """Return views of photographs: a crop of at least a quarter of the area, mirrored or not, in other colours."""
    return color_jitter(random_horizontal_flip(random_affine(x, smallest=0.25)))


def _uniform(x: Tensor, low: float, high: float) -> Tensor:
    """Return one number for each image, (B,), uniform between the two."""
    return low + (high - low) * torch.rand(len(x), dtype=x.dtype, device=x.device)
