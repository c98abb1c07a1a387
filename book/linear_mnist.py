"""Record the linear models on all of MNIST for chapter 02: `python book/linear_mnist.py` (part of `make reproduce`).

Pixels are integers, and a density of integers can be made as large as one likes (a constant column's is infinite). So
they are dequantized as is usual: (pixel + u)/256 with u uniform on [0, 1), seed 0; log p(x) is then in nats per image,
in units of that scale, and bounded. PPCA is fitted in closed form, factor analysis by EM until a step gains less than
1e-3 nats. It writes `linear-mnist.json` (held-out log p(x) for each number of components, PCA's reconstruction errors,
eigenvalues) and `linear-mnist.safetensors` (the mean, 20 principal components, PPCA's and factor analysis' parameters
at d = 20), both to `book/results`.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from vae_core._linear_gaussian import LinearGaussian
from vae_core.data import check_writable, load
from vae_core.experiments.records import default_out, provenance, write_record
from vae_core.linear import PCA, PPCA, FactorAnalysis
from vae_core.runtime import Runtime, save_tensors

NAME, SIZES, KEPT = "linear-mnist", (1, 2, 5, 10, 15, 20, 25, 50, 100, 200), 20


def dequantized(x: Tensor, seed: int) -> Tensor:
    """uint8 images as points of the unit cube, (n, 784), each pixel anywhere within its own 256th."""
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((x + noise) / 256).flatten(1)


def row(name: str, model: LinearGaussian, train: Tensor, test: Tensor) -> dict:
    start = time.perf_counter()
    model.fit(train)
    seconds, steps = time.perf_counter() - start, len(model.log_likelihoods_) - 1
    figures = {"log_p_train": model.score(train), "log_p_test": model.score(test)}
    print(f"{name} d = {model.n_components}: log p(x) {figures['log_p_test']:.2f} in {seconds:.1f} s, {steps} steps")
    return {"model": name, "d": model.n_components, **figures, "steps": steps, "wall_seconds": seconds}


def squared_error(pca: PCA, test: Tensor, d: int) -> float:
    """The mean squared error per pixel on the test images themselves, by the first d components of a larger PCA."""
    codes = pca.transform(test)[:, :d]
    return (codes @ pca.components_[:d] + pca.mean_ - test).square().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=default_out())
    options = parser.parse_args()
    check_writable(options.out, "the folder for records", "choose another with --out")
    dataset = load("mnist", options.data_root)
    train, test = dequantized(dataset.x_train, 0), dequantized(dataset.x_test, 1)
    grey_train, grey_test = (x.flatten(1).double() / 255 for x in (dataset.x_train, dataset.x_test))
    record = provenance(NAME, f"python book/{NAME.replace('-', '_')}.py", Runtime.detect("cpu"))
    record["data_sha256"] = dataset.sha256
    record["config"] = {"dataset": "mnist", "dequantized": True, "seed": 0, "tol": 1e-3, "sizes": SIZES}
    ppcas, analyses = {d: PPCA(d) for d in SIZES}, {d: FactorAnalysis(d, tol=1e-3, max_iter=5000) for d in SIZES}
    record["rows"] = [row("PPCA", model, train, test) for model in ppcas.values()]
    record["rows"] += [row("factor analysis", model, train, test) for model in analyses.values()]
    largest = PCA(max(SIZES)).fit(grey_train)
    record["pca_mse"] = {str(d): squared_error(largest, grey_test, d) for d in SIZES}
    record["eigenvalues"] = largest.explained_variance_.tolist()
    pca, ppca, fa = PCA(KEPT).fit(train), ppcas[KEPT], analyses[KEPT]
    weights = {"mean": pca.mean_, "pca": pca.components_, "ppca": ppca.components_, "ppca_noise": ppca.noise_variance_}
    weights |= {"fa": fa.components_, "fa_noise": fa.noise_variance_}
    save_tensors({name: value.float() for name, value in weights.items()}, options.out / f"{NAME}.safetensors")
    write_record(record, options.out / f"{NAME}.json")


if __name__ == "__main__":
    main()
