"""Record what the explorers show of test images: `python book/explorer_codes.py` (part of `make reproduce`).

For each recorded dense VAE it encodes the experiment's own test images and writes `NAME.codes.safetensors` beside the
weights: the codes and classes of the first 1000 of them (300 where there is no plane for them to lie behind), ten
images to start from (one of each class where there are ten), and the mean KL of each unit over all of them.
"""

import argparse
from pathlib import Path

import torch

from vae_core.data import check_writable, load
from vae_core.experiments.records import default_out, load_trained
from vae_core.experiments.registry import find
from vae_core.experiments.setups import prepare
from vae_core.interactive.explorer import EncodedImages
from vae_core.runtime import unit_interval

NAMES = ("chen-mnist-d2", "chen-mnist-d20", "chen-fashion-d2", "saleh-boots-k2")


def one_of_each_first(y: torch.Tensor) -> torch.Tensor:
    """An order of the images in which the first of each class come first."""
    first = [int((y == label).nonzero()[0]) for label in y.unique()]
    return torch.tensor(first + sorted(set(range(len(y))) - set(first)))


def encoded(name: str, data_root: Path | None) -> EncodedImages:
    experiment = find(name)
    dataset = prepare(experiment, load(experiment.dataset, data_root), experiment.seed)
    order = one_of_each_first(dataset.y_test)
    x, y = unit_interval(dataset.x_test)[order], dataset.y_test[order]
    model = load_trained(name)
    return EncodedImages.of(model, x, y, max_codes=1000 if model.latent_dim == 2 else 300)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=default_out())
    options = parser.parse_args()
    check_writable(options.out, "the folder for records", "choose another with --out")
    for name in NAMES:
        encoded(name, options.data_root).save(options.out / f"{name}.codes.safetensors")
        print(f"{name}.codes.safetensors")


if __name__ == "__main__":
    main()
