"""The named experiments: what each one trains, on what, and the record that it leaves behind."""

import json
import platform
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vae_core import __version__
from vae_core.data import Dataset, check_writable, load
from vae_core.evaluation import entropy_floor, evaluate, kl_per_unit
from vae_core.models import VAE, mlp_vae
from vae_core.objectives import elbo_terms
from vae_core.runtime import Runtime, replacing, seed_everything, unit_interval
from vae_core.training import fit

Record = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """One experiment, complete but for the machine: `model` are arguments of `mlp_vae`, `training` of `fit`.

    `seed` is its own, `more_seeds` are those that `reproduce` runs beside it; `printed` holds what the source
    printed, by the names of a record's test figures; `weights` says whether a whole run keeps them.
    """

    name: str
    source: str
    dataset: str
    epochs: int
    seed: int
    model: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    more_seeds: tuple[int, ...] = ()
    printed: dict[str, float] = field(default_factory=dict)
    weights: bool = False

    def config(self, epochs: int, seed: int) -> dict[str, Any]:
        """What determines a run's figures, as a record keeps it."""
        own = {key: getattr(self, key) for key in ("name", "source", "dataset", "model", "training")}
        return json.loads(json.dumps(own | {"epochs": epochs, "seed": seed}))

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds that `reproduce` runs, its own first."""
        return self.seed, *self.more_seeds

    @property
    def cost(self) -> float:
        """Floating-point operations of training: 6 per parameter, image and epoch (forward 2, backward 4)."""
        n, shape = SIZES[self.dataset]
        with torch.device("meta"):
            parameters = sum(p.numel() for p in mlp_vae(shape, **self.model).parameters())
        return 6.0 * parameters * n * self.epochs


SIZES = {"digits": (1437, (1, 8, 8)), "mnist": (60_000, (1, 28, 28)), "fashion-mnist": (60_000, (1, 28, 28))}
SIZES["cifar10"] = (50_000, (3, 32, 32))
THESIS_TRAINING = dict(batch_size=128, learning_rate=1e-3, weight_decay=1e-5, reduction="sum")


def _chen() -> Iterator[Experiment]:
    """The dense networks of the thesis; d = 2 and 20 are its headline rows."""
    for short, dataset, source, seed in (
        ("mnist", "mnist", "Chen §4.2, listing A.3", 723),
        ("fashion", "fashion-mnist", "Chen §4.3, listing A.4", 237),
    ):
        for d in (2, 5, 10, 15, 20, 25):
            headline = dict(more_seeds=(0, 1), weights=True) if d in (2, 20) else {}
            name = f"chen-{short}-d{d}"
            yield Experiment(name, source, dataset, 20, seed, dict(latent_dim=d), THESIS_TRAINING, **headline)
    printed = {"loss": 1864.54, "reconstruction": 1847.17, "kl": 17.37}
    source, network = "Chen §4.4, Table 4.3", dict(latent_dim=256)
    yield Experiment("chen-cifar10-fc", source, "cifar10", 25, 723, network, THESIS_TRAINING, (0, 1), printed)


DIGITS = Experiment(
    "digits-d2", "this book, chapter 00", "digits", 60, 0, dict(latent_dim=2, hidden=(256, 128)), dict(batch_size=64)
)
EXPERIMENTS = {experiment.name: experiment for experiment in (DIGITS, *_chen())}


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


def read_record(experiment: Experiment, seed: int, out: Path) -> Record | None:
    """The record of a whole run of the experiment as it is defined now; None if there is no such record."""
    try:
        record = json.loads(record_path(experiment, seed, out).read_text())
        wanted = record["config"] == experiment.config(experiment.epochs, seed)
        return record if wanted and len(record["history"]) == experiment.epochs else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def valid_records(experiment: Experiment, out: Path) -> list[Record]:
    """The valid records of an experiment over its seeds."""
    return [record for seed in experiment.seeds if (record := read_record(experiment, seed, out))]


def spread(values: Iterable[float]) -> str:
    """Mean ± standard deviation, to two decimals; the mean alone of a single value."""
    values = list(values)
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def pending(out: Path, only: str = "*") -> list[tuple[Experiment, int]]:
    """(experiment, seed) pairs without a valid record whose name matches the pattern `only`, cheapest first."""
    chosen = sorted((e for e in EXPERIMENTS.values() if fnmatch(e.name, only)), key=lambda e: e.cost)
    pairs = [(e, seed) for e in chosen for seed in e.seeds]
    return [(e, seed) for e, seed in pairs if read_record(e, seed, out) is None]


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
    if experiment.weights and (epochs, seed) == (experiment.epochs, experiment.seed):
        save_weights(model, path.with_suffix(".safetensors"))
    with replacing(path) as part:
        part.write_text(json.dumps(record, indent=1) + "\n")
    checkpoint.unlink(missing_ok=True)
    return record, path


def test(model: VAE, dataset: Dataset, seed: int) -> dict[str, float]:
    """Figures on the whole test set, nats per image: loss, reconstruction, kl, n; entropy floor, active units."""
    x = unit_interval(dataset.x_test)
    active = int((kl_per_unit(model, x) > 0.01).sum())
    return evaluate(model, x, seed=seed) | {"entropy_floor": entropy_floor(x), "active_units": active}


def save_weights(model: VAE, path: Path) -> None:
    """All parameters and running averages as 16-bit floats, in safetensors."""
    half = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    with replacing(path) as part:
        save_file({k: v.cpu().contiguous() for k, v in half.items()}, part)


def load_trained(name: str, out: str | Path | None = None) -> VAE:
    """The recorded model of an experiment, in evaluation mode.

    Raises ValueError for an unknown name, an experiment that keeps no weights, or weights of another network,
    FileNotFoundError where they are not made yet; the last two say which command makes them.
    """
    experiment, out = find(name), Path(out) if out is not None else default_out()
    path = record_path(experiment, experiment.seed, out).with_suffix(".safetensors")
    makes = f"`python -m vae_core run {name}` makes it"
    if not experiment.weights:
        raise ValueError(f"the experiment {name} keeps no weights")
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; {makes}")
    model = mlp_vae(SIZES[experiment.dataset][1], **experiment.model)
    try:
        model.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} does not hold the weights of {name}; {makes} anew") from error
    return model.eval()


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
        "config": experiment.config(epochs, seed),
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
