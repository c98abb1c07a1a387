"""Chapter 17: the bound with K draws against quadrature, its rate and gradients, and the recorded figures."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from vae_core.distributions import diagonal_normal, standard_normal
from vae_core.experiments.results import measured, recorded, recorded_seeds
from vae_core.gradients import doubly_reparameterized, replicates
from vae_core.inference import log_mean_exp
from vae_core.objectives import iwae_bound
from vae_core.quadrature import QuadratureModel

LINE, X = QuadratureModel(lambda z: z, 1.0), torch.tensor([[1.5]], dtype=torch.float64)
COUNTS = (1, 2, 5, 10, 50, 100, 500, 1000, 5000)
PUBLISHED = {1: 86.76, 5: 85.54, 50: 84.78}  # Burda et al. (2016), table 1, one stochastic layer, dynamic


class WithBell:
    """The line with a bell curve for its posterior."""

    prior, likelihood = LINE.prior, staticmethod(LINE.likelihood)

    def __init__(self, mean: float, width: float) -> None:
        self.mean, self.width = mean, width

    def posterior(self, x):
        return diagonal_normal(torch.full_like(x, self.mean), torch.full_like(x, 2 * math.log(self.width)))


def ratio_and_mass(mean: float, width: float, points: int = 1601) -> tuple[torch.Tensor, torch.Tensor]:
    """r = w/p(x) on a grid and the mass of q there; the posterior is N(0.75, 1/2)."""
    z = torch.linspace(-12, 12, points)
    q, p = torch.distributions.Normal(mean, width), torch.distributions.Normal(0.75, 0.5**0.5)
    return (p.log_prob(z) - q.log_prob(z)).exp(), q.log_prob(z).exp() * (z[1] - z[0])


def gap(mean: float, width: float, k: float) -> float:
    """log p(x) − L_K by the chapter's formula: ∫ [φ(t/K)^K − e^(−t)] dt/t with t = e^u."""
    r, mass = ratio_and_mass(mean, width)
    u = torch.arange(-40, 120, 0.2)
    t = u.exp()
    short = (mass * torch.expm1(-t[:, None] / k * r)).sum(1).clamp_min(-1 + 1e-16)
    return torch.trapezoid((k * short.log1p()).exp() - (-t).exp(), u).item()


@settings(max_examples=25)
@given(st.floats(1e-3, 1e3))
def test_frullanis_integral_is_the_logarithm(a):
    value, _ = integrate.quad(lambda u: math.exp(-math.exp(u)) - math.exp(-a * math.exp(u)), -40, 12, limit=500)
    assert value == pytest.approx(math.log(a), abs=1e-6)


@pytest.mark.parametrize(("mean", "width"), [(0.75, 0.5), (0.9, 0.6), (0.75, 1.0), (0.3, 0.42)])
def test_one_draw_has_the_gap_of_the_closed_form(mean, width):
    q, p = torch.distributions.Normal(mean, width), torch.distributions.Normal(0.75, 0.5**0.5)
    assert gap(mean, width, 1) == pytest.approx(torch.distributions.kl_divergence(q, p).item(), abs=1e-8)


def test_two_draws_have_the_gap_of_a_double_integral():
    """L_2 as an integral over the plane of both codes: another way altogether."""
    r, mass = ratio_and_mass(0.9, 0.8, points=801)
    plane = mass[:, None] * mass * (0.5 * (r[:, None] + r)).clamp_min(1e-300).log()
    assert gap(0.9, 0.8, 2) == pytest.approx(-plane.sum().item(), abs=1e-8)


@pytest.mark.parametrize("k", [1, 5, 50])
def test_drawn_bounds_have_the_mean_of_the_formula(k):
    model = WithBell(0.75, 0.5)
    values = iwae_bound(model, X.expand(400_000 // k, 1), k)
    exact = LINE.log_prob(X).item() - gap(0.75, 0.5, k)
    assert abs(values.mean().item() - exact) < 6 * values.std().item() / len(values) ** 0.5


@settings(max_examples=25)
@given(st.floats(0.3, 1.2), st.floats(0.5, 1.2), st.integers(1, 60), st.integers(1, 60))
def test_the_bound_grows_with_every_draw(mean, width, k, more):
    assert gap(mean, width, k) >= gap(mean, width, k + more) - 1e-9 >= -1e-8


def test_the_gap_is_half_the_variance_over_k_where_there_is_one():
    r, mass = ratio_and_mass(0.9, 0.9)
    variance = (mass * r.square()).sum().item() - 1
    assert 20_000 * gap(0.9, 0.9, 20_000) == pytest.approx(variance / 2, rel=2e-3)


def test_a_narrow_q_falls_short_of_that_rate():
    """Q = 8P: the law is K^(−1/7); with its logarithm the slope is between that and −1/4, far from −1."""
    slope = math.log(gap(0.75, 0.25, 1e6) / gap(0.75, 0.25, 1e5)) / math.log(10)
    assert -0.25 < slope < -1 / 7


def test_the_tail_of_the_weights_has_the_stated_index():
    """P(r > a) = P(χ² > 2Q log(a/c)/(Q − P)): its slope in log a tends to −Q/(Q − P)."""
    precision, sharper = 2.0, 16.0
    log_a = torch.tensor([1e4, 1e5]).numpy()
    tail = stats.norm.logsf((2 * sharper * log_a / (sharper - precision)) ** 0.5)  # of χ² with one degree, less log 2
    assert (tail[1] - tail[0]) / (log_a[1] - log_a[0]) == pytest.approx(-sharper / (sharper - precision), rel=1e-3)


@pytest.mark.parametrize("s2", [1.0, 4.0, 16.0])
def test_gaussian_log_weights_lose_half_their_variance_at_one_draw(s2):
    y = torch.linspace(-14, 14, 1121)
    mass, r = torch.softmax(-0.5 * y.square(), 0), (s2**0.5 * y - s2 / 2).exp()
    assert (mass * r).sum().item() == pytest.approx(1, abs=1e-6)
    u = torch.arange(-45, 60, 0.2)
    t = u.exp()
    phi = (mass * torch.expm1(-t[:, None] * r)).sum(1) + 1
    assert torch.trapezoid(phi - (-t).exp(), u).item() == pytest.approx(s2 / 2, abs=1e-4)


def test_the_jackknife_takes_the_first_term_out():
    left = abs(2 * gap(0.75, 1.0, 100) - gap(0.75, 1.0, 50))
    assert left < 0.02 * gap(0.75, 1.0, 100)


def estimates(kind: str, k: int, count: int, mean: float, width: float) -> tuple[torch.Tensor, ...]:
    """`count` gradients of L_k in the mean and log variance of q."""

    def joint(z):
        return LINE.prior.log_prob(z) + LINE.likelihood(z).log_prob(X[0])

    def surrogate(*lam):
        q = diagonal_normal(*lam)
        if kind == "doubly":
            return doubly_reparameterized(joint, q, k)
        z = q.rsample((k,))
        log_w = joint(z) - q.log_prob(z)
        share = log_w.softmax(0)
        if kind == "logsumexp":
            return log_w.logsumexp(0)
        return ((share.detach() if kind == "detached" else share) * log_w).sum(0)

    torch.manual_seed(0)
    return replicates(surrogate, (torch.tensor([mean]), torch.tensor([2 * math.log(width)])), count)


def slope_of_the_exact_bound(k: int, mean: float, width: float, step: float = 1e-4) -> tuple[float, float]:
    """Central differences of the formula in the mean and in log σ²."""
    across = (gap(mean - step, width, k) - gap(mean + step, width, k)) / (2 * step)
    wider, narrower = width * math.exp(step / 2), width * math.exp(-step / 2)
    return across, (gap(mean, narrower, k) - gap(mean, wider, k)) / (2 * step)


@pytest.mark.parametrize(("kind", "right"), [("logsumexp", True), ("detached", True), ("doubly", True), ("not", False)])
def test_only_detached_weights_give_the_gradient_of_the_bound(kind, right):
    truth = slope_of_the_exact_bound(5, 1.1, 0.6)
    off = []
    for g, exact in zip(estimates(kind, 5, 50_000, 1.1, 0.6), truth, strict=True):
        off.append(((g.mean() - exact).abs() / (g.std() / len(g) ** 0.5)).item())
    assert (max(off) < 6) == right


def test_the_encoders_signal_drowns_like_the_root_and_rises_like_it_when_reparameterized_twice():
    """With the exact mean gradient, so that noise does not pass for signal; a q wide enough for the law to hold."""
    for kind, law in (("logsumexp", -0.5), ("doubly", 0.5)):
        ratio = {}
        for k in (16, 256):
            truth = slope_of_the_exact_bound(k, 1.1, 0.9)
            found = estimates(kind, k, 4000, 1.1, 0.9)
            signal = sum(exact**2 for exact in truth)
            ratio[k] = (signal / sum(g.var().item() for g in found)) ** 0.5
        assert math.log(ratio[256] / ratio[16]) / math.log(16) == pytest.approx(law, abs=0.12)


def test_the_mean_code_gives_more_than_log_p_though_q_is_the_posterior():
    q = diagonal_normal(torch.tensor([0.75]), torch.tensor([math.log(0.5)]))
    kl = torch.distributions.kl_divergence(q.base_dist, standard_normal(1, like=X).base_dist).sum()
    value = LINE.likelihood(q.mean[None]).log_prob(X) - kl
    assert value.item() == pytest.approx(-1.5780, abs=1e-4)
    assert value > LINE.log_prob(X)


def test_a_mean_of_logs_of_means_is_the_smaller_bound():
    log_w = 2 * torch.randn(5000, 30)
    whole, _ = log_mean_exp(log_w)
    parts = torch.stack([log_mean_exp(part)[0] for part in log_w.split(500)]).mean(0)
    assert (parts < whole).all()


# What is recorded: the chapter's statements.


def test_more_draws_in_training_make_a_better_model_as_stated():
    scores = {k: [r["test"]["log_likelihood"] for r in recorded_seeds(f"iwae-mnist-k{k}")] for k in (1, 5, 50)}
    assert min(scores[5]) > max(scores[1])
    assert min(scores[50]) > max(scores[5])
    static = {k: [r["test"]["log_likelihood"] for r in recorded_seeds(f"static-iwae-mnist-k{k}")] for k in (1, 5)}
    assert min(static[5]) > max(static[1])


def test_the_figures_of_the_prose_are_the_recorded_ones():
    tests = [recorded(f"iwae-mnist-k{k}")["test"] for k in (1, 5, 50)]
    assert [round(-t["log_likelihood"], 2) for t in tests] == [93.77, 91.84, 91.14]
    assert [round(t["loss"], 2) for t in tests] == [98.08, 99.38, 104.98]
    assert [t["active_units"] for t in tests] == [16, 20, 28]
    below = [-t["log_likelihood"] - t["loss_at_mean_code"] for t in tests]
    assert [round(min(below), 1), round(max(below), 1)] == [2.7, 4.4]
    assert round(tests[-1]["loss_at_mean_code"], 2) == 86.77


def test_nothing_is_learned_by_heart_as_stated():
    """Training images drawn anew: the loss of the last pass is that of the test images."""
    for r in recorded_seeds("iwae-mnist-k1"):
        assert r["history"][-1]["loss"] == pytest.approx(r["test"]["loss"], abs=0.5)


def test_every_model_is_behind_the_published_one_as_stated():
    for k, published in PUBLISHED.items():
        for r in recorded_seeds(f"iwae-mnist-k{k}"):
            assert 5.5 < -r["test"]["log_likelihood"] - published < 7.5


def test_the_mean_code_flatters_as_stated():
    for k in (1, 5, 50):
        t = recorded(f"iwae-mnist-k{k}")["test"]
        assert t["loss_at_mean_code"] < -t["log_likelihood"] < t["loss"]


def test_the_measured_bounds_turn_the_order_over_as_stated():
    figures = measured("bounds")[0]
    one, five, fifty = (figures[f"iwae-mnist-k{k}"]["bounds"] for k in (1, 5, 50))
    for f in (one, five, fifty):
        values = [row["mean"] for row in f["bound"]]
        assert values == sorted(values)
        assert f["K"] == list(COUNTS)
    assert one["bound"][0]["mean"] > five["bound"][0]["mean"] > fifty["bound"][0]["mean"]
    assert one["bound"][-1]["mean"] < five["bound"][-1]["mean"] < fifty["bound"][-1]["mean"]
    effective = [f["effective_draws"]["median"] for f in (one, five, fifty)]
    assert effective == sorted(effective, reverse=True)
    assert 15 < effective[0] < 25
    assert round(effective[2]) == 9
    left = [f["below_last"][COUNTS.index(1000)]["mean"] for f in (one, five, fifty)]
    assert left[2] > max(left[:2])


def test_the_measured_gaps_and_annealing_as_stated():
    figures = [measured("bounds")[0][f"iwae-mnist-k{k}"] for k in (1, 5, 50)]
    for part in ("approximation_gap", "amortization_gap"):
        values = [f["gaps"][part]["mean"] for f in figures]
        assert values == sorted(values)
    for f in figures:
        assert f["annealed"]["encoder"]["minus_sampled"]["mean"] > 0.2
        assert f["annealed"]["prior"]["minus_sampled"]["mean"] < f["annealed"]["encoder"]["minus_sampled"]["mean"]


def test_the_start_at_the_mean_image_is_better_as_stated():
    starts = measured("bounds")[0]["starts"]
    assert all(zero > mean for mean, zero in zip(starts["mean image"], starts["zero"], strict=True))
