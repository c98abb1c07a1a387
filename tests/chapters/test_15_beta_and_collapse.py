"""What chapter 15 proves: the price of rate, which weights bound log p(x), the linear VAE at any weight, the scores."""

import json
import math

import disentanglement
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.distributions import MultivariateNormal

from vae_core.distributions import kl_divergence, standard_normal
from vae_core.experiments.records import default_out, valid_records
from vae_core.experiments.registry import find
from vae_core.linear import PPCA
from vae_core.models import mlp_vae
from vae_core.objectives import beta_elbo_terms, elbo, linear_warm_up

seeds = st.integers(0, 10_000)
weights = st.floats(0.05, 20)
BETA_RUNS = {0.1: "beta-mnist-0.1", 0.3: "beta-mnist-0.3", 1: "chen-mnist-d20", 3: "beta-mnist-3", 10: "beta-mnist-10"}


def log_normal(x: float, variance: float) -> float:
    return -0.5 * (math.log(2 * math.pi * variance) + x * x / variance)


def best_value(w: float, x: float, beta: float) -> float:
    """The objective at the best Gaussian q, for z ~ N(0, 1) and x|z ~ N(wz, 1)."""
    variance = 1 / (1 + w * w / beta)
    mean = w * x / beta * variance
    error = 0.5 * ((x - w * mean) ** 2 + w * w * variance + math.log(2 * math.pi))
    return -error - beta * 0.5 * (mean**2 + variance - 1 - math.log(variance))


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), min_size=2, max_size=8), weights, weights)
def test_a_higher_price_never_buys_more_rate(points, a, b):
    low, high = sorted((a, b))
    assume(high > low * 1.001)
    chosen = [min(points, key=lambda p, beta=beta: p[1] + beta * p[0]) for beta in (low, high)]
    assert chosen[1][0] <= chosen[0][0] + 1e-9
    assert chosen[1][1] >= chosen[0][1] - 1e-9


@given(st.floats(-3, 3), st.floats(-3, 3), weights)
def test_weights_of_at_least_one_give_a_bound_and_smaller_ones_exceed_it(w, x, beta):
    value, log_p = best_value(w, x, beta), log_normal(x, w * w + 1)
    assert value <= log_p + 1e-9 if beta >= 1 else value >= log_p - 1e-9


def test_the_values_of_the_erratum():
    w, x = 1.3, 0.7
    assert log_normal(x, w * w + 1) == pytest.approx(-1.505, abs=5e-4)
    assert best_value(w, x, 0.5) == pytest.approx(-1.344, abs=5e-4)
    assert best_value(w, x, 1e-12) == pytest.approx(-0.919, abs=5e-4)
    assert best_value(w, x, 1.0) == pytest.approx(log_normal(x, w * w + 1), abs=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0, 10.0])
def test_the_best_value_is_the_log_of_a_power_mean(beta):
    w, x = 1.3, 0.7
    z = torch.linspace(-12, 12, 100_001)
    log_prior, log_lik = (-0.5 * (t**2 + math.log(2 * math.pi)) for t in (z, x - w * z))
    inner = torch.trapezoid((log_prior + log_lik / beta).exp(), z).log().item()
    assert best_value(w, x, beta) == pytest.approx(beta * inner, abs=1e-8)


@given(seeds, st.floats(0, 5))
@settings(max_examples=20)
def test_the_weighted_objective_is_the_elbo_less_a_multiple_of_the_kl(seed, beta):
    torch.manual_seed(seed)
    model, x = mlp_vae((1, 4, 4), 3, hidden=(7,), batch_norm=False), torch.rand(5, 1, 4, 4).round()
    torch.manual_seed(seed)
    value, terms = beta_elbo_terms(model, x, beta)
    torch.manual_seed(seed)
    torch.testing.assert_close(value, elbo(model, x) - (beta - 1) * terms["kl"])


@given(st.lists(st.floats(0.05, 5), min_size=4, max_size=4), st.floats(0.1, 4))
def test_the_linear_vae_at_any_weight(values, beta):
    """At the stated optimum the slopes of the loss in decoder, encoder and widths are 0; R and error as stated."""
    lam, noise, d = torch.tensor(sorted(values, reverse=True)), 0.5, 3
    t = beta * noise
    w2 = (lam[:d] - t).clamp(min=0)
    W = torch.diag(w2.sqrt())
    W = torch.cat([W, torch.zeros(1, d)]).requires_grad_()
    s2 = t / (t + w2)
    V = (torch.cat([torch.diag(w2.sqrt() / (w2 + t)), torch.zeros(d, 1)], 1)).requires_grad_()
    log_s2, S = s2.log().requires_grad_(), torch.diag(lam)
    A = torch.eye(4) - W @ V
    R = 0.5 * ((V @ S @ V.T).trace() + (log_s2.exp() - 1 - log_s2).sum())
    error = (A @ S @ A.T).trace() + (W.square().sum(0) * log_s2.exp()).sum()
    slopes = torch.autograd.grad(error / (2 * noise) + beta * R, (W, V, log_s2))
    assert max(slope.abs().max().item() for slope in slopes) < 1e-9
    torch.testing.assert_close(R, 0.5 * (lam[:d] / t).clamp(min=1).log().sum())
    torch.testing.assert_close(error, lam[:d].clamp(max=t).sum() + lam[d:].sum())
    marginal = (W @ W.T).diagonal()[:d] + noise
    torch.testing.assert_close(marginal, torch.where(lam[:d] > t, lam[:d] + (1 - beta) * noise, noise))


def test_at_weight_one_it_is_ppca():
    X = torch.randn(500, 4) @ torch.diag(torch.tensor([2.0, 1.5, 1.0, 0.4]))
    ppca = PPCA(2).fit(X)
    lam = torch.linalg.eigvalsh(torch.cov(X.T, correction=0)).flip(0)[:2]
    R = 0.5 * (lam / ppca.noise_variance_.mean()).log().sum()
    torch.testing.assert_close(kl_divergence(ppca.posterior(X), standard_normal(2, like=X)).mean(), R)


@given(st.floats(0.1, 5), st.floats(0, 5), st.floats(0.1, 2))
def test_collapse_is_a_saddle_exactly_where_the_unit_ought_to_be_open(lam, beta, noise):
    assume(abs(lam / noise - beta) > 1e-3)

    def loss(wv):
        w, v = wv
        return (lam * (1 - w * v) ** 2 + w * w) / (2 * noise) + beta * 0.5 * lam * v * v

    H = torch.autograd.functional.hessian(loss, torch.zeros(2))
    assert (torch.linalg.eigvalsh(H)[0] < 0) == (lam > beta * noise)
    lower = torch.tensor([[1 / noise, -lam / noise], [-lam / noise, 0.5 * beta * lam]])
    assert torch.linalg.eigvalsh(lower)[0] <= torch.linalg.eigvalsh(H)[0] + 1e-12  # half the weight: a faster way out


@given(st.floats(0.5, 500), st.floats(0.5, 500))
def test_the_cost_of_a_turn_by_45_degrees_is_arithmetic_over_geometric_mean(a, b):
    half = math.sqrt(0.5)
    R = torch.tensor([[half, -half], [half, half]])
    M = R @ torch.diag(torch.tensor([a, b])) @ R.T
    exact = MultivariateNormal(torch.zeros(2), precision_matrix=M)
    best = MultivariateNormal(torch.zeros(2), torch.diag(1 / M.diagonal()))
    cost = math.log((a + b) / 2 / math.sqrt(a * b))
    assert torch.distributions.kl_divergence(best, exact).item() == pytest.approx(cost, abs=1e-8)


def test_a_warm_up_never_falls_and_ends_at_one():
    values = [linear_warm_up(0.5)(k / 100) for k in range(101)]
    assert values == sorted(values)
    assert values[-1] == 1


def test_the_divergence_of_an_ever_narrower_q_has_no_bound():
    values = [0.5 * (10.0**-k - 1 + k * math.log(10)) for k in (1, 4, 8, 16)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(17.9, abs=0.05)


def test_the_scores_of_exact_codes():
    grid = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    z = grid.double()
    turned = z @ torch.tensor([[1.0, -1.0], [1.0, 1.0]])  # by 45 degrees, and scaled: the same levels, exactly
    for codes, expected in ((z, 1.0), (torch.cat([z, z], 1), 0.0), (turned, 0.0)):
        assert disentanglement.mig(disentanglement.mutual_information(codes, grid)).mean().item() == pytest.approx(
            expected, abs=1e-9
        )
    assert disentanglement.dci(torch.eye(3)) == pytest.approx((1, 1))
    assert disentanglement.dci(torch.ones(3, 3)) == pytest.approx((0, 0))
    assert disentanglement.dci(torch.eye(3).repeat(2, 1)) == pytest.approx((1, 1 - math.log(2) / math.log(6)))


def test_the_factor_images_are_one_for_each_combination():
    x, v = disentanglement.factor_images()
    assert x.shape == (2304, 1, 16, 16)
    assert len(v.unique(dim=0)) == math.prod(disentanglement.LEVELS) == 2304
    assert 0 <= x.min() < 0.01 < 0.9 < x.amax((1, 2, 3)).min() <= x.max() <= 1
    assert len(x.flatten(1).unique(dim=0)) == 2304


def factor_rows(*keys: str) -> torch.Tensor:
    record, values = json.loads((default_out() / "disentanglement.json").read_text()), []
    for row in record["rows"]:
        for key in keys:
            row = row[key]
        values.append(row)
    return torch.tensor(values).view(len(record["config"]["betas"]), -1)


def test_disentanglement_as_stated():
    record = json.loads((default_out() / "disentanglement.json").read_text())
    assert record["config"]["betas"] == [0.25, 0.5, 1.0, 2.0, 4.0]
    gaps, turned, hits = factor_rows("drawn", "mig"), factor_rows("rotated", "mig"), factor_rows("drawn", "hits")
    stated = {1.0: (0.15, 0.08), 2.0: (0.28, 0.08), 4.0: (0.13, 0.06)}
    for row, beta in zip(gaps, record["config"]["betas"], strict=True):
        if beta in stated:
            assert (round(row.mean().item(), 2), round(row.std().item(), 2)) == stated[beta]
    assert (gaps[3] > gaps[2]).sum() == 4
    assert round(record["pca"]["mig"], 2) == 0.07
    assert (round(turned.min().item(), 2), round(turned.max().item(), 2)) == (0.02, 0.13)
    assert (round(turned[2].mean().item(), 2), round(turned[2].std().item(), 2)) == (0.05, 0.02)
    per_factor = factor_rows("drawn", "mig_per_factor").view(5, 5, 5).mean(1)  # (weights, factors)
    assert max(per_factor[3][[0, 2]]) < 0.015 < 0.3 < min(per_factor[3][[1, 3, 4]])
    assert [round(100 * v.item()) for v in hits.view(5, -1).mean(1)[[2, 3]]] == [60, 49]
    whole = (factor_rows("reconstruction") + factor_rows("kl")).mean(1)
    assert whole.argmin() == 1
    assert [round(v.item(), 1) for v in whole[[1, 2]]] == [39.0, 40.2]


def test_the_recorded_rate_falls_with_the_weight():
    runs = [valid_records(find(name), default_out()) for name in BETA_RUNS.values()]
    if not all(runs):
        pytest.skip("the runs beta-mnist-* are not all recorded yet")
    rates = [next(r["test"]["kl"] for r in kept if r["seed"] == 723) for kept in runs]
    assert rates == sorted(rates, reverse=True)


def test_the_recorded_pictures_are_these():
    x, _ = disentanglement.factor_images()
    kept = load_file(default_out() / "disentanglement.safetensors")
    torch.testing.assert_close(kept["examples"], (x[::203] * 255).round().to(torch.uint8), atol=1, rtol=0)
    assert kept["beta_2"].shape == kept["beta_1"].shape == (42, 1, 16, 16)
