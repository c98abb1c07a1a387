"""Record how good chapter 17's models of MNIST are: `python book/bounds.py` (part of `make reproduce`).

For each recorded model iwae-mnist-k1, -k5, -k50 (seed 0), on the first test images, binarised once as in its record:

`bounds`    the bound with K = 1 … 5000 draws, all from one pool of 5000 draws an image, and the effective number of
            draws (K = 1 is the mean of logarithms, K = 5000 the logarithm of the mean);
`gaps`      the inference gap in its two parts (`evaluation.inference_gap`);
`annealed`  log p(x) by annealed importance sampling that begins at the prior, or at the encoder's q with its widths a
            fifth larger, beside the bound with 5000 draws.

The weights for K = 5 and 50 are not in the repository, which is to stay small: `python -m vae_core run iwae-mnist-k5`
makes them (`make reproduce` does).

`starts` are the losses of short runs with K = 1 that begin at the mean image, and that do not. It writes
`measured-bounds.json` and `measured-bounds.safetensors` (the values of each image, nats).
"""

import argparse
import time
from collections.abc import Sequence
from math import log
from pathlib import Path

import torch
from torch import Tensor, nn

from vae_core.data import Dataset, check_writable, load
from vae_core.distributions import diagonal_normal
from vae_core.evaluation import evaluate, inference_gap, log_weights_in_chunks
from vae_core.experiments.records import default_out, load_trained, provenance, write_record
from vae_core.experiments.registry import find
from vae_core.experiments.setups import build, objective_of, start_at_mean_image, test_images
from vae_core.inference import annealed_importance_sampling, log_mean_exp
from vae_core.runtime import Runtime, evaluation_mode, random_state, save_tensors
from vae_core.training import fit

NAME, MODELS = "measured-bounds", ("iwae-mnist-k1", "iwae-mnist-k5", "iwae-mnist-k50")
COUNTS = (1, 2, 5, 10, 50, 100, 500, 1000, 5000)  # each divides the last, so that one pool serves all
SIZES = {"bounds": 200, "gaps": 100, "annealed": 20}  # test images, always the first
SEARCH = dict(steps=300, num_samples=2000)
WIDEN = 1.2
ANNEALING = {
    "prior": dict(num_samples=8, temperatures=1000, leapfrog_steps=5, step_size=0.1),
    "encoder": dict(num_samples=8, temperatures=200, leapfrog_steps=5, step_size=0.3),
}
STARTS = dict(epochs=2, seeds=(0, 1))
Figures, Tensors = dict, dict[str, Tensor]


@torch.no_grad()
def pool(model: nn.Module, x: Tensor, count: int, seed: int = 0, images: int = 50, at_once: int = 100) -> Tensor:
    """`count` log weights of each image, (count, N), float64, a portion of draws and images at a time."""
    with evaluation_mode(model), random_state(seed):
        return torch.cat([log_weights_in_chunks(model, part, count, at_once) for part in x.split(images)], 1)


def bound_of(log_w: Tensor, k: int) -> Tensor:
    r"""The bound with k draws, from a pool (S, N) that is cut into S/k handfuls: (N,), nats.

    .. math:: \frac kS\sum_{g}\log\frac1k\sum_{j\in g}w_j

    It is unbiased for each k, and never falls from k to one of its multiples. Raises ValueError unless k divides S.
    """
    if len(log_w) % k:
        raise ValueError(f"k must divide the {len(log_w)} draws of the pool, got {k}")
    return log_w.view(-1, k, log_w.shape[1]).logsumexp(1).mean(0) - log(k)


def effective_draws(log_w: Tensor) -> Tensor:
    r"""How many equal weights would vary as little: (S, N) -> (N,), between 1 and S. Kish (1965).

    .. math:: \Big(\sum_k w_k\Big)^2 \Big/ \sum_k w_k^2
    """
    return (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()


def summary(values: Tensor) -> Figures:
    """The mean over images and its standard error."""
    return {"mean": values.mean().item(), "error": (values.std() / len(values) ** 0.5).item()}


def bounds(model: nn.Module, x: Tensor, counts: Sequence[int] = COUNTS) -> tuple[Figures, Tensor]:
    """The bound for each count with its error, and how far each lies below that of all draws; values (counts, N)."""
    log_w = pool(model, x, counts[-1])
    values = torch.stack([bound_of(log_w, k) for k in counts])
    effective, (_, error) = effective_draws(log_w), log_mean_exp(log_w)
    figures = {"K": list(counts), "n": len(x), "bound": [summary(row) for row in values]}
    figures["below_last"] = [summary(values[-1] - row) for row in values]
    figures["effective_draws"] = {"median": effective.median().item(), "least": effective.min().item()}
    figures["error_of_an_image"] = {"median": error.median().item(), "largest": error.max().item()}
    return figures, values


def gaps(model: nn.Module, x: Tensor) -> tuple[Figures, Tensor]:
    """Both parts of the inference gap; values (approximation, amortization, log p(x), the ELBO) x N."""
    found = inference_gap(model, x, **SEARCH)
    keys = ("approximation_gap", "amortization_gap", "log_likelihood", "elbo")
    values = torch.stack([found[key] for key in keys])
    figures = {key: summary(value) for key, value in zip(keys, values, strict=True)}
    return figures | {"n": len(x), "error_of_an_image": found["error"].median().item()}, values


def annealed(model: nn.Module, x: Tensor, sampled: Tensor) -> tuple[Figures, Tensor]:
    """log p(x) by annealing from both starts, beside `sampled` (N,); values (two, their errors, sampled) x N."""
    with torch.no_grad():
        q = model.posterior(x)
    begin = {"prior": model.prior.expand(torch.Size([len(x)]))}
    begin["encoder"] = diagonal_normal(q.mean, q.variance.log() + 2 * log(WIDEN))
    figures, found = {"n": len(x), "sampled": summary(sampled)}, []
    for name, start in begin.items():
        log_w = annealed_importance_sampling(model, x, start, **ANNEALING[name]).double()
        found.append(log_mean_exp(log_w))
        value, error = found[-1]
        figures[name] = summary(value) | {"error_of_an_image": error.median().item()}
        figures[name]["minus_sampled"] = summary(value - sampled)
    (prior, prior_error), (encoder, encoder_error) = found
    return figures, torch.stack([prior, encoder, prior_error, encoder_error, sampled])


def start_at_zero(model: nn.Module, x: Tensor) -> None:
    """The other way to begin than `setups.start_at_mean_image`: an output bias of 0, whatever the images are."""
    nn.init.zeros_(model.decoder[-1].bias)


def starts(dataset: Dataset, epochs: int, seeds: Sequence[int]) -> Figures:
    """The test losses of short runs with K = 1, with and without the output bias at the mean image."""
    experiment, found = find(MODELS[0]), {"epochs": epochs, "seeds": list(seeds)}
    for name, begin in (("mean image", start_at_mean_image), ("zero", start_at_zero)):
        found[name] = []
        for seed in seeds:
            model = build(experiment, seed)
            begin(model, dataset.x_train)
            objective, _ = objective_of(experiment, model)
            fit(model, dataset.x_train, objective, epochs=epochs, seed=seed, **experiment.training)
            found[name].append(evaluate(model, test_images(experiment, dataset, seed))["loss"])
        print(f"begun at {name}: {found[name]}", flush=True)
    return found


def measure(model: nn.Module, x: Tensor, sizes: dict[str, int]) -> tuple[Figures, Tensors]:
    """All that is asked of one model, on the first images."""
    figures, kept = {}, {}
    figures["bounds"], kept["bounds"] = bounds(model, x[: sizes["bounds"]])
    figures["gaps"], kept["gaps"] = gaps(model, x[: sizes["gaps"]])
    n = sizes["annealed"]
    figures["annealed"], kept["annealed"] = annealed(model, x[:n], kept["bounds"][-1, :n])
    return figures, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=default_out())
    options = parser.parse_args()
    check_writable(options.out, "the folder for records", "choose another with --out")
    begin, dataset = time.perf_counter(), load("mnist", options.data_root)
    record = provenance(NAME, "python book/bounds.py", Runtime.detect("cpu"))
    record |= {"seed": 0, "data_sha256": dataset.sha256}
    record["config"] = {"images": SIZES, "search": SEARCH, "annealing": ANNEALING, "widen": WIDEN, "starts": STARTS}
    record["figures"], tensors = {}, {}
    for name in MODELS:
        x = test_images(find(name), dataset, seed=0)
        record["figures"][name], kept = measure(load_trained(name), x, SIZES)
        tensors |= {f"{key}-{name}": value.float() for key, value in kept.items()}
        print(name, round(time.perf_counter() - begin), record["figures"][name], flush=True)
    record["figures"]["starts"] = starts(dataset, **STARTS)
    save_tensors(tensors, options.out / f"{NAME}.safetensors")
    write_record(record | {"wall_seconds": time.perf_counter() - begin}, options.out / f"{NAME}.json")


if __name__ == "__main__":
    main()
