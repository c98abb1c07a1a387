"""Running the named experiments: data, model, training, test, record."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Adam

from vae_core._files.stored import check_writable
from vae_core._training.checkpoints import read as read_checkpoint
from vae_core.data import Dataset, load
from vae_core.experiments.definition import Experiment
from vae_core.experiments.figures import losses_of, lowest, tested, training_losses
from vae_core.experiments.records import (
    Record,
    default_out,
    describe,
    locked,
    read_record,
    record_path,
    run_hash,
    save_weights,
    write_record,
)
from vae_core.experiments.registry import EXPERIMENTS, find
from vae_core.experiments.setups import (
    build,
    conditions,
    objective_of,
    prepare,
    start_at_mean_image,
    test_images,
    with_folder,
)
from vae_core.models import Autoencoder
from vae_core.runtime import Runtime, as_int
from vae_core.training import fit

EVALUATED_EVERY = 5  # epochs


def pending(out: Path, only: str = "*") -> list[tuple[Experiment, int]]:
    """Return (experiment, seed) pairs that match the pattern `only` and have no valid record, cheapest first.

    Raises:
        ValueError: if no experiment's name matches.
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
    data: str | None = None,
    dataset: Dataset | None = None,
    checkpoints: bool = True,
) -> tuple[Record, Path]:
    """Train and test the experiment `name`, write its record, and return both record and path.

    A run seeds Python's, NumPy's and torch's generators (`seed_everything`) and does not restore the caller's.

    Args:
        name: of the experiment.
        epochs, seed: the experiment's own if None.
        device: as `Runtime.detect` takes it.
        data_root: where data sets are kept.
        out: where the record is written.
        resume: continue from the checkpoint. Without one, if the record of this very run exists, it is returned.
        progress: whether a progress bar is drawn.
        together: let the processes that `torchrun` started train one model, each on its part of every batch; the first
            one writes the record, and the others return it without its test figures.
        data: `"folder:PATH"` replaces the experiment's images by those of a folder, in its size and channels; the
            record is then `NAME-folder-FOLDER.json`.
        dataset: the experiment's data, if they are in memory already.
        checkpoints: whether `NAME.checkpoint.pt` is written beside the record after each epoch; it is deleted at the
            end.

    Raises:
        ValueError: for an unknown name, device, seed or epoch count, settings that contradict each other, or the data
            of another set.
        OSError: if `out` cannot be written or has too little room.
        FileExistsError: if the record there is of another folder's images.
        RunInProgressError: if another process works on this record. All this is checked before training; `data.load`
            and `training.fit` raise more.
    """
    experiment, runtime = find(name), Runtime.detect(device)
    runtime = runtime if together else runtime.alone()
    seed = as_int(experiment.seed if seed is None else seed)
    epochs = as_int(experiment.epochs if epochs is None else epochs)
    if data is not None:
        if dataset is not None:
            raise ValueError(f"give data or dataset, one of the two, got {data!r} and {dataset.name}")
        experiment, dataset = with_folder(experiment, data, data_root)
    elif dataset is not None and dataset.name != experiment.dataset:
        raise ValueError(f"dataset must be {experiment.dataset}, on which {name} is trained, got {dataset.name}")
    path = record_path(experiment, seed, Path(out) if out is not None else default_out())
    check_writable(path.parent, "the folder for records", "choose another with --out")
    if experiment.image_shape and dataset is not None:
        _check_images(path, dataset)
    source = partial(load, experiment.dataset, data_root) if dataset is None else lambda: dataset
    train = partial(_run, experiment, epochs, seed, runtime, path, source, resume, progress, checkpoints)
    finished = partial(_finished, replace(experiment, epochs=epochs), seed, path) if resume else lambda: None
    if runtime.rank > 0:  # all processes must decide alike
        return {key: value for key, value in (finished() or train()).items() if key != "test"}, path
    with locked(path):
        _clear(path)
        return finished() or train(), path


def _check_images(path: Path, dataset: Dataset) -> None:
    """Raise FileExistsError if the record at `path` is of other images: two folders may have the same name."""
    try:
        same = json.loads(path.read_text())["data_sha256"] == dataset.sha256
    except (OSError, ValueError, TypeError, KeyError):  # no record, or none that can be read
        return
    if not same:
        way_out = "move it, or choose another folder for records with --out"
        raise FileExistsError(f"{path} is of other images than those in {dataset.name} now; {way_out}")


def _finished(experiment: Experiment, seed: int, path: Path) -> Record | None:
    """Return the record of this very run, unless there is a checkpoint of it to continue from."""
    return None if path.with_suffix(".checkpoint.pt").exists() else read_record(experiment, seed, path.parent)


def _clear(path: Path) -> None:
    """Remove the partial files of a killed process; only the holder of the lock may call it."""
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
        after_epoch=curve, anneal=anneal, fingerprint=run_hash(record), **fit_settings(experiment.training),
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
    """Return what is added to the row of the next epoch; keep weights where the experiment wants snapshots.

    In every fifth epoch and the last one these are the losses of test and training images, both in evaluation mode,
    so that they differ only by the images. An experiment with `track_test` tests after every epoch.
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
    """Return the path of the weights after an epoch, beside the record at `path`."""
    return path.with_name(f"{path.stem}-e{epoch}.safetensors")


def _keep_weights(experiment: Experiment, model: Autoencoder, epochs: int, seed: int, path: Path) -> Record:
    """Save the weights that a complete run keeps, and return their checksums for the record."""
    kept: Record = {}
    if experiment.weights and (epochs, seed) == (experiment.epochs, experiment.seed):
        kept["weights_sha256"] = save_weights(model, path.with_suffix(".safetensors"))
    if experiment.snapshots and epochs == experiment.epochs:
        files = {epoch: snapshot_path(path, epoch) for epoch in experiment.snapshots if epoch <= epochs}
        kept["snapshots_sha256"] = {str(k): hashlib.sha256(file.read_bytes()).hexdigest() for k, file in files.items()}
    return kept
