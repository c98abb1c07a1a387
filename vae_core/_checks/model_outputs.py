"""What a model gets and what it, or a user's function, returns: types, shapes and supports, checked at the boundary."""

from collections.abc import Callable
from typing import Any, cast

from torch import Size, Tensor, nn
from torch.distributions import Distribution

from vae_core._checks.inputs import as_images
from vae_core._checks.support import check_support
from vae_core.distributions import shapes_broadcast
from vae_core.runtime import can_read_values, device_of, dtype_of, unit_interval

WRAP = "wrap it: torch.distributions.Independent(distribution, 1)"


def model_input(model: object, x: Any, name: str = "x") -> Tensor:
    """Return all data at once as `as_images` reads them, in [0, 1] if uint8, on the model's device, in its precision.

    For a model that is not an `nn.Module`, tensors keep their device and precision.
    """
    x = read_input(model, x, name)
    return unit_interval(x.to(device_of(model, x.device)), dtype_of(model))


def read_input(model: object, x: Any, name: str = "x") -> Tensor:
    """Return data as `as_images` reads them, floating-point ones in the precision of the model."""
    own = x.dtype if isinstance(x, Tensor) and x.is_floating_point() else None
    return as_images(x, name, dtype=dtype_of(model) if isinstance(model, nn.Module) else own)


def check_latent(q: Any, prior: Any, n: int, name: str = "posterior(x)") -> None:
    """Raise unless q has one batch element for each of n data, and the prior the same event shape and no wider batch.

    Raises:
        TypeError: for an object that is not a distribution.
        ValueError: for other shapes.
    """
    _check_distribution(q, name)
    batch, event = q.batch_shape, q.event_shape
    if not event or batch[-1:] != (n,):
        raise ValueError(f"{name} must have batch shape ({n},) and event shape (d,), got {_shapes(q)}; {WRAP}")
    _check_distribution(prior, "prior")
    if prior.event_shape != event or not shapes_broadcast(batch, prior.batch_shape, onto=batch):
        wanted = f"batch shape () and the event shape of {name}, {tuple(event)}"
        raise ValueError(f"prior must have {wanted}, got {_shapes(prior)}; {WRAP}")


def expanded_prior(prior: Any, n: int) -> Distribution:
    """Return p(z) for each of n data. Raises as `check_latent` does."""
    _check_distribution(prior, "prior")
    if not prior.event_shape or prior.batch_shape not in ((), (1,), (n,)):
        raise ValueError(f"prior must have batch shape () and event shape (d,), got {_shapes(prior)}; {WRAP}")
    return prior.expand(Size([n]))


def log_likelihood_of(p: Any, batch: Size, x: Tensor) -> Tensor:
    """Return log p(x|z) for codes of this batch shape, e.g. (K, B), where x (B, …) lies in the support of p.

    `p` is what `likelihood(z)` returned: a distribution, or any object with a `log_prob`, which states no support.

    Raises:
        TypeError: for an object without `log_prob`.
        ValueError: for other shapes, or for values outside of the support (where they can be read).
    """
    if isinstance(p, Distribution):
        _check_likelihood(p, batch, x)
    elif not callable(getattr(p, "log_prob", None)):
        raise TypeError(f"likelihood(z) must be a distribution, with a log_prob, got {type(p).__name__}")
    values = p.log_prob(x)
    check_shape("likelihood(z).log_prob(x)", values, batch)
    return cast(Tensor, values)


def _check_likelihood(p: Distribution, batch: Size, x: Tensor) -> None:
    event = x.shape[1:]
    if p.event_shape != event or p.batch_shape != batch:
        wanted = f"batch shape {tuple(batch)} and event shape {tuple(event)}, that of one datum"
        dims = max(x.dim() - 1, 1)
        wrap = f"torch.distributions.Independent(distribution, {dims}) makes {dims} dimensions the event"
        raise ValueError(f"likelihood(z) must have {wanted}, got {_shapes(p)}; {wrap}")
    if can_read_values(x):
        check_support(p, x)


def values_of(f: Callable[[Tensor], Tensor], z: Tensor, q: Distribution, name: str = "f") -> Tensor:
    """Return f(z) for draws z (K, B, d) from q. Raises ValueError unless it is (K, B)."""
    values = f(z)
    if not isinstance(values, Tensor) or values.shape != z.shape[:1] + q.batch_shape:
        wanted = f"one value for each draw and batch element of q, shape {(len(z), *q.batch_shape)}"
        wrap = "if q lacks its event shape, wrap it: torch.distributions.Independent(q, 1)"
        raise ValueError(f"{name}(z) must return {wanted}, got {_kind(values)}; q has {_shapes(q)}: {wrap}")
    return values


def check_shape(name: str, value: Any, shape: Size) -> None:
    """Raise ValueError unless `value` is a tensor of this shape."""
    if not isinstance(value, Tensor) or value.shape != shape:
        raise ValueError(f"{name} must be a tensor of shape {tuple(shape)}, got {_kind(value)}")


def _kind(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _check_distribution(value: Any, name: str) -> None:
    if not isinstance(value, Distribution):
        raise TypeError(f"{name} must be a torch.distributions.Distribution, got {type(value).__name__}")


def _shapes(r: Distribution) -> str:
    return f"batch shape {tuple(r.batch_shape)} and event shape {tuple(r.event_shape)}"
