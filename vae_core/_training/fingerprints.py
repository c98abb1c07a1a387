"""Descriptions and checksums of a run's data and functions, which are the same in another process."""

import hashlib
import inspect
from functools import partial
from numbers import Integral, Real
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor


def digest_of(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's shape, type and bytes, as 16 hexadecimal digits; 47 MB take 0.05 s."""
    values = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tuple(values.shape)} {values.dtype}".encode())
    digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def describe(value: Any, depth: int = 4) -> str:
    """Return a description of an objective, an optimizer or one of their arguments that changes when it does.

    For a function of `vae_core` it is the qualified name. For any other function it is the name, the compiled code
    (which depends on the version of Python), and the numbers, strings, tensors and functions that it closes over or
    uses as globals of its module. For a partial it is function and arguments. For any other object it is the name of
    its type, so changes inside objects, lists and modules are not noticed.

    Args:
        value: anything.
        depth: how many functions deep the description goes.
    """
    if isinstance(value, partial):
        arguments = [describe(each, depth) for each in value.args]
        arguments += [f"{name}={describe(each, depth)}" for name, each in sorted(value.keywords.items())]
        return f"{describe(value.func, depth)}({', '.join(arguments)})"
    if isinstance(value, tuple | np.ndarray):
        return f"({', '.join(describe(each, depth) for each in value)})"
    if isinstance(value, MethodType):
        return f"{describe(value.__func__, depth)} of {describe(value.__self__)}"
    if isinstance(value, FunctionType):
        return _function(value, depth)
    return _plain(value) or _qualified(value if isinstance(value, type) else type(value))


def _plain(value: Any) -> str:
    """Return a number (NumPy's as Python's), string or constant tensor as text; an empty string for other objects."""
    if value is None or isinstance(value, bool | str | bytes):
        return repr(value)
    if isinstance(value, Real):
        return repr(int(value) if isinstance(value, Integral) else float(value))
    if isinstance(value, Tensor) and not value.requires_grad:
        return f"tensor {digest_of(value)}"
    return ""


def _function(function: FunctionType, depth: int) -> str:
    name, ours = _qualified(function), (function.__module__ or "").split(".")[0] == "vae_core"
    if depth == 0 or (ours and "<locals>" not in name):
        return name
    try:
        found = inspect.getclosurevars(function)
    except ValueError:  # a variable that has no value yet
        return name
    inner = dict(found.nonlocals)
    inner |= {key: each for key, each in found.globals.items() if _plain(each) or _beside(function, each)}
    words = [f"{key}={describe(each, depth - 1)}" for key, each in sorted(inner.items())]
    if not ours:
        name += f"#{hashlib.sha256(_code(function.__code__, function.__doc__)).hexdigest()[:8]}"
    return name + (f"[{', '.join(words)}]" if words else "")


def _beside(function: FunctionType, other: Any) -> bool:
    """Return whether `other` is a function of the same module."""
    return isinstance(other, FunctionType) and other.__module__ == function.__module__


def _code(code: CodeType, docstring: str | None) -> bytes:
    constants = [each for each in code.co_consts if each != docstring]
    inner = [_code(each, None).hex() if isinstance(each, CodeType) else repr(each) for each in constants]
    return code.co_code + repr((code.co_names, inner)).encode()


def _qualified(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
