"""Draw the picture of the README from the experiment `digits-d2`: `python book/figures.py` (seconds)."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from vae_core import plots
from vae_core.catalogue import find
from vae_core.data import load
from vae_core.objectives import elbo_terms
from vae_core.setups import build
from vae_core.training import fit


def main() -> None:
    experiment, digits = find("digits-d2"), load("digits")
    model = build(experiment, experiment.seed)
    fit(model, digits.x_train, elbo_terms, epochs=experiment.epochs, seed=experiment.seed, **experiment.training)
    grid = plots.grid_codes(17, extent=3.0)
    with torch.no_grad():
        codes = model.posterior(digits.x_test).mean
        images = model.decode(torch.tensor(grid, dtype=torch.float32))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    plots.latent_scatter(codes, digits.y_test, ax=left)
    plots.manifold_grid(images, grid, ax=right)
    left.set_title("where the encoder puts unseen digits")
    right.set_title("what the decoder makes of each place")
    figure.savefig(Path(__file__).parent / "assets" / "digits-plane.png", dpi=100)


if __name__ == "__main__":
    main()
