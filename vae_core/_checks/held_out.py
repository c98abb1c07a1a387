"""Held-out data in batches, each with its own conditions, through a model in evaluation mode."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vae_core._checks.inputs import as_labels
from vae_core._checks.model_outputs import read_input
from vae_core.runtime import device_of, dtype_of, evaluation_mode, positive_int, unit_interval

Terms = dict[str, Tensor]
Function = Callable[[Any, Tensor, slice], Terms]  # of the model under its conditions, a batch, and its rows


def conditions_of(model: Any, y: Any, n: int) -> Tensor | None:
    """Return the condition of each of n data: `y`, or what a conditional model was given; None where there is none.

    Raises:
        ValueError: for another number of conditions than data, or for `y` with a model that takes none.
    """
    if y is not None:
        if not hasattr(model, "given"):
            kind = type(model).__name__
            raise ValueError(f"y is for conditional models, which have a method `given`; this {kind} has none")
        return as_labels(y, n, dtype=dtype_of(model)).to(device_of(model))
    given: Tensor | None = getattr(model, "condition", None)
    if given is None or given.dim() < 2 or len(given) == 1:  # one for all data
        return None
    if len(given) != n:
        raise ValueError(f"the model was given conditions of {len(given)} data, got {n} in x; pass y, one for each")
    return given


def terms_of(model: Any, x: Any, y: Any, function: Function, batch_size: int) -> list[Terms]:
    """Return what `function` returns for each batch. Raises ValueError for nan, and as `evaluation.evaluate` does."""
    size, x = positive_int("batch_size", batch_size), read_input(model, x)
    y, found = conditions_of(model, y, len(x)), []
    if len(x) <= size and y is getattr(model, "condition", None):  # the model has these conditions already
        y = None
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            batch = unit_interval(x[rows].to(device_of(model, x.device)), dtype_of(model))
            terms = function(model if y is None else model.given(y[rows]), batch, rows)
            for name, values in terms.items():
                if values.isnan().any():
                    where = f"data {start} to {start + len(batch) - 1}"
                    raise ValueError(f"{name} is nan for some of {where}; look for nan in the model's parameters")
            found.append(terms)
    return found


def means_of(model: Any, x: Any, y: Any, function: Function, batch_size: int) -> tuple[dict[str, float], int]:
    """Return the means over data of the terms, (B,) each, that `function` returns, and the number of data."""
    sums: dict[str, float] = {}
    n = 0
    for terms in terms_of(model, x, y, function, batch_size):
        n += len(next(iter(terms.values())))
        for name, values in terms.items():
            sums[name] = sums.get(name, 0.0) + values.double().sum().item()
    return {name: total / n for name, total in sums.items()}, n
