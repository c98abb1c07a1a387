"""Record PCA as chapter 12's control: `python book/pca_control.py`, about three minutes on one core.

PCA of CIFAR-10 with as many components as the thesis' networks have latent units, and with fewer: the mean squared
error per pixel of its reconstructions, and what a linear classifier reads off its codes, on test images; the recorded
convolutional network beside it. A dense network and PCA are both blind to the order of the pixels, so PCA is what the
dense network is to be compared with. It writes `pca-cifar10.json` to `book/results`.
"""

import argparse
import time
from pathlib import Path

import torch
from measurements import encoded
from sklearn.decomposition import PCA
from torch import Tensor

from vae_core.data import Dataset, check_writable, load
from vae_core.evaluation import linear_probe, reconstruction_mse
from vae_core.experiments.records import default_out, load_trained, provenance, read_record, write_record
from vae_core.experiments.registry import find
from vae_core.runtime import Runtime, unit_interval

NAME, SIZES, NETWORK = "pca-cifar10", (9, 20, 64, 128, 256), "chen-cifar10-cnn"


def squared_error(pca: PCA, x: Tensor, z: Tensor, d: int) -> float:
    """The mean squared error per pixel with the first d of the components, whose codes of x are z, (N, at least d)."""
    error = z[:, :d] @ torch.from_numpy(pca.components_[:d]) + torch.from_numpy(pca.mean_) - x
    return error.square().mean().item()


def pca_rows(dataset: Dataset, sizes: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """For each number of components: the test images' squared error, and the accuracy of a linear classifier."""
    x, x_test = (unit_interval(each).flatten(1).double() for each in (dataset.x_train, dataset.x_test))
    pca = PCA(max(sizes), svd_solver="covariance_eigh").fit(x.numpy())  # the fastest way where n is large
    z, z_test = (torch.from_numpy(pca.transform(each.numpy())) for each in (x, x_test))
    found = {}
    for d in sizes:
        accuracy = linear_probe(z[:, :d].float(), dataset.y_train, z_test[:, :d].float(), dataset.y_test)
        found[f"PCA, d = {d}"] = {"mse": squared_error(pca, x_test, z_test, d), "linear": accuracy}
        print(d, found[f"PCA, d = {d}"], flush=True)
    return found


def network_row(dataset: Dataset) -> dict[str, float]:
    """The same of the recorded convolutional network; its codes are the means of q(z|x)."""
    model = load_trained(NETWORK)
    x, x_test = unit_interval(dataset.x_train), unit_interval(dataset.x_test)
    accuracy = linear_probe(encoded(model, x)[0], dataset.y_train, encoded(model, x_test)[0], dataset.y_test)
    return {"mse": reconstruction_mse(model, x_test), "linear": accuracy}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=default_out())
    options = parser.parse_args(arguments)
    check_writable(options.out, "the folder for records", "choose another with --out")
    begin, dataset = time.perf_counter(), load("cifar10", options.data_root)
    record = provenance(NAME, "python book/pca_control.py", Runtime.detect("cpu"))
    record |= {"data_sha256": dataset.sha256, "config": {"dataset": "cifar10", "sizes": SIZES}}
    experiment = find(NETWORK)
    network = read_record(experiment, experiment.seed, default_out()) or {}
    record["config"]["network"] = {"name": NETWORK, "weights_sha256": network.get("weights_sha256")}
    record["rows"] = pca_rows(dataset, SIZES)
    record["rows"][NETWORK] = network_row(dataset)
    write_record(record | {"wall_seconds": time.perf_counter() - begin}, options.out / f"{NAME}.json")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
