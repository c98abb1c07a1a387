"""Record how much of chapter 10's gap is the encoder's: `python book/best_codes.py --weights DIR`.

Irvin's networks with z = 2, 3 and 50, three seeds, after 40 and 94 epochs, and z = 2 after 550: for the first training
images and the first test images we search the best factorised Gaussian q(z|x) of each image (`inference.fit_posterior`,
started at the encoder's), and compare its ELBO with that of the encoder's q. What the search gains is the amortization
gap; its difference between test and training images is the encoder's share of the generalisation gap.

The weights after 40 and 94 epochs are not in the repository, which is to stay small:
`python -m vae_core run irvin-z2-e100 --seed 1` and its like write them beside their records. `--weights` names the
folder that holds them (the folder of records by default). It writes `best-codes.json` to `book/results`, a row as soon
as it is measured; started again, it goes on with what is missing.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from vae_core.data import Dataset, check_writable, load
from vae_core.experiments.figures import losses
from vae_core.experiments.records import default_out, provenance, read_record, record_path, write_record
from vae_core.experiments.registry import find
from vae_core.experiments.run import snapshot_path
from vae_core.experiments.setups import build
from vae_core.inference import WithPosterior, fit_posterior
from vae_core.objectives import elbo
from vae_core.runtime import Runtime, random_state, unit_interval

NAME, SIZES, SNAPSHOTS = "best-codes", (2, 3, 50), (94, 40)
IMAGES, DRAWS = 250, 64  # images of each set; draws of z for each bound that is compared
SEARCH = dict(steps=250, learning_rate=0.03, num_samples=4)


@dataclass(frozen=True)
class Weights:
    """The weights of one run after some epochs, and the SHA-256 that the run's record holds of them."""

    name: str
    seed: int
    epoch: int
    sha256: str
    path: Path

    @property
    def key(self) -> str:
        """The name of the row that is measured with them."""
        return f"{self.name}, seed {self.seed}, epoch {self.epoch}"


def all_weights(folder: Path, records: Path) -> Iterator[Weights]:
    """The weights that are measured, by the records in `records`. ValueError where a run is not recorded."""
    for epoch in SNAPSHOTS:
        for name in (f"irvin-z{d}-e100" for d in SIZES):
            for seed in find(name).seeds:
                kept = recorded(name, seed, records)["snapshots_sha256"]
                path = snapshot_path(record_path(find(name), seed, folder), epoch)
                yield Weights(name, seed, epoch, kept[str(epoch)], path)
    name = "irvin-z2"  # the only one that keeps its weights after all epochs
    sha256 = recorded(name, 0, records)["weights_sha256"]
    yield Weights(name, 0, find(name).epochs, sha256, records / f"{name}.safetensors")


def recorded(name: str, seed: int, records: Path) -> dict:
    record = read_record(find(name), seed, records)
    if record is None:
        raise ValueError(f"{records} has no record of {name}; `python -m vae_core run {name} --seed {seed}` makes it")
    return record


def read_model(weights: Weights) -> nn.Module:
    """The network with these weights. FileNotFoundError or ValueError where they are missing, or another run's."""
    if not weights.path.exists():
        command = f"`python -m vae_core run {weights.name} --seed {weights.seed}`"
        raise FileNotFoundError(f"{weights.path} is not there; {command} makes it, or name its folder with --weights")
    content = weights.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != weights.sha256:
        raise ValueError(f"{weights.path} is of another run than the record (its SHA-256 differs)")
    model = build(find(weights.name), 0)
    model.load_state_dict(load_tensors(content))
    return model.eval()


@torch.no_grad()
def bounds(model: nn.Module, q: torch.distributions.Distribution, x: Tensor) -> Tensor:
    """The ELBO of each image under q, (N,), nats, from the same draws of noise for every q."""
    with random_state(0):
        return elbo(WithPosterior(model, q), x, DRAWS)


def searched(model: nn.Module, x: Tensor) -> dict[str, dict[str, float]]:
    """The loss with the encoder's q and with the best q, and what the search gains: means and standard errors."""
    with torch.no_grad():
        q = model.posterior(x)
    encoder, best = bounds(model, q, x), bounds(model, fit_posterior(model, x, q, **SEARCH), x)
    values = {"encoder": -encoder, "best": -best, "gain": best - encoder}
    return {
        name: {"mean": value.mean().item(), "error": (value.std() / len(x) ** 0.5).item()}
        for name, value in values.items()
    }


def row(model: nn.Module, dataset: Dataset, images: int) -> dict:
    """All figures of one network: losses on whole sets, and the search on the first images of each."""
    found: dict = {"images": images}
    for split, x in (("train", dataset.x_train), ("test", dataset.x_test)):
        x = unit_interval(x)
        found[split] = searched(model, x[:images]) | {"whole_set": losses(model, x, 0)["loss"], "n": len(x)}
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--weights", type=Path, default=None, help="the folder of the weights after 40 and 94 epochs")
    parser.add_argument("--images", type=int, default=IMAGES, help="how many images of each set are searched")
    parser.add_argument("--out", type=Path, default=default_out())
    options = parser.parse_args(arguments)
    check_writable(options.out, "the folder for records", "choose another with --out")
    path, dataset = options.out / f"{NAME}.json", load("mnist", options.data_root)
    record = json.loads(path.read_text()) if path.exists() else {}
    config = {"dataset": "mnist", "search": SEARCH, "draws": DRAWS, "images": options.images}
    if record.get("config") != config or record["data_sha256"] != dataset.sha256:
        record = provenance(NAME, "python book/best_codes.py", Runtime.detect("cpu"))
        record |= {"data_sha256": dataset.sha256, "config": config, "wall_seconds": 0.0, "rows": {}}
    for weights in all_weights(options.weights or default_out(), default_out()):
        if weights.key in record["rows"]:
            continue
        begin = time.perf_counter()
        figures = row(read_model(weights), dataset, options.images)
        record["rows"][weights.key] = {"weights_sha256": weights.sha256, **figures}
        record["wall_seconds"] += time.perf_counter() - begin
        write_record(record, path)
        gains = ", ".join(f"{split} {figures[split]['gain']['mean']:.3f}" for split in ("train", "test"))
        print(f"{weights.key}: gains {gains} nats, {record['wall_seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
