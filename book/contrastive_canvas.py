"""Record chapter 18's contrastive codes where views matter: `python book/contrastive_canvas.py` (`make reproduce`).

On digits that are centred, of one size and one brightness, contrastive codes, an autoencoder's and raw pixels serve a
linear classifier equally well: the views have nothing to teach. Here MNIST's digits, halved to 14×14 pixels, lie at
random places of a canvas of 24×24, with a random brightness. How much of the class can a linear probe read off with 10,
50 or 500 labels, and how much of place and brightness?

All networks have the same convolutional encoder, trained on the same images without labels for as many epochs:
`contrastive` on two views of each image, the digit moved to another place and of another brightness; `contrastive,
turned` on views that are turned and scaled a little besides; `autoencoder`, `VAE` and `masked` (which sees four tenths
of the 4×4 patches and reconstructs the others) on one such turned view of each image in each epoch. So all but the
first are told of the same views, and differ by their objective alone. Beside them: the untrained encoder, raw pixels,
and raw pixels of the digits before they were moved, which no code has seen.

It writes `measured-contrastive-canvas.json`, a row for each code and seed, and some images and views (uint8) in
`measured-contrastive-canvas.safetensors`; a row that is there already is not made again.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from representations import subset
from rows import Rows, summary
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from vae_core.data import check_writable, load
from vae_core.evaluation import linear_probe
from vae_core.experiments.contrastive import conv_contrastive, random_affine, simclr_objective
from vae_core.experiments.records import default_out
from vae_core.models import Autoencoder, conv_vae
from vae_core.networks import conv_decoder, conv_encoder, feature_map
from vae_core.objectives import ValueAndTerms, elbo_terms, reconstruction_log_likelihood
from vae_core.runtime import random_state, seed_everything, unit_interval
from vae_core.training import fit

NAME, SEEDS = "contrastive-canvas", (0, 1, 2)
SIDE, D, CHANNELS = 24, 32, (8, 16, 32)
DARKEST, SHOWN = 0.3, 8
SIZES = dict(train=10_000, test=5_000)
TRAINING = dict(epochs=10, batch_size=128, learning_rate=3e-3, schedule="one-cycle")
MASKED, PATCH, TEMPERATURE = 0.6, 4, 0.1
LABELS = {"10": 10, "50": 10, "500": 5}  # the same number of each class: how many random subsets
KINDS = (
    "contrastive",
    "contrastive, turned",
    "autoencoder",
    "VAE",
    "masked",
    "untrained",
    "raw pixels",
    "centred pixels",
)


def ink(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the first and the last index along one axis of (B, 1, H, W) where there is ink, (B,) each."""
    bright = x.amax((1, 5 - dim)) > 0.05 * x.amax((1, 2, 3))[:, None]  # (B, H) or (B, W)
    first = bright.byte().argmax(1)
    return first, bright.shape[1] - 1 - bright.flip(1).byte().argmax(1)


def placed(x: Tensor, where: Tensor) -> Tensor:
    """Return images (B, 1, H, W) whose ink is moved to a place: `where` (B, 2), across and down, from 0 to 1.

    0 is the place farthest left (up) where all the ink is inside, 1 that farthest right (down).
    """
    for dim, share in ((3, where[:, 0]), (2, where[:, 1])):
        size, (first, last) = x.shape[dim], ink(x, dim)
        shift = (share * (size - 1 - last + first)).round().long() - first
        source = (torch.arange(size) - shift[:, None]) % size  # (B, size)
        view = (-1, 1, 1, size) if dim == 3 else (-1, 1, size, 1)
        x = x.gather(dim, source.view(view).expand_as(x))
    return x


def scattered(x: Tensor, turned: bool = False) -> Tensor:
    """Return each image with its digit at a random place, of a random brightness, and a little turned and scaled."""
    if turned:
        x = random_affine(placed(x, torch.full((len(x), 2), 0.5)), degrees=15, smallest=0.7)
    x = placed(x, torch.rand(len(x), 2))
    brightness = DARKEST + (1 - DARKEST) * torch.rand(len(x), 1, 1, 1)
    return x / x.amax((1, 2, 3), keepdim=True).clamp_min(1e-6) * brightness


def canvas(x: Tensor, seed: int) -> Tensor:
    """Return MNIST's images (N, 1, 28, 28), uint8, halved and scattered over the canvas: (N, 1, 24, 24), uint8."""
    margin = SIDE - x.shape[-1] // 2
    with random_state(seed):
        whole = pad(avg_pool2d(unit_interval(x), 2), (0, margin, 0, margin))
        return (255 * scattered(whole)).round().byte()


def factors(x: Tensor) -> Tensor:
    """Return the middle of the ink, across and down, and the brightness of each image: (N, 3)."""
    middle = [sum(ink(x, dim)) / 2 for dim in (3, 2)]
    return torch.stack([*middle, x.amax((1, 2, 3))], 1).to(x.dtype)


def masked_reconstruction(model: Autoencoder, x: Tensor) -> ValueAndTerms:
    """Return log p of the hidden pixels given the code of the others, (B,), in random patches.

    Source: He et al. (2022).
    """
    rows, columns = (size // PATCH for size in x.shape[2:])
    hidden = (torch.rand(len(x), 1, rows, columns) < MASKED).to(x)
    hidden = hidden.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    p = model.likelihood(model.encode(x * (1 - hidden)))
    value = (p.base_dist.log_prob(x) * hidden).sum((1, 2, 3))
    return ValueAndTerms(value, {"reconstruction": -value})


def of_views(objective: Callable, model: nn.Module, x: Tensor) -> Any:
    """Return the objective of one fresh view of each image."""
    return objective(model, scattered(x, turned=True))


def build(kind: str, shape: tuple[int, ...], seed: int) -> nn.Module:
    """Return the untrained network of one kind; all have the same encoder, but for its head."""
    seed_everything(seed)
    if kind == "VAE":
        return conv_vae(shape, D, CHANNELS)
    if kind in ("autoencoder", "masked"):
        maps = conv_encoder(shape, CHANNELS), conv_decoder(D, shape, CHANNELS[::-1])
        return Autoencoder(*maps, prod(feature_map(shape, CHANNELS)), D, shape)
    return conv_contrastive(shape, D, CHANNELS, projection=64)


def objective_of(kind: str) -> Callable:
    """Return what a network of this kind maximises."""
    if kind.startswith("contrastive"):
        views = partial(scattered, turned="turned" in kind)
        return partial(simclr_objective, views=views, temperature=TEMPERATURE)
    objectives = {"autoencoder": reconstruction_log_likelihood, "VAE": elbo_terms, "masked": masked_reconstruction}
    return partial(of_views, objectives[kind])


def encoder(kind: str, x: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """Return a function from images to codes, trained on the images x where the kind is one that is trained."""
    if kind.endswith("pixels"):
        return lambda images: images.flatten(1)
    model = build(kind, tuple(x.shape[1:]), seed)
    if kind != "untrained":
        fit(model, x, objective_of(kind), seed=seed, progress=False, **TRAINING)
    model.eval()

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        return torch.cat([model.encode(part) for part in images.split(1000)])

    return encode


def explained(z: Tensor, v: Tensor, z_test: Tensor, v_test: Tensor) -> list[float]:
    """Return the share of the test variance of each factor (columns of v) that is linear in the codes: R²."""
    one, one_test = (torch.cat([c, c.new_ones(len(c), 1)], 1).double() for c in (z, z_test))
    weights = torch.linalg.lstsq(one, v.double(), driver="gelsd").solution
    residual = (v_test - one_test @ weights).square().mean(0)
    return (1 - residual / v_test.double().var(0, correction=0)).tolist()


Half = tuple[Tensor, Tensor, Tensor]  # images on the canvas, the same centred, classes


def measure(kind: str, seed: int, train: Half, test: Half) -> dict[str, Any]:
    """Return the row of one code: accuracy for each number of labels and subset; R² of across, down, brightness."""
    which = 1 if kind == "centred pixels" else 0
    encode, x, x_test, y = encoder(kind, train[0], seed), train[which], test[which], train[2]
    z, z_test = encode(x), encode(x_test)
    row: dict[str, Any] = {"kind": kind, "seed": seed}
    for labels, repeats in LABELS.items():
        chosen = [subset(y, int(labels) // 10, repeat) for repeat in range(repeats)]
        row[labels] = [linear_probe(z[i], y[i], z_test, test[2]) for i in chosen]
    row["factors"] = explained(z, factors(train[0]), z_test, factors(test[0]))
    return row


def halves(root: Path | None) -> tuple[str, Half, Half]:
    """Return the checksum of MNIST, and training and test images on the canvas, and centred."""
    mnist, found = load("mnist", root), []
    for part, seed in (("train", 0), ("test", 1)):
        images, y = (getattr(mnist, f"{axis}_{part}")[: SIZES[part]] for axis in "xy")
        x = unit_interval(canvas(images, seed))
        centred = placed(x, torch.full((len(x), 2), 0.5))
        found.append((x, centred / centred.amax((1, 2, 3), keepdim=True), y))
    return mnist.sha256, found[0], found[1]


def report(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each code: mean ± standard deviation over seeds of the mean over subsets, and mean R²."""
    for kind in KINDS:
        of_kind = [row for row in rows if row["kind"] == kind]
        cells = [summary([sum(row[n]) / len(row[n]) for row in of_kind]) for n in LABELS]
        shares = torch.tensor([row["factors"] for row in of_kind]).mean(0).tolist()
        yield f"{kind:20s} {'  '.join(cells)}  R² {' '.join(f'{share:.2f}' for share in shares)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=default_out())
    options = parser.parse_args()
    check_writable(options.out, "the folder for records", "choose another with --out")
    sha256, train, test = halves(options.data_root)
    config = {"side": SIDE, "latent_dim": D, "channels": CHANNELS, "darkest": DARKEST, "sizes": SIZES, "labels": LABELS}
    config |= {"training": TRAINING, "masked": MASKED, "patch": PATCH, "temperature": TEMPERATURE}
    rows, x = Rows(NAME, options.out, config, sha256), test[0][:SHOWN]
    with random_state(2):  # other places than those of the images
        shown = {"images": x, "moved": scattered(x), "turned": scattered(x, turned=True)}
    shown = {name: (255 * images).round().byte() for name, images in shown.items()}
    for seed in SEEDS:
        for kind in KINDS:
            if {"kind": kind, "seed": seed} not in rows:
                rows.add(measure(kind, seed, train, test), shown)
    print(*report(rows.rows), sep="\n")


if __name__ == "__main__":
    main()
