"""Running the named experiments: data, model, training, test, record."""

from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from torch import Tensor, nn

from vae_core.catalogue import EXPERIMENTS, Experiment, find
from vae_core.data import Dataset, check_writable, load
from vae_core.evaluation import (
    corrupt,
    entropy_floor,
    evaluate,
    kl_per_unit,
    reconstruction_at_code,
    reconstruction_mse,
)
from vae_core.models import VAE
from vae_core.objectives import code_log_likelihood, elbo_terms
from vae_core.records import (
    Record,
    config_hash,
    default_out,
    describe,
    locked,
    read_record,
    record_path,
    save_weights,
    write_record,
)
from vae_core.runtime import Runtime, seed_everything, unit_interval
from vae_core.training import History, fit


def pending(out: Path, only: str = "*") -> list[tuple[Experiment, int]]:
    """(experiment, seed) pairs without a valid record whose name matches the pattern `only`, cheapest first."""
    chosen = sorted((e for e in EXPERIMENTS.values() if fnmatch(e.name, only)), key=lambda e: e.cost)
    pairs = [(e, seed) for e in chosen for seed in e.seeds]
    return [(e, seed) for e, seed in pairs if read_record(e, seed, out) is None]


def prepare(experiment: Experiment, dataset: Dataset, seed: int) -> Dataset:
    """The images that the experiment is about: those of its class, the training ones corrupted."""
    if experiment.label is not None:
        train, test = dataset.y_train == experiment.label, dataset.y_test == experiment.label
        x, y = (dataset.x_train[train], dataset.x_test[test]), (dataset.y_train[train], dataset.y_test[test])
        dataset = replace(dataset, x_train=x[0], y_train=y[0], x_test=x[1], y_test=y[1])
    if experiment.corruption:
        dataset = replace(dataset, x_train=corrupt(dataset.x_train, experiment.corruption, seed))
    return dataset


def build(experiment: Experiment, seed: int) -> nn.Module:
    """The untrained model, initialised from `seed`."""
    seed_everything(seed)
    return experiment.network()


def run(
    name: str,
    *,
    epochs: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    data_root: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> tuple[Record, Path]:
    """Train and test the experiment `name`, write its record, and return both record and path.

    `epochs` and `seed` default to the experiment's own. After each epoch a checkpoint stands beside the
    record-to-be (`NAME.checkpoint.pt`); `resume` goes on from it; it goes when the record is written.

    Raises ValueError for an unknown name, device, seed or epoch count, OSError if `out` cannot be
    written, RunInProgressError if another process is at this record, all before training; and what
    `data.load` and `training.fit` raise.
    """
    experiment, runtime = find(name), Runtime.detect(device)
    seed = experiment.seed if seed is None else seed
    epochs = experiment.epochs if epochs is None else epochs
    path = record_path(experiment, seed, Path(out) if out is not None else default_out())
    check_writable(path.parent, "the folder for records", "choose another with --out")
    with locked(path):
        return _run(experiment, epochs, seed, runtime, path, data_root, resume, progress), path


def _run(
    experiment: Experiment,
    epochs: int,
    seed: int,
    runtime: Runtime,
    path: Path,
    data_root,
    resume: bool,
    progress: bool,
) -> Record:
    dataset = load(experiment.dataset, data_root)
    record = describe(experiment, dataset, epochs, seed, runtime)
    model, dataset = build(experiment, seed), prepare(experiment, dataset, seed)
    x_test, checkpoint = unit_interval(dataset.x_test), path.with_suffix(".checkpoint.pt")
    objective = elbo_terms if isinstance(model, VAE) else code_log_likelihood
    curve = (lambda m: {f"test_{k}": v for k, v in losses(m, x_test, seed).items()}) if experiment.track_test else None
    history = fit(
        model, dataset.x_train, objective, epochs=epochs, seed=seed, runtime=runtime, checkpoint=checkpoint,
        resume=resume, progress=progress, after_epoch=curve, identity=config_hash(record), **experiment.training,
    )  # fmt: skip
    wall_seconds = sum(row["seconds"] for row in history)  # of training, over all sessions of a resumed run
    record |= {"wall_seconds": wall_seconds, "history": history}
    record["test"] = test(model, x_test, seed) | lowest(history)
    if experiment.corruption:
        noisy = unit_interval(corrupt(dataset.x_test, experiment.corruption, seed + 1))
        record["test"]["mse_from_corrupted"] = reconstruction_mse(model, noisy, x_test)
    if experiment.weights and (epochs, seed) == (experiment.epochs, experiment.seed):
        record["weights_sha256"] = save_weights(model, path.with_suffix(".safetensors"))
    write_record(record, path)
    checkpoint.unlink(missing_ok=True)
    return record


def losses(model: nn.Module, x: Tensor, seed: int) -> dict[str, float]:
    """Loss and its terms on images, nats per datum; an auto-encoder pays no KL."""
    if isinstance(model, VAE):
        figures = evaluate(model, x, seed=seed)
        return {name: figures[name] for name in ("loss", "reconstruction", "kl")}
    error = reconstruction_at_code(model, x)
    return {"loss": error, "reconstruction": error, "kl": 0.0}


def test(model: nn.Module, x: Tensor, seed: int) -> dict[str, float]:
    """Figures on the test images: the losses, n, entropy floor, squared error per pixel; a VAE's active units."""
    figures = losses(model, x, seed) | {"n": len(x), "entropy_floor": entropy_floor(x)}
    figures["mse"] = reconstruction_mse(model, x)
    if isinstance(model, VAE):
        figures["active_units"] = int((kl_per_unit(model, x) > 0.01).sum())
    return figures


def lowest(history: History) -> dict[str, float]:
    """The lowest training and test loss of any epoch, where every epoch was tested (as Irvin reports them)."""
    if not history or "test_loss" not in history[0]:
        return {}
    names = {"lowest_train_loss": "loss", "lowest_test_loss": "test_loss"}
    return {name: min(row[key] for row in history) for name, key in names.items()}
