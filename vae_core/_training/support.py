"""Whether data lie in the support of a model's likelihood: checked once, before anything is trained."""

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_core._checks.support import check_support
from vae_core.runtime import checked_input, evaluation_mode, random_state, unit_interval

ROWS = 1024  # the number of rows that are checked together where not all data are in the support


def check_data(model: Any, x: Tensor, objective: Callable, further: Callable[[slice], tuple], name: str = "x") -> None:
    """Raise ValueError if `x` holds values for which the likelihood, as the objective uses it, is not defined.

    The likelihood is that of one decoded code. Models that decode none, and data of another shape than its events, are
    not checked. If values lie outside of its support, the objective is called with some of them: if it transforms them
    (scales, rounds, adds noise) before it evaluates the likelihood, the transformed values count.

    Args:
        model: any model, on its device.
        x: data (N, ...), on any device.
        objective: what is maximised.
        further: returns the objective's arguments besides model and batch, for a slice of rows.
        name: what the message calls `x`.
    """
    likelihood = _decoded(model)
    if likelihood is None or likelihood.event_shape != x.shape[1:]:
        return
    try:
        check_support(likelihood, x, name)
    except ValueError as error:
        if not _transformed(model, likelihood, x, objective, further):
            raise ValueError(str(error)) from None


def _decoded(model: Any) -> Distribution | None:
    """Return p(x|z) at one code, or None for a model that needs more than a code and a condition."""
    if not hasattr(model, "likelihood"):
        return None
    weight = next(model.parameters())
    try:
        with evaluation_mode(model), torch.no_grad(), random_state(0), _without_hooks(model):
            if condition_dim := getattr(model, "condition_dim", 0):
                model = model.given(weight.new_zeros(condition_dim))
            z = model.prior.sample((1,)) if hasattr(model, "prior") else weight.new_zeros(1, model.latent_dim)
            return model.likelihood(z)
    except Exception:  # another kind of model; if it is broken, the first step raises the error
        return None


@contextlib.contextmanager
def _without_hooks(model: nn.Module) -> Iterator[None]:
    """Inside the block, the user's forward hooks, which may count calls, do not run."""
    hooks = {module: module._forward_hooks for module in model.modules()}
    for module in hooks:
        module._forward_hooks = OrderedDict()
    try:
        yield
    finally:
        for module, own in hooks.items():
            module._forward_hooks = own


def _transformed(model: Any, likelihood: Distribution, x: Tensor, objective: Callable, further: Callable) -> bool:
    """Return whether the objective evaluates the likelihood only inside its support, for the first rows outside it."""
    device, dtype = next(model.parameters()).device, x.dtype if x.is_floating_point() else torch.float32
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        batch = unit_interval(x[rows].to(device), dtype)
        if _outside(likelihood, batch):
            return _asks_inside(model, batch, objective, further(rows))
    return True


def _outside(likelihood: Distribution, x: Tensor) -> bool:
    try:
        check_support(likelihood, x)
    except ValueError:
        return True
    return False


def _asks_inside(model: Any, batch: Tensor, objective: Callable, further: tuple) -> bool:
    try:
        with evaluation_mode(model), torch.no_grad(), random_state(0), checked_input():
            objective(_watched(model), batch, *further)
    except _OutsideSupportError:
        return False
    except Exception:  # if anything else is wrong, the first step raises the error
        return True
    return True


class _OutsideSupportError(Exception):
    """The likelihood was evaluated outside of its support."""


def _watched(model: Any) -> Any:
    """Return a copy of the model whose likelihoods check the values that they are evaluated at."""
    view = copy.copy(model)
    view.likelihood = lambda z: _watched_likelihood(model.likelihood(z))
    if hasattr(model, "given"):
        view.given = lambda y: _watched(model.given(y))
    return view


def _watched_likelihood(distribution: Distribution) -> Distribution:
    def log_prob(x: Tensor) -> Tensor:
        if _outside(distribution, x):
            raise _OutsideSupportError
        return distribution.log_prob(x)

    view: Any = copy.copy(distribution)
    view.log_prob = log_prob
    return view
