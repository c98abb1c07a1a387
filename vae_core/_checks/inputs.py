"""Checks of data and labels: tensors, arrays, lists and Datasets become one tensor each, or raise an error."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from vae_core._checks.datasets import read_items
from vae_core._checks.tensors import as_tensor, check_dtype, check_finite, kind


class Inputs(NamedTuple):
    """Data `x` (N, ...), and the labels `y` that came with them (None for data without)."""

    x: Tensor
    y: Tensor | None


def as_images(x: Any, name: str = "x", *, dtype: torch.dtype | None = None, progress: bool = True) -> Tensor:
    """Return data as one tensor: images (N, C, H, W), tables (N, p), any event shape after the first axis.

    uint8 images (0 to 255) stay uint8: `runtime.unit_interval` divides each batch by 255. bool becomes 0.0 and 1.0.
    Floating-point values of any width are converted to `dtype`, without a copy where they have it already.
    Nothing else changes: neither the order of the axes nor the device. A read-only or memory-mapped uint8 array
    (`np.load(path, mmap_mode="r")`) stays on the disk; use it for data larger than memory.

    A map-style torch Dataset is read once, so random transforms are applied once: into uint8 if each image is a PIL
    image, bytes, or floats that are exact multiples of 1/255 (`ToTensor` without `Normalize`), else into its floats.

    Whether the values lie in a likelihood's support is checked separately, once, on what this returns.

    Args:
        x: a tensor, an array (of NumPy, or anything that converts to one), rows of numbers, a list of images (tensors,
            arrays, PIL images), or a map-style Dataset of images or of (image, label) pairs, all of one shape.
        name: the caller's name for it, for messages.
        dtype: of floating-point results; torch's default if None. `runtime.dtype_of(model)` is the model's.
        progress: whether a bar is drawn while a long Dataset is read.

    Raises:
        TypeError: for complex numbers, integers wider than a byte, strings, objects, masked arrays, DataLoaders,
            IterableDatasets and all that is not data.
        ValueError: for no data at all, a single axis, nan or infinity, 0/1 stored as uint8 (which would be 0 and
            1/255), images of several shapes, or more than fits into memory.
    """
    return images_and_labels(x, name, dtype=dtype, progress=progress).x


def images_and_labels(x: Any, name: str = "x", *, dtype: torch.dtype | None = None, progress: bool = True) -> Inputs:
    """Return what `as_images` returns, and the labels of the images if `x` is a Dataset or list of pairs.

    The labels are None unless `as_labels` takes all of them (it does not take captions, for example). Arguments and
    errors are those of `as_images`.
    """
    _check_container(x, name)
    if not _is_dataset(x):
        return Inputs(_checked(as_tensor(x, name), name, dtype), None)
    images, labels = read_items(x, name, progress)
    images = _checked(images, name, dtype)
    try:
        return Inputs(images, None if labels[0] is None else as_labels(labels, len(images), dtype=dtype))
    except (TypeError, ValueError):
        return Inputs(images, None)


def as_labels(y: Any, n: int | None = None, name: str = "y", *, dtype: torch.dtype | None = None) -> Tensor:
    """Return class labels (N,) as int64, conditions (N, c) or of higher rank in floating point.

    Labels may be integers, bools or floats without a fraction (3.0); conditions any real numbers.

    Args:
        y: a tensor, an array (of NumPy, or anything that converts to one), a list, a tuple or a range.
        n: the number of data that they belong to; not checked if None.
        name: the caller's name for them, for messages.
        dtype: of conditions; torch's default if None.

    Raises:
        TypeError: for masked arrays, complex numbers, strings (number them: `np.unique(y, return_inverse=True)`) and
            objects.
        ValueError: for another length than `n`, nan or infinity, or fractions as classes (4.5).
    """
    labels = as_tensor(y, name)
    if labels.dim() == 0:
        raise ValueError(f"{name} must hold one entry for each image, got the single value {labels.item()}")
    if n is not None and len(labels) != n:
        raise ValueError(f"{name} must hold one entry for each image, got {len(labels)} for {n}")
    if labels.is_floating_point():
        check_finite(labels, name)
    if labels.dim() > 2 and labels.dtype == torch.uint8:
        raise TypeError(f"{name} must be floating point where it holds images, got uint8; use unit_interval({name})")
    if labels.dim() > 1:
        return labels.to(dtype or torch.get_default_dtype())
    if labels.is_floating_point() and len(bad := _no_class(labels).nonzero()):
        value = f"{labels[bad[0, 0]].item():g} at index {bad[0, 0].item()}"
        raise ValueError(f"{name} must be whole numbers, one class each, got {value}; as a condition give shape (N, 1)")
    return labels.long()


def _no_class(labels: Tensor) -> Tensor:
    return (labels != labels.round()) | (labels.abs() > 2**53)


def _check_container(x: Any, name: str) -> None:
    """Raise TypeError for a container that cannot be read, or not without losing its meaning."""
    if isinstance(x, DataLoader):
        way_out = "pass its dataset (loader.dataset); batches are drawn here"
    elif isinstance(x, IterableDataset):
        way_out = "pass list(dataset) if it fits into memory, or a map-style Dataset"
    elif hasattr(x, "x_train"):
        way_out = "pass its x_train or x_test"
    elif isinstance(x, tuple):
        way_out = "pass the images as x and the labels as y"
    elif isinstance(x, Image.Image):
        way_out = "pass a list of images"
    elif isinstance(x, Mapping | str | bytes) or not (hasattr(x, "__len__") and hasattr(x, "__getitem__")):
        way_out = "pass a tensor, an array, a list of images or a map-style Dataset"
    else:
        return
    raise TypeError(f"{name} must be data, got {kind(x)}; {way_out}")


def _is_dataset(x: Any) -> bool:
    """Return whether `x` must be read item by item."""
    if isinstance(x, list) and x:
        first = x[0][0] if isinstance(x[0], list | tuple) and len(x[0]) else x[0]
        return isinstance(first, Tensor | np.ndarray | Image.Image)
    return isinstance(x, TorchDataset) or not (isinstance(x, list | range | Tensor) or hasattr(x, "__array__"))


def _checked(x: Tensor, name: str, dtype: torch.dtype | None) -> Tensor:
    """Return data of uint8 or of `dtype`, finite. Raise what `as_images` raises for values and shapes."""
    if x.dim() < 2:
        way_out = f"use {name}[None] for one datum, {name}[:, None] for one number each"
        raise ValueError(f"{name} must have shape (N, C, H, W) or (N, p), got {tuple(x.shape)}; {way_out}")
    if x.numel() == 0:
        raise ValueError(f"{name} must hold at least one image or row, got none: its shape is {tuple(x.shape)}")
    check_dtype(x, name)
    if x.dtype == torch.uint8:
        if x.max() == 1:
            raise ValueError(
                f"{name} is uint8, which means 0 to 255, but its maximum is 1; use {name}.bool() or {name}.float() for "
                "binary images, or, if they really are that dark, divide by 255"
            )
        return x
    x = x.to(dtype or torch.get_default_dtype())
    check_finite(x, name)
    return x
