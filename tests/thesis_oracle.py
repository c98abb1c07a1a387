"""The thesis' way of training, written anew from its Table 4.1 and §4.1, sharing nothing with vae_core.

A plain network, a sigmoid, `binary_cross_entropy` and the KL summed over the batch, Adam with weight
decay, a DataLoader that turns one image at a time into a tensor, `.item()` after every step. It answers
one question: does vae_core reach the same figures? Run it by itself (minutes on two cores):

    python tests/thesis_oracle.py --data-root data --latent-dim 20 --epochs 20 --seed 723

The last line that it prints is JSON; `thesis_oracle.jsonl` keeps these lines for the seeds 723, 0 and 1.
"""

import argparse
import json
import time

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy


class ThesisVAE(nn.Module):
    """784-512-256-128-(d, d) and d-128-256-512-784; Linear, BatchNorm, ReLU; sigmoid at the end."""

    def __init__(self, n_pixels: int, latent_dim: int) -> None:
        super().__init__()
        self.down = nn.ModuleList([self._block(n_pixels, 512), self._block(512, 256), self._block(256, 128)])
        self.to_mean, self.to_log_var = nn.Linear(128, latent_dim), nn.Linear(128, latent_dim)
        self.up = nn.ModuleList([self._block(latent_dim, 128), self._block(128, 256), self._block(256, 512)])
        self.to_pixels = nn.Linear(512, n_pixels)

    @staticmethod
    def _block(n_in: int, n_out: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.ReLU())

    def forward(self, x: torch.Tensor, noise: torch.Tensor | None = None):
        h = x.flatten(1)
        for block in self.down:
            h = block(h)
        mean, log_var = self.to_mean(h), self.to_log_var(h)
        noise = torch.randn_like(mean) if noise is None else noise
        h = mean + torch.exp(log_var / 2) * noise
        for block in self.up:
            h = block(h)
        return torch.sigmoid(self.to_pixels(h)).view_as(x), mean, log_var


def summed_losses(x, y, mean, log_var) -> tuple[torch.Tensor, torch.Tensor]:
    """Reconstruction error and KL, summed over the batch."""
    reconstruction = binary_cross_entropy(y, x, reduction="sum")
    return reconstruction, (mean**2 + log_var.exp() - 1 - log_var).sum() / 2


def train_epoch(net: nn.Module, optimizer: torch.optim.Optimizer, loader) -> float:
    net.train()
    total, n = 0.0, 0
    device = next(net.parameters()).device
    for x, _ in loader:
        x = x.to(device)
        optimizer.zero_grad()
        reconstruction, kl = summed_losses(x, *net(x))
        loss = reconstruction + kl
        loss.backward()
        optimizer.step()
        total, n = total + loss.item(), n + len(x)
    return total / n


def test_losses(net: nn.Module, loader) -> dict[str, float]:
    net.eval()
    sums, n = torch.zeros(2, dtype=torch.float64), 0
    device = next(net.parameters()).device
    with torch.no_grad():
        for x, _ in loader:
            x = x.to(device)
            sums += torch.stack(summed_losses(x, *net(x))).double().cpu()
            n += len(x)
    reconstruction, kl = (sums / n).tolist()
    return {"loss": reconstruction + kl, "reconstruction": reconstruction, "kl": kl, "n": n}


def main() -> None:
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--latent-dim", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=723)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    to_tensor = transforms.ToTensor()
    train_set = datasets.MNIST(options.data_root, train=True, transform=to_tensor, download=True)
    test_set = datasets.MNIST(options.data_root, train=False, transform=to_tensor, download=True)
    train = DataLoader(train_set, batch_size=128, shuffle=True)
    test = DataLoader(test_set, batch_size=128)
    net = ThesisVAE(784, options.latent_dim)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-5)
    start = time.perf_counter()
    for epoch in range(options.epochs):
        print(f"epoch {epoch + 1}: training loss {train_epoch(net, optimizer, train):.3f}", flush=True)
    print(json.dumps({"seed": options.seed, "seconds": time.perf_counter() - start, **test_losses(net, test)}))


if __name__ == "__main__":
    main()
