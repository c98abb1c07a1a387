"""Other people's ways of training a VAE, written anew or called: what `benchmark.py` measures ours against.

Each function returns (our arguments of `mlp_vae` and `fit` for the same network, a function that trains it
their way for one pass over the images), or None where the peer is not installed.
"""

import contextlib
import importlib.util
import io
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from thesis_oracle import ThesisVAE, train_epoch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

Peer = tuple[dict, dict, Callable[[], None]]
THESIS = dict(weight_decay=1e-5, reduction="sum")


def mnist_loader(root: Path, n: int, **options) -> DataLoader:
    images = datasets.MNIST(root, transform=transforms.ToTensor(), download=True)
    return DataLoader(Subset(images, range(n)), batch_size=128, shuffle=True, **options)


def thesis_way(root: Path, n: int, device: torch.device) -> Peer:
    """Chen listing A.2: DataLoader, one image at a time, sigmoid and BCE, `.item()` after every step."""
    net, loader = ThesisVAE(784, 20).to(device), mnist_loader(root, n)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-5)
    return dict(latent_dim=20), THESIS, lambda: train_epoch(net, optimizer, loader)


class ExampleVAE(nn.Module):
    """784-400-(20, 20) and 20-400-784 with ReLU, the network of github.com/pytorch/examples (vae)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mean, self.log_var = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.outer, self.pixels = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.inner(x.view(-1, 784)).relu()
        mean, log_var = self.mean(h), self.log_var(h)
        z = mean + torch.exp(log_var / 2) * torch.randn_like(mean)
        return self.pixels(self.outer(z).relu()).sigmoid(), mean, log_var


def pytorch_example(root: Path, n: int, device: torch.device) -> Peer:
    """The loop of PyTorch's own example: a DataLoader with one worker, a loss read out after every step."""
    net = ExampleVAE().to(device)
    optimizer, loader = torch.optim.Adam(net.parameters(), lr=1e-3), mnist_loader(root, n, num_workers=1)

    def epoch() -> None:
        net.train()
        total = 0.0
        for x, _ in loader:
            x = x.to(device)
            optimizer.zero_grad()
            y, mean, log_var = net(x)
            error = binary_cross_entropy(y, x.view(-1, 784), reduction="sum")
            loss = error - (1 + log_var - mean**2 - log_var.exp()).sum() / 2
            loss.backward()
            total += loss.item()
            optimizer.step()

    return dict(latent_dim=20, hidden=(400,), batch_norm=False), dict(reduction="sum"), epoch


def pythae(x: Tensor, device: torch.device) -> Peer | None:
    """Pythae's BaseTrainer on its default network, 784-512-(20, 20) and 20-512-784, images in memory."""
    if importlib.util.find_spec("pythae") is None:
        return None
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    model = VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce"))
    images = BaseDataset(x.float() / 255, torch.zeros(len(x)))
    logging.getLogger("pythae").setLevel(logging.ERROR)

    def epoch() -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            settings = BaseTrainerConfig(
                folder, 128, num_epochs=1, learning_rate=1e-3, keep_best_on_train=True, no_cuda=device.type == "cpu"
            )
            trainer = BaseTrainer(model, images, training_config=settings)
            trainer.prepare_training()
            trainer.train_step(1)

    return dict(latent_dim=20, hidden=(512,), batch_norm=False), {}, epoch
