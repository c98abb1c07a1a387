"""Problems with known expectations, gradients and variances, and the checks on estimates of them."""

import torch
from torch import Tensor


def assert_unbiased(estimates: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> None:
    """The mean over replicates, (count, *shape), lies within six of its own standard errors."""
    for each, truth in zip(estimates, exact, strict=True):
        assert each.shape[1:] == truth.shape
        assert ((each.mean(0) - truth).abs() <= 6 * each.std(0) / len(each) ** 0.5 + 1e-12).all()


def variance(estimates: Tensor) -> tuple[Tensor, Tensor]:
    """The variance over replicates and its standard error, from the fourth moment."""
    centred = estimates - estimates.mean(0)
    value = centred.square().mean(0)
    return value, ((centred**4).mean(0) - value.square()).sqrt() / len(estimates) ** 0.5


def assert_variance(estimates: Tensor, exact: float) -> None:
    value, error = variance(estimates)
    assert ((value - exact).abs() < 6 * error).all()


def derivatives(value: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)


def slope(z: Tensor) -> Tensor:
    return torch.linspace(0.4, 0.8, z.shape[-1], dtype=z.dtype)


def projected(mean: Tensor, covariance: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean and variance of z's component along the slope."""
    a = factor * slope(mean)
    return mean @ a, a @ covariance @ a


def expected_exponential(mean: Tensor, covariance: Tensor) -> Tensor:
    centre, spread = projected(mean, covariance)
    return (centre + spread / 2).exp()


def expected_cosine(mean: Tensor, covariance: Tensor) -> Tensor:
    centre, spread = projected(mean, covariance, 2.0)
    return centre.cos() * (-spread / 2).exp()


PROBLEMS = {
    "constant": (lambda z: z.new_full(z.shape[:-1], 3.0), lambda m, S: 3.0 + 0 * m.sum()),
    "linear": (lambda z: z @ slope(z), lambda m, S: m @ slope(m)),
    "quadratic": (lambda z: (z - 1).square().sum(-1), lambda m, S: (m - 1).square().sum() + S.trace()),
    "exponential": (lambda z: (z @ slope(z)).exp(), expected_exponential),
    "cosine": (lambda z: (2 * z @ slope(z)).cos(), expected_cosine),
}


POINTS = {
    "off": lambda d: (torch.linspace(-0.5, 0.7, d).double(), torch.linspace(-1.0, 0.3, d).double()),
    "on": lambda d: (torch.ones(d).double(), torch.full((d,), -2.0).double()),
}


BOUND = tuple(torch.tensor(value, dtype=torch.float64) for value in (0.4, -0.3, 1.3))  # m, log σ², w


def joint(z: Tensor, w: Tensor) -> Tensor:
    """log p(x, z) for x = 0.7, z ~ N(0, 1), x|z ~ N(wz, 1), up to a constant."""
    return -0.5 * (z.square() + (0.7 - w * z).square())


def squared_norm(z: Tensor) -> Tensor:
    return z.square().sum(-1)
