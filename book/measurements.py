"""Record what chapters 09 to 13 show and judge: `python book/measurements.py [NAME ...]` (part of `make reproduce`).

Each measurement takes the recorded weights (and trains again, from the same definition, those runs that keep none),
encodes and decodes the real test images, and writes `measured-NAME.json` (figures; checksums of images and weights) and
`measured-NAME.safetensors` (pictures as uint8, codes in half precision) to `book/results/`. A measurement that is
recorded is not made again.
"""

import argparse
import hashlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from sklearn.manifold import TSNE, trustworthiness
from torch import Tensor, nn

from vae_core.data import Dataset, check_writable, load
from vae_core.evaluation import kl_per_unit, linear_probe, neighbour_accuracy, reconstruction_mse, sharpness
from vae_core.experiments.figures import losses
from vae_core.experiments.records import default_out, load_trained, provenance, write_record
from vae_core.experiments.registry import find
from vae_core.experiments.results import PROGRAMS
from vae_core.experiments.run import fit_settings
from vae_core.experiments.setups import build, conditions, objective_of, prepare, start_at_mean_image
from vae_core.linear import PCA
from vae_core.runtime import Runtime, evaluation_mode, random_state, save_tensors, unit_interval
from vae_core.training import fit

Figures, Tensors = dict, dict[str, Tensor]
IRVIN_EPOCHS = 40  # about where our curve passes through the printed figures; the runs of 550 epochs keep no weights
T_SNE = dict(perplexity=50, init="pca", learning_rate="auto", random_state=0)  # listing A.2's perplexity


def trained(name: str, dataset: Dataset, seed: int | None = None, epochs: int | None = None) -> nn.Module:
    """The recorded model of an experiment; without recorded weights, the same run again."""
    experiment = find(name)
    seed = experiment.seed if seed is None else seed
    if experiment.weights and (seed, epochs) == (experiment.seed, None):
        return load_trained(name)
    model, dataset = build(experiment, seed), prepare(experiment, dataset, seed)
    objective, anneal = objective_of(experiment, model)
    if experiment.num_samples:
        start_at_mean_image(model, dataset.x_train)
    fit(
        model, dataset.x_train, objective, y=conditions(model, dataset.y_train), epochs=epochs or experiment.epochs,
        seed=seed, anneal=anneal, **fit_settings(experiment.training),
    )  # fmt: skip
    return model.eval()


def in_batches(function, x: Tensor, size: int = 1000) -> Tensor:
    with torch.no_grad():
        return torch.cat([function(batch) for batch in x.split(size)])


def encoded(model: nn.Module, x: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The means of q(z|x), and one draw from each q, (N, d) both."""
    with evaluation_mode(model), random_state(seed):
        means = in_batches(model.encode, x)
        return means, in_batches(lambda batch: model.posterior(batch).sample(), x)


def decoded(model: nn.Module, z: Tensor) -> Tensor:
    with evaluation_mode(model):
        return in_batches(model.decode, z)


def accuracies(train: Tensor, y_train: Tensor, test: Tensor, y_test: Tensor) -> Figures:
    """Accuracy on the test set of a linear classifier, and of the ten nearest neighbours."""
    parts = (train, y_train, test, y_test)
    return {"linear": linear_probe(*parts), "neighbours": neighbour_accuracy(*parts)}


def controls(dataset: Dataset, sizes: Iterable[int]) -> Figures:
    """What the pixels themselves allow, and PCA codes of the same sizes."""
    x, x_test = (unit_interval(each).flatten(1) for each in (dataset.x_train, dataset.x_test))
    found = {"raw pixels": accuracies(x, dataset.y_train, x_test, dataset.y_test)}
    pca = PCA(max(sizes)).fit(x.double())
    z, z_test = (pca.transform(each.double()).float() for each in (x, x_test))
    for d in sizes:
        found[f"PCA, d = {d}"] = accuracies(z[:, :d], dataset.y_train, z_test[:, :d], dataset.y_test)
    return found


def classifier(x: Tensor, y: Tensor, epochs: int = 4, seed: int = 0) -> nn.Module:
    """A small convolutional classifier of the original images: the judge whose labels reconstructions may flip."""
    with random_state(seed):
        width, side = 32, x.shape[-1] // 4
        model = nn.Sequential(
            nn.Conv2d(x.shape[1], width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(2 * width * side**2, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * -(-len(x) // 128))
        for _ in range(epochs):
            for index in torch.randperm(len(x)).split(128):
                loss = nn.functional.cross_entropy(model(unit_interval(x[index])), y[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def named(judge: nn.Module, x: Tensor) -> Tensor:
    """The classes that the judge sees, (N,)."""
    return in_batches(lambda batch: judge(batch).argmax(1), x)


def flips(judge: nn.Module, before: Tensor, y: Tensor, x_hat: Tensor) -> Figures:
    """What the judge says of reconstructions, `before` of the originals: accuracy, and the labels that flip."""
    after = named(judge, x_hat)
    counts = torch.bincount(10 * before + after, minlength=100).reshape(10, 10)
    share = (before != after).double().mean().item()
    return {"accuracy": (after == y).double().mean().item(), "flipped": share, "from_to": counts.tolist()}


def plane(z: Tensor, y: Tensor) -> tuple[Tensor, Figures]:
    """A t-SNE picture of codes, (N, 2), and how far it can be trusted."""
    picture = TSNE(**T_SNE).fit_transform(z.numpy())
    some = slice(0, 5000)
    half = len(z) // 2
    found = {"trustworthiness": float(trustworthiness(z[some].numpy(), picture[some], n_neighbors=10))}
    for name, points in (("picture", torch.tensor(picture)), ("code", z)):
        found[f"neighbours_in_{name}"] = neighbour_accuracy(points[:half], y[:half], points[half:], y[half:])
    return torch.tensor(picture), found


def asked(figures: Figures, key: str, model: nn.Module, dataset: Dataset, judge: nn.Module, before: Tensor) -> Tensor:
    """Take down under `key` what is asked of every model of the thesis; the drawn codes of the test images."""
    x_train, x_test = unit_interval(dataset.x_train), unit_interval(dataset.x_test)
    (means, draws), (z_test, z_draw) = encoded(model, x_train), encoded(model, x_test)
    figures["probes"][key] = accuracies(means, dataset.y_train, z_test, dataset.y_test)
    figures["probes"][f"{key}, sampled"] = accuracies(draws, dataset.y_train, z_draw, dataset.y_test)
    x_hat = decoded(model, z_draw)
    figures["flips"][key] = flips(judge, before, dataset.y_test, x_hat)
    figures["sharpness"][key] = sharpness(x_hat)
    figures["kl_per_unit"][key] = kl_per_unit(model, x_test).tolist()
    print(key, figures["probes"][key], round(figures["flips"][key]["flipped"], 4), flush=True)
    return z_draw


def begun(dataset: Dataset, sizes: Iterable[int], epochs: int) -> tuple[Figures, nn.Module, Tensor]:
    """The figures of the images themselves, the judge, and what it sees in the test images."""
    x_test, judge = unit_interval(dataset.x_test), classifier(dataset.x_train, dataset.y_train, epochs)
    before = named(judge, x_test)
    figures = {"judge_accuracy": (before == dataset.y_test).double().mean().item(), "probes": controls(dataset, sizes)}
    figures |= {"sharpness": {"originals": sharpness(x_test)}, "flips": {}, "kl_per_unit": {}}
    return figures, judge, before


def grey(name: str, dataset: Dataset) -> tuple[Figures, Tensors]:
    """Chapters 09 and 11: the thesis' models with two and with twenty latent units, three seeds each."""
    x_test, y_test, first = unit_interval(dataset.x_test), dataset.y_test, torch.arange(30) * 128  # as listing A.2
    found, judge, before = begun(dataset, (2, 20), epochs=4)
    found["thirty"] = {"class": y_test[first].tolist(), "originals": before[first].tolist()}
    kept = {"images": x_test[first], "y_test": y_test}
    for d in (2, 20):
        experiment = find(f"chen-{name}-d{d}")
        for seed in experiment.seeds:
            model = trained(experiment.name, dataset, seed)
            z = asked(found, f"d = {d}, seed {seed}", model, dataset, judge, before)
            if seed == experiment.seed:
                x_hat = decoded(model, z[first])
                kept |= {f"reconstructions_{d}": x_hat, f"codes_{d}": z if d == 2 else z[first]}
                found["thirty"][f"d = {d}"] = named(judge, x_hat).tolist()
                if d == 20:
                    kept["t_sne"], found["t_sne"] = plane(z, y_test)
    return found, kept


def cifar10(dataset: Dataset) -> tuple[Figures, Tensors]:
    """Chapter 12: dense against convolutional."""
    x_test, first = unit_interval(dataset.x_test), torch.arange(10) * 128
    found, judge, before = begun(dataset, (20, 256), epochs=8)
    found |= {"mse": {}, "t_sne": {}}
    kept = {"images": x_test[first], "y_test": dataset.y_test}
    for kind in ("fc", "cnn"):
        model = trained(f"chen-cifar10-{kind}", dataset)
        z = asked(found, kind, model, dataset, judge, before)
        found["mse"][kind] = reconstruction_mse(model, x_test)
        kept[f"t_sne_{kind}"], found["t_sne"][kind] = plane(z, dataset.y_test)
        with random_state(0):
            kept[f"samples_{kind}"] = decoded(model, torch.randn(16, model.latent_dim))
        kept[f"reconstructions_{kind}"] = decoded(model, z[first])
    return found, kept


def irvin(dataset: Dataset) -> tuple[Figures, Tensors]:
    """Chapter 10: six reconstructions a model, and the codes of all training images with two units."""
    x_test, first = unit_interval(dataset.x_test), torch.arange(6)
    kept, found = {"images": x_test[first], "y_train": dataset.y_train}, {"losses": {}, "probes": {}, "epochs": {}}
    x_train = unit_interval(dataset.x_train)
    for d in (2, 3, 50):
        epochs = None if d == 2 else IRVIN_EPOCHS
        model = trained(f"irvin-z{d}", dataset, epochs=epochs)
        means, draws = encoded(model, x_train)
        found["epochs"][str(d)] = epochs or find(f"irvin-z{d}").epochs
        found["losses"][str(d)] = losses(model, x_test, 0)
        found["probes"][str(d)] = accuracies(means, dataset.y_train, encoded(model, x_test)[0], dataset.y_test)
        kept[f"reconstructions_{d}"] = decoded(model, encoded(model, x_test[first])[1])
        if d == 2:
            kept["codes_train"] = draws
        print(d, found["losses"][str(d)], found["probes"][str(d)], flush=True)
    return found, kept


def saleh(get: Callable[[str], Dataset]) -> tuple[Figures, Tensors]:
    """Chapter 13: reconstructions and codes of both data sets with two units."""
    found, kept = {"probes": {}, "radius": {}, "sharpness": {}}, {}
    for short in ("mnist", "fashion"):
        experiment = find(f"saleh-{short}-k2")
        dataset, model = get(experiment.dataset), load_trained(experiment.name)
        x_test = unit_interval(dataset.x_test)
        means, draws = encoded(model, x_test)
        train = encoded(model, unit_interval(dataset.x_train))[0]
        found["probes"][short] = accuracies(train, dataset.y_train, means, dataset.y_test)
        found["radius"][short] = [means[dataset.y_test == k].mean(0).norm().item() for k in range(10)]
        x_hat = decoded(model, draws)
        found["sharpness"][short] = {"originals": sharpness(x_test), "reconstructions": sharpness(x_hat)}
        kept |= {f"images_{short}": x_test[:10], f"reconstructions_{short}": x_hat[:10], f"codes_{short}": draws}
        kept[f"y_{short}"] = dataset.y_test
    return found, kept


def boots(dataset: Dataset) -> tuple[Figures, Tensors]:
    """Chapter 13: what the units of the boots' models do, over three seeds; the planes of all three."""
    found, kept = {}, {}
    for k in (2, 20):
        experiment = find(f"saleh-boots-k{k}")
        x_test = unit_interval(prepare(experiment, dataset, experiment.seed).x_test)
        for seed in experiment.seeds:
            key, model = f"K = {k}, seed {seed}", trained(experiment.name, dataset, seed)
            weight, (means, _) = model.decoder[0].weight.detach(), encoded(model, x_test)
            found[key] = {"kl_per_unit": kl_per_unit(model, x_test).tolist(), "loss": losses(model, x_test, seed)}
            found[key] |= {"column_norm": weight.norm(dim=0).tolist(), "column_sum": weight.sum(0).tolist()}
            found[key]["mean_variance"] = means.var(0).tolist()
            if k == 2:
                ticks = torch.linspace(-1.645, 1.645, 11)
                grid = torch.stack(torch.meshgrid(ticks, ticks.flip(0), indexing="xy"), -1).reshape(-1, 2)
                kept[f"grid_seed_{seed}"] = decoded(model, grid)
                kept[f"codes_seed_{seed}"] = means
    kept["images"] = x_test[:10]
    return found, kept


MEASUREMENTS: dict[str, Callable[[Callable[[str], Dataset]], tuple[Figures, Tensors]]] = {
    "mnist": lambda get: grey("mnist", get("mnist")),
    "fashion": lambda get: grey("fashion", get("fashion-mnist")),
    "cifar10": lambda get: cifar10(get("cifar10")),
    "irvin": lambda get: irvin(get("mnist")),
    "saleh": saleh,
    "boots": lambda get: boots(get("fashion-mnist")),
}


def compact(name: str, value: Tensor) -> Tensor:
    """Images as uint8, classes too, codes in half precision."""
    if value.dim() == 4:
        return (255 * value).round().byte()
    return value.byte() if name.startswith("y") else value.half()


def weights_of(names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of the recorded weights of these networks."""
    files = {name: default_out() / f"{name}.safetensors" for name in names}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def measure(name: str, data_root: Path | None, out: Path) -> None:
    """Make one measurement and write both of its files, the record last."""
    begin, path = time.perf_counter(), out / f"measured-{name}.json"
    record = provenance(path.stem, f"python book/measurements.py {name}", Runtime.detect("cpu"))
    sets: dict[str, Dataset] = {}

    def get(dataset: str) -> Dataset:
        return sets.setdefault(dataset, load(dataset, data_root))

    record["weights_sha256"] = weights_of(PROGRAMS[path.stem].networks)
    record["figures"], tensors = MEASUREMENTS[name](get)
    record["data_sha256"] = {dataset: loaded.sha256 for dataset, loaded in sets.items()}
    save_tensors({key: compact(key, value) for key, value in tensors.items()}, path.with_suffix(".safetensors"))
    write_record(record | {"wall_seconds": time.perf_counter() - begin}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(MEASUREMENTS)}; all that are missing by default")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=default_out())
    options = parser.parse_args()
    if unknown := set(options.names) - set(MEASUREMENTS):
        parser.error(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(MEASUREMENTS)}")
    check_writable(options.out, "the folder for records", "choose another with --out")
    missing = [name for name in MEASUREMENTS if not (options.out / f"measured-{name}.json").exists()]
    for name in options.names or missing:
        measure(name, options.data_root, options.out)
        print(f"measured-{name}.json", flush=True)


if __name__ == "__main__":
    main()
