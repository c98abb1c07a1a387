"""Ways to keep the KL from closing units too soon: schedules of its weight, and free bits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vae_core.models import mlp_vae
from vae_core.objectives import cyclical, elbo, elbo_terms, free_bits_terms, linear_warm_up

SHAPE = (1, 4, 4)


@pytest.fixture
def model():
    return mlp_vae(SHAPE, 3, hidden=(7,), batch_norm=False)


@given(st.floats(0, 1), st.floats(0.01, 1))
def test_cyclical_with_one_cycle_is_a_linear_warm_up(progress, share):
    assert cyclical(1, share)(progress) == linear_warm_up(share)(progress)


@given(st.integers(1, 8), st.floats(0.05, 1), st.floats(0, 1))
def test_cyclical_begins_at_nothing_and_every_run_ends_with_the_bound(cycles, share, progress):
    beta = cyclical(cycles, share)
    assert beta(0) == 0
    assert beta(1) == 1
    assert 0 <= beta(progress) <= 1
    if (later := progress + 1 / cycles) < 1:
        assert beta(later) == pytest.approx(beta(progress), abs=1e-6) or abs(progress * cycles % 1) < 1e-6


@pytest.mark.parametrize(("cycles", "share"), [(0, 0.5), (2.0, 0.5), (2, 0.0), (2, 1.1)])
def test_cyclical_refuses_impossible_cycles(cycles, share):
    with pytest.raises(ValueError, match="must be"):
        cyclical(cycles, share)


def test_free_bits_terms_without_a_floor_are_the_bound(model):
    x = torch.rand(8, *SHAPE).round()
    torch.manual_seed(0)
    value, terms = free_bits_terms(model, x, 0.0)
    torch.manual_seed(0)
    bound, expected = elbo_terms(model, x)
    assert value.mean().item() == pytest.approx(bound.mean().item(), rel=1e-12)
    assert all(torch.allclose(terms[name], expected[name]) for name in expected)


def test_free_bits_terms_with_a_floor_are_below_the_bound(model):
    x = torch.rand(8, *SHAPE).round()
    torch.manual_seed(0)
    bound = elbo(model, x).mean()
    values = []
    for floor in (0.0, 0.1, 1.0, 10.0):
        torch.manual_seed(0)
        values.append(free_bits_terms(model, x, floor)[0].mean().item())
    assert values == sorted(values, reverse=True)
    assert max(values) <= bound.item() + 1e-12


def test_free_bits_terms_pull_no_unit_below_the_floor_to_the_prior(model):
    """Where the likelihood ignores the code, the encoder has no slope at all under the floor, and one above it."""
    with torch.no_grad():
        model.decoder[0].weight.zero_()
    x = torch.rand(8, *SHAPE).round()
    for floor, moved in ((100.0, False), (0.0, True)):
        model.zero_grad()
        free_bits_terms(model, x, floor)[0].mean().backward()
        assert bool(model.mean.weight.grad.abs().max() > 1e-12) == moved


@pytest.mark.parametrize("floor", [-0.1, float("nan")])
def test_free_bits_terms_refuse_a_negative_floor(model, floor):
    with pytest.raises(ValueError, match="floor must be finite and not negative"):
        free_bits_terms(model, torch.rand(2, *SHAPE), floor)


def test_free_bits_terms_average_over_draws_as_the_elbo_does():
    model, x = mlp_vae((1, 4, 4), 2, hidden=(5,), batch_norm=False), torch.rand(6, 1, 4, 4)
    torch.manual_seed(3)
    _, with_floor = free_bits_terms(model, x, 0.1, num_samples=4)
    torch.manual_seed(3)
    _, plain = elbo_terms(model, x, num_samples=4)
    assert torch.allclose(with_floor["reconstruction"], plain["reconstruction"])
    assert torch.allclose(with_floor["kl"], plain["kl"])
