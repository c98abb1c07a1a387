"""How data sets are stored: one npz of four arrays in the data root, or the files that torchvision keeps there."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vae_core.runtime import replacing

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Source:
    """How torchvision stores one data set: its class, its folder, and the shape of an image in the npz."""

    cls_name: str
    folder: str
    image_shape: tuple[int, ...]
    splits: Callable[[Any, str, bool], Iterator]  # (cls, root, download) -> train and test

    def archives(self, cls: Any) -> list[tuple[str, str]]:
        """Return (path below the root, md5) of every archive that torchvision would download."""
        if self.cls_name == "SVHN":
            return [(cls.split_list[split][1], cls.split_list[split][2]) for split in ("train", "test")]
        if self.cls_name == "CIFAR10":
            return [(cls.filename, cls.tgz_md5)]
        return [(f"{self.folder}/raw/{filename}", md5) for filename, md5 in cls.resources]


def _by_flag(cls: Any, root: str, download: bool) -> Iterator:
    return (cls(root, train=train, download=download) for train in (True, False))


def _by_split(cls: Any, root: str, download: bool) -> Iterator:
    return (cls(root, split=split, download=download) for split in ("train", "test"))


SOURCES = {
    "mnist": _Source("MNIST", "MNIST", (28, 28), _by_flag),
    "fashion-mnist": _Source("FashionMNIST", "FashionMNIST", (28, 28), _by_flag),
    "cifar10": _Source("CIFAR10", "cifar-10-batches-py", (32, 32, 3), _by_flag),
    "svhn": _Source("SVHN", "", (32, 32, 3), _by_split),
}


def read_cache(name: str, path: Path, shape: tuple[int, ...], classes: int = 10) -> Arrays:
    """Return the arrays in the npz at `path`. Raise ValueError if it is damaged or holds another data set."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in ARRAYS}  # the zip's own checksums are verified here
    except Exception as error:  # zipfile, zlib and numpy raise many types for a damaged file
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} is damaged or not ours ({reason}); delete or move it, then load again") from error
    if problem := _problem(arrays, shape, classes):
        raise ValueError(f"{path} is not {name}: {problem}; delete or move it, then load again")
    return arrays


def _problem(arrays: Arrays, shape: tuple[int, ...], classes: int = 10) -> str | None:
    """Return why these arrays are not images of this shape with this number of classes, or None if they are."""
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        if x.dtype != np.uint8 or x.shape[1:] != shape:
            return f"x_{split} is {x.dtype} {x.shape}, expected uint8 (N, {', '.join(map(str, shape))})"
        if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer) or len(y) == 0:
            return f"y_{split} is {y.dtype} {y.shape} beside {len(x)} images"
        if y.min() < 0 or y.max() >= classes:
            return f"labels run from {y.min()} to {y.max()}, expected 0 to {classes - 1}"
    return None


def check_writable(folder: Path, name: str, way_out: str) -> None:
    """Create `folder` if necessary. Raise OSError if it cannot be written, with the reason and the way out."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{name} {folder} cannot be written ({error.strerror}); {way_out}") from error


def write_cache(path: Path, arrays: Arrays) -> None:
    """Write the arrays to an npz at `path`, under a temporary name first."""
    with replacing(path) as part:
        np.savez(part, **arrays)  # type: ignore[arg-type]


def read_torchvision(name: str, root: Path) -> Arrays:
    """Return arrays from torchvision's files below the root, or else from a download, which is deleted afterwards."""
    from torchvision import datasets

    source = SOURCES[name]
    cls = getattr(datasets, source.cls_name)
    _check_archives(name, root, source.archives(cls))
    present = any((root / path).exists() for path, _ in source.archives(cls))
    if present or (source.folder and (root / source.folder).exists()):
        with _one_sentence(ValueError, f"the files of {name} below {root} are damaged or incomplete"):
            return _read_splits(name, source, cls, root)
    fresh = tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-")
    with fresh as folder, _one_sentence(FileNotFoundError, _how_to_get(name, root)):
        return _read_splits(name, source, cls, Path(folder))


def _check_archives(name: str, root: Path, archives: list[tuple[str, str]]) -> None:
    from torchvision.datasets.utils import check_integrity

    for path, md5 in archives:
        if (root / path).exists() and not check_integrity(root / path, md5):
            raise ValueError(f"{name}: the archive {root / path} is truncated or foreign; delete it, then load again")


@contextlib.contextmanager
def _one_sentence(kind: type[Exception], sentence: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # torchvision passes on what its readers and urllib raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise kind(f"{sentence} ({reason})") from error


def _read_splits(name: str, source: _Source, cls: Any, root: Path) -> Arrays:
    with contextlib.redirect_stdout(io.StringIO()):  # torchvision prints each mirror it tries
        train, test = source.splits(cls, str(root), True)
    arrays = {"x_train": _images(train), "y_train": _labels(train), "x_test": _images(test), "y_test": _labels(test)}
    if problem := _problem(arrays, source.image_shape):
        raise ValueError(problem)
    return arrays


def _images(split: Any) -> np.ndarray:
    x = np.asarray(split.data)
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 and x.shape[1] == 3 else x  # SVHN comes N×3×H×W


def _labels(split: Any) -> np.ndarray:
    return np.asarray(split.targets if hasattr(split, "targets") else split.labels).astype(np.uint8)


def _how_to_get(name: str, root: Path) -> str:
    return (
        f"{name} is not in {root} and could not be downloaded; with a network run `python -m vae_core data {name}`, "
        f"without one put {name}.npz or torchvision's files there; experiments on digits run without it"
    )
