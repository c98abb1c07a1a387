"""The named experiments: what each one trains, on what, and the record that it leaves behind."""

import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vae_core import __version__
from vae_core.data import Dataset, check_writable, load
from vae_core.evaluation import entropy_floor, evaluate
from vae_core.models import VAE, mlp_vae
from vae_core.objectives import elbo_terms
from vae_core.runtime import Runtime, replacing, seed_everything, unit_interval
from vae_core.training import fit

Record = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """One experiment, complete but for the machine: `model` are arguments of `mlp_vae`, `training` of `fit`."""

    name: str
    source: str
    dataset: str
    epochs: int
    seed: int
    model: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)


THESIS_TRAINING = dict(batch_size=128, learning_rate=1e-3, weight_decay=1e-5, reduction="sum")

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            name="digits-d2",
            source="this book, chapter 00",
            dataset="digits",
            epochs=60,
            seed=0,
            model=dict(latent_dim=2, hidden=(256, 128)),
            training=dict(batch_size=64),
        ),
        Experiment(
            name="chen-mnist-d20",
            source="Chen §4.2, listing A.3",
            dataset="mnist",
            epochs=20,
            seed=723,
            model=dict(latent_dim=20),
            training=THESIS_TRAINING,
        ),
    )
}


def find(name: str) -> Experiment:
    """The experiment of that name; ValueError names the known ones."""
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}; known: {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def default_out() -> Path:
    """`book/results/` in this checkout."""
    return Path(__file__).resolve().parent.parent / "book" / "results"


def record_path(experiment: Experiment, seed: int, out: Path) -> Path:
    """`OUT/NAME.json`, or `OUT/NAME-sSEED.json` for a seed that is not the experiment's own."""
    return out / (f"{experiment.name}.json" if seed == experiment.seed else f"{experiment.name}-s{seed}.json")


def build(experiment: Experiment, dataset: Dataset, seed: int) -> VAE:
    """The untrained model, initialised from `seed`."""
    seed_everything(seed)
    return mlp_vae(dataset.image_shape, **experiment.model)


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
    written, all before training; and what `data.load` and `training.fit` raise.
    """
    experiment, runtime = find(name), Runtime.detect(device)
    seed = experiment.seed if seed is None else seed
    epochs = experiment.epochs if epochs is None else epochs
    path = record_path(experiment, seed, Path(out) if out is not None else default_out())
    check_writable(path.parent, "the folder for records", "choose another with --out")
    dataset = load(experiment.dataset, data_root)
    record = _describe(experiment, dataset, epochs, seed, runtime)
    model = build(experiment, dataset, seed)
    checkpoint = path.with_suffix(".checkpoint.pt")
    history = fit(
        model, dataset.x_train, elbo_terms, epochs=epochs, seed=seed, runtime=runtime,
        checkpoint=checkpoint, resume=resume, progress=progress, **experiment.training,
    )  # fmt: skip
    wall_seconds = sum(row["seconds"] for row in history)  # of training, over all sessions of a resumed run
    record |= {"wall_seconds": wall_seconds, "history": history, "test": test(model, dataset, seed)}
    with replacing(path) as part:
        part.write_text(json.dumps(record, indent=1) + "\n")
    checkpoint.unlink(missing_ok=True)
    return record, path


def test(model: VAE, dataset: Dataset, seed: int) -> dict[str, float]:
    """Figures on the whole test set, nats per image: loss, reconstruction, kl, n and the entropy floor."""
    x = unit_interval(dataset.x_test)
    return evaluate(model, x, seed=seed) | {"entropy_floor": entropy_floor(x)}


def _describe(experiment: Experiment, dataset: Dataset, epochs: int, seed: int, runtime: Runtime) -> Record:
    """The part of a record that is known, and must be taken down, before training."""
    command = f"python -m vae_core run {experiment.name}"
    command += f" --epochs {epochs}" if epochs != experiment.epochs else ""
    command += f" --seed {seed}" if seed != experiment.seed else ""
    return {
        "name": experiment.name,
        "command": command,
        "commit": _commit(),
        "seed": seed,
        "device": runtime.describe(),
        "versions": versions(),
        "data_sha256": dataset.sha256,
        "config": asdict(experiment) | {"epochs": epochs, "seed": seed},
    }


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {name: metadata.version(name) for name in ("torchvision", "numpy")}
    return {"vae_core": __version__, "python": platform.python_version(), "torch": torch.__version__, **found}


def _commit() -> str | None:
    """The commit of this checkout, with `-dirty` if `vae_core` differs from it; None outside of git."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
