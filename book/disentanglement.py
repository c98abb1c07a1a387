"""Record the disentanglement scores of chapter 15: `python book/disentanglement.py` (part of `make reproduce`).

The data are made here: 2304 images of 16×16 pixels, one for each combination of five known factors (3 shapes, 3 sizes,
4 angles, 8 places across, 8 down). Twenty-five small β-VAEs (5 values of β, 5 initialisations) learn them side by
side: the weights of all stand in one tensor, and the loss is the sum of theirs, so that each gets its own gradient.
All see the same batches; noise is each one's own; the five initialisations are the same for each β. It writes
`disentanglement.json` (loss terms, KL per unit, MIG and DCI of drawn codes, of the same codes rotated, and of PCA) and
`disentanglement.safetensors` (traversals of two of them, uint8).
"""

import argparse
import hashlib
import time
from itertools import pairwise, product
from math import log, pi
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor, nn
from torch.distributions import Independent

from vae_core.data import check_writable
from vae_core.distributions import diagonal_normal, standard_normal
from vae_core.experiments.records import default_out, provenance, write_record
from vae_core.likelihoods import bernoulli
from vae_core.linear import PCA
from vae_core.objectives import elbo_terms
from vae_core.runtime import Runtime, random_state, save_tensors, seed_everything
from vae_core.training import fit

NAME = "disentanglement"
FACTORS = ("shape", "size", "angle", "across", "down")
LEVELS = (3, 3, 4, 8, 8)
BETAS, SEEDS, EPOCHS = (0.25, 0.5, 1.0, 2.0, 4.0), 5, 30
WIDTHS, D = (64, 64), 6


def factor_images() -> tuple[Tensor, Tensor]:
    """All images (2304, 1, 16, 16) in [0, 1], and their factors (2304, 5), int64."""
    v = torch.tensor(list(product(*map(range, LEVELS))))
    size, angle = 0.35 + 0.15 * v[:, 1], pi * v[:, 2] / 4
    cx, cy = (0.8 * (v[:, k] / 7 - 0.5) for k in (3, 4))
    ticks = (torch.arange(16) - 7.5) / 8
    y, x = (t[None] for t in torch.meshgrid(ticks, ticks, indexing="ij"))
    x, y = x - cx[:, None, None], y - cy[:, None, None]
    c, s, r = (t[:, None, None] for t in (angle.cos(), angle.sin(), size))
    a, b = (c * x + s * y) / r, (c * y - s * x) / r
    bar = torch.maximum(a.abs(), 2.5 * b.abs()) - 1
    ellipse = (a**2 + (2 * b) ** 2).sqrt() - 1
    triangle = torch.maximum(-a - 0.6, (a + 2 * b.abs() - 1) / 1.5)
    outside = torch.stack((bar, ellipse, triangle)).gather(0, v[:, 0].view(1, -1, 1, 1).expand(1, -1, 16, 16))[0]
    return torch.sigmoid(-outside * r * 16)[:, None], v


class Stack(nn.Module):
    """S dense VAEs side by side; batch (S, B) instead of (B,). Weights (S, in, out), ReLU between."""

    def __init__(self, count: int, shape: tuple[int, ...], widths: tuple[int, ...], latent_dim: int) -> None:
        super().__init__()
        self.shape, sizes = shape, (int(np.prod(shape)), *widths)
        self.encoder = self._layers(count, (*sizes, 2 * latent_dim))
        self.decoder = self._layers(count, (latent_dim, *reversed(sizes)))
        self.prior = standard_normal(latent_dim)

    def _layers(self, count: int, sizes: tuple[int, ...]) -> nn.ParameterList:
        weights = [torch.randn(count, a, b) / a**0.5 for a, b in pairwise(sizes)]
        return nn.ParameterList(t for w in weights for t in (w, torch.zeros(count, 1, w.shape[-1])))

    @staticmethod
    def _through(layers: nn.ParameterList, h: Tensor) -> Tensor:
        for k in range(0, len(layers), 2):
            h = torch.baddbmm(layers[k + 1], torch.relu(h) if k else h, layers[k])
        return h

    def posterior(self, x: Tensor) -> Independent:
        """q(z|x) of each: x (B, C, H, W) -> batch (S, B), event (d,)."""
        flat = x.flatten(1).expand(len(self.encoder[0]), -1, -1)
        return diagonal_normal(*self._through(self.encoder, flat).chunk(2, -1))

    def likelihood(self, z: Tensor) -> Independent:
        """p(x|z) of each: z (1, S, B, d) -> batch (1, S, B), event (C, H, W)."""
        return bernoulli(self._through(self.decoder, z[0]).unflatten(-1, self.shape)[None])


def mutual_information(z: Tensor, v: Tensor, bins: int = 20) -> Tensor:
    """I(z_j; v_k)/H(v_k) from histograms with equal bins: z (N, d), v (N, m) int64 -> (d, m)."""
    low, high = z.min(0).values, z.max(0).values
    cell = ((z - low) / (high - low).clamp_min(1e-12) * bins).long().clamp_max(bins - 1)
    found = torch.zeros(z.shape[1], v.shape[1], dtype=torch.float64)
    for j, k in product(range(z.shape[1]), range(v.shape[1])):
        joint = torch.zeros(bins, int(v[:, k].max()) + 1, dtype=torch.float64)
        joint.index_put_((cell[:, j], v[:, k]), torch.tensor(1.0 / len(z), dtype=torch.float64), accumulate=True)
        apart = joint.sum(1, keepdim=True) * joint.sum(0)
        level = joint.sum(0)
        found[j, k] = (torch.xlogy(joint, joint) - torch.xlogy(joint, apart)).sum() / -torch.xlogy(level, level).sum()
    return found


def mig(information: Tensor) -> Tensor:
    """The gap between the two units that tell most of each factor, (m,). Chen et al. (2018)."""
    top = information.sort(0, descending=True).values
    return top[0] - top[1]


def dci(importance: Tensor) -> tuple[float, float]:
    """Disentanglement and completeness of an importance matrix (d, m). Eastwood and Williams (2018)."""
    total = importance.sum()
    if total <= 0:
        return 0.0, 0.0

    def focus(p: Tensor) -> Tensor:  # 1 − entropy of the rows, over its largest value
        p = p / p.sum(1, keepdim=True).clamp_min(1e-12)
        return 1 + torch.xlogy(p, p).sum(1) / log(p.shape[1])

    rows, columns = importance.sum(1) / total, importance.sum(0) / total
    return (rows * focus(importance)).sum().item(), (columns * focus(importance.T)).sum().item()


def forest(z: Tensor, v: Tensor) -> tuple[Tensor, list[float]]:
    """How much a forest of trees uses each code for each factor, (d, m), and its hits on the other half, (m,)."""
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    train, test = order.chunk(2)
    columns, hits = [], []
    for k in range(v.shape[1]):
        trees = RandomForestClassifier(10, max_depth=8, random_state=0).fit(z[train].numpy(), v[train, k].numpy())
        columns.append(torch.tensor(trees.feature_importances_))
        hits.append(trees.score(z[test].numpy(), v[test, k].numpy()))
    return torch.stack(columns, 1), hits


def scores(z: Tensor, v: Tensor) -> dict:
    importance, hits = forest(z, v)
    disentanglement, completeness = dci(importance)
    gaps = mig(mutual_information(z, v))
    return {
        "mig": gaps.mean().item(),
        "mig_per_factor": gaps.tolist(),
        "disentanglement": disentanglement,
        "completeness": completeness,
        "hits": hits,
    }


def rotation(d: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed)))[0]


def train(x: Tensor, epochs: int) -> tuple[Stack, Tensor]:
    """All networks, β in blocks of SEEDS; and their β, (S,)."""
    betas = torch.tensor(BETAS).repeat_interleave(SEEDS)
    seed_everything(0)
    start = Stack(SEEDS, (1, 16, 16), WIDTHS, D)  # the same initialisations for each β
    model = Stack(len(betas), (1, 16, 16), WIDTHS, D)
    with torch.no_grad():
        for many, few in zip(model.parameters(), start.parameters(), strict=True):
            many.copy_(few.repeat(len(BETAS), 1, 1))

    def objective(stack: Stack, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        terms = elbo_terms(stack, batch)[1]
        return -(terms["reconstruction"] + betas[:, None] * terms["kl"]).sum(0), {}

    fit(model, x, objective, epochs=epochs, batch_size=64, learning_rate=4e-3, schedule="one-cycle", seed=0)
    return model, betas


def traversal(model: Stack, s: int, kl: Tensor) -> Tensor:
    """Network s with one code at a time from −2 to 2, the others 0; units by their KL: uint8 (d·7, 1, 16, 16)."""
    z = torch.zeros(D, 7, D)
    for row, j in enumerate(kl.argsort(descending=True)):
        z[row, :, j] = torch.linspace(-2, 2, 7)
    everywhere = z.view(-1, D).expand(1, len(model.encoder[0]), -1, -1)
    return (model.likelihood(everywhere).mean[0, s] * 255).round().to(torch.uint8)


@torch.no_grad()
def measure(model: Stack, betas: Tensor, x: Tensor, v: Tensor) -> list[dict]:
    with random_state(0):
        terms, q = elbo_terms(model, x)[1], model.posterior(x)
        z = q.sample()
    per_unit = torch.distributions.kl_divergence(q.base_dist, model.prior.base_dist).mean(1)
    rows = []
    for s, beta in enumerate(betas.tolist()):
        row = {"beta": beta, "seed": s % SEEDS, "kl_per_unit": per_unit[s].tolist()}
        row |= {name: value[s].mean().item() for name, value in terms.items()}
        row |= {"drawn": scores(z[s], v), "rotated": scores(z[s] @ rotation(D, s), v)}
        rows.append(row)
        print(f"beta {beta:4} seed {row['seed']}: {row['reconstruction']:.1f} + {row['kl']:.1f}, MIG "
              f"{row['drawn']['mig']:.2f}, rotated {row['rotated']['mig']:.2f}", flush=True)  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, default=default_out())
    options = parser.parse_args()
    check_writable(options.out, "the folder for records", "choose another with --out")
    x, v = factor_images()
    record = provenance(NAME, f"python book/{NAME}.py", Runtime.detect("cpu"))
    record["data_sha256"] = hashlib.sha256((x * 255).round().to(torch.uint8).numpy().tobytes()).hexdigest()
    record["config"] = {"betas": BETAS, "seeds": SEEDS, "epochs": options.epochs, "widths": WIDTHS, "latent_dim": D}
    record["config"] |= {"factors": FACTORS, "levels": LEVELS}
    start = time.perf_counter()
    model, betas = train(x, options.epochs)
    record["wall_seconds"] = time.perf_counter() - start
    record["rows"] = measure(model, betas, x, v)
    record["pca"] = scores(PCA(D).fit(x.flatten(1)).transform(x.flatten(1)), v)
    kept = {f"beta_{b:g}": BETAS.index(b) * SEEDS for b in (1.0, 2.0)}
    kls = torch.tensor([row["kl_per_unit"] for row in record["rows"]])
    pictures = {"examples": (x[::203] * 255).round().to(torch.uint8)}
    with torch.no_grad():
        pictures |= {name: traversal(model, s, kls[s]) for name, s in kept.items()}
    save_tensors(pictures, options.out / f"{NAME}.safetensors")
    write_record(record, options.out / f"{NAME}.json")


if __name__ == "__main__":
    main()
