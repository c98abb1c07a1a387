"""Folders of images as people have them: PNGs of different sizes, grey and in colour."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, n: int = 40, seed: int = 0) -> Path:
    """Write n PNGs, each a bright disc on a dark ground, from 20 to 59 pixels high and wide; return the folder."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(n):
        height, width = rng.integers(20, 60, 2)
        rows, columns = np.mgrid[:height, :width]
        middle, radius = rng.uniform(0.3, 0.7, 2) * (height, width), rng.uniform(4, 9)
        disc = np.hypot(rows - middle[0], columns - middle[1]) < radius
        grey = (40 + 200 * disc).astype(np.uint8)
        Image.fromarray(grey if k % 2 else np.stack([grey, grey // 2, 255 - grey], -1)).save(folder / f"{k}.png")
    return folder


def write_classes(folder: Path, classes: int, each: int = 8) -> Path:
    """Write as many sub-folders of images."""
    for k in range(classes):
        write_images(folder / f"class-{k:02}", each, seed=k)
    return folder
