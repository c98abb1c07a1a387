"""Stand-in for the file of the same name on branch `models`, which replaces it."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, constraints

from vae_core.pixel_distributions import ContinuousBernoulli


def check_support(distribution: Distribution, x: Tensor, name: str = "x") -> None:
    """Raise ValueError unless the data `x` (uint8 ones divided by 255) lie in the support of p(x|z)."""
    base: Any = distribution
    while isinstance(base, Independent):
        base = base.base_dist
    values = x
    if x.dtype == torch.uint8:
        low, high = (value.item() for value in x.aminmax())
        values = torch.arange(low, high + 1, device=x.device) / 255
    support = constraints.unit_interval if isinstance(base, Bernoulli | ContinuousBernoulli) else None
    if hasattr(base, "num_levels"):
        scaled = values * (base.num_levels - 1)
        inside, allowed = (scaled - scaled.round()).abs() < 1e-3, f"hold the {base.num_levels} levels of a pixel"
    else:
        support = support or base.support
        inside, allowed = support.check(values), f"lie in the support of {type(base).__name__}, {support!r}"
    if not inside.all():
        low, high = (value.item() for value in values.aminmax())
        raise ValueError(f"{name} must {allowed}, got values from {low:g} to {high:g}; divide by 255, or change it")
