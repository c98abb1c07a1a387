"""What chapter 13 proves, and the numbers that its verdicts state, from the records."""

import json
import math
from statistics import mean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.distributions import MultivariateNormal, Normal

from vae_core.distributions import kl_divergence, standard_normal
from vae_core.experiments.records import default_out, valid_records
from vae_core.experiments.registry import find
from vae_core.linear import PPCA

seeds = st.integers(0, 10_000)


def measured(name: str) -> dict:
    return json.loads((default_out() / f"measured-{name}.json").read_text())["figures"]


def pictures(name: str) -> dict[str, torch.Tensor]:
    return load_file(default_out() / f"measured-{name}.safetensors")


def boots_units() -> dict[int, dict[str, torch.Tensor]]:
    figures = {seed: measured("boots")[f"K = 20, seed {seed}"] for seed in find("saleh-boots-k20").seeds}
    return {s: {k: torch.tensor(v) for k, v in f.items() if isinstance(v, list)} for s, f in figures.items()}


@given(seeds)
def test_a_rotation_of_the_code_changes_no_probability_and_only_orthogonal_columns_cost_a_diagonal_q_nothing(seed):
    draws = torch.Generator().manual_seed(seed)
    W, x = torch.randn(4, 2, generator=draws), torch.randn(4, generator=draws)
    R, _ = torch.linalg.qr(torch.randn(2, 2, generator=draws))
    marginal = [MultivariateNormal(torch.zeros(4), V @ V.T + 0.5 * torch.eye(4)).log_prob(x) for V in (W, W @ R.T)]
    torch.testing.assert_close(*marginal)

    def gap(V):
        M = torch.eye(2) + V.T @ V / 0.5
        return 0.5 * (M.diagonal().log().sum() - torch.logdet(M))

    assert gap(W @ R.T) >= -1e-12
    principal = torch.linalg.svd(W).Vh  # in these coordinates the columns are orthogonal
    assert gap(W @ principal.T).abs() < 1e-10


@given(seeds)
def test_the_gap_of_a_diagonal_q_is_the_kl_to_the_posterior(seed):
    draws = torch.Generator().manual_seed(seed)
    W = torch.randn(4, 2, generator=draws)
    M = torch.eye(2) + W.T @ W / 0.5
    posterior = MultivariateNormal(torch.zeros(2), precision_matrix=M)
    best = MultivariateNormal(torch.zeros(2), torch.diag(1 / M.diagonal()))
    gap = 0.5 * (M.diagonal().log().sum() - torch.logdet(M))
    torch.testing.assert_close(torch.distributions.kl_divergence(best, posterior), gap)
    for factor in (0.9, 1.1):  # and no other diagonal q does better
        other = MultivariateNormal(torch.zeros(2), torch.diag(torch.tensor([factor, 1.0]) / M.diagonal()))
        assert torch.distributions.kl_divergence(other, posterior) > gap


def test_a_living_unit_of_the_linear_vae_pays_half_the_log_of_signal_over_noise():
    X = torch.randn(400, 6) @ torch.diag(torch.tensor([3.0, 2.0, 1.5, 1.0, 0.9, 0.8]))
    ppca = PPCA(3).fit(X)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(X.T, correction=0)).flip(0)[:3]
    price = 0.5 * (eigenvalues / ppca.noise_variance_.mean()).log()
    paid = kl_divergence(ppca.posterior(X), standard_normal(3, like=X)).mean()
    torch.testing.assert_close(paid, price.sum())


def test_the_reciprocal_estimator_is_unbiased_for_one_over_p():
    w, x, n = 1.3, torch.tensor(0.7), 200_000
    precision = 1 + w * w
    posterior = Normal(w * x / precision, precision**-0.5)
    g = Normal(0.4, 0.5)  # any density that is narrower than sqrt(2) posteriors
    z = posterior.sample((n,))
    ratio = (g.log_prob(z) - Normal(0.0, 1.0).log_prob(z) - Normal(w * z, 1.0).log_prob(x)).exp()
    one_over_p = (-Normal(0.0, precision**0.5).log_prob(x)).exp()
    assert abs(ratio.mean() - one_over_p) < 6 * ratio.std() / n**0.5


def test_parameter_counts_are_those_of_the_printed_sizes():
    counts = {k: sum(p.numel() for p in find(f"saleh-boots-k{k}").network().parameters()) for k in (2, 20)}
    assert counts == {2: 900_660, 20: 907_608}


def test_sharpness_as_stated():
    kept = {name: v["reconstructions"] / v["originals"] for name, v in measured("saleh")["sharpness"].items()}
    assert {name: round(v, 3) for name, v in kept.items()} == {"mnist": 0.154, "fashion": 0.156}


def test_clusters_as_stated():
    probes = measured("saleh")["probes"]
    stated = {"mnist": (84.3, 73.5), "fashion": (72.5, 69.6)}
    for name, (neighbours, linear) in stated.items():
        assert 100 * probes[name]["neighbours"] == pytest.approx(neighbours, abs=0.051)
        assert 100 * probes[name]["linear"] == pytest.approx(linear, abs=0.051)
    p = probes["mnist"]["neighbours"]
    assert round(100 * math.sqrt(p * (1 - p) / 10_000), 1) == 0.4


def test_radii_as_stated():
    radius = torch.tensor(measured("saleh")["radius"]["mnist"])
    order = radius.argsort(descending=True).tolist()
    assert order == [1, 2, 0, 7, 6, 9, 4, 3, 5, 8]
    assert round(radius[2].item(), 2) == 1.87
    codes, y = (pictures("saleh")[key].double() for key in ("codes_mnist", "y_mnist"))
    two = codes[y == 2]
    error = (two.std(0).norm() / len(two) ** 0.5).item()
    assert error < 0.05
    assert radius[2] - radius[7] > 6 * error  # so 2 is farther out than 7, not by chance of these images


def inked(images: torch.Tensor, least: float) -> torch.Tensor:
    return images[:, 0] > least * images.amax((2, 3))[..., None]


def shaft_heel_grey(images: torch.Tensor, least: float = 0.3) -> tuple[torch.Tensor, ...]:
    x, ink = images[:, 0], inked(images, least).double()
    above, below = (1 - ink.cummax(1).values).sum(1), (1 - ink.flip(1).cummax(1).values).sum(1)
    heel = below[:, 10:21].amax(1) - below.amin(1)
    shaft = 28 - above.amin(1) - below.amin(1) - heel
    length = ink.amax(1).sum(1)
    return shaft / length, heel / length, (x * ink).sum((1, 2)) / ink.sum((1, 2))


def direction(values: torch.Tensor, codes: torch.Tensor) -> tuple[float, float]:
    centred = values - values.mean()
    slope = torch.linalg.lstsq(codes, centred[:, None]).solution[:, 0]
    return math.degrees(math.atan2(slope[1], slope[0])), ((codes @ slope).var() / centred.var()).item()


TICKS = torch.linspace(-1.645, 1.645, 11, dtype=torch.float64)
PLANE = torch.stack(torch.meshgrid(TICKS, TICKS.flip(0), indexing="xy"), -1).reshape(-1, 2)


def boots(seed: int) -> torch.Tensor:
    return pictures("boots")[f"grid_seed_{seed}"].double() / 255


def angle_between(values: torch.Tensor, codes: torch.Tensor) -> float:
    (first, _), (second, _) = (direction(v, codes) for v in values)
    return abs((first - second + 180) % 360 - 180)


def test_heel_and_shaft_grow_together_as_stated():
    between, correlations, darkness = [], [], {}
    for seed in (1, 2, 3):
        values = torch.stack(shaft_heel_grey(boots(seed)))
        between.append(round(angle_between(values[:2], PLANE)))
        correlations.append(round(torch.corrcoef(values[:2])[0, 1].item(), 2))
        darkness[seed] = direction(values[2], PLANE)
    assert between == [1, 16, 21]
    assert correlations == [0.81, 0.51, 0.42]
    assert all(abs(abs(darkness[seed][0]) - 90) <= 15.5 for seed in (2, 3))
    assert [round(darkness[seed][1], 2) for seed in (2, 3)] == [0.6, 0.55]
    assert measured("boots")["K = 2, seed 1"]["kl_per_unit"][0] == pytest.approx(0.03, abs=0.005)


@pytest.mark.parametrize("least", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_of_whole_shoes_every_ruler_says_the_same(least, seed):
    images = boots(seed)
    values = torch.stack(shaft_heel_grey(images, least)[:2])
    whole = inked(images, least).any(1)[:, 10:21].all(1)
    assert angle_between(values[:, whole], PLANE[whole]) < 26.5
    assert torch.corrcoef(values[:, whole])[0, 1] > 0.19
    assert whole.all() == (seed == 1 or least < 0.35 or (seed == 2 and least < 0.45))


def test_torn_shoes_turn_the_correlation_round():
    values = torch.stack(shaft_heel_grey(boots(2), 0.7)[:2])
    assert round(torch.corrcoef(values)[0, 1].item(), 2) == -0.93


def test_pruning_as_stated():
    units = boots_units()
    counts = {t: [int((u["kl_per_unit"] > t).sum()) for u in units.values()] for t in (0.5, 0.1)}
    assert counts == {0.5: [3, 4, 3], 0.1: [4, 5, 3]}
    kl, norm, total = (
        torch.cat([u[key] for u in units.values()]).abs() for key in ("kl_per_unit", "column_norm", "column_sum")
    )
    alive = kl > 0.5
    assert round(norm[alive].min().item(), 2) == 1.53
    assert round(norm[~alive].max().item(), 2) == 1.42
    assert round(total[alive].min().item(), 2) == 0.81
    assert round(total[~alive].max().item(), 2) == 2.34
    dead = norm[kl < 0.1]
    assert 1.15 < dead.min() < dead.max() < 1.4
    assert math.sqrt(128 / 60) == pytest.approx(1.46, abs=0.005)
    second = units[2]["kl_per_unit"].argsort(descending=True)[1]
    assert round(units[2]["column_sum"][second].abs().item(), 2) == 0.81
    odd = (units[1]["column_sum"].abs() - 2.17).abs().argmin()
    assert round(units[1]["kl_per_unit"][odd].item(), 3) == 0.004
    losses = {k: [measured("boots")[f"K = {k}, seed {s}"]["loss"]["loss"] for s in (1, 2, 3)] for k in (2, 20)}
    assert 229.5 < min(losses[20]) < max(losses[20]) < 233.5
    assert 237 < min(losses[2]) < 237.5


def test_robustness_as_stated():
    stated = {2: (1.01, 1.04), 10: (1.48, 1.55), 50: (1.87, 2.71)}
    for k, ends in stated.items():
        ratios = []
        for n in (0, 10, 30):
            errors = []
            for kind in ("vae", "autoencoder"):
                experiment = find(f"saleh-robustness-{kind}-k{k}-n{n}")
                kept = valid_records(experiment, default_out())
                assert len(kept) == 3
                errors.append(mean(record["test"]["mse"] for record in kept))
            ratios.append(errors[0] / errors[1])
        assert (round(min(ratios), 2), round(max(ratios), 2)) == ends
