"""How much the estimators of a gradient vary, against formulas and quadrature."""

import math

import pytest
import torch
from gradient_problems import (
    BOUND,
    POINTS,
    PROBLEMS,
    assert_unbiased,
    assert_variance,
    derivatives,
    joint,
    squared_norm,
    variance,
)
from torch import Tensor
from torch.distributions import Normal

from vae_core.distributions import diagonal_normal
from vae_core.gradients import (
    pathwise,
    replicates,
    score_function,
    sticking_the_landing,
    stop_gradient,
    taylor_control_variate,
)

# Variances, against formulas


@pytest.mark.parametrize("d", [1, 4, 16, 64])
def test_the_variances_for_a_squared_norm_and_their_ratios_are_the_formulas(d):
    """f = |z|², q = N(0, I_d), the gradient in μ_1: (d + 2)(d + 4) for the score function, 4 for the path.

    With the best constant, E f = d: 2d + 8. Leave-one-out is the sample covariance of f and score. Four draws: a
    quarter of each.
    """
    exact = {"none": (d + 2) * (d + 4), d: 2 * d + 8, "leave-one-out": 2 * d + 8 + 2 * d / 3, "pathwise": 4}
    found = {}
    for kind in exact:

        def surrogate(m: Tensor, kind=kind) -> Tensor:
            q = diagonal_normal(m, torch.zeros_like(m))
            if kind == "pathwise":
                return pathwise(squared_norm, q, 4)
            return score_function(squared_norm, q, 4, 0.0 if kind == "none" else kind)

        estimates = replicates(surrogate, (torch.zeros(d),), min(100_000, 800_000 // d))[0][:, 0]
        assert_variance(estimates, exact[kind] / 4)
        found[kind] = variance(estimates)
    for kind in ("none", d, "leave-one-out"):
        (above, error), (below, other) = found[kind], found["pathwise"]
        ratio = above / below
        assert abs(ratio - exact[kind] / 4) < 6 * ratio * ((error / above).square() + (other / below).square()).sqrt()


@pytest.mark.parametrize("estimator", [score_function, pathwise, sticking_the_landing])
def test_the_mean_of_ten_draws_varies_a_tenth(estimator):
    f, parameters, found = PROBLEMS["exponential"][0], POINTS["off"](1), []
    for K in (1, 10):
        estimates = replicates(lambda m, v, K=K: estimator(f, diagonal_normal(m, v), K), parameters, 50_000)
        found.append(variance(estimates[0]))
    (one, error), (ten, other) = found
    assert (one - 10 * ten).abs() < 6 * (error.square() + (10 * other).square()).sqrt()


def elbo_gradients(kind: str) -> tuple[Tensor, ...]:
    """200,000 score-function gradients of the ELBO of E-C8: as printed, with the -1, without it, with a baseline."""

    def surrogate(m: Tensor, v: Tensor) -> Tensor:
        q = diagonal_normal(m[:, None], v[:, None])
        log_q = stop_gradient(q) if kind in ("without", "baseline") else q
        weight, shift = (0.0, 0.5) if kind == "printed" else (BOUND[2], 1.0)  # log p(x|z) is left out as printed

        def f(z: Tensor) -> Tensor:
            log_p = joint(z[..., 0], weight) + 0.245 * (kind == "printed") - shift * math.log(2 * math.pi)
            return log_p - log_q.log_prob(z)

        return score_function(f, q, 1, expected_bound(*BOUND[:2]) if kind == "baseline" else 0.0)

    return replicates(surrogate, BOUND[:2], 200_000)


def expected_bound(m: Tensor, v: Tensor) -> Tensor:
    """E_q[log p(x, z) - log q(z)], in closed form."""
    w, second = BOUND[2], m.square() + v.exp()
    return -0.5 * (second + 0.49 - 1.4 * w * m + w.square() * second) - 0.5 * math.log(2 * math.pi) + 0.5 * (v + 1)


@pytest.mark.parametrize(("kind", "rounded"), [("with the -1", 20.1), ("without", 11.6), ("baseline", 3.4)])
def test_the_minus_one_moves_no_mean_and_raises_the_variance(kind, rounded):
    """The thesis' derivation with log p(x, z), w = 1.3, x = 0.7, m = 0.4, log σ² = −0.3 (E-C8; ledger C-3.3.8)."""
    found = elbo_gradients(kind)
    exact = torch.tensor(-0.1660), torch.tensor(0.5 - 1.345 * math.exp(-0.3))
    assert exact[1].item() == pytest.approx(-0.4964, abs=5e-5)
    assert_unbiased(found, exact)
    e, (m, v, w) = torch.linspace(-12, 12, 20_001), BOUND
    value = joint(m + (v / 2).exp() * e, w) - math.log(2 * math.pi) + 0.5 * (e.square() + v + math.log(2 * math.pi))
    value = value - {"with the -1": 1.0, "without": 0.0, "baseline": expected_bound(m, v)}[kind]
    density = Normal(0.0, 1.0).log_prob(e).exp() * (e[1] - e[0])
    exact = density @ (value * e / (v / 2).exp()).square() - 0.1660**2
    assert exact.item() == pytest.approx(rounded, abs=0.05)
    assert_variance(found[0], exact.item())


def test_what_the_thesis_prints_is_the_gradient_of_the_divergence_alone():
    """With log p(z) in the place of log p(x, z): −∇KL(q ‖ prior) = (−m, ½(1 − σ²)), six errors off the truth (E-C8)."""
    found, wrong = elbo_gradients("printed"), (-0.4, 0.5 * (1 - math.exp(-0.3)))
    assert_unbiased(found, tuple(torch.tensor(value) for value in wrong))
    for each, truth in zip(found, (-0.1660, -0.4964), strict=True):
        assert abs(each.mean() - truth) > 6 * each.std() / len(each) ** 0.5


def test_the_minus_one_alone_is_a_score_of_mean_zero():
    parameters = POINTS["off"](3)

    def surrogate(m: Tensor, v: Tensor) -> Tensor:
        q = diagonal_normal(m, v)
        return score_function(lambda z: stop_gradient(q).log_prob(z) - q.log_prob(z), q)

    found = replicates(surrogate, parameters, 50_000)
    assert_unbiased(found, tuple(torch.zeros_like(each) for each in parameters))
    assert_variance(found[0], (-parameters[1]).exp())  # Fisher's information


def test_a_step_has_a_gradient_that_the_path_does_not_see():
    """E-C13: the truth is N(0.3; 0, 1) = 0.3814."""

    def found(estimator) -> Tensor:
        return replicates(
            lambda m: estimator(lambda z: (z > 0).double().sum(-1), diagonal_normal(m, torch.zeros_like(m))),
            (torch.tensor([0.3]),),
            200_000,
        )[0]

    exact = Normal(0.0, 1.0).log_prob(torch.tensor([0.3])).exp()
    assert exact.item() == pytest.approx(0.3814, abs=5e-5)
    assert_unbiased((found(score_function),), (exact,))
    assert (found(pathwise) == 0).all()


@pytest.mark.parametrize(("estimator", "exact"), [(score_function, 0.5), (pathwise, 200.0)])
def test_of_a_fast_sine_the_path_gives_the_noisier_gradient(estimator, exact):
    """E-C13: ½E ε² and ½20², the document's sample has 0.50 and 199.9. E sin 20z itself is e^{-200} small."""
    (found,) = replicates(
        lambda m: estimator(lambda z: (20 * z).sin().sum(-1), diagonal_normal(m, torch.zeros_like(m))),
        (torch.tensor([0.3]),),
        200_000,
    )
    assert_variance(found, exact)
    assert_unbiased((found,), (torch.zeros(1),))


@pytest.mark.parametrize("baseline", ["f at the mean", "leave-one-out"])
def test_the_taylor_control_variate_leaves_nothing_of_a_quadratic(baseline):
    """f = f(m) + h exactly, so f − h − baseline = 0 for every draw, and the gradient of E h is the whole one."""
    f, expectation = PROBLEMS["quadratic"]
    mean, log_variance = (value.requires_grad_() for value in POINTS["off"](3))
    exact = derivatives(expectation(mean, torch.diag(log_variance.exp())), (mean, log_variance))

    def surrogate(m: Tensor, v: Tensor) -> Tensor:
        q = diagonal_normal(m, v)
        c = f(m) if baseline == "f at the mean" else baseline
        return score_function(f, q, 2, c, taylor_control_variate(f, q))

    for estimates, truth in zip(replicates(surrogate, (mean, log_variance), 1000), exact, strict=True):
        assert torch.allclose(estimates, truth.expand_as(estimates), atol=1e-10)


def test_the_taylor_control_variate_of_a_quadratic_is_f_without_its_value_at_the_mean():
    """h(z) = f(z) − f(m), its mean is that of f without f(m), and h is a constant for f's own parameters."""
    f, expectation = PROBLEMS["quadratic"]
    mean, log_variance = POINTS["off"](3)
    scale = torch.tensor(2.0, requires_grad=True)
    q = diagonal_normal(mean[None], log_variance[None])
    h, expected = taylor_control_variate(lambda z: scale * f(z), q)
    z = q.sample((5,))
    assert torch.allclose(h(z), 2 * (f(z) - f(mean)))
    assert torch.allclose(expected, 2 * (expectation(mean, torch.diag(log_variance.exp())) - f(mean)))
    assert not h(z).requires_grad
