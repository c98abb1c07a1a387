"""Per-datum inference, variational EM, annealed importance sampling and the gaps, against exact posteriors."""

from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from checks import refused
from inference_problems import SKEW, STRAIGHT, SVI_ERROR, Linear, X, linear
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from vae_core.distributions import diagonal_normal, kl_divergence, log_variance, standard_normal
from vae_core.evaluation import inference_gap
from vae_core.inference import (
    LocalPosteriors,
    WithPosterior,
    annealed_importance_sampling,
    fit_posterior,
    variational_em,
)
from vae_core.linear import PPCA
from vae_core.objectives import elbo
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


# What surrounds a call


def em(float_type: torch.dtype = torch.float64, **modes):
    """Two epochs of variational EM on a linear model: losses, weights and table."""
    torch.manual_seed(5)
    model, q = Linear(SKEW.clone()).to(float_type), LocalPosteriors(40, 2)
    x = torch.randn(40, 5, dtype=float_type)
    return model, q, x, lambda: variational_em(model, x, q, epochs=3, batch_size=10, **modes)


AMBIENT = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default float32": lambda: torch.set_default_dtype(torch.float32) or nullcontext(),
}


@pytest.mark.parametrize("ambient", AMBIENT.values(), ids=AMBIENT)
def test_variational_em_fit_posterior_and_annealing_do_not_depend_on_ambient_state(ambient):
    found = []
    for context in (nullcontext, ambient):
        model, q, x, train = em()
        with context():
            history = train()
            best = fit_posterior(model, x, steps=20)
            log_w = annealed_importance_sampling(model, x, best, temperatures=3)
        found.append((history[-1]["loss"], model.weight.detach(), q.table.weight.detach(), best.mean, log_w))
    for one, other in zip(*found, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert found[0][1].sub(SKEW).abs().max() > 1e-3  # it has learned


def test_variational_em_trains_a_float32_decoder_where_the_default_is_float64():
    model, q, _, train = em(torch.float32)
    assert torch.get_default_dtype() == q.table.weight.dtype == torch.float64
    train()
    assert q.table.weight.dtype == model.weight.dtype == torch.float32
    assert fit_posterior(model, X.float(), steps=3).mean.dtype == torch.float32
    assert fit_posterior(model, X.numpy(), steps=3).mean.dtype == torch.float32


def test_variational_em_trains_x_that_was_made_in_inference_mode():
    model, q, x, train = em()
    expected = train()
    model, q, _, _ = em()
    with torch.inference_mode():
        x = x.clone()
    assert variational_em(model, x, q, epochs=3, batch_size=10) == expected


def test_variational_em_refuses_parameters_that_were_made_in_inference_mode():
    with torch.inference_mode():
        q = LocalPosteriors(6, 2)
    with refused(ValueError, "made outside of torch.inference_mode"):
        variational_em(Linear(SKEW.clone()), X, q, epochs=1)


class Decoder(nn.Module):
    """A network whose weights autocast casts, and caches the casts of."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 5))

    prior = standard_normal(2, like=torch.zeros((), dtype=torch.float32))

    def likelihood(self, z: Tensor) -> Independent:
        mean = self.net(z).float()
        return diagonal_normal(mean, torch.full_like(mean, -2.0))


@pytest.mark.slow
def test_variational_em_and_fit_posterior_within_autocast_come_to_the_same_figures(float32):
    """bfloat16 keeps three digits; with stale copies of the weights the decoder would not learn at all."""
    found = []
    for enabled in (False, True):
        torch.manual_seed(5)
        model, q, x = Decoder(), LocalPosteriors(64, 2), 2 * torch.randn(64, 2) @ torch.randn(2, 5)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            rates = dict(learning_rate=0.02, local_learning_rate=0.1, num_samples=4)
            history = variational_em(model, x, q, epochs=60, batch_size=32, **rates)
            best = fit_posterior(model, x[:8], steps=100)
        bound = elbo(WithPosterior(model, best), x[:8].float(), 200).mean().item()
        found.append((history[0]["loss"], history[-1]["loss"], bound))
    assert found[0][1] < found[0][0] / 3
    assert found[1] == pytest.approx(found[0], rel=0.1)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), "fast"])
def test_variational_em_fit_posterior_and_annealing_refuse_a_rate_that_is_not_positive(rate):
    model, q = Linear(SKEW.clone()), LocalPosteriors(6, 2)
    with refused(ValueError, "learning_rate must be positive and finite", repr(rate)):
        fit_posterior(model, X, learning_rate=rate)
    for name in ("learning_rate", "local_learning_rate"):
        with refused(ValueError, f"{name} must be positive and finite", repr(rate)):
            variational_em(model, X, q, epochs=1, **{name: rate})
    with refused(ValueError, "step_size must be positive and finite", repr(rate)):
        annealed_importance_sampling(model, X, model.posterior(X), step_size=rate)


@pytest.mark.parametrize("name", ["epochs", "batch_size", "e_steps", "num_samples"])
@pytest.mark.parametrize("count", [0, -1, 1.5, True, "3"])
def test_variational_em_refuses_counts_that_are_no_positive_integers(name, count):
    with refused(ValueError, f"{name} must be a positive integer", repr(count)):
        variational_em(Linear(SKEW.clone()), X, LocalPosteriors(6, 2), **{"epochs": 1, name: count})


def test_variational_em_and_fit_posterior_say_that_they_diverged():
    model = Linear(SKEW.clone())
    with refused(ArithmeticError, "the search for q became nan or infinite", "learning_rate"):
        fit_posterior(model, X, learning_rate=1e200, steps=5)
    with refused(ArithmeticError, "the loss became", "in epoch", "learning rates"):
        variational_em(model, X, LocalPosteriors(6, 2), epochs=9, learning_rate=1e200, local_learning_rate=1e200)


ELSE = [Normal(torch.zeros(6, 2), 1.0), diagonal_normal(torch.zeros(5, 2), torch.zeros(5, 2))]


@pytest.mark.parametrize("start", ELSE)
def test_fit_posterior_and_annealing_refuse_a_start_of_another_shape(start):
    model = Linear(SKEW.clone())
    with refused(ValueError, "start must have batch shape (6,) and event shape (d,)", tuple(start.batch_shape)):
        fit_posterior(model, X, start)
    with refused(ValueError, "q must have batch shape (6,) and event shape (d,)", tuple(start.batch_shape)):
        annealed_importance_sampling(model, X, start)


def test_fit_posterior_keeps_a_start_whose_width_underflows(float32):
    start = diagonal_normal(torch.zeros(6, 2), torch.full((6, 2), -250.0))
    q = fit_posterior(Linear(SKEW.float()).float(), X, start, steps=0)
    assert torch.equal(log_variance(q), torch.full((6, 2), -250.0))


def test_local_posteriors_refuse_counts_that_are_no_positive_integers():
    for arguments, name in (((0, 2), "n"), ((3, 0), "latent_dim"), ((2.5, 2), "n")):
        with refused(ValueError, f"{name} must be a positive integer"):
            LocalPosteriors(*arguments)
