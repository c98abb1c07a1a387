"""Record chapter 15's control: is it the diagonal q that aligns codes? `python book/full_covariance.py`.

(Part of `make reproduce`.) On the images with five known factors of `book/disentanglement.py`, the codes of plain VAEs
have a higher MIG than the same codes rotated, which no likelihood and no prior can tell apart. If that is because q is
factorised, it goes away when q may have any covariance: then q, rotated with the codes, is in the family as well.

Here both kinds are trained side by side, for three values of β and ten initialisations each: the encoder outputs a
mean and a triangular L, q = N(μ, L Lᵀ); for the factorised kind the part of L below its diagonal is set to 0. Layers,
first weights, batches, epochs and learning rates are the same. At β = 1 both are also trained three times as long, as
after thirty epochs neither is at its optimum. Compared are the MIG of drawn codes and that of the same codes under
random rotations, and how much correlation q uses.

It writes `measured-full-covariance.json`, one row for each network, and the MIG of each factor and rotation in
`measured-full-covariance.safetensors`.
"""

import argparse
import hashlib
from itertools import product
from pathlib import Path
from typing import Any

import torch
from disentanglement import (
    EPOCHS,
    FACTORS,
    LEVELS,
    WIDTHS,
    D,
    Stack,
    factor_images,
    mig,
    mutual_information,
    rotation,
    scores,
)
from rows import Rows, summary, values
from torch import Tensor
from torch.distributions import MultivariateNormal

from vae_core.data import check_writable
from vae_core.experiments.records import default_out
from vae_core.objectives import elbo_terms
from vae_core.runtime import random_state, seed_everything
from vae_core.training import fit

NAME, KINDS, BETAS, SEEDS, ROTATIONS = "full-covariance", ("diagonal", "full"), (1.0, 2.0, 4.0), 10, 10
TRAINING = dict(batch_size=64, learning_rate=4e-3, schedule="one-cycle", seed=0)
LENGTHS = {EPOCHS: BETAS, 3 * EPOCHS: (1.0,)}  # epochs, and the β that are trained for so long


class TriangularStack(Stack):
    """S VAEs side by side, q = N(μ, L Lᵀ), batch (S, B); L is triangular, or diagonal where `full` (S,) is False."""

    def __init__(self, full: Tensor, shape: tuple[int, ...], widths: tuple[int, ...], latent_dim: int) -> None:
        super().__init__(len(full), shape, widths, latent_dim)
        self.full, self.below = full, torch.tril_indices(latent_dim, latent_dim, -1)
        outputs = 2 * latent_dim + self.below.shape[1]
        self.encoder = self._layers(len(full), (self.encoder[0].shape[1], *widths, outputs))

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """Return q(z|x) of each: x (B, C, H, W) -> batch (S, B), event (d,)."""
        flat, d = x.flatten(1).expand(len(self.full), -1, -1), len(self.prior.mean)
        centre, log_variance, below = self._through(self.encoder, flat).split((d, d, self.below.shape[1]), -1)
        factor = torch.diag_embed((0.5 * log_variance).exp())
        factor[..., self.below[0], self.below[1]] = below * self.full[:, None, None]
        return MultivariateNormal(centre, scale_tril=factor, validate_args=False)


def groups(epochs: int) -> list[tuple[str, float, int]]:
    """Return kind, β and seed of each network that is trained for so long, in the order in which they are stacked."""
    return [(kind, beta, seed) for kind, beta in product(KINDS, LENGTHS[epochs]) for seed in range(SEEDS)]


def train(x: Tensor, epochs: int) -> TriangularStack:
    """Return all networks; those of one seed start with the same weights, whatever their kind and β."""
    every = groups(epochs)
    seed_everything(0)
    model = TriangularStack(torch.tensor([kind == "full" for kind, _, _ in every]), tuple(x.shape[1:]), WIDTHS, D)
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(weights[:SEEDS].repeat(len(every) // SEEDS, 1, 1))
    betas = torch.tensor([beta for _, beta, _ in every])[:, None]

    def objective(stack: TriangularStack, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        terms = elbo_terms(stack, batch)[1]
        return -(terms["reconstruction"] + betas * terms["kl"]).sum(0), {}

    fit(model, x, objective, progress=False, **TRAINING | dict(epochs=epochs))
    return model


def correlation(q: MultivariateNormal) -> Tensor:
    """Return the mean absolute correlation of two codes under q, over pairs and data: (S,)."""
    covariance = q.covariance_matrix
    deviation = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    found = (covariance / deviation[..., None] / deviation[..., None, :]).abs()
    d = found.shape[-1]
    return (found.sum((-2, -1)) - d).mean(-1) / (d * (d - 1))


def rotated(z: Tensor, v: Tensor, count: int = ROTATIONS) -> Tensor:
    """Return the MIG of each factor for the codes z (N, d) under random rotations: (count, m)."""
    return torch.stack([mig(mutual_information(z @ rotation(z.shape[1], seed), v)) for seed in range(count)])


@torch.no_grad()
def measure(model: TriangularStack, epochs: int, x: Tensor, v: Tensor, rows: Rows) -> None:
    """Add a row for each network: its terms, nats, and the scores of its drawn codes as they are and rotated."""
    with random_state(0):
        terms, q = elbo_terms(model, x)[1], model.posterior(x)
        z = q.sample()
    uses = correlation(q)
    for s, (kind, beta, seed) in enumerate(groups(epochs)):
        row: dict[str, Any] = {"epochs": epochs, "kind": kind, "beta": beta, "seed": seed}
        row["correlation"] = uses[s].item()
        row |= {name: value[s].mean().item() for name, value in terms.items()}
        turned = rotated(z[s], v)
        row |= scores(z[s], v) | {"mig_rotated": turned.mean().item()}
        row["lift"] = row["mig"] - row["mig_rotated"]
        rows.add(row, {f"{kind}-{beta:g}-e{epochs}-s{seed}": turned.float()})


def report(rows: list[dict[str, Any]]) -> None:
    """Print mean ± standard deviation over initialisations of each figure."""
    for epochs, betas in LENGTHS.items():
        for beta in betas:
            key = dict(epochs=epochs, beta=beta)
            for kind in KINDS:
                for figure in ("mig", "mig_rotated", "lift", "kl", "reconstruction", "correlation"):
                    print(key, kind, figure, summary(values(rows, figure, kind=kind, **key)))
            lifts = [values(rows, "lift", kind=kind, **key) for kind in KINDS]
            print(key, "lift, diagonal minus full:", summary([a - b for a, b in zip(*lifts, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=default_out())
    options = parser.parse_args()
    check_writable(options.out, "the folder for records", "choose another with --out")
    x, v = factor_images()
    sha256 = hashlib.sha256((x * 255).round().to(torch.uint8).numpy().tobytes()).hexdigest()
    config = {"lengths": LENGTHS, "seeds": SEEDS, "training": TRAINING, "widths": WIDTHS, "latent_dim": D}
    rows = Rows(NAME, options.out, config | {"rotations": ROTATIONS, "factors": FACTORS, "levels": LEVELS}, sha256)
    for epochs in LENGTHS:
        if len(values(rows.rows, "epochs", epochs=epochs)) < len(groups(epochs)):  # these are trained at once
            rows.rows[:] = [row for row in rows.rows if row["epochs"] != epochs]
            measure(train(x, epochs), epochs, x, v, rows)
    report(rows.rows)


if __name__ == "__main__":
    main()
