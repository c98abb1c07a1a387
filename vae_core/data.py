"""Real image data: `load(name)` for digits, mnist, fashion-mnist, cifar10, svhn; `from_folder` for your own images.

The digits (scikit-learn's 8×8 ones) are always there. The others are downloaded once, through torchvision, to the
data root, and are then kept as one uncompressed `ROOT/NAME.npz` of uint8 arrays. So are the images of a folder.
"""

import hashlib
import os
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae_core._files.folder import check_settings, list_images, read_folder
from vae_core._files.stored import ARRAYS, SOURCES, Arrays, check_writable, read_cache, read_torchvision, write_cache
from vae_core.runtime import project_folder


@dataclass(frozen=True)
class Dataset:
    """One data set in memory: images `x_*` (N, C, H, W), labels `y_*` (N,), int64, from 0.

    Images are uint8 in 0..255, as they are stored (`runtime.unit_interval` turns them into floats in
    [0, 1]), except for the digits, whose 17 grey levels are exact as float32 in [0, 1]. `class_names[k]` says what
    label k stands for; it is empty where there are no classes, and every label is 0 then.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    class_names: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.x_train.shape[1:]
        return channels, height, width

    @cached_property
    def sha256(self) -> str:
        """A checksum over the shapes, dtypes and values of all four arrays, which records contain."""
        digest = hashlib.sha256()
        for array in (getattr(self, name).contiguous().numpy() for name in ARRAYS):
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(array.data)
        return digest.hexdigest()


NAMES = ("digits", *SOURCES)
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGITS = tuple("0123456789")
CLASS_NAMES = dict.fromkeys(NAMES, DIGITS) | {"fashion-mnist": CLOTHES, "cifar10": THINGS}
OTHER_ROOT = "choose another with --data-root or VAE_CORE_DATA"


def default_root() -> Path:
    """Return the data root: `VAE_CORE_DATA` if set, else `data` below `runtime.project_folder()`."""
    return Path(os.environ.get("VAE_CORE_DATA") or project_folder() / "data")


def load(name: str, root: str | Path | None = None, *, size: int | None = None, grey: bool | None = None) -> Dataset:
    """Return a data set by name; torchvision downloads it to `root` if it is not there yet.

    It is looked for in `ROOT/NAME.npz`, then in torchvision's own files below ROOT, then on the network. It is then
    written once to the npz, under a temporary name first, so that a crash leaves no partial file.

    Args:
        name: one of `NAMES`, or `"folder:PATH"` for the images in a folder (`from_folder`, with its defaults).
        root: the data root; `default_root()` if None.
        size, grey: height and width, and whether there is one channel instead of three. The images of a folder are
            converted to these (grey: False if None), so `size` is needed; other data sets must have them already.

    Raises:
        ValueError: for an unknown name, for files that are damaged or not of this data set, or for images of another
            size.
        FileNotFoundError: if the set is not there and cannot be downloaded.
        OSError: if the root cannot be written.
    """
    if isinstance(name, str) and name.startswith("folder:"):
        if size is None:
            raise ValueError(f"size must be given with {name!r}: the images are brought to size × size pixels")
        return from_folder(name.removeprefix("folder:"), size, grey=False if grey is None else grey, root=root)
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(NAMES)}, folder:PATH")
    dataset = _digits() if name == "digits" else _load(name, Path(root) if root is not None else default_root())
    channels, *sides = dataset.image_shape
    if (size is not None and sides != [size, size]) or (grey is not None and grey != (channels == 1)):
        raise ValueError(
            f"{name} has images of shape {dataset.image_shape}, but size={size} and grey={grey} were asked"
        )
    return dataset


def _load(name: str, root: Path) -> Dataset:
    cache = root / f"{name}.npz"
    if cache.exists():
        arrays = read_cache(name, cache, SOURCES[name].image_shape)
    else:
        check_writable(root, "the data root", OTHER_ROOT)
        arrays = read_torchvision(name, root)
        write_cache(cache, arrays)
    return _dataset(name, arrays, CLASS_NAMES[name])


def from_folder(
    path: str | Path,
    size: int,
    *,
    grey: bool = False,
    test_fraction: float = 0.2,
    seed: int = 0,
    root: str | Path | None = None,
) -> Dataset:
    """Return the images below a folder as a data set: any sizes, any format that Pillow reads.

    Each image is turned upright (EXIF), put on white where it is transparent, cropped to its central square and resized
    with antialiasing to `size` × `size` uint8 pixels. Of an animation or a document the first frame is used. Hidden
    files, `__MACOSX` and files without an image's extension are ignored. Image files that cannot be read, or have more
    than `PIL.Image.MAX_IMAGE_PIXELS` pixels, are skipped; one warning counts and names them when they are first read.

    If all images are in sub-folders, these are the classes: `class_names` are their names, sorted, and the labels are
    positions in it; a folder that contains only another folder is skipped over. If there are images beside sub-folders
    with images, all are used, without classes, with a warning.

    The split: SHA-256 of seed and relative path gives each file a number in [0, 1). Files below `test_fraction` are
    the test images, so a file stays in its part when others are added; if one part would be empty, it gets the nearest
    file. In both parts, images are in the order of these numbers, with the classes mixed.

    The arrays are kept as `ROOT/folder-NAME-FINGERPRINT.npz`. The fingerprint covers paths, sizes, times of the last
    change and the arguments: a second call reads that file, a changed folder is read again (old files may be deleted).

    Args:
        path: the folder; `~` is the home folder.
        size: height and width in pixels.
        grey: one channel (ITU-R 601 luma) instead of three.
        test_fraction: the expected share of test images, between 0 and 1.
        seed: of the split.
        root: the data root; `default_root()` if None.

    Raises:
        ValueError: for arguments out of range, a file instead of a folder, sub-folders that are named like splits
            (`train`, `test`), or fewer than two images that can be read.
        TypeError: for a path or `grey` of another type.
        FileNotFoundError: if there is no such folder.
        OSError: if the root cannot be written.
    """
    settings = check_settings(path, size, grey, test_fraction, seed)
    listing = list_images(Path(path).expanduser())
    if listing.mixed:
        warnings.warn(f"{path} holds images beside sub-folders: all are taken, without classes", stacklevel=2)
    root = Path(root) if root is not None else default_root()
    plain = re.sub(r"[^\w-]+", "-", listing.folder.resolve().name)[:40]
    cache = root / f"folder-{plain}-{listing.fingerprint(settings)}.npz"
    if cache.exists():
        arrays = read_cache(cache.stem, cache, settings.shape, max(len(listing.class_names), 1))
    else:
        check_writable(root, "the data root", OTHER_ROOT)
        arrays = read_folder(listing, settings)
        write_cache(cache, arrays)
    return _dataset(f"folder:{path}", arrays, listing.class_names)


def _digits() -> Dataset:
    """Return 1797 digits; the last 360, mostly by other writers than the rest, are the test set."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels, dtype=torch.int64)
    return Dataset("digits", x[:-360], y[:-360], x[-360:], y[-360:], DIGITS)


def _dataset(name: str, arrays: Arrays, class_names: tuple[str, ...]) -> Dataset:
    def images(array: np.ndarray) -> Tensor:
        x = torch.from_numpy(array)
        return (x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2)).contiguous()  # (N, C, H, W)

    tensors = {k: images(a) if k.startswith("x") else torch.from_numpy(a.astype(np.int64)) for k, a in arrays.items()}
    return Dataset(name, **tensors, class_names=class_names)
