"""Record the probes of chapter 18: `python book/representations.py` (part of `make reproduce`).

How much of the class can be read off a representation, linearly, from 100, 1000, 10,000 or all labels? Of raw pixels,
PCA, and codes of one network that was trained in different ways: not at all, as an auto-encoder, a VAE (the recorded
weights: 20 or 25 epochs of the thesis' schedule), a β-VAE with β = 4, and contrastively; the last also with views that
are turned by any angle, which is the wrong thing to tell it of digits. And how much can be read off of what the views
change: where the picture stands, or its tint? Raw pixels with all labels are taken over from `measurements.py`.

It writes `measured-representations.json` and `.safetensors` (views, and nearest neighbours, uint8) after each data set;
one that is there already is not made again.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import torch
from measurements import in_batches
from safetensors.torch import load_file
from torch import Tensor, nn

from vae_core.data import Dataset, check_writable, load
from vae_core.evaluation import evaluate, linear_probe, neighbour_accuracy
from vae_core.experiments.contrastive import (
    colour_views,
    conv_contrastive,
    grey_views,
    mlp_contrastive,
    random_affine,
    simclr_objective,
)
from vae_core.experiments.records import default_out, load_trained, provenance, write_record
from vae_core.experiments.registry import FAST, find
from vae_core.experiments.run import fit_settings
from vae_core.linear import PCA
from vae_core.models import Autoencoder, conv_vae, mlp_autoencoder, mlp_vae
from vae_core.networks import conv_decoder, conv_encoder, feature_map
from vae_core.objectives import beta_elbo_terms, linear_warm_up, reconstruction_log_likelihood
from vae_core.runtime import Runtime, evaluation_mode, random_state, save_tensors, seed_everything, unit_interval
from vae_core.training import fit

NAME, BETA, WARM_UP, TEMPERATURE, CHANNELS = "representations", 4.0, 0.25, 0.1, (32, 64, 128)
BUDGETS = {"100": 5, "1000": 5, "10000": 2, "all": 1}  # labels, the same number of each class: how many random subsets
Pair = tuple[Tensor, Tensor]  # of the training and of the test images


@dataclass(frozen=True)
class Task:
    """One data set: where its recorded VAE is, and what is trained on it here."""

    dataset: str
    vae: str
    epochs: int  # of auto-encoder and β-VAE
    contrastive_epochs: int
    rate: float  # peak learning rate of auto-encoder and β-VAE
    contrastive_rate: float
    seeds: tuple[int, ...]
    wrong: bool = False  # train on the wrong views too

    @property
    def dense(self) -> bool:
        return self.dataset != "cifar10"


TASKS = {
    "mnist": Task("mnist", "chen-mnist-d20", 8, 10, FAST["learning_rate"], 3e-3, (0, 1), wrong=True),
    "fashion": Task("fashion-mnist", "chen-fashion-d20", 8, 10, FAST["learning_rate"], 3e-3, (0,)),
    "cifar10": Task("cifar10", "chen-cifar10-cnn", 3, 5, 5e-3, 3e-3, (0,)),
}


def any_turn(x: Tensor) -> Tensor:
    """The views of `grey_views`, but turned by any angle: what they tell an encoder is that 6 and 9 are one."""
    return random_affine(x, degrees=180, smallest=0.7, shift=0.05)


def conv_autoencoder(shape: tuple[int, ...], d: int) -> Autoencoder:
    """The auto-encoder with the layers of `models.conv_vae`."""
    maps = conv_encoder(shape, CHANNELS), conv_decoder(d, shape, CHANNELS[::-1])
    return Autoencoder(*maps, prod(feature_map(shape, CHANNELS)), d, shape)


def reconstructive(task: Task, kind: str, x: Tensor, d: int, seed: int) -> nn.Module:
    """An auto-encoder or a β-VAE of the thesis' network, by the schedule `FAST`."""
    auto = kind == "auto-encoder"
    makers = (mlp_autoencoder, mlp_vae) if task.dense else (conv_autoencoder, conv_vae)
    seed_everything(seed)
    model = makers[0 if auto else 1](tuple(x.shape[1:]), d)
    weight = linear_warm_up(WARM_UP)
    anneal = None if auto else lambda progress: BETA * weight(progress)
    objective = reconstruction_log_likelihood if auto else beta_elbo_terms
    settings = fit_settings(FAST | dict(learning_rate=task.rate))
    fit(model, x, objective, epochs=task.epochs, anneal=anneal, seed=seed, progress=False, **settings)
    return model


def contrastive(task: Task, views: Callable, x: Tensor, d: int, seed: int, epochs: int | None = None) -> nn.Module:
    """The same encoder, trained to agree on two views; with no epochs, untrained."""
    seed_everything(seed)
    model = (mlp_contrastive if task.dense else conv_contrastive)(tuple(x.shape[1:]), d)
    objective = partial(simclr_objective, views=views, temperature=TEMPERATURE)
    epochs = task.contrastive_epochs if epochs is None else epochs
    settings = fit_settings(FAST | dict(learning_rate=task.contrastive_rate))
    fit(model, x, objective, epochs=epochs, seed=seed, progress=False, **settings)
    return model


def subset(y: Tensor, each: int, seed: int) -> Tensor:
    """Indices of `each` random examples of each of the ten classes."""
    draws = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=draws)
    return torch.cat([order[y[order] == k][:each] for k in range(10)])


def over_budgets(codes: Pair, dataset: Dataset, skip: tuple[str, ...] = ()) -> dict[str, list[float]]:
    """Test accuracy of the linear probe for each number of labels, one for each random subset."""
    (z, z_test), found = codes, {}
    for budget, repeats in BUDGETS.items():
        if budget in skip or (budget != "all" and int(budget) > len(z)):
            continue
        y, found[budget] = dataset.y_train, []
        for seed in range(repeats):
            i = slice(None) if budget == "all" else subset(y, int(budget) // 10, seed)
            found[budget].append(linear_probe(z[i], y[i], z_test, dataset.y_test))
    return found


def changed(x: Tensor, y: Tensor, grey: bool) -> Tensor:
    """What the views would have an encoder forget, in three degrees y: the place across, or the channel that is dim."""
    if grey:
        padded = nn.functional.pad(x, (2, 2))
        return torch.stack([padded[n, ..., 2 * k : 2 * k + x.shape[-1]] for n, k in enumerate(y.tolist())])
    weights = torch.ones(len(x), 3, 1, 1)
    weights[torch.arange(len(x)), y] = 0.7
    return x * weights


def nuisance(encode: Callable[[Tensor], Tensor], dataset: Dataset, grey: bool) -> float:
    """How well a linear probe names the change that was made to an image, from 10,000 changed training images."""
    parts = []
    for x, seed in ((dataset.x_train[:10_000], 0), (dataset.x_test, 1)):
        y = torch.randint(3, (len(x),), generator=torch.Generator().manual_seed(seed))
        parts += [encode(changed(unit_interval(x), y, grey)), y]
    return linear_probe(*parts)


def nearest(codes: Pair, queries: Tensor, count: int = 4) -> Tensor:
    """Indices of the training images whose standardised codes are nearest to those of some test images, (Q, count)."""
    z, z_test = codes
    deviation = z.std(0).clamp_min(1e-6)
    return torch.cdist(z_test[queries] / deviation, z / deviation).topk(count, largest=False).indices


def encoder_of(model: nn.Module, sample: bool = False) -> Callable[[Tensor], Tensor]:
    """Images to codes, in evaluation mode: the model's own code, or a draw from q(z|x)."""

    def encode(x: Tensor) -> Tensor:
        with evaluation_mode(model), random_state(0):
            return in_batches(lambda b: model.posterior(b).sample() if sample else model.encode(b), x)

    return encode


def pca_encoder(x: Tensor, d: int) -> Callable[[Tensor], Tensor]:
    pca = PCA(d).fit(unit_interval(x).flatten(1).double())
    return lambda images: pca.transform(images.flatten(1).double()).float()


def representations(task: Task, x: Tensor, d: int) -> dict[str, Callable[[], Callable[[Tensor], Tensor]]]:
    """What is compared: for each name a function that makes (trains, loads) an encoder when it is called."""
    views = grey_views if task.dense else colour_views
    made = {"raw pixels": lambda: lambda images: images.flatten(1), "PCA": partial(pca_encoder, x, d)}
    for name, sample in (("VAE mean", False), ("VAE sample", True)):
        made[name] = lambda sample=sample: encoder_of(load_trained(task.vae), sample)
    for seed in task.seeds:
        train = {"untrained": partial(contrastive, task, views, x, d, seed, 0)}
        train |= {kind: partial(reconstructive, task, kind, x, d, seed) for kind in ("auto-encoder", "β-VAE mean")}
        train["contrastive"] = partial(contrastive, task, views, x, d, seed)
        if task.wrong and seed == task.seeds[0]:
            train["contrastive, any turn"] = partial(contrastive, task, any_turn, x, d, seed)
        made |= {f"{name}, seed {seed}": lambda make=make: encoder_of(make()) for name, make in train.items()}
    return made


def six_or_nine(codes: Pair, dataset: Dataset) -> float:
    """Accuracy of a linear probe that has only sixes and nines to tell apart."""
    rows = [(y == 6) | (y == 9) for y in (dataset.y_train, dataset.y_test)]
    (z, z_test), (i, j) = codes, rows
    return linear_probe(z[i], dataset.y_train[i], z_test[j], dataset.y_test[j])


def measure(name: str, dataset: Dataset, raw: dict[str, float]) -> tuple[dict, dict[str, Tensor]]:
    """All figures of one data set, and what its pictures need."""
    task, figures = TASKS[name], {"linear": {}, "neighbours": {}, "nuisance": {}, "six or nine": {}}
    d, x = find(task.vae).model["latent_dim"], tuple(unit_interval(each) for each in (dataset.x_train, dataset.x_test))
    queries, kept = torch.tensor([(dataset.y_test == k).nonzero()[0, 0] for k in range(10)])[:6], {}
    for key, make in representations(task, dataset.x_train, d).items():
        start, encode = time.perf_counter(), make()
        codes, is_raw = tuple(map(encode, x)), key == "raw pixels"
        figures["linear"][key] = over_budgets(codes, dataset, skip=("all",) if is_raw and raw else ())
        if is_raw and raw:
            figures["linear"][key]["all"], figures["neighbours"][key] = [raw["linear"]], raw["neighbours"]
        else:
            figures["neighbours"][key] = neighbour_accuracy(codes[0], dataset.y_train, codes[1], dataset.y_test)
        figures["nuisance"][key] = nuisance(encode, dataset, task.dense)
        if name == "mnist":
            figures["six or nine"][key] = six_or_nine(codes, dataset)
        if key in ("raw pixels", "VAE mean", "contrastive, seed 0"):
            kept[f"near {key.split(',')[0]}"] = dataset.x_train[nearest(codes, queries).flatten()]
        row = " ".join(f"{b}: {sum(v) / len(v):.3f}" for b, v in figures["linear"][key].items())
        print(f"{name}, {key}: {row}; neighbours {figures['neighbours'][key]:.3f}, nuisance "
              f"{figures['nuisance'][key]:.3f}; {time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
    figures["vae"] = evaluate(load_trained(task.vae), x[1])
    with random_state(0):
        views = [(grey_views if task.dense else colour_views)(x[1][queries]) for _ in range(3)]
    kept |= {"queries": dataset.x_test[queries], "views": (255 * torch.cat(views)).round().byte()}
    return figures, {f"{name} {key}": value for key, value in kept.items()}


def already(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """What an earlier call has written; nothing at first."""
    if not path.exists():
        return {"figures": {}, "data_sha256": {}, "wall_seconds": {}}, {}
    return json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))


def take_down(name: str, dataset: Dataset, path: Path) -> None:
    """Measure one data set and write both files with it, the record last."""
    begin, (record, tensors) = time.perf_counter(), already(path)
    beside = default_out() / f"measured-{name}.json"
    raw = json.loads(beside.read_text())["figures"]["probes"]["raw pixels"] if beside.exists() else {}
    whole = len(dataset.x_train) >= 50_000
    figures, more = measure(name, dataset, raw if whole else {})
    record |= provenance(path.stem, f"python book/{NAME}.py", Runtime.detect("cpu"))
    tasks = record.get("config", {}).get("tasks", {}) | {name: vars(TASKS[name])}
    record["config"] = {
        "beta": BETA,
        "warm_up": WARM_UP,
        "temperature": TEMPERATURE,
        "budgets": BUDGETS,
        "tasks": tasks,
    }
    record["figures"][name], record["data_sha256"][name] = figures, dataset.sha256
    record["wall_seconds"][name] = time.perf_counter() - begin
    save_tensors(tensors | more, path.with_suffix(".safetensors"))
    write_record(record, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(TASKS), default=None)
    parser.add_argument("--epochs", type=int, default=None, help="of everything that is trained, for trying out")
    parser.add_argument("--images", type=int, default=None, help="take only so many training images, for trying out")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=default_out())
    options = parser.parse_args()
    path = options.out / f"measured-{NAME}.json"
    if (options.epochs or options.images) and options.out == default_out():
        parser.error("trying out needs another --out, so that no record is overwritten")
    check_writable(options.out, "the folder for records", "choose another with --out")
    for name in [options.only] if options.only else TASKS:
        if name in already(path)[0]["figures"]:
            continue
        if options.epochs:
            TASKS[name] = Task(**vars(TASKS[name]) | dict(epochs=options.epochs, contrastive_epochs=options.epochs))
        data = load(TASKS[name].dataset, options.data_root)
        if options.images:
            arrays = data.x_train[: options.images], data.y_train[: options.images], data.x_test, data.y_test
            data = Dataset(data.name, *arrays)
        take_down(name, data, path)


if __name__ == "__main__":
    main()
