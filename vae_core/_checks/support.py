"""Whether data lie in the support of p(x|z): checked once per data set, where the data enter."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

from vae_core.pixel_distributions import LevelConstraint, outside_cuda_graph
from vae_core.runtime import unit_interval

CHUNK = 2**17  # values that are compared at once, so that no mask as large as the data is needed
INTERVALS = tuple(
    map(type, (constraints.unit_interval, constraints.real, constraints.positive, constraints.nonnegative))
)


def check_support(distribution: Distribution, x: Tensor, name: str = "x") -> None:
    """Raise ValueError unless every value of `x` is one that p(x|z) gives a density or probability to.

    The Bernoulli distribution takes all of [0, 1], since the book trains on grey values too. The values are not checked
    for a distribution that states no support, or one that depends on z, nor while a CUDA graph is being captured, when
    there are none yet.

    Args:
        distribution: p(x|z) with any batch shape and the event shape of one datum.
        x: Data (N, *event). uint8 data are read as images, divided by 255.
        name: What the message calls `x`.

    Raises:
        ValueError: The event shapes differ, or values (nan and infinities among them) lie outside; the message counts
            them, gives their range, and says what to do.
    """
    if not outside_cuda_graph(x):
        return
    _check_event_shape(distribution, x, name)
    constraint = _constraint_of_a_value(distribution, x)
    if constraint is None or x.numel() == 0 or _ends_inside(constraint, x):
        return
    rows = max(1, CHUNK * len(x) // x.numel())
    count = int(torch.stack([(~_inside(constraint, batch)).sum() for batch in x.split(rows)]).sum())
    if count:
        raise ValueError(_sentence(constraint, distribution, _floats(x), count, name))


def _check_event_shape(distribution: Distribution, x: Tensor, name: str) -> None:
    theirs, ours = tuple(distribution.event_shape), tuple(x.shape[1:])
    if theirs != ours:
        wrapped = tuple(distribution.batch_shape + distribution.event_shape)[-len(ours) :] == ours
        cure = f"; wrap it in torch.distributions.Independent(…, {len(ours) - len(theirs)})" if wrapped else ""
        raise ValueError(f"p(x|z) must have the event shape of one datum of {name}, {ours}, got {theirs}{cure}")


def _constraint_of_a_value(distribution: Distribution, x: Tensor) -> Constraint | None:
    """Return the support of one value (of a row, for a simplex), or None where there is none that can be checked."""
    try:
        constraint: Any = distribution.support
        while hasattr(constraint, "base_constraint"):  # `Independent` and mixtures have one
            constraint = constraint.base_constraint
        if isinstance(constraint, type(constraints.boolean)):
            constraint = constraints.unit_interval
        inside = _inside(constraint, x[:1])
    except Exception:  # a user's distribution may raise anything
        return None
    return constraint if inside.shape == x[:1].shape[: x.dim() - constraint.event_dim] else None


def _inside(constraint: Constraint, values: Tensor) -> Tensor:
    values = _floats(values)
    finite = values.isfinite()
    inside: Tensor = constraint.check(values)
    return inside & (finite.all(-1) if constraint.event_dim else finite)


def _ends_inside(constraint: Constraint, x: Tensor) -> bool:
    """Return whether the least and the largest value show that all are inside: for intervals, in one fast pass."""
    if not isinstance(constraint, INTERVALS) or x.dtype == torch.bool:
        return False
    ends = torch.stack(x.aminmax())  # nan if there is one
    return bool(_inside(constraint, ends / 255 if x.dtype == torch.uint8 else ends).all())


def _floats(x: Tensor) -> Tensor:
    return unit_interval(x if x.dtype == torch.uint8 or x.is_floating_point() else x.to(torch.get_default_dtype()))


def _sentence(constraint: Constraint, distribution: Distribution, values: Tensor, count: int, name: str) -> str:
    known = values[~values.isnan()]
    low, high = (known.min().item(), known.max().item()) if len(known) else (torch.nan, torch.nan)
    base = type(getattr(distribution, "base_dist", distribution)).__name__
    allowed, cure = _words(constraint, low, high)
    bad = {"nan": values.isnan().sum().item(), "infinite": values.isinf().sum().item()}
    if any(bad.values()):
        cure = "remove or replace " + " and ".join(f"{k} {word} values" for word, k in bad.items() if k)
    got = f"got {count:,} of {values.numel():,} values outside, all from {low:g} to {high:g}"
    return f"{name} must {allowed} (the support of {base}), {got}; {cure}"


def _words(constraint: Constraint, low: float, high: float) -> tuple[str, str]:
    """Return what the values must be, and what to do, in words."""
    of_bytes = low >= 0 and 1 < high <= 255
    if isinstance(constraint, LevelConstraint):
        last = constraint.num_levels - 1
        rounding = f"round them, (x * {last}).round() / {last}, or choose the likelihood 'continuous_bernoulli'"
        cure = f"divide by {255 if high > last else last}" if of_bytes else rounding
        return f"hold the {last + 1} values k/{last}", cure
    if constraint is constraints.unit_interval:
        normalized = "undo the normalisation (x / 2 + 0.5 for Normalize(0.5, 0.5))"
        gaussian = "choose a Gaussian likelihood for standardised columns"
        return "lie in [0, 1]", "divide by 255" if of_bytes else f"{normalized}, or {gaussian}"
    if constraint == constraints.nonnegative_integer:
        return "hold counts 0, 1, 2, …", "give counts as floats, neither scaled nor standardised"
    if isinstance(constraint, type(constraints.real)):
        return "be finite", "remove or replace what is not"
    return f"lie in {constraint!r}", "transform the data, or choose another likelihood"
