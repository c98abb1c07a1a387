"""What chapter 18 proves: the toy of two families, information that no probe sees, diffusion as a VAE; its verdicts."""

import math
from statistics import mean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vae_core.distributions import diagonal_normal, kl_divergence
from vae_core.evaluation import linear_probe
from vae_core.experiments.contrastive import triplet
from vae_core.experiments.records import default_out
from vae_core.experiments.results import measured
from vae_core.models import mlp_vae
from vae_core.objectives import elbo_terms, reconstruction_log_likelihood

seeds = st.integers(0, 10_000)
SETS = {"mnist": "d = 20, seed 723", "fashion": "d = 20, seed 237", "cifar10": "cnn"}


# The toy: a signal of variance 1, a nuisance of variance 4, one number as code


def correlation(theta: float, shared: tuple[int, int], variances=(1.0, 4.0), noise: float = 0.04) -> float:
    """Of the codes of two views that share these of the two numbers."""
    parts = (math.cos(theta) ** 2, math.sin(theta) ** 2)
    both = sum(p * v * s for p, v, s in zip(parts, variances, shared, strict=True))
    return both / sum(p * (v + noise) for p, v in zip(parts, variances, strict=True))


@pytest.mark.parametrize("shared", [(1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("theta", [0.0, 0.4, 1.2])
def test_two_views_have_the_stated_correlation(theta, shared):
    n, direction = 200_000, torch.tensor([math.cos(theta), math.sin(theta)])
    deviations, same = torch.tensor([1.0, 2.0]), torch.randn(n, 2)
    views = [torch.where(torch.tensor(shared) == 1, same, torch.randn(n, 2)) * deviations for _ in range(2)]
    codes = [(view + 0.2 * torch.randn(n, 2)) @ direction for view in views]
    assert torch.corrcoef(torch.stack(codes))[0, 1] == pytest.approx(correlation(theta, shared), abs=6 / n**0.5)


def test_each_family_has_its_angle():
    angles = [k * math.pi / 180 for k in range(91)]
    by_views = {s: max(angles, key=lambda t, s=s: correlation(t, s)) for s in ((1, 0), (0, 1), (1, 1))}
    assert by_views[1, 0] == 0
    assert by_views[0, 1] == by_views[1, 1] == angles[-1]
    X = torch.randn(5000, 2) * torch.tensor([1.0, 2.0])
    top = torch.linalg.eigh(torch.cov(X.T))[1][:, -1]
    assert top[1].abs() > 0.99  # what rebuilds best: the nuisance


# Objectives and information


def test_the_values_of_the_erratum():
    torch.manual_seed(0)
    f, plus, minus = torch.randn(3, 1, 4, dtype=torch.float32).double()
    gap = triplet(f, plus, minus).abs()
    torch.testing.assert_close(triplet(100 * f, 100 * plus, 100 * minus).abs(), 1e4 * gap)
    assert triplet(f, f, -f, normalised=True).item() == pytest.approx(2)


def test_a_twist_can_be_undone_and_hides_the_class_from_a_line():
    def twisted(p, turns=3.0):
        angle = turns * p.norm(dim=1)
        return torch.view_as_real(torch.view_as_complex(p) * torch.polar(torch.ones_like(angle), angle))

    points, more = torch.randn(2, 2000, 2).unbind()
    torch.testing.assert_close(twisted(twisted(points), -3.0), points)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda p: twisted(p[None])[0]))(points[:20])
    torch.testing.assert_close(torch.linalg.det(jacobian), torch.ones(20))  # it keeps areas: every entropy too
    side = [(p[:, 0] > 0).long() for p in (points, more)]
    assert linear_probe(points, side[0], more, side[1]) > 0.99
    assert linear_probe(twisted(points), side[0], twisted(more), side[1]) < 0.65


@given(seeds)
def test_the_loss_of_a_vae_is_that_of_its_auto_encoder_where_the_noise_vanishes_and_a_price(seed):
    torch.manual_seed(seed)
    model, x = mlp_vae((1, 4, 4), 3, (7,), batch_norm=False), torch.rand(5, 1, 4, 4)
    torch.nn.init.zeros_(model.log_variance.weight)
    torch.nn.init.constant_(model.log_variance.bias, -40.0)
    value, terms = elbo_terms(model, x)
    torch.testing.assert_close(
        -terms["reconstruction"], reconstruction_log_likelihood(model, x)[0], atol=1e-5, rtol=1e-5
    )
    assert (terms["kl"] > 3 * 19).all()
    torch.testing.assert_close(-value, terms["reconstruction"] + terms["kl"])


# A diffusion model is a VAE with a fixed encoder


@given(seeds, st.floats(1e-4, 0.5), st.floats(0.01, 0.99), st.floats(0.2, 5))
def test_the_kl_of_a_layer_is_a_weighted_error_of_the_noise(seed, b, before, spread):
    """Against Bayes' rule, at any β_t, any product of the earlier 1 − β, any variance of the decoder."""
    x0, eps, guess = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed))
    a, kept, variance = 1 - b, before * (1 - b), spread * b
    xt = math.sqrt(kept) * x0 + math.sqrt(1 - kept) * eps
    precision = 1 / (1 - before) + a / b
    bayes = (math.sqrt(before) * x0 / (1 - before) + math.sqrt(a) * xt / b) / precision
    ours = (xt - b / math.sqrt(1 - kept) * guess) / math.sqrt(a)
    log_variances = (torch.full((7,), math.log(v)) for v in (1 / precision, variance))
    kl = kl_divergence(*(diagonal_normal(m, v) for m, v in zip((bayes, ours), log_variances, strict=True)))
    ratio = 1 / precision / variance
    assert 1 / precision == pytest.approx((1 - before) / (1 - kept) * b)
    weight = b**2 / (2 * variance * a * (1 - kept))
    expected = weight * (eps - guess).square().sum() + 3.5 * (ratio - 1 - math.log(ratio))
    torch.testing.assert_close(kl, expected, atol=1e-8, rtol=1e-6)


def diffusion_loss(steps: int, s2: float) -> float:
    beta = torch.linspace(0.1 / steps, 20 / steps, steps)
    kept = (1 - beta).cumprod(0)
    ratio = (1 - kept / (1 - beta)) / (1 - kept)
    layer = beta / (2 * (1 - beta) * (1 - kept)) * kept * s2 / (kept * s2 + 1 - kept)
    layer = layer + 0.5 * (ratio - 1 - ratio.log())
    last = 0.5 * (kept[-1] * s2 - kept[-1] - (1 - kept[-1]).log())
    error = s2 * (1 - kept[0]) / (kept[0] * s2 + 1 - kept[0])
    return (last + layer[1:].sum() + 0.5 * ((2 * math.pi * beta[0]).log() + error / beta[0])).item()


@pytest.mark.parametrize("s2", [0.25, 1.0, 3.0])
def test_its_bound_falls_to_the_entropy_as_the_layers_become_many(s2):
    entropy = 0.5 * math.log(2 * math.pi * math.e * s2)
    gaps = [diffusion_loss(steps, s2) - entropy for steps in (50, 200, 1000, 5000)]
    if s2 == 1:  # then every x_t has the prior's law, and any number of layers is exact
        assert max(map(abs, gaps)) < 1e-9
    else:
        assert gaps == sorted(gaps, reverse=True)
        assert 0 < gaps[-1] < 0.01


def test_its_bound_is_what_draws_say():
    """One path at a time, from the definition of the ELBO: log p(x_0..x_T) − log q(x_1..x_T|x_0), for T = 50."""
    steps, s2, n = 50, 0.25, 20_000
    beta = torch.linspace(0.1 / steps, 20 / steps, steps)
    kept = (1 - beta).cumprod(0)
    normal = torch.distributions.Normal
    path = [s2**0.5 * torch.randn(n)]
    log_w = torch.zeros(n)
    for b in beta:
        law = normal((1 - b).sqrt() * path[-1], b.sqrt())
        path.append(law.sample())
        log_w -= law.log_prob(path[-1])
    log_w += normal(0.0, 1.0).log_prob(path[-1])
    for t in range(steps, 0, -1):
        b, k = beta[t - 1], kept[t - 1]
        guess = (1 - k).sqrt() / (k * s2 + 1 - k) * path[t]
        law = normal((path[t] - b / (1 - k).sqrt() * guess) / (1 - b).sqrt(), b.sqrt())
        log_w += law.log_prob(path[t - 1])
    loss, error = -log_w.mean().item(), log_w.std().item() / n**0.5
    assert abs(loss - diffusion_loss(steps, s2)) < 6 * error


# Verdicts


@pytest.fixture
def figures() -> dict:
    if not (default_out() / "measured-representations.json").exists():
        pytest.skip("measured-representations.json is not recorded yet")
    return measured("representations")[0]


def share(figures: dict, data: str, row: str, budget: str) -> float:
    table = figures[data]["linear"]
    seeds = [table[key] for key in table if key == row or key.startswith(f"{row}, seed")]
    return mean(value for seed in seeds for value in seed[budget])


def test_the_summary_of_three_data_sets_as_stated(figures):
    flipped = [measured(name)[0]["flips"][key]["flipped"] for name, key in SETS.items()]
    assert [round(100 * value) for value in flipped] == [4, 23, 72]
    assert flipped[0] < 0.04
    vae, raw = ([share(figures, name, row, "all") for name in SETS] for row in ("VAE mean", "raw pixels"))
    assert vae == sorted(vae, reverse=True)
    assert raw == sorted(raw, reverse=True)
    assert [v > r for v, r in zip(vae, raw, strict=True)] == [False, False, True]


def test_the_mean_serves_a_probe_better_than_a_draw(figures):
    for data in figures:
        for budget in ("100", "1000", "10000", "all"):
            assert share(figures, data, "VAE mean", budget) > share(figures, data, "VAE sample", budget)


def test_views_turned_by_any_angle_cost_accuracy_on_digits(figures):
    table = figures["mnist"]["linear"]
    assert table["contrastive, any turn, seed 0"]["all"][0] < table["contrastive, seed 0"]["all"][0]
    pair = figures["mnist"]["six or nine"]
    assert pair["contrastive, any turn, seed 0"] < pair["contrastive, seed 0"]


def test_mnist_as_stated(figures):
    def percent(row: str, budget: str) -> float:
        return round(100 * share(figures, "mnist", row, budget), 1)

    assert (percent("VAE mean", "100"), percent("raw pixels", "100")) == (77.0, 72.6)
    assert (percent("VAE mean", "all"), percent("raw pixels", "all")) == (91.1, 92.6)
    assert all(percent("VAE mean", b) > percent("raw pixels", b) for b in ("100", "1000", "10000"))
    assert percent("auto-encoder", "100") == 75.0
    for budget in ("100", "1000", "10000", "all"):
        assert abs(percent("β-VAE mean", budget) - percent("VAE mean", budget)) < 2
        assert percent("auto-encoder", budget) - 0.2 < percent("contrastive", budget) < percent("VAE mean", budget)
    assert 1.5 < percent("VAE mean", "100") - percent("contrastive", "100") < 2.5
    nuisance, pair = figures["mnist"]["nuisance"], figures["mnist"]["six or nine"]
    assert [round(100 * nuisance[f"contrastive, seed {seed}"]) for seed in (0, 1)] == [37, 38]
    assert round(100 * nuisance["VAE mean"]) == 80
    table = figures["mnist"]["linear"]
    views = ("contrastive, seed 0", "contrastive, any turn, seed 0")
    assert [round(100 * table[name]["all"][0], 1) for name in views] == [89.0, 67.1]
    assert [round(100 * pair[name], 1) for name in views] == [99.6, 81.2]


def test_fashion_mnist_as_stated(figures):
    trained = ("auto-encoder", "VAE mean", "β-VAE mean")
    for budget in ("100", "1000", "10000", "all"):
        codes = [share(figures, "fashion", row, budget) for row in trained]
        contrastive = share(figures, "fashion", "contrastive", budget)
        assert contrastive < min(codes)
        assert max(codes) < share(figures, "fashion", "raw pixels", budget)
        assert share(figures, "fashion", "PCA", budget) < share(figures, "fashion", "raw pixels", budget)
    rows = ("contrastive", "VAE mean", "raw pixels")
    assert [round(100 * share(figures, "fashion", row, "100"), 1) for row in rows] == [59.5, 67.3, 69.8]


def test_cifar10_as_stated(figures):
    others = ("raw pixels", "PCA", "untrained", "auto-encoder", "VAE mean", "VAE sample", "β-VAE mean")
    for budget in ("100", "1000", "10000", "all"):
        best = max(share(figures, "cifar10", row, budget) for row in others)
        assert share(figures, "cifar10", "contrastive", budget) > best
    for row, few, whole in (("contrastive", 33.6, 58.1), ("VAE mean", 17.3, 49.0), ("raw pixels", 23.0, 37.9)):
        assert round(100 * share(figures, "cifar10", row, "100"), 1) == few
        assert round(100 * share(figures, "cifar10", row, "all"), 1) == whole
