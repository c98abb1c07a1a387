"""Bare maps. They know nothing of distributions."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "elu": nn.ELU}


def mlp(
    widths: Sequence[int], out_features: int | None = None, activation: str = "relu", batch_norm: bool = True
) -> nn.Sequential:
    """A multilayer perceptron (N, widths[0]) -> (N, out_features or widths[-1]).

    Each step between two widths is a block Linear, BatchNorm (if asked for), activation; `out_features`
    appends one bare Linear, so that its output is unbounded (logits, means, log-variances).
    Raises ValueError for fewer than two widths, a width below 1, or an unknown activation.
    Source: Chen Table 4.1; the order inside a block is that of listing A.1.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must be at least two positive integers, got {tuple(widths)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        norm = [nn.BatchNorm1d(n_out)] if batch_norm else []
        layers += [nn.Linear(n_in, n_out), *norm, ACTIVATIONS[activation]()]
    if out_features is not None:
        layers.append(nn.Linear(widths[-1], out_features))
    return nn.Sequential(*layers)
