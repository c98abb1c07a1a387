"""Images per second of our training loop against the thesis' way, as a ratio within one run (`make bench`).

Both train the thesis' network (d = 20) on the first 12,800 real MNIST images; the peer is
`thesis_oracle`, with its DataLoader, its image-by-image transform and its `.item()` after every step.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from thesis_oracle import ThesisVAE, train_epoch
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from vae_core.data import load
from vae_core.models import mlp_vae
from vae_core.objectives import elbo_terms
from vae_core.training import fit

N = 12_800


def ours(x: torch.Tensor) -> float:
    model = mlp_vae((1, 28, 28), 20)
    start = time.perf_counter()
    fit(model, x, elbo_terms, epochs=1, weight_decay=1e-5, reduction="sum", progress=False)
    return N / (time.perf_counter() - start)


def thesis_way(loader: DataLoader) -> float:
    net = ThesisVAE(784, 20)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-5)
    start = time.perf_counter()
    train_epoch(net, optimizer, loader)
    return N / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path(__file__).resolve().parent.parent / "data")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    x = load("mnist", options.data_root).x_train[:N]
    images = datasets.MNIST(options.data_root, transform=transforms.ToTensor(), download=True)
    loader = DataLoader(Subset(images, range(N)), batch_size=128, shuffle=True)
    pairs = [(ours(x), thesis_way(loader)) for _ in range(options.rounds)]  # interleaved, so both see the same machine
    ratios = sorted(a / b for a, b in pairs)
    print(f"ours        {statistics.median(a for a, _ in pairs):8.0f} images/s (median of {options.rounds})")
    print(f"thesis' way {statistics.median(b for _, b in pairs):8.0f} images/s")
    print(f"ratio       {statistics.median(ratios):8.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
