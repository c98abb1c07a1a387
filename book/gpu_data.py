"""The data of `gpu.py` on a machine without network: joined from parts, stored plainly, or made for a dry run."""

import contextlib
import zipfile
from pathlib import Path

import numpy as np
import torch
from gpu_plan import Plan

from vae_core.data import Dataset, load
from vae_core.experiments.records import RunInProgressError, locked
from vae_core.runtime import replacing


def join_cifar10(folder: Path, root: Path) -> None:
    """Put CIFAR-10 together in `root` from its parts, once they are all there: ROOT/cifar10.npz."""
    parts = {"train": [folder / f"cifar10-train-{k}.webp" for k in range(5)], "test": [folder / "cifar10-test.webp"]}
    labels, whole = folder / "cifar10-labels.npz", root / "cifar10.npz"
    if whole.exists() or not all(path.exists() for path in (labels, *parts["train"], *parts["test"])):
        return
    with contextlib.suppress(RunInProgressError), locked(whole):  # one of several processes does it
        with np.load(labels) as y:
            arrays = {f"y_{split}": y[f"y_{split}"] for split in parts}
        arrays |= {f"x_{split}": np.concatenate([tiles(path) for path in paths]) for split, paths in parts.items()}
        save_arrays(whole, arrays)


def tiles(path: Path) -> np.ndarray:
    """A sheet of 100 by 100 images as (10000, 32, 32, 3)."""
    from PIL import Image

    sheet = np.asarray(Image.open(path).convert("RGB"))
    return sheet.reshape(100, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def images_there(plan: Plan, name: str) -> bool:
    """Whether a data set can be loaded without a network."""
    if name == "cifar10":
        join_cifar10(plan.data, plan.data)
    folder = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}.get(name, "-")
    return (plan.data / f"{name}.npz").exists() or (plan.data / folder / "raw").exists()


def unpack(root: Path) -> None:
    """Store compressed archives without compression, so that they are read at once."""
    for path in root.glob("*.npz"):
        with zipfile.ZipFile(path) as archive:
            packed = any(told.compress_type != zipfile.ZIP_STORED for told in archive.infolist())
        if packed and path.stem in ("mnist", "fashion-mnist", "svhn"):
            with np.load(path) as arrays:
                save_arrays(path, dict(arrays))


def write_idx(dataset: Dataset, root: Path) -> None:
    """MNIST as torchvision reads it, for the loops that it is compared with."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for split, short in (("train", "train"), ("test", "t10k")):
        x, y = getattr(dataset, f"x_{split}")[:, 0].numpy(), getattr(dataset, f"y_{split}").numpy().astype(np.uint8)
        for array, what in ((x, "images-idx3"), (y, "labels-idx1")):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (raw / f"{short}-{what}-ubyte").write_bytes(head + array.tobytes())


def dry_data(root: Path) -> None:
    """The digits as images of 28×28, under the names of MNIST and Fashion-MNIST: 512 and 20 of them."""
    digits = load("digits")
    root.mkdir(parents=True, exist_ok=True)

    def images(x: torch.Tensor) -> np.ndarray:
        large = torch.nn.functional.interpolate(x, (28, 28), mode="bilinear")
        return (255 * large[:, 0]).byte().numpy()

    arrays = {"x_train": images(digits.x_train[:512]), "x_test": images(digits.x_test[:20])}
    arrays |= {"y_train": digits.y_train[:512].numpy(), "y_test": digits.y_test[:20].numpy()}
    for name in ("mnist", "fashion-mnist"):
        if not (root / f"{name}.npz").exists():
            save_arrays(root / f"{name}.npz", arrays)
