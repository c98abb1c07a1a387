"""Models in files: safetensors, with the function that builds the network and its arguments as JSON. No pickle."""

import inspect
import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vae_core.likelihoods import from_config, to_config
from vae_core.runtime import replacing

if TYPE_CHECKING:
    from vae_core.models import Autoencoder

KEY, FORMAT = "vae_core", 1
BUILDERS: dict[str, Callable[..., Any]] = {}  # by name; `remember_arguments` fills it
Arguments = ParamSpec("Arguments")
Model = TypeVar("Model", bound=nn.Module)


def remember_arguments(build: Callable[Arguments, Model]) -> Callable[Arguments, Model]:
    """Return a function that builds models such that each keeps its name and arguments, as `config`, for `save`."""

    @wraps(build)
    def built(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Model:
        model = build(*arguments, **keywords)
        bound = inspect.signature(build).bind(*arguments, **keywords)
        bound.apply_defaults()
        model.config = {"function": build.__name__, "arguments": dict(bound.arguments)}  # type: ignore[assignment]
        return model

    BUILDERS[build.__name__] = built
    return built


def save(model: nn.Module, path: str | Path) -> None:
    """Write a model that a function of `models` built to a file that `load` reads.

    The file is safetensors: the weights exactly as they are, and the function with its arguments as metadata. It is
    written under a temporary name, then renamed.

    Raises:
        TypeError: The model was not built by a function of `models`, or was changed afterwards.
        ValueError: Its likelihood has no name, or it is a conditional model under a condition.
        FileNotFoundError: The folder does not exist.
    """
    path, remembered = Path(path), getattr(model, "config", None)
    if getattr(model, "condition", None) is not None:
        raise ValueError("save the conditional model itself, not model.given(y): a condition is not saved")
    if remembered is None:
        known, kind = ", ".join(BUILDERS), type(model).__name__
        raise TypeError(f"model must come from one of {known}, got a {kind}; use torch.save(model.state_dict(), path)")
    likelihood = to_config(remembered["arguments"]["likelihood"])
    config = {**remembered, "format": FORMAT, "arguments": {**remembered["arguments"], "likelihood": likelihood}}
    if str(_build(config)) != str(model):
        raise TypeError("model was changed after it was built; use torch.save(model.state_dict(), path)")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"path must be in a folder that exists, got {path}")
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    described = json.dumps(config, default=lambda number: number.item())  # NumPy's numbers
    with replacing(path) as part:
        save_file(tensors, part, {KEY: described})
        part.chmod(0o644)  # safetensors makes files that only their owner can read


def load(path: str | Path) -> "Autoencoder":
    """Return the model that `save` wrote, in evaluation mode and on the CPU; it returns the same numbers.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, of a later format, or not a file that `save` wrote.
    """
    config, tensors = _read(Path(path))
    try:
        model: Autoencoder = _build(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} describes a model that this vae_core cannot build ({error})") from error
    if {k: v.shape for k, v in model.state_dict().items()} != {k: v.shape for k, v in tensors.items()}:
        raise ValueError(f"{path} holds other weights than those of the {config['function']} that it describes")
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _build(config: dict[str, Any]) -> Any:
    """Return the model on the meta device: it has no values, and no random numbers are drawn for them."""
    with torch.device("meta"):
        arguments = {**config["arguments"], "likelihood": from_config(config["arguments"]["likelihood"])}
        return BUILDERS[config["function"]](**arguments)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config and the tensors in a file."""
    if not path.is_file():
        raise FileNotFoundError(f"path must be a file that models.save wrote, got {path}")
    try:
        with safe_open(path, "pt") as file:
            described = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error})") from error
    try:
        config = json.loads(described or "")
        version = config["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} holds no model that models.save wrote: its metadata describe none") from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version!r} and this vae_core reads {FORMAT}; update vae_core")
    return config, tensors
