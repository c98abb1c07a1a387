"""Per-datum inference, variational EM, annealed importance sampling and the gaps, against exact posteriors."""

from itertools import pairwise

import pytest
import torch
from inference_problems import SKEW, STRAIGHT, SVI_ERROR, Linear, X, linear
from torch import Tensor, nn
from torch.distributions import Independent

from vae_core.distributions import diagonal_normal, kl_divergence
from vae_core.evaluation import inference_gap
from vae_core.inference import (
    LocalPosteriors,
    annealed_importance_sampling,
    fit_posterior,
    variational_em,
)
from vae_core.linear import PPCA
from vae_core.quadrature import QuadratureModel, curve, two_modes
from vae_core.runtime import evaluation_mode, random_state

# refine


def test_fit_posterior_finds_the_best_diagonal_q(linear):
    """The posterior's own mean, and variances 1/M_jj; the whole posterior where W is orthogonal."""
    q, exact = fit_posterior(linear, X, num_samples=64), linear.exact_posterior(X)
    gap = (linear.log_prob(X) - linear.exact_elbo(X, q)).detach() - linear.mean_field_gap().detach()
    assert (gap > -1e-12).all()
    assert gap.max() < 1e-3
    assert torch.allclose(q.mean, exact.mean, atol=0.02)
    assert torch.allclose(q.variance, (1 / linear.precision.diagonal()).expand(6, 2), rtol=0.05)
    if torch.equal(linear.weight.data, STRAIGHT):
        assert linear.mean_field_gap() < 1e-12
        assert kl_divergence(q, exact).max() < 1e-3
    else:
        assert linear.mean_field_gap() > 0.2


def test_fit_posterior_leaves_a_gap_that_falls_with_the_number_of_draws():
    """In the mean over 100 data under 2e-3 nats from 8 draws, a quarter of it from 32; the start does not matter."""
    linear, x = Linear(SKEW.clone()), torch.randn(100, 5)
    top = (linear.log_prob(x) - linear.mean_field_gap()).detach()
    few, many, other = (
        top - linear.exact_elbo(x, fit_posterior(linear, x, start, num_samples=count)).detach()
        for count, start in ((8, None), (32, None), (8, linear.posterior(x)))
    )
    assert few.mean() < 2e-3
    assert other.mean() < 2e-3
    assert max(few.max(), other.max()) < SVI_ERROR
    error = (few.std() / 4).hypot(many.std()) / 100**0.5
    assert (few.mean() / 4 - many.mean()).abs() < 6 * error


def test_fit_posterior_never_ends_below_its_start(linear):
    x = X.repeat(10, 1)
    for start in (linear.posterior(x), diagonal_normal(torch.randn(60, 2), torch.randn(60, 2))):
        before, after = (linear.exact_elbo(x, q).detach() for q in (start, fit_posterior(linear, x, start)))
        assert (after > before - SVI_ERROR).all()


@pytest.mark.parametrize("f", [two_modes, curve])
def test_fit_posterior_climbs_where_there_is_no_closed_form(f):
    model, x = QuadratureModel(f, 0.6), torch.tensor([[0.9], [2.5]]) if f is two_modes else X[:4, :2]
    start = diagonal_normal(torch.full((len(x), 1), 0.5), torch.zeros(len(x), 1))
    q = fit_posterior(model, x, start)
    found = model.elbo(x, q)
    assert (found > model.elbo(x, start)).all()
    for shift in torch.tensor([[0.1, 0.0], [-0.1, 0.0], [0.0, 0.3], [0.0, -0.3]]):
        other = diagonal_normal(q.mean + shift[0], q.variance.log() + shift[1])
        assert (model.elbo(x, other) < found + SVI_ERROR).all()


def test_fit_posterior_without_steps_is_its_start_and_that_the_prior(linear):
    q = fit_posterior(linear, X, steps=0)
    assert torch.equal(q.mean, torch.zeros(6, 2))
    assert torch.equal(q.variance, torch.ones(6, 2))
    start = linear.posterior(X)
    assert torch.allclose(fit_posterior(linear, X, start, steps=0).variance, start.variance, rtol=1e-12)


@pytest.mark.parametrize("steps", [-1, 2.5, "many"])
def test_fit_posterior_refuses_a_bad_number_of_steps(linear, steps):
    with pytest.raises(ValueError, match=f"steps must be a non-negative integer, got {steps!r}"):
        fit_posterior(linear, X, steps=steps)


USES = {
    "refine": lambda model, seed=0: fit_posterior(model, X, model.posterior(X), steps=20, seed=seed).mean,
    "annealing": lambda model, seed=0: annealed_importance_sampling(
        model, X, model.posterior(X), temperatures=5, seed=seed
    ),
    "gap": lambda model, seed=0: inference_gap(model, X, steps=5, num_samples=100, seed=seed)["elbo"],
}
USE = pytest.mark.parametrize("use", USES.values(), ids=USES)


@USE
def test_fit_posterior_annealing_and_inference_gap_leave_modes_and_random_numbers(linear, use):
    linear.train()
    linear.dropout.eval()
    before, numbers = {name: value.clone() for name, value in linear.state_dict().items()}, torch.get_rng_state()
    assert not use(linear).requires_grad
    assert torch.equal(torch.get_rng_state(), numbers)
    assert (linear.training, linear.dropout.training) == (True, False)
    assert all(torch.equal(value, before[name]) for name, value in linear.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in linear.parameters())
    linear.train()
    linear.modes.clear()
    use(linear)
    assert linear.modes
    assert not any(linear.modes)


@USE
def test_fit_posterior_annealing_and_inference_gap_are_fixed_by_a_seed(linear, use):
    first = use(linear, 1)
    torch.manual_seed(99)
    assert torch.equal(use(linear, 1), first)
    assert not torch.equal(use(linear, 2), first)


# Variational EM


@pytest.fixture
def cloud() -> Tensor:
    """200 points in five dimensions, two of them large."""
    return torch.randn(200, 2) @ torch.randn(2, 5) + 0.4 * torch.randn(200, 5) + 1


def test_variational_em_on_a_linear_model_comes_to_ppca(cloud):
    """Its optimum is PPCA's: some rotation of W has a diagonal posterior."""
    best, model, q = PPCA(2).fit(cloud).score(cloud), Linear(torch.randn(5, 2) / 2), LocalPosteriors(200, 2)
    losses, bounds = [], []
    for batch_size, *rates in ((200, 0.05, 0.1), (200, 0.02, 0.03), (100, 0.005, 0.005)):
        rates = dict(zip(("learning_rate", "local_learning_rate"), rates, strict=True))
        history = variational_em(
            model, cloud, q, epochs=100, batch_size=batch_size, e_steps=2, num_samples=16, seed=len(losses), **rates
        )
        losses += [row["loss"] for row in history]
        bounds.append(model.exact_elbo(cloud, q(torch.arange(200))).mean().item())
    assert bounds[0] < bounds[1] < bounds[2] < best
    assert losses[0] + best > 1
    assert sum(losses[-20:]) / 20 == pytest.approx(-bounds[2], abs=0.03)
    assert model.log_prob(cloud).mean().item() < best
    assert best - bounds[2] < 0.02
    assert best - model.log_prob(cloud).mean().item() < 0.01


def test_variational_em_adds_what_after_epoch_returns_and_nothing_else_changes(cloud):
    histories, weights = [], []
    for after in (None, lambda: {"drawn": torch.randn(3).sum().item()}):
        model, q = Linear(SKEW.clone()), LocalPosteriors(200, 2)
        numbers = torch.get_rng_state()
        histories.append(variational_em(model.eval(), cloud, q, epochs=3, after_epoch=after, seed=4))
        weights.append(torch.cat([model.weight.flatten(), q.table.weight.flatten()]))
        assert torch.equal(torch.get_rng_state(), numbers)
        assert not any(model.modes)  # the model keeps its mode
    assert torch.equal(*weights)
    assert [row.keys() for row in histories[1]] == [{"epoch", "loss", "drawn"}] * 3
    assert [{k: row[k] for k in ("epoch", "loss")} for row in histories[1]] == histories[0]
    assert [row["epoch"] for row in histories[0]] == [1, 2, 3]


def test_variational_em_with_another_seed_has_another_loss(cloud):
    losses = [
        variational_em(Linear(SKEW.clone()), cloud, LocalPosteriors(200, 2), epochs=1, seed=seed)[0]["loss"]
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_local_posteriors_hold_two_numbers_for_each_datum_and_code():
    q = LocalPosteriors(200, 3)
    assert sum(parameter.numel() for parameter in q.parameters()) == 2 * 3 * 200
    start = q(torch.tensor([4, 7]))
    assert (start.batch_shape, start.event_shape) == ((2,), (3,))
    assert torch.equal(start.mean, torch.zeros(2, 3))
    assert torch.equal(start.variance, torch.ones(2, 3))


def test_variational_em_moves_only_the_rows_of_its_batch(cloud):
    """E and M in turn, twice, as seen from within: 60 rows, then 60 others move; W moves with the M-steps."""
    q, rows, decoders = LocalPosteriors(120, 2), [], []

    class Watched(Linear):
        def likelihood(self, z: Tensor) -> Independent:
            rows.append((q.table.weight.detach() != 0).any(1))
            decoders.append(self.weight.detach().clone())
            return super().likelihood(z)

    model = Watched(SKEW.clone())
    variational_em(model, cloud[:120], q, epochs=1, batch_size=60)
    assert [int(moved.sum()) for moved in rows] == [0, 60, 60, 120]
    assert torch.equal(rows[1], rows[2])
    decoders.append(model.weight.detach())
    assert [torch.equal(*pair) for pair in pairwise(decoders)] == [True, False, True, False]
    assert q.table.weight.grad.is_sparse


@pytest.mark.parametrize("e_steps", [0, -2, 1.5])
def test_variational_em_refuses_a_bad_number_of_e_steps(cloud, e_steps):
    with pytest.raises(ValueError, match=f"e_steps must be a positive integer, got {e_steps!r}"):
        variational_em(Linear(SKEW), cloud, LocalPosteriors(200, 2), epochs=1, e_steps=e_steps)


def test_variational_em_refuses_data_without_a_row(cloud):
    with pytest.raises(ValueError, match="q must have a row for each datum, got 199 for 200"):
        variational_em(Linear(SKEW), cloud, LocalPosteriors(199, 2), epochs=1)
    with pytest.raises(ValueError, match="x must hold at least one image or row, got none"):
        variational_em(Linear(SKEW), cloud[:0], LocalPosteriors(200, 2), epochs=1)


# What they stand on


def failing(context, action) -> None:
    with context:
        action()
        raise KeyError


def test_evaluation_mode_gives_each_module_its_own_mode_back_also_after_an_error():
    model, within = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())), []
    model[1].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(KeyError):
        failing(evaluation_mode(model), lambda: within.extend(module.training for module in model.modules()))
    assert within == [False] * 5
    assert [module.training for module in model.modules()] == before == [True, True, False, False, False]


def test_evaluation_mode_leaves_alone_what_is_no_module():
    thing = type("Thing", (), {"training": True})()
    with evaluation_mode(thing):
        assert thing.training


def test_random_state_gives_the_seeds_numbers_within_and_the_callers_after():
    inner = []
    torch.manual_seed(1)
    expected = torch.randn(2)
    torch.manual_seed(1)
    with pytest.raises(KeyError):
        failing(random_state(7), lambda: inner.append(torch.randn(3)))
    assert torch.equal(torch.randn(2), expected)
    torch.manual_seed(7)
    assert torch.equal(torch.randn(3), inner[0])
