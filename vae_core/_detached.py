"""A distribution without its gradients: tensors and the parameters of networks inside it are detached."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.transforms import _InverseTransform


def without_gradients(q: Distribution) -> Distribution:
    """Return a copy of q in which all tensors are detached, also those of its parts, its transforms and their networks.

    Raises:
        ValueError: if the density of the copy still carries a gradient, for example of a tensor in a closure.
    """
    copies: dict[int, Any] = {}
    fixed: Distribution = _detached(q, copies)
    own = all(type(part).__module__.startswith(("torch.", "vae_core.")) for part in copies.values())
    if not own and _carries_gradient(fixed):
        raise ValueError(
            f"the density of this {type(q).__name__} depends on tensors that stop_gradient cannot find, in a "
            "function's closure, say; keep them in attributes, as tensors or nn.Modules"
        )
    return fixed


def _carries_gradient(q: Distribution) -> bool:
    """Return whether log q(z) of a fresh z carries a gradient; the caller's random state is unchanged."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.enable_grad():
        return q.log_prob(q.sample()).requires_grad


def _detached(value: Any, copies: dict[int, Any]) -> Any:
    """Return the value, or a copy of it without gradients; `copies` holds the objects copied so far, by their id."""
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) in (list, tuple):
        return type(value)(_detached(part, copies) for part in value)
    if type(value) is dict:
        return {key: _detached(part, copies) for key, part in value.items()}
    if isinstance(value, _InverseTransform):
        return _detached(value.inv, copies).inv
    if isinstance(value, Distribution | Transform | nn.Module):
        return _copy(value, copies)
    return value


def _copy(value: Any, copies: dict[int, Any]) -> Any:
    fixed = copies[id(value)] = copy.copy(value)  # a copied Transform must not keep its cached inverse
    if isinstance(fixed, Transform):
        fixed._cached_x_y = None, None  # nor its cached values, which belong to a graph
    for name, part in vars(fixed).items():
        fixed.__dict__[name] = _detached(part, copies)
    if isinstance(fixed, nn.Module):  # otherwise running averages would be updated twice
        fixed._buffers = {name: None if part is None else part.clone() for name, part in fixed._buffers.items()}
    return fixed
