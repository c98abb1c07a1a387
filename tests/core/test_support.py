"""`check_support`: data outside of a likelihood's support are refused once, in one sentence that says what to do."""

from contextlib import nullcontext

import pytest
import torch
from checks import refused
from torch import distributions as td

from vae_core._checks import support
from vae_core.likelihoods import (
    LIKELIHOODS,
    NegativeBinomialCounts,
    bernoulli,
    categorical,
    check_support,
    continuous_bernoulli,
    discretized_logistic,
    gaussian,
    resolve,
)
from vae_core.models import mlp_vae
from vae_core.pixel_distributions import ContinuousBernoulli, DiscretizedLogistic, GreyLevels, NegativeBinomial
from vae_core.runtime import unit_interval

SHAPE = (1, 2, 2)
ZEROS = torch.zeros(SHAPE)
GREY = torch.rand(5, *SHAPE)
COUNTS = torch.tensor([0.0, 1.0, 7.0, 255.0]).reshape(1, *SHAPE)
LEVELS = {n: categorical(n)(torch.zeros(n, *SHAPE)) for n in (2, 4, 256)}
LOGISTIC = discretized_logistic(torch.zeros(2, *SHAPE))
COUNTING = NegativeBinomialCounts()(ZEROS)
BYTES = torch.arange(256, dtype=torch.uint8).reshape(64, *SHAPE)

TAKEN = {
    "bernoulli, binary": (bernoulli(ZEROS), GREY.round()),
    "bernoulli, grey": (bernoulli(ZEROS), GREY),
    "bernoulli, bytes": (bernoulli(ZEROS), BYTES),
    "bernoulli, bool": (bernoulli(ZEROS), GREY > 0.5),
    "bernoulli, half precision": (bernoulli(ZEROS), GREY.half()),
    "bernoulli, no data": (bernoulli(ZEROS), GREY[:0]),
    "bernoulli, a batch of codes": (bernoulli(torch.zeros(7, 5, *SHAPE)), GREY),
    "continuous bernoulli, grey": (continuous_bernoulli(ZEROS), GREY),
    "gaussian, anything finite": (gaussian(ZEROS), 1e18 * torch.randn(5, *SHAPE)),
    "logistic, bytes": (LOGISTIC, BYTES),
    "logistic, bytes in 32 bits": (LOGISTIC, (BYTES / 255).float()),
    "two levels, binary": (LEVELS[2], GREY.round()),
    "four levels, bytes that are levels": (LEVELS[4], 85 * torch.arange(4, dtype=torch.uint8).reshape(1, *SHAPE)),
    "counts": (COUNTING, COUNTS),
    "poisson": (td.Independent(td.Poisson(torch.ones(SHAPE)), 3), COUNTS),
    "torch's own continuous bernoulli": (td.Independent(td.ContinuousBernoulli(0.5 + ZEROS), 3), GREY),
    "exponential": (td.Independent(td.Exponential(torch.ones(SHAPE)), 3), GREY),
    "laplace": (td.Independent(td.Laplace(ZEROS, 1.0), 3), -GREY),
    "a simplex": (td.Dirichlet(torch.ones(4)), torch.rand(6, 4).softmax(1)),
    "a full covariance": (td.MultivariateNormal(torch.zeros(4), torch.eye(4)), torch.randn(6, 4)),
    "a mixture": (
        td.MixtureSameFamily(td.Categorical(torch.ones(3)), td.Independent(td.Normal(torch.zeros(3, 4), 1.0), 1)),
        torch.randn(6, 4),
    ),
}


@pytest.mark.parametrize(("distribution", "x"), TAKEN.values(), ids=TAKEN)
def test_check_support_takes_what_the_likelihood_has_a_density_for(distribution, x):
    check_support(distribution, x)
    floats = unit_interval(x) if x.dtype == torch.uint8 else 1.0 * x
    assert all(distribution.log_prob(floats[k : k + 1]).isfinite().all() for k in range(min(len(x), 5)))


def outside(value: float, count: int = 1, n: int = 5) -> torch.Tensor:
    x = torch.zeros(n * 4)
    x[:count] = value
    return x.reshape(n, *SHAPE)


BYTE_FLOATS, UNIT = "divide by 255", ["x must lie in [0, 1]"]
REFUSED = {
    "floats to 255": (
        bernoulli(ZEROS),
        outside(255.0, 3),
        [*UNIT, "Bernoulli", "3 of 20", "from 0 to 255", BYTE_FLOATS],
    ),
    "one bright value": (bernoulli(ZEROS), outside(1.01), [*UNIT, "1 of 20", "from 0 to 1.01", BYTE_FLOATS]),
    "counts in a bernoulli": (bernoulli(ZEROS), COUNTS, [*UNIT, "2 of 4", BYTE_FLOATS]),
    "Normalize": (bernoulli(ZEROS), BYTES / 127.5 - 1, ["128 of 256", "from -1 to 1", "x / 2 + 0.5", "Gaussian"]),
    "standardised": (bernoulli(ZEROS), outside(-2.5), ["from -2.5 to 0", "Gaussian likelihood for standardised"]),
    "not above 255": (bernoulli(ZEROS), outside(65535.0), ["from 0 to 65535", "Gaussian"]),
    "continuous": (continuous_bernoulli(ZEROS), outside(2.0), [*UNIT, "ContinuousBernoulli", BYTE_FLOATS]),
    "nan": (bernoulli(ZEROS), outside(torch.nan, 2), ["2 of 20", "from 0 to 0", "remove or replace 2 nan values"]),
    "all nan": (gaussian(ZEROS), outside(torch.nan, 20), ["be finite", "20 of 20", "20 nan"]),
    "infinite": (
        gaussian(ZEROS),
        outside(-torch.inf),
        ["x must be finite", "Normal", "-inf to 0", "1 infinite values"],
    ),
    "nan and infinite": (
        gaussian(ZEROS),
        torch.stack([outside(torch.nan)[0], outside(torch.inf)[0]]),
        ["1 nan", "1 inf"],
    ),
    "between levels": (
        LEVELS[4],
        outside(0.5),
        ["must hold the 4 values k/3", "GreyLevels", "1 of 20", "(x * 3).round()"],
    ),
    "grey with two levels": (LEVELS[2], GREY, ["must hold the 2 values k/1", "round"]),
    "levels as whole numbers": (LEVELS[4], outside(3.0), ["k/3", "divide by 3"]),
    "bytes as floats": (LOGISTIC, BYTES.float(), ["k/255", "DiscretizedLogistic", "254 of 256", BYTE_FLOATS]),
    "bytes that are no levels": (LEVELS[4], BYTES, ["k/3", "252 of 256", "from 0 to 1", "round"]),
    "negative counts": (COUNTING, -COUNTS, ["x must hold counts 0, 1, 2", "NegativeBinomial", "3 of 4", "as floats"]),
    "fractional counts": (COUNTING, outside(0.5), ["x must hold counts 0, 1, 2", "1 of 20", "neither scaled"]),
    "counts as bytes": (COUNTING, COUNTS.to(torch.uint8), ["x must hold counts 0, 1, 2", "2 of 4", "as floats"]),
    "infinitely many": (COUNTING, outside(torch.inf), ["1 infinite"]),
    "an exponential": (
        td.Independent(td.Exponential(torch.ones(SHAPE)), 3),
        -GREY,
        ["GreaterThan", "another likelihood"],
    ),
    "off the simplex": (td.Dirichlet(torch.ones(4)), torch.ones(6, 4), ["Simplex", "6 of 24"]),
    "a nan row": (td.Dirichlet(torch.ones(4)), torch.full((2, 4), torch.nan), ["8 nan"]),
}


@pytest.mark.parametrize(("distribution", "x", "words"), REFUSED.values(), ids=REFUSED)
def test_check_support_refuses_values_outside_in_one_sentence_with_what_to_do(distribution, x, words):
    with refused(ValueError, *words):
        check_support(distribution, x)


def test_check_support_names_the_argument():
    with refused(ValueError, "x_test must lie in [0, 1]"):
        check_support(bernoulli(ZEROS), outside(2.0), "x_test")


@pytest.mark.parametrize(
    ("distribution", "words"),
    [
        (td.Bernoulli(logits=ZEROS), ["event shape of one datum of x, (1, 2, 2), got ()", "Independent(…, 3)"]),
        (td.Independent(td.Bernoulli(logits=ZEROS), 2), ["(1, 2, 2), got (2, 2)", "Independent(…, 1)"]),
        (td.Independent(td.Normal(torch.zeros(4), 1.0), 1), ["(1, 2, 2), got (4,)"]),
        (bernoulli(torch.zeros(5, 1, 3, 3)), ["(1, 2, 2), got (1, 3, 3)"]),
        (bernoulli(torch.zeros(1, 1, 1)), ["(1, 2, 2), got (1, 1, 1)"]),
    ],
)
def test_check_support_refuses_another_event_shape(distribution, words):
    with refused(ValueError, *words):
        check_support(distribution, GREY)


class Unstated(td.Normal):
    """A user's distribution without a support that can be asked."""

    support = None


class Undefined(td.Normal):
    @property
    def support(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    "distribution",
    [
        td.Independent(Unstated(ZEROS, 1.0), 3),
        td.Independent(Undefined(ZEROS, 1.0), 3),
        td.Independent(td.Uniform(torch.zeros(5, *SHAPE), torch.ones(5, *SHAPE)), 3),  # depends on z
        td.Independent(td.Pareto(1 + GREY, 1.0), 3),
    ],
)
def test_check_support_asks_nothing_of_a_distribution_that_states_no_fixed_support(distribution):
    with refused(ValueError, "x must lie in [0, 1]"):
        check_support(bernoulli(ZEROS), outside(-2.0))
    assert check_support(distribution, outside(-2.0)) is None


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_check_support_takes_binary_images_for_each_named_likelihood(name):
    model = mlp_vae(SHAPE, 2, hidden=(3,), likelihood=name).eval()
    p = model.likelihood(torch.zeros(5, 2))
    check_support(p, GREY.round())
    assert p.log_prob(GREY.round()).isfinite().all()


def test_support_of_our_distributions_holds_their_own_draws_and_means():
    logits = torch.randn(40, *SHAPE)
    for distribution in (
        ContinuousBernoulli(logits),
        DiscretizedLogistic(logits, logits, 17),
        GreyLevels(torch.randn(40, 5, *SHAPE)),
        NegativeBinomial(logits.exp(), logits),
    ):
        drawn = distribution.sample()
        assert distribution.support.check(drawn).all()
        assert not distribution.support.check(drawn + 0.3 + 300 * (drawn > 0.5)).all()


def test_check_support_of_many_data_counts_over_all_chunks(monkeypatch):
    monkeypatch.setattr(support, "CHUNK", 8)
    x = (torch.arange(400) % 3 / 3).reshape(100, *SHAPE)
    check_support(LEVELS[4], x)
    x[::10, 0, 1, 1] = 0.5
    with refused(ValueError, "10 of 400"):
        check_support(LEVELS[4], x)


def test_check_support_makes_no_float_copy_of_stored_images():
    """Of 8 MB of bytes it allocates no tensor larger than they are, whatever the likelihood."""
    x = torch.randint(0, 256, (2_000_000, *SHAPE), dtype=torch.uint8)
    for distribution in (bernoulli(ZEROS), LOGISTIC, gaussian(ZEROS)):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            check_support(distribution, x)
        assert max(event.self_cpu_memory_usage for event in profile.events()) < 0.2 * x.numel()


class Captured(torch.Tensor):
    """A tensor that says that it is on a CUDA device."""

    is_cuda = True


def test_check_support_asks_nothing_while_a_graph_is_captured(monkeypatch):
    x = outside(255.0).as_subclass(Captured)
    for capturing in (False, True):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        with nullcontext() if capturing else refused(ValueError, "x must lie in [0, 1]"):
            check_support(bernoulli(ZEROS), x)


def test_check_support_leaves_the_random_state_and_the_data_alone():
    x, state = GREY.clone(), torch.get_rng_state()
    check_support(LEVELS[256], (255 * x).round() / 255)
    check_support(resolve("bernoulli")(ZEROS), x)
    assert torch.equal(x, GREY)
    assert torch.equal(torch.get_rng_state(), state)
