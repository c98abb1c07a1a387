"""KL divergences and densities against torch.distributions, quadrature and theorems."""

import math

import numpy as np
import pytest
import torch
from checks import refused
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, Cauchy, Independent, MixtureSameFamily, MultivariateNormal, Normal
from torch.distributions import kl_divergence as torch_kl

from vae_core.distributions import (
    diagonal_normal,
    kl_divergence,
    kl_monte_carlo,
    log_prob_reparameterized,
    log_variance,
    marginals,
    standard_normal,
)


def random_gaussian(d: int, batch=()):
    factor = torch.randn(*batch, d, d)
    return MultivariateNormal(torch.randn(*batch, d), factor @ factor.mT + torch.eye(d))


def random_diagonal(d: int, batch=()):
    return diagonal_normal(torch.randn(*batch, d), torch.randn(*batch, d))


def as_full(q):
    return MultivariateNormal(q.mean, torch.diag_embed(q.variance))


def test_diagonal_normal_takes_the_logarithm_of_the_variance():
    q = diagonal_normal(torch.zeros(3), torch.tensor([0.0, math.log(4.0), -2.0]))
    assert torch.allclose(q.variance, torch.tensor([1.0, 4.0, math.exp(-2.0)]), rtol=1e-14)


def test_diagonal_normal_has_the_density_of_the_full_gaussian():
    q, z = random_diagonal(4, (5,)), torch.randn(7, 5, 4)
    assert torch.allclose(q.log_prob(z), as_full(q).log_prob(z), atol=1e-12)


def test_standard_normal_follows_dtype_and_shape():
    p = standard_normal(3, like=torch.zeros(1, dtype=torch.float32))
    assert p.mean.dtype == torch.float32
    assert p.event_shape == (3,)
    assert p.log_prob(torch.zeros(3, dtype=torch.float32)).item() == pytest.approx(
        -1.5 * math.log(2 * math.pi), rel=1e-6
    )


@pytest.mark.parametrize("d", [1, 2, 7])
def test_kl_divergence_of_full_gaussians_agrees_with_torch(d):
    q, p = random_gaussian(d, (6,)), random_gaussian(d, (6,))
    assert torch.allclose(kl_divergence(q, p), torch_kl(q, p), rtol=1e-10)


@pytest.mark.parametrize("d", [1, 2, 20])
def test_kl_divergence_of_diagonal_normals_agrees_with_torch_and_the_general_formula(d):
    q, p = random_diagonal(d, (6,)), random_diagonal(d, (6,))
    assert torch.allclose(kl_divergence(q, p), torch_kl(q, p), rtol=1e-12)
    assert torch.allclose(kl_divergence(q, p), kl_divergence(as_full(q), as_full(p)), rtol=1e-10)


def test_kl_divergence_of_mixed_pairs_is_the_general_formula():
    full, diagonal = random_gaussian(3), random_diagonal(3)
    assert torch.allclose(kl_divergence(full, diagonal), torch_kl(full, as_full(diagonal)), rtol=1e-10)
    assert torch.allclose(kl_divergence(diagonal, full), torch_kl(as_full(diagonal), full), rtol=1e-10)


def test_kl_divergence_to_the_standard_normal_is_the_printed_formula():
    mean, log_variance = torch.randn(2, 9, 4)
    printed = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(-1)
    assert torch.allclose(kl_divergence(diagonal_normal(mean, log_variance), standard_normal(4)), printed, rtol=1e-12)


@pytest.mark.parametrize(("mean", "log_variance"), [(0.0, 0.0), (1.5, -2.0), (-0.3, 1.2), (4.0, 0.4)])
def test_kl_divergence_agrees_with_quadrature(mean, log_variance):
    q, p = Normal(mean, math.exp(log_variance / 2)), Normal(0.0, 1.0)
    z = torch.linspace(mean - 30, mean + 30, 200_001)
    integral = torch.trapezoid(q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z)), z)
    ours = kl_divergence(diagonal_normal(torch.tensor([mean]), torch.tensor([log_variance])), standard_normal(1))
    assert ours.item() == pytest.approx(integral.item(), abs=1e-9)


finite = st.floats(-8, 8, allow_nan=False, width=64)


@given(st.lists(st.tuples(finite, finite, finite, finite), min_size=1, max_size=5))
def test_kl_divergence_is_never_negative_and_vanishes_only_for_equal_distributions(rows):
    mean_q, log_variance_q, mean_p, log_variance_p = torch.tensor(rows, dtype=torch.float64).T
    q, p = diagonal_normal(mean_q, log_variance_q), diagonal_normal(mean_p, log_variance_p)
    assert kl_divergence(q, p) >= -1e-12
    assert kl_divergence(q, q).abs() <= 1e-12
    if (mean_q - mean_p).abs().max() > 1e-2 or (log_variance_q - log_variance_p).abs().max() > 1e-2:
        assert kl_divergence(q, p) > 0


def test_kl_divergence_of_products_is_the_sum_over_coordinates():
    q, p = random_diagonal(6), random_diagonal(6)
    parts = [
        kl_divergence(
            diagonal_normal(q.mean[j : j + 1], q.variance[j : j + 1].log()),
            diagonal_normal(p.mean[j : j + 1], p.variance[j : j + 1].log()),
        )
        for j in range(6)
    ]
    assert torch.allclose(kl_divergence(q, p), torch.stack(parts).sum(), rtol=1e-12)


def test_kl_divergence_is_not_symmetric():
    q, p = diagonal_normal(torch.zeros(1), torch.zeros(1)), diagonal_normal(torch.ones(1), torch.ones(1))
    assert (kl_divergence(q, p) - kl_divergence(p, q)).abs() > 0.1


@pytest.mark.parametrize("log_variance", [-20.0, 20.0])
def test_kl_divergence_stays_accurate_in_float32_at_extreme_widths(log_variance):
    mean = torch.full((1,), 0.5, dtype=torch.float32)
    ours = kl_divergence(diagonal_normal(mean, torch.full_like(mean, log_variance)), standard_normal(1, like=mean))
    exact = -0.5 * (1 + log_variance - 0.25 - math.exp(log_variance))
    assert ours.item() == pytest.approx(exact, rel=1e-5)


def test_kl_monte_carlo_is_unbiased():
    q, p = random_diagonal(3), random_diagonal(3)
    draws = kl_monte_carlo(q.expand((200_000,)), p)
    standard_error = draws.std() / len(draws) ** 0.5
    assert (draws.mean() - kl_divergence(q, p)).abs() < 6 * standard_error


def test_kl_monte_carlo_averages_over_its_samples():
    q, p = random_diagonal(2).expand((50_000,)), random_diagonal(2)
    one, sixteen = kl_monte_carlo(q, p, 1).var(), kl_monte_carlo(q, p, 16).var()
    assert (one / sixteen).item() == pytest.approx(16, rel=0.1)


def test_kl_monte_carlo_of_a_mixture_agrees_with_quadrature_without_a_path_gradient():
    means = torch.tensor([[-1.5], [0.8]], requires_grad=True)
    parts = diagonal_normal(means, torch.tensor([[-1.0], [0.4]]))
    q, p = MixtureSameFamily(Categorical(logits=torch.tensor([0.3, -0.2])), parts), standard_normal(1)
    z = torch.linspace(-20, 20, 200_001)
    gap = (q.log_prob(z[:, None]) - p.log_prob(z[:, None])).detach()
    exact = torch.trapezoid(q.log_prob(z[:, None]).exp().detach() * gap, z)
    draws = kl_monte_carlo(q.expand((200_000,)), p)
    assert abs(draws.mean() - exact) < 6 * draws.std() / len(draws) ** 0.5
    torch.manual_seed(3)
    (found,) = torch.autograd.grad(kl_monte_carlo(q, p, 7), means)
    torch.manual_seed(3)
    (score,) = torch.autograd.grad(q.log_prob(q.sample((7,))).mean(), means)
    assert torch.allclose(found, score)


def test_kl_monte_carlo_of_a_gaussian_has_a_path_gradient():
    """At fixed noise log q does not depend on the mean, and the slope of −log p is z."""
    mean = torch.randn(3, requires_grad=True)
    q = diagonal_normal(mean, torch.zeros(3))
    torch.manual_seed(3)
    (found,) = torch.autograd.grad(kl_monte_carlo(q, standard_normal(3), 7), mean)
    torch.manual_seed(3)
    assert torch.allclose(found, q.sample((7,)).mean(0), atol=1e-12)


@pytest.mark.parametrize("count", [0, -1, 2.0, "2"])
def test_kl_monte_carlo_refuses_a_bad_num_samples(count):
    with pytest.raises(ValueError, match=f"num_samples must be a positive integer, got {count!r}"):
        kl_monte_carlo(random_diagonal(2), random_diagonal(2), count)


def test_marginals_are_the_gaussians_of_the_coordinates():
    mean, log_variance = torch.randn(2, 5, 3)
    found = marginals(diagonal_normal(mean, log_variance))
    assert (found.batch_shape, found.event_shape) == ((5, 3), ())
    assert torch.equal(found.mean, mean)
    assert torch.allclose(found.variance, log_variance.exp())


@pytest.mark.parametrize(
    ("law", "kind"),
    [
        (MultivariateNormal(torch.zeros(2), torch.eye(2)), "MultivariateNormal"),
        (Normal(torch.zeros(2), torch.ones(2)), "Normal"),
        (Independent(Cauchy(torch.zeros(2), torch.ones(2)), 1), "Independent"),
        (Independent(Normal(torch.zeros(3, 2), torch.ones(3, 2)), 2), "Independent"),
    ],
)
def test_marginals_name_the_argument_that_does_not_factorise(law, kind):
    with pytest.raises(TypeError, match=f"^q must be a diagonal_normal, got {kind}$"):
        marginals(law)
    with pytest.raises(TypeError, match=f"^prior must be a diagonal_normal, got {kind}$"):
        marginals(law, "prior")


def test_log_prob_reparameterized_is_log_q_from_the_noise_alone():
    mean, log_variance, epsilon = torch.randn(3, 8, 5)
    z = mean + (0.5 * log_variance).exp() * epsilon
    expected = diagonal_normal(mean, log_variance).log_prob(z)
    assert torch.allclose(log_prob_reparameterized(epsilon, log_variance), expected, atol=1e-12)


def test_log_prob_reparameterized_uses_the_jacobian_of_the_map():
    mean, log_variance, epsilon = torch.randn(3, 4)
    jacobian = torch.func.jacrev(lambda e: mean + (0.5 * log_variance).exp() * e)(epsilon)
    expected = standard_normal(4).log_prob(epsilon) - torch.linalg.slogdet(jacobian).logabsdet
    assert torch.allclose(log_prob_reparameterized(epsilon, log_variance), expected, atol=1e-12)


def test_diagonal_normal_draws_have_the_right_moments_and_derivative():
    mean, log_variance = torch.tensor([1.0, -2.0]), torch.tensor([0.7, -1.0], requires_grad=True)
    q = diagonal_normal(mean, log_variance)
    z = q.rsample((100_000,))
    assert ((z.mean(0) - mean).abs() < 6 * q.stddev / 100_000**0.5).all()
    assert ((z.var(0) - q.variance).abs() < 6 * q.variance * (2 / 100_000) ** 0.5).all()
    gradient = torch.autograd.grad(z[0, 0], log_variance)[0]
    epsilon = (z[0] - mean) / q.stddev
    assert torch.allclose(gradient, torch.stack([0.5 * q.stddev[0] * epsilon[0], torch.tensor(0.0)]), atol=1e-12)


@pytest.mark.parametrize("position", ["q", "p"])
def test_kl_divergence_names_the_argument_that_is_no_gaussian(position):
    good, bad = random_diagonal(2), Cauchy(torch.zeros(2), torch.ones(2))
    pair = (bad, good) if position == "q" else (good, bad)
    with pytest.raises(TypeError, match=f"^{position} must be .* got Cauchy"):
        kl_divergence(*pair)


def test_kl_divergence_refuses_different_dimensions():
    with pytest.raises(ValueError, match=r"same event shape, got \(2,\) and \(3,\)"):
        kl_divergence(random_diagonal(2), random_diagonal(3))


def test_kl_divergence_stays_finite_in_float32_where_the_variance_underflows():
    log_variance = torch.tensor([[-110.0]], dtype=torch.float32, requires_grad=True)
    q = diagonal_normal(torch.zeros(1, 1), log_variance)
    value = kl_divergence(q, standard_normal(1, like=log_variance.detach()[0]))
    value.backward()
    assert value.item() == pytest.approx(0.5 * (110 - 1), rel=1e-6)
    assert log_variance.grad.item() == pytest.approx(-0.5, rel=1e-6)


# The ends of the range, in float32


def exact_kl(mean: float, log_variance: float) -> tuple[float, float, float]:
    """KL to N(0, 1) and its derivatives in mean and log variance, by the formula in float64."""
    variance = np.float32(np.exp(np.float64(log_variance))).item()
    return 0.5 * (mean**2 + variance - 1 - log_variance), mean, 0.5 * (variance - 1)


@pytest.mark.parametrize("log_variance", [-350.0, -250.0, -200.0, -110.0, -87.0, -1e-4, 0.0, 1e-4, 30.0, 80.0, 88.0])
@pytest.mark.parametrize("mean", [0.0, 1e-20, 0.5, -300.0])
def test_kl_divergence_and_its_gradient_are_the_formula_at_the_ends_of_the_range(mean, log_variance, float32):
    expected = exact_kl(mean, log_variance)
    place, width = (torch.tensor([value], requires_grad=True) for value in (mean, log_variance))
    for divergence in (kl_divergence, torch_kl):
        value = divergence(diagonal_normal(place, width), standard_normal(1))
        found = (value, *torch.autograd.grad(value, (place, width)))
        assert [each.item() for each in found] == pytest.approx(expected, rel=2e-6, abs=1e-7)
    coordinate = torch_kl(marginals(diagonal_normal(place, width)), Normal(0.0, 1.0))
    assert coordinate.item() == pytest.approx(expected[0], rel=2e-6, abs=1e-7)


@pytest.mark.parametrize(("of_q", "of_p"), [(-250.0, -250.0), (-200.0, -202.0), (-249.0, -250.0), (90.0, 91.0)])
def test_kl_divergence_of_two_tiny_or_huge_widths_depends_on_their_ratio_alone(of_q, of_p, float32):
    widths = [torch.tensor([value], requires_grad=True) for value in (of_q, of_p)]
    value = kl_divergence(*(diagonal_normal(torch.zeros(1), width) for width in widths))
    ratio = of_q - of_p
    assert value.item() == pytest.approx(0.5 * (math.exp(ratio) - 1 - ratio), rel=1e-6)
    slopes = [slope.item() for slope in torch.autograd.grad(value, widths)]
    assert slopes == pytest.approx([0.5 * math.expm1(ratio), -0.5 * math.expm1(ratio)], rel=1e-6)


def test_kl_divergence_of_nearly_equal_widths_keeps_its_digits(float32):
    value = kl_divergence(diagonal_normal(torch.zeros(1), torch.tensor([1e-3])), standard_normal(1))
    assert value.item() == pytest.approx(0.5 * (math.expm1(1e-3) - 1e-3), rel=1e-3)


@pytest.mark.parametrize("log_variance", [-340.0, -200.0, -110.0, 80.0])
def test_diagonal_normal_log_prob_and_entropy_are_the_formula_where_the_width_underflows(log_variance, float32):
    width = torch.tensor([log_variance], requires_grad=True)
    q = diagonal_normal(torch.zeros(1), width)
    value = q.log_prob(torch.zeros(1))
    assert value.item() == pytest.approx(-0.5 * (log_variance + math.log(2 * math.pi)), rel=1e-6)
    assert torch.autograd.grad(value, width)[0].item() == pytest.approx(-0.5)
    assert q.entropy().item() == pytest.approx(0.5 * (log_variance + 1 + math.log(2 * math.pi)), rel=1e-6)
    assert log_variance_is_kept(q.expand((4, 3)), log_variance)


def log_variance_is_kept(q: Independent, value: float) -> bool:
    return q.batch_shape == (4, 3) and torch.equal(log_variance(q), torch.full((4, 3, 1), value))


def test_diagonal_normal_is_a_normal_of_torch_in_everything_else():
    mean, width = torch.randn(2, 5, 3)
    ours, torchs = marginals(diagonal_normal(mean, width)), Normal(mean, (0.5 * width).exp())
    assert isinstance(ours, Normal)
    z = torch.randn(4, 5, 3)
    for name in ("log_prob", "cdf"):
        torch.testing.assert_close(getattr(ours, name)(z), getattr(torchs, name)(z))
    torch.testing.assert_close(ours.entropy(), torchs.entropy())
    for name in ("mean", "stddev", "variance"):
        assert torch.equal(getattr(ours, name), getattr(torchs, name))
    for size in ((), (7,)):
        torch.manual_seed(1)
        one = ours.rsample(size)
        torch.manual_seed(1)
        assert torch.equal(one, torchs.rsample(size))
    assert torch.equal(ours.expand((2, 5, 3)).scale, torchs.expand((2, 5, 3)).scale)
    torch.testing.assert_close(torch_kl(ours, torchs), torch.zeros(5, 3))


def test_log_variance_of_any_distribution_is_that_of_its_coordinates():
    mean, width = torch.randn(2, 5, 3)
    assert torch.equal(log_variance(diagonal_normal(mean, width)), width)
    torch.testing.assert_close(log_variance(Independent(Normal(mean, (0.5 * width).exp()), 1)), width)
    torch.testing.assert_close(log_variance(MultivariateNormal(mean, torch.diag_embed(width.exp()))), width)


# torch's registry


def test_kl_divergence_of_torch_takes_the_mixed_pairs():
    full, diagonal = random_gaussian(3, (4,)), random_diagonal(3, (4,))
    for pair in ((full, diagonal), (diagonal, full)):
        torch.testing.assert_close(torch_kl(*pair), kl_divergence(*pair))
    with pytest.raises(NotImplementedError):
        torch_kl(Independent(Cauchy(torch.zeros(3), torch.ones(3)), 1), full)


# What is refused


@pytest.mark.parametrize(
    ("mean", "width", "kind", "words"),
    [
        (0.0, 0.0, TypeError, ["float"]),
        (np.zeros(2), torch.zeros(2), TypeError, ["ndarray"]),
        (torch.zeros(()), torch.zeros(()), ValueError, ["(..., d)", "()"]),
        (torch.zeros(5, 2), torch.zeros(5, 3), ValueError, ["(5, 2)", "(5, 3)"]),
    ],
)
def test_diagonal_normal_refuses_what_is_no_pair_of_tensors_of_one_shape(mean, width, kind, words, monkeypatch):
    unchecked = diagonal_normal
    while hasattr(unchecked, "__wrapped__"):  # without the shape checks of the tests, which come first
        unchecked = unchecked.__wrapped__
    with refused(kind, "mean and log_variance", *words):
        unchecked(mean, width)


@pytest.mark.parametrize("size", [0, -1, 2.0, "2", True])
def test_standard_normal_refuses_a_dimension_that_is_no_positive_integer(size):
    with refused(ValueError, "latent_dim must be a positive integer", repr(size)):
        standard_normal(size)


def test_kl_divergence_refuses_batches_that_do_not_broadcast():
    with refused(ValueError, "batch shapes of q and p must broadcast", "(5,)", "(6,)"):
        kl_divergence(random_diagonal(2, (5,)), random_diagonal(2, (6,)))


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (Normal(torch.zeros(50, 2), 1.0), standard_normal(2)),
        (standard_normal(2), Normal(torch.zeros(2), 1.0)),
        (Normal(torch.zeros(50, 2), 1.0), standard_normal(50)),
        (standard_normal(2), random_diagonal(2, (7,))),
        (random_diagonal(2, (7,)), random_diagonal(2, (5,))),
    ],
)
def test_kl_monte_carlo_refuses_shapes_that_would_broadcast(q, p):
    with refused(
        ValueError, "q and p must have the same event shape", tuple(q.batch_shape), tuple(p.batch_shape), "wrap"
    ):
        kl_monte_carlo(q, p, 5)


def test_kl_monte_carlo_of_single_numbers_is_one_for_each():
    q, p = Normal(torch.zeros(3), 1.0), Normal(torch.ones(3), 1.0)
    draws = kl_monte_carlo(q, p, 100_000)
    assert ((draws - 0.5).abs() < 6 / 100_000**0.5).all()
