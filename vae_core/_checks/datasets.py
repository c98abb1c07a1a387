"""Reading a map-style Dataset, or a list of images, once into memory."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vae_core._checks.tensors import as_tensor, check_dtype, kind
from vae_core._files.folder import eight_bit
from vae_core.runtime import check_memory, progress_bar


def read_items(dataset: Any, name: str, progress: bool) -> tuple[Tensor, list]:
    """Return all images, uint8 where that is exact, and the label of each one (None without)."""
    n = len(dataset)
    if n == 0:
        raise ValueError(f"{name} must hold at least one image, got none")
    labels: list = []
    for i in progress_bar(range(n), disable=not progress or n < 300, unit=" images", desc=f"reading {name}"):
        image, label = _item(dataset, i, name)
        if i == 0:
            store = _Store(n, image, name)
        store.put(i, image)
        labels.append(label)
    return store.values, labels


def _item(dataset: Any, i: int, name: str) -> tuple[Tensor, Any]:
    """Return the i-th image, as a tensor, and its label (None without one)."""
    try:
        item = dataset[i]
    except Exception as error:  # the user's own code, or a file that it cannot read
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name}[{i}] cannot be read ({reason}); leave it out with torch.utils.data.Subset") from error
    image, label = item if isinstance(item, list | tuple) and len(item) == 2 else (item, None)
    if isinstance(image, list | tuple) and len(image) == 1:  # of TensorDataset(x)
        image = image[0]
    if isinstance(image, Image.Image):
        grey = image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")
        levels = torch.tensor(np.asarray(eight_bit(image, grey)))
        return levels[None] if grey else levels.permute(2, 0, 1), label
    if not isinstance(image, Tensor | np.ndarray):
        kinds = "a tensor, an array, a PIL image, or such a one and its label"
        raise TypeError(f"{name}[{i}] must be {kinds}, got {kind(image)}")
    return as_tensor(image, f"{name}[{i}]"), label


class _Store:
    """Memory for n images: bytes as long as each image holds exact multiples of 1/255, then floating point."""

    def __init__(self, n: int, first: Tensor, name: str) -> None:
        self.n, self.name, self.shape = n, name, first.shape
        self.values = self.room(torch.uint8 if _as_bytes(first) is not None else first.dtype)

    def room(self, dtype: torch.dtype) -> Tensor:
        dtype = dtype if dtype == torch.uint8 else torch.promote_types(dtype, torch.float32)
        way_out = f"pass torch.utils.data.Subset({self.name}, range(k)), or a uint8 array from np.load(mmap_mode='r')"
        check_memory(self.name, self.n * self.shape.numel() * dtype.itemsize, way_out)
        return torch.empty((self.n, *self.shape), dtype=dtype)

    def put(self, i: int, image: Tensor) -> None:
        if image.shape != self.shape:
            shapes = f"{tuple(self.shape)} and, at index {i}, {tuple(image.shape)}"
            way_out = "resize them in a transform, or use data.from_folder(path, size)"
            raise ValueError(f"{self.name} must hold images of one shape, got {shapes}; {way_out}")
        check_dtype(image, f"{self.name}[{i}]")
        levels = _as_bytes(image)
        if levels is None and self.values.dtype == torch.uint8:
            stored, self.values = self.values[:i], self.room(image.dtype)
            self.values[:i] = stored.to(self.values.dtype) / 255
        if image.is_floating_point() and self.values.dtype != torch.uint8:
            self.values[i] = image
        elif levels is not None:
            self.values[i] = levels if self.values.dtype == torch.uint8 else levels.to(self.values.dtype) / 255


def _as_bytes(image: Tensor) -> Tensor | None:
    """Return the image as bytes if `unit_interval` turns them into exactly this image again, else None."""
    if image.dtype == torch.uint8:
        return image
    if image.dtype == torch.bool:
        return 255 * image.byte()
    if image.dtype not in (torch.float32, torch.float64):
        return None
    levels = (255 * image).round().clamp(0, 255).byte()
    return levels if torch.equal(levels.to(image.dtype) / 255, image) else None
