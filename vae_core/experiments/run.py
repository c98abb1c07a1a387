"""Running the named experiments: data, model, training, test, record."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from itertools import count
from math import log
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Adam

from vae_core._training.checkpoints import _read as read_checkpoint
from vae_core.data import Dataset, check_writable, load
from vae_core.evaluation import (
    add_outliers,
    entropy_floor,
    evaluate,
    kl_per_unit,
    log_likelihood,
    reconstruction_at_code,
    reconstruction_mse,
    with_batch_statistics,
)
from vae_core.experiments.records import (
    LOSSES,
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
from vae_core.experiments.registry import EXPERIMENTS, Experiment, find
from vae_core.experiments.setups import (
    build,
    conditions,
    noise_of,
    objective_of,
    prepare,
    start_at_mean_image,
    test_images,
)
from vae_core.models import VAE, Autoencoder, ConditionalVAE
from vae_core.runtime import Runtime, as_int, device_of, random_state, unit_interval
from vae_core.training import History, fit

EVALUATED_EVERY = 5  # epochs


def pending(out: Path, only: str = "*") -> list[tuple[Experiment, int]]:
    """(experiment, seed) pairs without a valid record whose name matches the pattern `only`, cheapest first.

    Raises ValueError if no experiment's name does.
    """
    chosen = sorted((e for e in EXPERIMENTS.values() if fnmatch(e.name, only)), key=lambda e: e.cost)
    if not chosen:
        raise ValueError(f"no experiment's name matches {only!r}; `python -m vae_core list` shows all")
    pairs = [(e, seed) for e in chosen for seed in e.seeds]
    return [(e, seed) for e, seed in pairs if read_record(e, seed, out) is None]


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
    together: bool = False,
    dataset: Dataset | None = None,
    checkpoints: bool = True,
) -> tuple[Record, Path]:
    """Train and test the experiment `name`, write its record, and return both record and path.

    `epochs` and `seed` default to the experiment's own. After each epoch, unless `checkpoints` is False, a checkpoint
    stands beside the record-to-be (`NAME.checkpoint.pt`); it goes when the record is written. `resume` goes on from
    it; where there is none but the record of this very run, the run is finished, and that record is returned as it is.
    `dataset` is the experiment's data where they are in memory already; they are loaded otherwise.
    With `together` the processes that `torchrun` started train one model, each on its part of every batch; the
    first one writes the record, and the others return it without its test figures. A run seeds Python's, NumPy's and
    torch's generators (`seed_everything`); the caller's random numbers do not go on where they were.

    Raises ValueError for an unknown name, device, seed or epoch count, settings that contradict each other, or the data
    of another set, OSError if `out` cannot be written or has too little room, RunInProgressError if another process is
    at this record, all before training; and what `data.load` and `training.fit` raise.
    """
    experiment, runtime = find(name), Runtime.detect(device)
    runtime = runtime if together else runtime.alone()
    seed = as_int(experiment.seed if seed is None else seed)
    epochs = as_int(experiment.epochs if epochs is None else epochs)
    path = record_path(experiment, seed, Path(out) if out is not None else default_out())
    check_writable(path.parent, "the folder for records", "choose another with --out")
    if dataset is not None and dataset.name != experiment.dataset:
        raise ValueError(f"dataset must be {experiment.dataset}, on which {name} is trained, got {dataset.name}")
    source = partial(load, experiment.dataset, data_root) if dataset is None else lambda: dataset
    train = partial(_run, experiment, epochs, seed, runtime, path, source, resume, progress, checkpoints)
    finished = partial(_finished, replace(experiment, epochs=epochs), seed, path) if resume else lambda: None
    if runtime.rank > 0:  # it decides as the first one does: that one waits for it, or does not
        return {key: value for key, value in (finished() or train()).items() if key != "test"}, path
    with locked(path):
        _clear(path)
        return finished() or train(), path


def _finished(experiment: Experiment, seed: int, path: Path) -> Record | None:
    """The record of this very run, unless there is a checkpoint of it to go on from."""
    return None if path.with_suffix(".checkpoint.pt").exists() else read_record(experiment, seed, path.parent)


def _clear(path: Path) -> None:
    """Remove what a killed process has left of the files it was writing; only for the holder of the lock."""
    for leftover in path.parent.glob(f".{path.stem}.*-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _check_room(model: nn.Module, checkpoint: Path) -> None:
    """Raise OSError unless there is room for a checkpoint (weights and Adam's two moments), the next one, and 1 MiB."""
    state = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    needed = 3 * state * (1 if checkpoint.exists() else 2) + 2**20
    free = shutil.disk_usage(checkpoint.parent).free
    if free < needed:
        raise OSError(
            f"{checkpoint.parent} has {free / 1e6:.1f} MB free, but checkpoints, weights and record need "
            f"{needed / 1e6:.1f} MB; make room, or choose another folder with --out"
        )


def _run(
    experiment: Experiment,
    epochs: int,
    seed: int,
    runtime: Runtime,
    path: Path,
    source: Callable[[], Dataset],
    resume: bool,
    progress: bool,
    checkpoints: bool,
) -> Record:
    dataset = source()
    record = describe(experiment, dataset, epochs, seed, runtime)
    model, dataset = build(experiment, seed), prepare(experiment, dataset, seed)
    objective, anneal = objective_of(experiment, model)
    if experiment.num_samples:
        start_at_mean_image(model, dataset.x_train)
    x_test, checkpoint = test_images(experiment, dataset, seed), path.with_suffix(".checkpoint.pt")
    _check_room(model, checkpoint)
    done = _epochs_done(checkpoint) if resume else 0
    keep = checkpoints or done > 0
    curve = partial(_curve, experiment, dataset, x_test, seed, epochs, path, count(done + 1))
    history = fit(
        model, dataset.x_train, objective, y=conditions(model, dataset.y_train), epochs=epochs, seed=seed,
        device=runtime, checkpoint=checkpoint if keep else None, resume=resume and keep, progress=progress,
        after_epoch=curve, anneal=anneal, fingerprint=config_hash(record), **fit_settings(experiment.training),
    )  # fmt: skip
    if runtime.rank > 0:
        return record
    wall_seconds = sum(row["seconds"] for row in history)  # of training, over all sessions of a resumed run
    record |= {"wall_seconds": wall_seconds, "history": history}
    record["test"] = tested(experiment, model, dataset, x_test, seed)
    record["test"] |= lowest(history) if experiment.track_test else {}
    record |= _keep_weights(experiment, model, epochs, seed, path)
    write_record(record, path)
    checkpoint.unlink(missing_ok=True)
    return record


def fit_settings(training: dict[str, Any]) -> dict[str, Any]:
    """Return an experiment's training settings as `fit` takes them: `betas` become an optimizer."""
    settings = dict(training)
    betas = settings.pop("betas", None)
    return settings | ({} if betas is None else {"optimizer": partial(Adam, betas=tuple(betas))})


def _epochs_done(checkpoint: Path) -> int:
    return len(read_checkpoint(checkpoint)["history"]) if checkpoint.exists() else 0


def _curve(
    experiment: Experiment,
    dataset: Dataset,
    x_test: Tensor,
    seed: int,
    epochs: int,
    path: Path,
    number: Iterator[int],
    model: Autoencoder,
) -> dict[str, float]:
    """What the row of the next epoch holds beside training's own figures; weights kept on the way.

    In every fifth epoch and the last one these are the losses of test and training images, both in evaluation mode,
    so that their difference is that of the images alone. An experiment with `track_test` tests after every epoch.
    """
    epoch = next(number)
    figures: dict[str, float] = {}
    both = epoch % EVALUATED_EVERY == 0 or epoch == epochs
    if both or experiment.track_test:
        test_losses = losses_of(model, x_test, dataset.y_test, seed)
        figures |= {f"test_{name}": value for name, value in test_losses.items()}
    if both:
        figures |= {
            f"train_eval_{name}": value for name, value in training_losses(experiment, dataset, seed, model).items()
        }
    if epoch in experiment.snapshots and epochs == experiment.epochs:
        save_weights(model, snapshot_path(path, epoch))
    return figures


def snapshot_path(path: Path, epoch: int) -> Path:
    """Where the weights after an epoch are kept, beside the record at `path`."""
    return path.with_name(f"{path.stem}-e{epoch}.safetensors")


def _keep_weights(experiment: Experiment, model: Autoencoder, epochs: int, seed: int, path: Path) -> Record:
    """Save the weights that a whole run keeps; the part of the record that tells them from those of other runs."""
    kept: Record = {}
    if experiment.weights and (epochs, seed) == (experiment.epochs, experiment.seed):
        kept["weights_sha256"] = save_weights(model, path.with_suffix(".safetensors"))
    if experiment.snapshots and epochs == experiment.epochs:
        files = {epoch: snapshot_path(path, epoch) for epoch in experiment.snapshots if epoch <= epochs}
        kept["snapshots_sha256"] = {str(k): hashlib.sha256(file.read_bytes()).hexdigest() for k, file in files.items()}
    return kept


def bits_per_dimension(loss: float, n_pixels: int, dequantised: bool) -> float:
    r"""A loss in nats as bits per pixel with 256 levels; a density's, of dequantised pixels, with the levels' width.

    .. math:: \frac{\text{loss}}{D\log 2} \quad\text{or}\quad \frac{\text{loss} + D\log 256}{D\log 2}
    """
    return loss / n_pixels / log(2) + 8 * dequantised


def importance_sampled(model: VAE, x: Tensor, seed: int, num_samples: int = 1000) -> dict[str, float]:
    """log p(x) of the test images by importance sampling, nats: the mean, and its standard error over images."""
    values = log_likelihood(model, x, num_samples, seed)
    error = (values.std() / len(x) ** 0.5).item()
    return {"log_likelihood": values.mean().item(), "log_likelihood_error": error, "importance_samples": num_samples}


def losses(model: Autoencoder, x: Tensor, seed: int, batch_size: int = 1000) -> dict[str, float]:
    """Loss and its terms on images, nats per datum; an auto-encoder pays no KL."""
    if isinstance(model, VAE):
        figures = evaluate(model, x, seed=seed, batch_size=batch_size)
        return {name: figures[name] for name in LOSSES}
    error = reconstruction_at_code(model, x)
    return {"loss": error, "reconstruction": error, "kl": 0.0}


def losses_of(model: Autoencoder, x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
    """`losses`, a conditional model being told the images' labels, for all of them at once."""
    told = conditions(model, y)
    if isinstance(model, ConditionalVAE) and told is not None:
        return losses(model.given(told), x, seed, batch_size=len(x))
    return losses(model, x, seed)


def training_losses(
    experiment: Experiment, dataset: Dataset, seed: int, model: Autoencoder, at_once: int = 10_000
) -> dict[str, float]:
    """`losses_of` the training images as the objective sees them (binarised, dequantised), in evaluation mode."""
    sums, noise, device = dict.fromkeys(LOSSES, 0.0), noise_of(experiment), device_of(model)
    for k, (x, y) in enumerate(zip(dataset.x_train.split(at_once), dataset.y_train.split(at_once), strict=True)):
        x = unit_interval(x.to(device))
        with random_state(seed + k):
            x = noise(x) if noise else x
        for name, value in losses_of(model, x, y, seed + k).items():
            sums[name] += value * len(x) / len(dataset.x_train)
    return sums


def test(model: Autoencoder, x: Tensor, seed: int, batch_size: int) -> dict[str, float]:
    """Figures on the test images: the losses, n, entropy floor, squared error per pixel; a VAE's active units."""
    figures = losses(model, x, seed, batch_size) | {"n": len(x), "entropy_floor": entropy_floor(x)}
    figures["mse"] = reconstruction_mse(model, x, batch_size=batch_size)
    if isinstance(model, VAE):
        figures["active_units"] = int((kl_per_unit(model, x, batch_size) > 0.01).sum())
        figures["loss_at_mean_code"] = reconstruction_at_code(model, x, batch_size) + figures["kl"]
        with_batch = with_batch_statistics(model)
        figures["loss_with_batch_statistics"] = losses(with_batch, x, seed, batch_size)["loss"]
    return figures


def tested(experiment: Experiment, model: Autoencoder, dataset: Dataset, x_test: Tensor, seed: int) -> dict[str, float]:
    """The figures of `test`, and what is asked of this experiment alone.

    That is the error from corrupted images, an importance-sampled log p(x), or bits per dimension.
    """
    y_test = conditions(model, dataset.y_test)
    if isinstance(model, ConditionalVAE) and y_test is not None:
        figures = test(model.given(y_test), x_test, seed, len(x_test))  # all at once, each beside its y
    else:
        figures = test(model, x_test, seed, 1000)
    if experiment.corruption:
        noisy = unit_interval(add_outliers(dataset.x_test, experiment.corruption, seed + 1))
        figures["mse_from_corrupted"] = reconstruction_mse(model, noisy, x_test)
    if experiment.binarise and isinstance(model, VAE):
        figures |= importance_sampled(model, x_test, seed)
    if experiment.dequantise or experiment.model.get("likelihood") == "discretized_logistic":
        bits = bits_per_dimension(figures["loss"], x_test[0].numel(), experiment.dequantise)
        figures["bits_per_dimension"] = bits
    return figures


def lowest(history: History) -> dict[str, float]:
    """The lowest training and test loss of any epoch, where every epoch was tested (as Irvin reports them)."""
    if not history or "test_loss" not in history[0]:
        return {}
    names = {"lowest_train_loss": "loss", "lowest_test_loss": "test_loss"}
    return {name: min(row[key] for row in history) for name, key in names.items()}
