"""What several tests check: one sentence for bad input, files left as they were, files that would execute code."""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from vae_core import data


@contextlib.contextmanager
def refused(kind, *words):
    """The block raises `kind`, in one line that holds all the words."""
    with pytest.raises(kind) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in map(str, words) if word not in message] == [], message


def write_half(target) -> None:
    """What a writer has done when it crashes; `target` is a path or an open file."""
    (target.write if hasattr(target, "write") else Path(target).write_bytes)(b"PK the first half")


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "executed"))


def files_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def made_arrays(shape=(28, 28), n_train=5, n_test=3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (n_train, *shape), dtype=np.uint8),
        "y_train": rng.integers(0, 10, n_train, dtype=np.uint8),
        "x_test": rng.integers(0, 256, (n_test, *shape), dtype=np.uint8),
        "y_test": rng.integers(0, 10, n_test, dtype=np.uint8),
    }


def real(name: str, root: Path) -> data.Dataset:
    if not ((root / f"{name}.npz").exists() or (root / data.SOURCES[name].folder).exists()):
        pytest.skip(f"no {name} in {root}: run `python -m vae_core data {name}`")
    return data.load(name, root)
