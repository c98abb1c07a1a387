"""What `gpu.py` runs, in which order and within which limits, and what is there already."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vae_core.experiments.records import read_record
from vae_core.experiments.registry import EXPERIMENTS, find

SECONDS = {"tests": 75, "speed": 120, "rows": 240, "residual": 240, "further": 300}
TOTAL, GRACE = 480, 40  # seconds for all parts; and for what has begun by then
TRAINED = ("rows", "residual", "further")
DRY = ("chen-mnist-d2", "chen-fashion-d20", "units-mnist-warm-up", "beta-binary-mnist-3", "bits-mnist-shared-gaussian")
Item = tuple[str, str, int]  # part, experiment, seed


@dataclass(frozen=True)
class Plan:
    """How one call of the program works."""

    data: Path
    out: Path
    device: str = "cpu"
    dry: bool = False
    workers: int = 0  # as many as were fastest
    limits: tuple[tuple[str, float], ...] = tuple(SECONDS.items())
    end: float = 0.0  # of all parts, in seconds of the system's clock
    eager: bool = False  # without CUDA graphs
    wait: bool = False  # for CIFAR-10, which may come in parts while the program runs

    @property
    def epochs(self) -> int | None:
        """The epochs of each run: its own number, or one."""
        return 1 if self.dry else None


def rows() -> Iterator[tuple[str, int]]:
    """The thesis' experiments, five seeds each, a seed at a time; CIFAR-10 last."""
    dense = [name for name in EXPERIMENTS if name.startswith(("chen-mnist", "chen-fashion"))]
    for names in (dense, ["chen-cifar10-cnn", "chen-cifar10-fc"]):
        for k in range(5):
            yield from ((name, seeds(name, 5)[k]) for name in names)


def residual() -> Iterator[tuple[str, int]]:
    yield from (("residual-cifar10-bf16", 0), ("residual-cifar10", 0))
    yield from ((name, find(name).seed) for name in ("bits-cifar10-cnn", "residual-svhn-bf16"))


def further() -> Iterator[tuple[str, int]]:
    """Runs that conclusions of the chapters need, those of most worth first."""

    def named(*beginnings: str) -> list[str]:
        return [name for name in EXPERIMENTS if name.startswith(beginnings)]

    for names, n in (
        (["binary-mnist-d20", *named("beta-binary-mnist")], 3),
        (["ablation-no-batch-norm", *named("units-mnist"), "binary-fashion-d20"], 5),
        (["cifar10-cnn-permuted", *named("cifar10-fc-d"), *named("bits-cifar10")], 3),
        ([f"irvin-z{d}-e100" for d in (2, 3, 50)], 3),
        (["iwae-mnist-k50", *named("bits-mnist")], 3),
        (["residual-cifar10-bf16"], 2),
        (["static-iwae-mnist-k1", "static-iwae-mnist-k5", "iwae-mnist-k5", "iwae-mnist-k1"], 3),
        (named("beta-mnist", "fast-mnist", "ablation-mean", "ablation-no-weight"), 3),
    ):
        for k in range(n):
            yield from ((name, seeds(name, n)[k]) for name in names)


def seeds(name: str, n: int) -> list[int]:
    """The experiment's own n seeds, and the smallest others where it has fewer."""
    own = find(name).seeds
    return [*own, *(seed for seed in range(n) if seed not in own)][:n]


def items(plan: Plan, parts: Sequence[str]) -> list[Item]:
    """All runs in the order in which they are begun; of a dry run a few."""
    made = dict(rows=rows, residual=residual, further=further)
    found = [(part, *run) for part in TRAINED if part in parts for run in made[part]()]
    return [item for item in found if item[1] in DRY and item[2] == find(item[1]).seed] if plan.dry else found


def failure(plan: Plan, item: Item, again: bool = False) -> Path:
    return plan.out / "failures" / f"{item[1]}-s{item[2]}{'-eager' if again else ''}.txt"


def settled(plan: Plan, item: Item) -> bool:
    """Whether a run is recorded or has failed, on a card twice."""
    on_card = plan.device == "cuda" and not plan.eager
    return failure(plan, item, again=on_card).exists() or is_recorded(plan, item)


def is_recorded(plan: Plan, item: Item) -> bool:
    experiment = find(item[1])
    return read_record(replace(experiment, epochs=plan.epochs or experiment.epochs), item[2], plan.out) is not None
