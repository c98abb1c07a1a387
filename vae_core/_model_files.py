"""Models in files: safetensors, with what builds the network as JSON in the metadata. No pickle."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vae_core.runtime import replacing

KEY, FORMAT = "vae_core", 1


def write(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a model to a temporary file beside `path`, then rename it.

    Raises:
        FileNotFoundError: The folder does not exist.
    """
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"path must be in a folder that exists, got {path}")
    described = json.dumps({"format": FORMAT, **config}, default=lambda number: number.item())  # NumPy's numbers
    with replacing(path) as part:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part, {KEY: described})
        part.chmod(0o644)  # safetensors lets nobody else read it


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config and the tensors that `write` was given.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, holds no model of ours, or is of a later format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"path must be a file that models.save wrote, got {path}")
    try:
        with safe_open(path, "pt") as file:
            described = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, it is no dict
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error})") from error
    try:
        config = json.loads(described or "")
        version = config.pop("format")
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} holds no model that models.save wrote: its metadata describe none") from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version!r} and this vae_core reads {FORMAT}; update vae_core")
    return config, tensors
