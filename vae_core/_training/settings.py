"""The arguments of `fit`, each checked before anything is trained; the device and the optimizer."""

import inspect
from collections.abc import Callable
from math import inf, isfinite
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.optim import SGD, Adam, Optimizer

from vae_core._training.fingerprints import describe
from vae_core.runtime import Runtime, as_int, check_seed, device_of, positive_int

CHOICES = {"reduction": ("mean", "sum"), "schedule": ("constant", "one-cycle")}
EXAMPLES = "such as torch.optim.AdamW or functools.partial(torch.optim.SGD, momentum=0.9)"


def check_numbers(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with NumPy's numbers as Python's, since a checkpoint can hold no others.

    Raises:
        TypeError: for another type.
        ValueError: for a value out of range; the message names the setting.
    """
    check_seed(settings["seed"])
    for name, known in CHOICES.items():
        if settings[name] not in known:
            raise ValueError(f"{name} must be {known[0]!r} or {known[1]!r}, got {settings[name]!r}")
    if not isinstance(settings["drop_last"], bool):
        raise TypeError(f"drop_last must be True or False, got {settings['drop_last']!r}")
    numbers = dict(seed=as_int(settings["seed"]), batch_size=positive_int("batch_size", settings["batch_size"]))
    numbers["learning_rate"] = _number("learning_rate", settings["learning_rate"])
    numbers["weight_decay"] = _number("weight_decay", settings["weight_decay"])
    if numbers["learning_rate"] == 0:
        raise ValueError(f"learning_rate must be positive and finite, got {settings['learning_rate']!r}")
    return settings | numbers


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < inf:
        raise ValueError(f"{name} must be a number, neither negative nor infinite, got {value!r}")
    return float(value)


def check_callables(
    objective: Callable, optimizer: Callable, anneal: Callable | None, after_epoch: Callable | None
) -> None:
    """Raise TypeError unless they can be called, ValueError unless `anneal` returns finite numbers at both ends."""
    if isinstance(optimizer, Optimizer):
        made = f"got one of class {type(optimizer).__name__} that is made already"
        raise TypeError(f"optimizer must be what makes one from (params, lr=…, weight_decay=…), {EXAMPLES}, {made}")
    named = {"objective": objective, "optimizer": optimizer, "anneal": anneal, "after_epoch": after_epoch}
    for name, value in named.items():
        if not callable(value) and (value is not None or name in ("objective", "optimizer")):
            raise TypeError(f"{name} must be a function, got {value!r}")
    for progress in (0.0, 1.0) if anneal else ():
        weight = anneal(progress)  # type: ignore[misc]
        if not isinstance(weight, Real) or not isfinite(weight):
            raise ValueError(f"anneal must give a finite number for each progress, got {weight!r} for {progress}")


def check_model(model: nn.Module) -> None:
    """Raise TypeError unless it is an nn.Module, ValueError unless it has parameters that can be trained."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got an object of type {type(model).__name__}")
    parameters = list(model.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        what = "all of its parameters are frozen (requires_grad=False)" if parameters else "it has no parameters"
        raise ValueError(f"model must have parameters to train, but {what}")
    if any(tensor.is_meta or is_lazy(tensor) for tensor in parameters):
        raise ValueError(
            "model must have values for all parameters; call it once if it is lazy, and not on the device meta"
        )
    if any(tensor.is_inference() for tensor in (*parameters, *model.buffers())):
        raise ValueError("model was made under torch.inference_mode, so it cannot be trained; make it outside of that")


def check_batches(n: int, model: nn.Module, batch_size: int, drop_last: bool, processes: int) -> None:
    """Raise ValueError unless each process gets enough of each batch of n data."""
    if drop_last and n < batch_size:
        raise ValueError(f"drop_last drops the only batch: batch_size is {batch_size}, and there are {n} images")
    smallest = (batch_size if drop_last else n % batch_size or min(batch_size, n)) // processes
    if smallest < 1:
        raise ValueError(f"batch_size {batch_size} leaves one of {processes} processes without any of {n} images")
    if smallest < 2 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        leaves = f"batch_size {batch_size} leaves a batch of one among {n} images, and batch norm needs two"
        raise ValueError(f"{leaves}; choose another, or drop_last=True")


def find_runtime(device: str | torch.device | Runtime | None, model: nn.Module) -> Runtime:
    """Return where to train: on `device`, or where the model is. Raises what `Runtime.detect` raises, and ValueError
    for autocast with float16, whose gradients would need to be scaled."""
    if isinstance(device, Runtime):
        runtime = device
    else:
        runtime = Runtime(device_of(model)) if device is None else Runtime.detect(device)
    kind = runtime.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        raise ValueError("torch.autocast must use bfloat16 around fit, got float16, whose gradients would underflow")
    return runtime


def make_optimizer(
    optimizer: Callable[..., Optimizer], model: nn.Module, learning_rate: float, weight_decay: float
) -> Optimizer:
    """Return the optimizer of a model's parameters: fused, and on CUDA capturable, where possible.

    Raises:
        ValueError: if it cannot be made with these settings or needs a closure.
        TypeError: if it is not an optimizer.
    """
    fixed = getattr(optimizer, "keywords", {})
    for name, ours in (("lr", "learning_rate"), ("weight_decay", "weight_decay")):
        if name in fixed:
            raise ValueError(f"optimizer must not fix {name}, got {fixed[name]!r} there; set {ours} of fit instead")
    rates = {"lr": learning_rate, "weight_decay": weight_decay}
    try:
        made = optimizer(model.parameters(), **rates, **_fast_options(optimizer, fixed, device_of(model).type))
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"optimizer {describe(optimizer)} cannot be made with {rates}: {reason}") from error
    if not isinstance(made, Optimizer):
        raise TypeError(f"optimizer must return a torch.optim.Optimizer, {EXAMPLES}, got {type(made).__name__}")
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(f"optimizer must make a step without a closure, which {type(made).__name__} cannot")
    for group in made.param_groups:  # a checkpoint cannot hold NumPy's numbers
        group |= {name: _python(value) for name, value in group.items() if name != "params"}
    return made


def _python(value: Any) -> Any:
    if isinstance(value, np.ndarray | tuple | list):
        return tuple(map(_python, value))
    return value.item() if isinstance(value, np.generic) else value


def _fast_options(optimizer: Callable, fixed: dict[str, Any], device: str) -> dict[str, bool]:
    """Return the options that make torch's own optimizers fast, except those that the caller has set."""
    kind: Any = getattr(optimizer, "func", optimizer)
    options = {}
    if isinstance(kind, type) and issubclass(kind, Adam | SGD) and device in ("cpu", "cuda"):
        options = {} if fixed.keys() & {"fused", "foreach", "differentiable"} else {"fused": True}
        if issubclass(kind, Adam) and device == "cuda" and "capturable" not in fixed:
            options["capturable"] = True
    return options
