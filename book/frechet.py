"""Record how far samples are from real images, in features: `python book/frechet.py` (part of `make reproduce`).

The Fréchet distance between two sets of images is that between two Gaussians with the means and covariances of their
features,

    ‖m₁ − m₂‖² + tr(C₁ + C₂ − 2 (C₁ C₂)^½),

here of the 32 features before the last layer of a small convolutional classifier, trained on 40,000 training images and
scaled to variance 1 over these. It is *not* the FID of the literature, whose features are Inception's, of ImageNet: no
figure here can be compared with one there, nor MNIST's with Fashion-MNIST's. Only ranks within one data set mean
something. The distance is blind to what the classifier does not look at, to a model that copies its training images,
and to all but two moments.

The reference is a random half of the 20,000 training images that the classifier has not seen. The estimate from n
images is too large on average; the other half (`real`) measures by how much, so sources are compared at the same n.
What a model draws is taken twice: the means of p(x|z), as they are usually shown, against grey images, and black and
white draws of p(x|z) against images drawn from their grey levels. Each seed has a classifier, a split and samples of
its own.

It writes `measured-frechet.json`, a row for each data set and seed, and some images of each source (uint8) in
`measured-frechet.safetensors`. Recorded models whose weights are not in the repository are taken from `--weights`.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rows import Rows, summary
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, one_hot

from vae_core.data import Dataset, check_writable, load
from vae_core.experiments.records import default_out, load_trained
from vae_core.linear import PPCA
from vae_core.runtime import evaluation_mode, random_state, seed_everything, unit_interval
from vae_core.training import fit

NAME, SEEDS, SHOWN = "frechet", (0, 1, 2), 32
COUNTS = (500, 1000, 2000, 5000, 10_000)
CLASSIFIER = dict(images=40_000, epochs=3, batch_size=128, learning_rate=4e-3, schedule="one-cycle")
MODELS = {
    "mnist": ("chen-mnist-d2", "chen-mnist-d20", "conditional-mnist-d2", *(f"iwae-mnist-k{k}" for k in (1, 5, 50))),
    "fashion-mnist": ("chen-fashion-d2", "chen-fashion-d20"),
}
Moments = tuple[Tensor, Tensor]


def moments(features: Tensor) -> Moments:
    """Return mean (f,) and covariance (f, f) of features (n, f), in float64."""
    return features.double().mean(0), features.double().T.cov()


def root(matrix: Tensor) -> Tensor:
    """Return the symmetric square root of a symmetric matrix without negative eigenvalues, rounding aside."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def frechet(first: Moments, second: Moments) -> float:
    r"""Return the squared Fréchet (2-Wasserstein) distance of two Gaussians.

    .. math:: \|m_1-m_2\|^2 + \operatorname{tr}\big(C_1 + C_2 - 2\,(C_1^{1/2} C_2\, C_1^{1/2})^{1/2}\big)

    Source: Dowson and Landau (1982); with features of images, Heusel et al. (2017).
    """
    (m1, c1), (m2, c2) = first, second
    half = root(c1)
    shared = torch.linalg.eigvalsh(half @ c2 @ half).clamp_min(0).sqrt().sum()
    return ((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * shared).item()


def at_counts(features: Tensor, reference: Moments, counts: tuple[int, ...]) -> dict[str, list[float]]:
    """Return the distance from disjoint parts of n features each, for every n: as many as there are, at most ten."""
    parts = {n: features.split(n)[: min(10, len(features) // n)] for n in counts}
    return {str(n): [frechet(moments(part), reference) for part in each] for n, each in parts.items()}


class Classifier(nn.Module):
    """28 by 28 grey images to 32 features, and to the logits of ten classes."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()
        self.body = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32 * 7 * 7, 32))
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(32, 10))
        self.register_buffer("scale", torch.ones(32))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (B, 10)."""
        return self.head(self.body(x))

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Return the features of images (N, 1, 28, 28), floats or uint8, scaled: (N, 32)."""
        return torch.cat([self.body(unit_interval(part)) for part in x.split(1000)]) / self.scale


def log_probability(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return log p(y|x) of each image, (B,), to be maximised."""
    return -cross_entropy(model(x), y, reduction="none")


def train_classifier(dataset: Dataset, seed: int) -> tuple[Classifier, float]:
    """Return the classifier, and its accuracy on the test images."""
    settings: dict[str, Any] = dict(CLASSIFIER)
    n = settings.pop("images")
    seed_everything(seed)
    model = Classifier()
    x, y = dataset.x_train[:n], dataset.y_train[:n]
    fit(model, x, log_probability, y=y, seed=seed, progress=False, **settings)
    model.scale = model.features(x).std(0)
    with torch.no_grad():
        guesses = torch.cat([model(unit_interval(part)).argmax(1) for part in dataset.x_test.split(1000)])
    return model.eval(), (guesses == dataset.y_test).double().mean().item()


@torch.no_grad()
def drawn(model: nn.Module, n: int, y: Tensor, seed: int) -> dict[str, Tensor]:
    """Return n samples of a model: the means of p(x|z), and draws of it. A conditional one is told the labels y."""
    found: dict[str, list[Tensor]] = {"means": [], "draws": []}
    with evaluation_mode(model), random_state(seed):
        for start in range(0, n, 1000):
            told, size = y[start : start + 1000], min(1000, n - start)
            given = model.given(one_hot(told, 10).float()) if hasattr(model, "given") else model
            p = given.likelihood(given.prior.sample((size,)))
            found["means"].append(p.mean)
            found["draws"].append(p.sample())
    return {kind: torch.cat(parts) for kind, parts in found.items()}


def black_and_white(x: Tensor, seed: int) -> Tensor:
    """Return images whose pixels are 1 with the probability of their grey level."""
    return torch.bernoulli(unit_interval(x), generator=torch.Generator().manual_seed(seed))


def controls(dataset: Dataset, real: Tensor, seed: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield what models are read beside: real images, test images, blurred images, samples of a linear model."""
    order = torch.randperm(len(dataset.x_test), generator=torch.Generator().manual_seed(seed))
    found = {"real": real, "test": unit_interval(dataset.x_test[order]), "real, blurred": avg_pool2d(real, 3, 1, 1)}
    with random_state(seed):
        linear = PPCA(20).fit(unit_interval(dataset.x_train[:20_000]).flatten(1).double())
        z = torch.randn(len(real), 20, dtype=torch.float64)
        mean = (linear.mean_ + z @ linear.components_).clamp(0, 1)
        found["PPCA, d = 20"] = mean.to(real).view(-1, *dataset.image_shape)
    for name, x in found.items():
        yield name, {"means": x, "draws": black_and_white(x, seed + 1)}


def sources(dataset: Dataset, models: dict[str, nn.Module], real: Tensor, seed: int) -> Iterator[tuple[str, dict]]:
    """Yield the name of each source and its images, as means and as draws."""
    yield from controls(dataset, real, seed)
    order = torch.randperm(len(dataset.y_train), generator=torch.Generator().manual_seed(seed))
    for name, model in models.items():
        yield name, drawn(model, len(real), dataset.y_train[order], seed)


def measure(dataset: Dataset, models: dict[str, nn.Module], seed: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the distances of all sources for one classifier, at each n, and some images of each."""
    classifier, accuracy = train_classifier(dataset, seed)
    unseen = dataset.x_train[CLASSIFIER["images"] :]
    order = torch.randperm(len(unseen), generator=torch.Generator().manual_seed(seed))
    held, real = unit_interval(unseen[order]).chunk(2)
    reference = {"means": moments(classifier.features(held))}
    reference["draws"] = moments(classifier.features(black_and_white(held, seed)))
    row: dict[str, Any] = {"data": dataset.name, "seed": seed, "accuracy": accuracy, "means": {}, "draws": {}}
    shown = {}
    for name, images in sources(dataset, models, real, seed):
        for kind, x in images.items():
            row[kind][name] = at_counts(classifier.features(x), reference[kind], COUNTS)
            shown[f"{dataset.name} {name} {kind}"] = (255 * x[:SHOWN]).round().byte()
    return row, shown if seed == SEEDS[0] else {}


def find_models(names: tuple[str, ...], folders: list[Path]) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """Return the recorded models whose weights are in one of the folders, and what made each one."""
    found, origin = {}, {}
    for name in names:
        folder = next((each for each in folders if (each / f"{name}.safetensors").exists()), None)
        if folder is not None:
            found[name] = load_trained(name, folder)
            record = json.loads((folder / f"{name}.json").read_text())
            sha256 = hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()
            origin[name] = {key: record[key] for key in ("command", "device", "seed")} | {"weights_sha256": sha256}
    return found, origin


def report(rows: list[dict[str, Any]]) -> None:
    """Print mean ± standard deviation over seeds for each source, at two n."""
    for data, kind in product(MODELS, ("means", "draws")):
        of_data = [row[kind] for row in rows if row["data"] == data]
        for name, n in product(of_data[0] if of_data else (), ("1000", "10000")):
            found = [mean(row[name][n]) for row in of_data if name in row]
            print(f"{data:13s} {kind} {name:22s} n = {n:>5s}: {summary(found)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, nargs="*", default=[], help="more folders with records and weights")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=default_out())
    options = parser.parse_args()
    check_writable(options.out, "the folder for records", "choose another with --out")
    if missing := [str(folder) for folder in options.weights if not folder.is_dir()]:
        parser.error(f"--weights must name folders that exist, got {', '.join(missing)}")
    data = {name: load(name, options.data_root) for name in MODELS}
    found = {name: find_models(names, [default_out(), *options.weights]) for name, names in MODELS.items()}
    config = {
        "classifier": CLASSIFIER,
        "counts": COUNTS,
        "models": {name: origin for name, (_, origin) in found.items()},
    }
    rows = Rows(NAME, options.out, config, {name: dataset.sha256 for name, dataset in data.items()})
    for name, seed in product(MODELS, SEEDS):
        if {"data": name, "seed": seed} not in rows:
            rows.add(*measure(data[name], found[name][0], seed))
    report(rows.rows)


if __name__ == "__main__":
    main()
