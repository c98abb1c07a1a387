"""A folder of image files: which files are images, what each one becomes, and how they are split."""

import contextlib
import hashlib
import os
import posixpath
import stat
import unicodedata
import warnings
from collections.abc import Iterator
from math import prod
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vae_core._files.stored import Arrays
from vae_core.runtime import check_memory, check_seed, positive_int, progress_bar

RULE = 1  # the version of the rules below: increase it with any change, so that caches of older rules are not used
NO_IMAGES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow lists these but needs another program
NOT_READ = {".heic", ".heif", ".jxl", ".avif"}  # images for which Pillow may lack a decoder; the warning names them
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}


class Settings(NamedTuple):
    """How the images of a folder are converted and split."""

    size: int
    grey: bool
    test_fraction: float
    seed: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(size, size) or (size, size, 3)."""
        return (self.size, self.size) if self.grey else (self.size, self.size, 3)


class Listing(NamedTuple):
    """The image files below a folder: paths relative to it, one class each (0 without classes), sizes, times."""

    folder: Path
    names: list[str]
    labels: list[int]
    class_names: tuple[str, ...]
    stamps: list[tuple[int, int]]  # bytes, and nanoseconds of the last change
    mixed: bool  # images at the top and in sub-folders: no classes

    def fingerprint(self, settings: Settings) -> str:
        """Return 16 hexadecimal digits that change with any name, size, time or setting."""
        digest = hashlib.sha256(repr((RULE, *settings)).encode())
        for name, stamp in zip(self.names, self.stamps, strict=True):
            digest.update(_bytes(name) + repr(stamp).encode())
        return digest.hexdigest()[:16]


def check_settings(path: Any, size: Any, grey: Any, test_fraction: Any, seed: Any) -> Settings:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a string or a Path, got {path!r}")
    if not os.fspath(path):
        raise ValueError("path must name a folder of images, got an empty string")
    if not isinstance(grey, bool | np.bool_):
        raise TypeError(f"grey must be True or False, got {grey!r}")
    if not isinstance(test_fraction, Real) or not 0 < float(test_fraction) < 1:
        raise ValueError(f"test_fraction must be a number between 0 and 1, got {test_fraction!r}")
    check_seed(seed)
    return Settings(positive_int("size", size), bool(grey), float(test_fraction), int(seed))


def list_images(folder: Path) -> Listing:
    """Return the image files below `folder`, sorted by name, with the classes that its sub-folders are.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is a file, holds no image, or if its sub-folders are named like splits (`train`, `test`).
    """
    if not folder.exists():
        raise FileNotFoundError(f"path {folder} does not exist; give a folder of images")
    if not folder.is_dir():
        raise ValueError(f"path must be a folder of images, got the file {folder} (unpack an archive first)")
    known, files = _extensions(), sorted(_files(folder))
    images = [name for name in files if Path(name).suffix.lower() in known]
    if not images:
        raise ValueError(f"path {folder} holds no image file (.png, .jpg, ...), got {len(files)} other files")
    labels, class_names, mixed = _classes(images)
    return Listing(folder, images, labels, class_names, [_stamp(folder / name) for name in images], mixed)


def _classes(names: list[str]) -> tuple[list[int], tuple[str, ...], bool]:
    """Return labels, class names, and whether there are images beside sub-folders, in the folder that holds all."""
    outer = posixpath.commonpath([posixpath.dirname(name) for name in names])
    inner = [posixpath.relpath(name, outer or ".").split("/") for name in names]
    folders, beside = sorted({parts[0] for parts in inner if len(parts) > 1}), any(len(parts) == 1 for parts in inner)
    if {name.lower() for name in folders} <= SPLITS and len(folders) > 1:
        raise ValueError(f"path holds the splits {', '.join(folders)}, which are no classes; give one of these folders")
    number = {name: k for k, name in enumerate(folders)}
    labels = [0 if beside else number[parts[0]] for parts in inner]
    return labels, () if beside else tuple(folders), beside and bool(folders)


def read_folder(listing: Listing, settings: Settings) -> Arrays:
    """Return the images and labels of both splits; warn of the files that cannot be read.

    Raises:
        ValueError: if fewer than two can be read, or if they do not fit into memory.
    """
    images, kept, broken = read_images(listing, settings)
    first = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
    if len(kept) < 2:
        raise ValueError(f"path {listing.folder} must hold two images that can be read, got {len(kept)}; not: {first}")
    if broken:
        warnings.warn(f"{len(broken)} of {len(listing.names)} image files were skipped: {first}", stacklevel=3)
    number = places([listing.names[k] for k in kept], settings.seed)
    order, labels = number.argsort(), np.array(listing.labels)[kept]
    cut = min(max(int((number < settings.test_fraction).sum()), 1), len(kept) - 1)
    test, train = order[:cut], order[cut:]
    return {"x_train": images[train], "y_train": labels[train], "x_test": images[test], "y_test": labels[test]}


def read_images(listing: Listing, settings: Settings) -> tuple[np.ndarray, list[int], list[str]]:
    """Return the images that can be read, (N, size, size) or (N, size, size, 3), their indices in the listing, and the
    reason why each of the others cannot."""
    shape = (len(listing.names), *settings.shape)
    check_memory("the images", 2 * prod(shape), "give a smaller size, or grey=True")
    images, kept, broken = np.empty(shape, np.uint8), list[int](), list[str]()
    few = len(listing.names) < 300
    for place, name in enumerate(progress_bar(listing.names, disable=few, unit=" images", desc="reading")):
        try:
            images[len(kept)] = read_image(listing.folder / name, settings.size, settings.grey)
            kept.append(place)
        except Exception as error:  # Pillow's decoders raise many types for a damaged file
            broken.append(f"{repr(name)[1:-1]} ({_reason(error)})")
    return images[: len(kept)], kept, broken


def read_image(path: Path, size: int, grey: bool) -> np.ndarray:
    """Return the middle square of one image file, size × size, uint8, turned upright as its EXIF data say.

    Raises what Pillow raises for a file that is damaged, not an image or far too large, and ValueError for levels whose
    range is unknown.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("no regular file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unusual metadata,
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # but not about too many pixels
        with Image.open(path, formats=_formats()) as image:
            image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded at 1/2, 1/4 or 1/8, well above `size`
            image.load()
            upright: Image.Image = image
            with contextlib.suppress(Exception):  # an image with damaged EXIF data stays as it is
                upright = ImageOps.exif_transpose(image)
            square = ImageOps.fit(eight_bit(upright, grey), (size, size), Image.Resampling.BILINEAR)
    return np.asarray(square)


def eight_bit(image: Image.Image, grey: bool) -> Image.Image:
    """Return an image of any mode as `L` (grey) or `RGB`: 0 to 255, on white where it is transparent.

    16-bit levels run from 0 to 65535, floating-point ones from 0 to 1. Raises ValueError for levels beyond.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _rescaled(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    colour = image if image.mode in ("1", "L") else image.convert("RGB")  # Pillow converts RGB to every other mode
    return colour.convert("L" if grey else "RGB")


def _rescaled(image: Image.Image) -> Image.Image:
    levels, top = np.asarray(image).astype(np.float64), 1 if image.mode == "F" else 65535
    if not (levels.min() >= 0 and levels.max() <= top):
        raise ValueError(f"levels from {levels.min():g} to {levels.max():g}, expected 0 to {top}")
    return Image.fromarray(np.rint(levels * (255 / top)).astype(np.uint8))


def places(names: list[str], seed: int) -> np.ndarray:
    """Return a number in [0, 1) for each name: the first 52 bits of SHA-256 of the seed and the name.

    It depends on nothing else, so a file keeps its number, and its split, when others are added.
    """
    heads = (hashlib.sha256(f"{seed}/".encode() + _bytes(name)).digest()[:8] for name in names)
    return np.array([(int.from_bytes(head, "big") >> 12) / 2**52 for head in heads])


def _files(folder: Path) -> Iterator[str]:
    """Yield the names, relative to `folder` and with slashes, of all files below it that are not hidden.

    A link to a folder is followed unless it leads to a folder above, inside or already seen, so that there are no loops
    and no duplicates.
    """
    root, seen = folder.resolve(), set[Path]()
    for top, folders, files in os.walk(folder, onerror=_warn_of, followlinks=True):
        here = Path(top)
        folders[:] = [name for name in sorted(folders) if _visible(name) and _leads_on(here / name, root, seen)]
        yield from ((here / name).relative_to(folder).as_posix() for name in files if _visible(name))


def _warn_of(error: OSError) -> None:
    warnings.warn(f"folder {error.filename} was skipped: {error.strerror}", stacklevel=5)


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _leads_on(folder: Path, root: Path, seen: set[Path]) -> bool:
    if not folder.is_symlink():
        return True
    target = folder.resolve()
    again = target in seen or target.is_relative_to(root) or root.is_relative_to(target)
    seen.add(target)
    return not again


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in NO_IMAGES]


def _extensions() -> set[str]:
    known = set(_formats())
    return {ending for ending, name in Image.registered_extensions().items() if name in known} | NOT_READ


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # a broken link
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _bytes(name: str) -> bytes:
    """Return the name as the same bytes on each system: macOS decomposes accented letters."""
    return unicodedata.normalize("NFC", name).encode("utf-8", "backslashreplace")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no image that Pillow can read"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return "too many pixels"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
