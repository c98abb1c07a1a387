"""From objects that hold real numbers to tensors: their type, memory and finiteness."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor


def kind(value: Any) -> str:
    """Return an object's type in words, for messages."""
    return f"an object of type {type(value).__name__}"


def as_tensor(value: Any, name: str) -> Tensor:
    """Return real numbers as a plain, strided, detached tensor that shares their memory where it can.

    Raises:
        TypeError: for masked arrays, complex numbers, strings, objects, sparse tensors and rows of several lengths.
    """
    if isinstance(value, list | tuple) and value and all(isinstance(part, Tensor) for part in value):
        if len({part.shape for part in value}) > 1:
            raise TypeError(f"{name} must be tensors of one shape, got {tuple(value[0].shape)} and others")
        value = torch.stack([part.detach() for part in value])
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_nested:
            raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}; use {name}.to_dense()")
        tensor = value.detach().as_subclass(Tensor)
        tensor = tensor.clone() if tensor.is_inference() else tensor  # autograd cannot save an inference tensor
    else:
        tensor = _from_array(_as_array(value, name))
    if tensor.is_complex() or tensor.is_quantized:
        raise TypeError(f"{name} must hold real numbers, got {tensor.dtype}")
    return tensor.long() if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64) else tensor


def _as_array(value: Any, name: str) -> np.ndarray:
    parts = value if isinstance(value, list | tuple) else ()
    if any(isinstance(part, np.ma.MaskedArray) for part in (value, *parts)):
        raise TypeError(f"{name} must not be a masked array: masks are not used; fill it, or leave those entries out")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            array = np.asarray(value)
    except Exception as error:  # rows of several lengths, or anything that a user's __array__ raises
        raise TypeError(f"{name} must be an array of numbers, got {kind(value)} that cannot become one") from error
    if array.dtype.kind not in "biuf":
        what = kind(value) if array.ndim == 0 else f"entries of type {array.dtype}"
        cure = f"; number them by np.unique({name}, return_inverse=True)[1]" if array.dtype.kind in "US" else ""
        raise TypeError(f"{name} must hold real numbers, got {what}{cure}")
    return array


def _from_array(array: np.ndarray) -> Tensor:
    if array.dtype.itemsize > 8:  # NumPy's long double
        array = array.astype(np.float64)
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about read-only arrays; this tensor is never written to
        return torch.from_numpy(array)


def check_dtype(x: Tensor, name: str) -> None:
    """Raise TypeError unless `x` is of a type that `runtime.unit_interval` takes, or bool; say what to do."""
    if x.dtype in (torch.uint8, torch.bool) or x.is_floating_point():
        return
    low, high = (value.item() for value in x.aminmax())
    cure = f"use {name}.to(torch.uint8) for images, " if low >= 0 and 1 < high < 256 else ""
    cure += f"{name}.bool() for binary images, " if low >= 0 and high <= 1 else ""
    values = f"{x.dtype} from {low} to {high}"
    raise TypeError(
        f"{name} must be uint8 (0 to 255), bool or floating point, got {values}; {cure}{name}.float() for counts"
    )


def check_finite(x: Tensor, name: str) -> None:
    """Raise ValueError if there is a nan or an infinity; say how many, and where the first one is."""
    if x.numel() == 0 or torch.stack(x.aminmax()).isfinite().all():  # without a copy as large as x
        return
    bad = (~x.isfinite()).nonzero()
    what = f"{len(bad)} values that are nan or infinite, the first at index {tuple(bad[0].tolist())}"
    raise ValueError(f"{name} must be finite in {x.dtype}, got {what}; leave those data out or fill them")
