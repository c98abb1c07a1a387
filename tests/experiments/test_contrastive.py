"""Contrastive objectives against loops, enumeration and closed forms; the views; the encoders."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.nn import functional as F

from vae_core.data import load
from vae_core.experiments import contrastive
from vae_core.experiments.contrastive import (
    color_jitter,
    colour_views,
    conv_contrastive,
    grey_views,
    info_nce,
    mlp_contrastive,
    nt_xent,
    random_affine,
    random_horizontal_flip,
    resample,
    simclr_objective,
    triplet,
)
from vae_core.models import conv_vae, mlp_vae
from vae_core.training import fit

seeds = st.integers(0, 10_000)


def codes(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Objectives


@given(seeds, st.floats(0.1, 100))
def test_the_difference_of_inner_products_grows_with_the_square_of_the_scale(seed, c):
    f = codes(seed, 3, 5, 4)
    torch.testing.assert_close(triplet(*(c * f)), c**2 * triplet(*f))
    torch.testing.assert_close(triplet(*f), torch.stack([f[0, n] @ f[1, n] - f[0, n] @ f[2, n] for n in range(5)]))


@given(seeds, st.floats(0.1, 100))
def test_normalised_it_does_not_see_the_scale_and_stays_within_two(seed, c):
    f = codes(seed, 3, 5, 4)
    value = triplet(*f, normalised=True)
    torch.testing.assert_close(triplet(*(c * f), normalised=True), value)
    assert value.abs().max() <= 2
    opposite = triplet(f[0], f[0], -f[0], normalised=True)
    torch.testing.assert_close(opposite, torch.full((5,), 2.0))


@given(seeds, st.integers(2, 7), st.floats(0.05, 5))
def test_nt_xent_is_the_loop_of_its_paper(seed, n, temperature):
    u, v = codes(seed, 2, n, 3)
    z = [*u, *v]
    loss = []
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        s = [torch.dot(z[i], z[k]) / z[i].norm() / z[k].norm() / temperature for k in range(2 * n)]
        loss.append(-s[j] + torch.stack([s[k] for k in range(2 * n) if k != i]).exp().sum().log())
    expected = [-(loss[i] + loss[i + n]) / 2 for i in range(n)]
    torch.testing.assert_close(nt_xent(u, v, temperature), torch.stack(expected))


def bounds(n: int, temperature: float) -> list[float]:
    """Those of the docstring: each of the other 2n − 2 codes is as near as the other view, or as far, as can be."""
    return [-math.log(1 + (2 * n - 2) * math.exp(side * 2 / temperature)) for side in (1, -1)]


@given(seeds, st.integers(2, 20), st.floats(0.05, 5))
def test_nt_xent_has_the_stated_bounds_and_sees_neither_scale_nor_order_nor_a_turn(seed, n, temperature):
    u, v = codes(seed, 2, n, 3)
    value, (lower, upper) = nt_xent(u, v, temperature), bounds(n, temperature)
    assert lower - 1e-9 <= value.min() <= value.max() <= upper + 1e-9
    Q = torch.linalg.qr(codes(seed + 1, 3, 3))[0]
    torch.testing.assert_close(nt_xent(7 * v @ Q, u @ Q, temperature), value)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_two_opposite_images_attain_its_maximum(temperature):
    """cos(u, v) = 1, and −1 with both codes of the other image: −log(1 + 2e^{−2/τ}), the stated bound, for both."""
    u = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    _, upper = bounds(2, temperature)
    assert upper == pytest.approx(-math.log(1 + 2 * math.exp(-2 / temperature)), rel=1e-12)
    torch.testing.assert_close(nt_xent(u, u, temperature), torch.full((2,), upper), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [3, 8])
def test_of_more_images_one_can_attain_the_maximum_but_not_all(n):
    """One at a point, the others opposite: these have 2n − 4 codes in their own place."""
    u = torch.tensor([[1.0, 0.0]] + (n - 1) * [[-1.0, 0.0]])
    value, (_, upper) = nt_xent(u, u), bounds(n, 0.5)
    others = -math.log(2 * n - 3 + 2 * math.exp(-2 / 0.5))
    torch.testing.assert_close(value, torch.tensor([upper] + (n - 1) * [others]))
    assert others < upper - 0.5


@pytest.mark.parametrize("n", [2, 3, 8])
def test_one_of_an_images_two_views_attains_the_minimum_but_not_both(n):
    """u opposite to v, all others at u: the bound for u; v is as far from them as from u, 1 in 2n − 1."""
    u = torch.tensor(n * [[1.0, 0.0]])
    v = torch.tensor([[-1.0, 0.0]] + (n - 1) * [[1.0, 0.0]])
    lower, _ = bounds(n, 0.5)
    assert nt_xent(u, v)[0].item() == pytest.approx((lower - math.log(2 * n - 1)) / 2, rel=1e-12)


@pytest.mark.parametrize("shapes", [((3, 2), (4, 2)), ((1, 2), (1, 2)), ((2, 3, 2), (2, 3, 2))])
def test_views_that_do_not_match_are_refused(shapes):
    with pytest.raises(ValueError, match="both views need codes"):
        nt_xent(*(torch.zeros(s) for s in shapes))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        nt_xent(torch.ones(2, 2), torch.ones(2, 2), temperature)


# InfoNCE


@given(seeds, st.integers(2, 30), st.floats(0.1, 50))
def test_info_nce_never_exceeds_log_n_and_does_not_see_what_depends_on_u_alone(seed, n, scale):
    scores = scale * codes(seed, 2, 4, n, n)
    value = info_nce(scores)
    assert value.max() <= math.log(n) + 1e-12
    torch.testing.assert_close(info_nce(scores + codes(seed + 1, 2, 4, n, 1)), value)
    expected = -F.cross_entropy(scores[0, 0], torch.arange(n), reduction="none") + math.log(n)
    torch.testing.assert_close(value[0, 0], expected)
    torch.testing.assert_close(info_nce(scores[0, 0]), expected)


@pytest.mark.parametrize("n", [2, 5, 40])
def test_info_nce_of_equal_symbols_is_the_binomial_sum(n):
    """U = V uniform on k symbols, the best score: log N − E log(1 + Binomial(N − 1, 1/k)), and I(U; V) = log k."""
    k = 4
    pmf = [math.comb(n - 1, m) * (1 / k) ** m * (1 - 1 / k) ** (n - 1 - m) for m in range(n)]
    exact = math.log(n) - sum(p * math.log(1 + m) for m, p in enumerate(pmf))
    u = torch.randint(k, (20_000, n))
    value = info_nce(torch.where(u[..., None] == u[:, None], 0.0, -torch.inf))[:, 0]
    assert abs(value.mean() - exact) < 6 * value.std() / len(value) ** 0.5 + 1e-12
    assert exact < min(math.log(k), math.log(n))


def gaussian_scores(u: torch.Tensor, v: torch.Tensor, rho: float) -> torch.Tensor:
    """log p(v|u)/p(v) for unit normals with correlation rho: (..., N, N)."""
    u, v, rest = u[..., :, None], v[..., None, :], 1 - rho**2
    return -0.5 * math.log(rest) - (v - rho * u) ** 2 / (2 * rest) + v**2 / 2


def test_the_score_of_a_gaussian_pair_is_the_log_ratio_of_its_densities():
    rho, (u, v) = 0.8, codes(0, 2, 6)
    pair = torch.distributions.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, rho], [rho, 1.0]]))
    one = torch.distributions.Normal(0.0, 1.0)
    joint = pair.log_prob(torch.stack(torch.broadcast_tensors(u[:, None], v[None]), -1))
    torch.testing.assert_close(gaussian_scores(u, v, rho), joint - one.log_prob(u)[:, None] - one.log_prob(v))


@pytest.mark.parametrize("rho", [0.5, 0.9, 0.999])
def test_info_nce_bounds_the_gaussian_information_and_rises_to_it_with_n(rho):
    information, before = -0.5 * math.log(1 - rho**2), -math.inf
    for n in (2, 8, 32, 128):
        u, noise = torch.randn(2, 400, n)
        value = info_nce(gaussian_scores(u, rho * u + math.sqrt(1 - rho**2) * noise, rho)).mean(1)
        mean, error = value.mean().item(), value.std().item() / 20
        assert before - 6 * error < mean < min(information, math.log(n)) + 6 * error
        before = mean
    assert (information - mean < 0.03) == (rho < 0.99)  # 3.1 nats are too many for 128 pairs


@pytest.mark.parametrize("shape", [(3, 4), (3, 3, 4), (3,)])
def test_scores_must_be_square(shape):
    with pytest.raises(ValueError, match="N by N"):
        info_nce(torch.zeros(shape))


# Views


def test_with_nothing_to_do_an_image_is_left_as_it_is():
    x = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(random_affine(x), x)
    torch.testing.assert_close(color_jitter(x, 0, 0), x)


def test_images_are_read_off_where_the_matrix_says():
    x, eye = torch.rand(2, 1, 6, 6), torch.eye(2).expand(2, 2, 2)
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]]).expand(2, 2, 2)
    torch.testing.assert_close(resample(x, quarter, torch.zeros(2, 2)), x.rot90(1, (-2, -1)))
    moved = resample(x, eye, torch.tensor([[2 / 6, 0.0]]).expand(2, 2))  # one pixel to the left
    torch.testing.assert_close(moved[..., :-1], x[..., 1:])
    assert moved[..., -1].abs().max() < 1e-12
    middle = resample(x, eye / 3, torch.zeros(2, 2))  # the middle third, three times as large
    torch.testing.assert_close(middle[..., 1::3, 1::3], x[..., 2:4, 2:4])


def test_a_cut_never_shows_anything_from_outside():
    x = torch.ones(200, 1, 8, 8)
    assert random_affine(x, smallest=0.2).min() > 0.49  # at the rim a pixel is read half between inside and outside


def test_a_turn_keeps_the_distance_from_the_centre():
    x = torch.zeros(50, 1, 9, 9)
    x[..., 4, 4] = 1
    torch.testing.assert_close(random_affine(x, degrees=180)[..., 4, 4], torch.ones(50, 1))


def test_mirrored_exchanges_left_and_right_in_about_half():
    x = torch.rand(400, 2, 3, 5)
    y = random_horizontal_flip(x)
    same, other = (y == x).flatten(1).all(1), (y == x.flip(-1)).flatten(1).all(1)
    assert (same ^ other).all()
    assert 140 < same.sum() < 260  # within six standard deviations


def test_tints_stay_in_range_and_some_are_grey():
    y = color_jitter(torch.rand(500, 3, 4, 4), 0.8, grey=0.2)
    assert y.min() >= 0
    assert y.max() <= 1
    grey = (y == y[:, :1]).flatten(1).all(1)
    assert 46 < grey.sum() < 154


def test_what_loses_its_colour_keeps_the_mean_of_its_channels():
    x = torch.rand(5, 3, 4, 4)
    torch.testing.assert_close(color_jitter(x, strength=0, grey=1), x.mean(1, keepdim=True).expand_as(x))


def test_brightness_and_channels_change_by_no_more_than_the_strength():
    torch.manual_seed(2)
    share = color_jitter(torch.full((4000, 3, 2, 2), 0.5), strength=0.1, grey=0)[:, :, 0, 0] / 0.5
    assert 0.9**2 <= share.min() < 0.83
    assert 1.19 < share.max() <= 1.1**2 + 1e-6
    assert abs(share.mean() - 1) < 6 * share.mean(1).std() / 4000**0.5


def check_uniform(values: torch.Tensor, low: float, high: float) -> None:
    """By their law, and up to the very ends; 4000 numbers or more."""
    assert stats.kstest(values.flatten(), stats.uniform(low, high - low).cdf).pvalue > 1e-6
    assert low <= values.min() < low + 0.002 * (high - low)
    assert high - 0.002 * (high - low) < values.max() <= high


@pytest.mark.parametrize(
    ("views", "shape", "degrees", "smallest", "shift"),
    [(grey_views, (1, 28, 28), 20, 0.7, 0.05), (colour_views, (3, 32, 32), 0, 0.25, 0)],
)
def test_views_are_turned_cut_and_moved_by_the_stated_amounts(views, shape, degrees, smallest, shift, monkeypatch):
    seen = []
    monkeypatch.setattr(contrastive, "resample", lambda x, *places: seen.append(places) or x)
    views(torch.rand(1, *shape).expand(4000, *shape))
    ((matrices, offsets),) = seen
    area = torch.linalg.det(matrices)
    torch.testing.assert_close(matrices @ matrices.mT, area[:, None, None] * torch.eye(2))  # a turn, and smaller
    check_uniform(area, smallest, 1)
    angles = torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]).rad2deg()
    if degrees:
        check_uniform(angles, -degrees, degrees)
    else:
        assert (angles == 0).all()
    check_uniform(offsets / (1 - area.sqrt() + 2 * shift)[:, None], -1, 1)


@pytest.mark.parametrize(("views", "shape"), [(grey_views, (1, 28, 28)), (colour_views, (3, 32, 32))])
def test_views_follow_the_seed_keep_the_kind_and_differ_from_image_to_image(views, shape):
    x = torch.rand(1, *shape, dtype=torch.float32).expand(4, *shape)
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(views(x))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert made[0].shape == x.shape
    assert made[0].dtype == torch.float32
    assert len(made[0].flatten(1).unique(dim=0)) == 4


# Encoders


def shapes(model: torch.nn.Module) -> list[tuple]:
    kept = [*model.encoder.state_dict().items(), *model.mean.state_dict().items()]
    return [(name, tuple(value.shape)) for name, value in kept]


def test_the_encoders_have_the_layers_of_the_models():
    assert shapes(mlp_contrastive((1, 28, 28), 20)) == shapes(mlp_vae((1, 28, 28), 20))
    assert shapes(conv_contrastive((3, 32, 32), 256)) == shapes(conv_vae((3, 32, 32), 256))


def test_the_projector_stands_behind_the_code():
    x = torch.rand(5, 1, 8, 8)
    model = mlp_contrastive((1, 8, 8), 3, (7,), projection=6)
    assert model.encode(x).shape == (5, 3)
    assert model.project(model.encode(x)).shape == (5, 6)
    linear = [layer for layer in model.project.modules() if isinstance(layer, torch.nn.Linear)]
    assert [layer.weight.shape for layer in linear] == [(12, 3), (6, 12)]
    bare = mlp_contrastive((1, 8, 8), 3, (7,), projection=0).eval()
    assert torch.equal(bare.project(bare.encode(x)), bare.encode(x))


@pytest.mark.parametrize("x", [torch.rand(2, 1, 8, 9), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)])
def test_other_images_are_refused(x):
    with pytest.raises(ValueError, match="x must be float images"):
        mlp_contrastive((1, 8, 8), 3, (7,)).encode(x)


@settings(max_examples=5)
@given(seeds)
def test_without_a_change_of_view_agreement_is_nt_xent_of_equal_codes(seed):
    torch.manual_seed(seed)
    model, x = mlp_contrastive((1, 8, 8), 3, (7,)).eval(), torch.rand(6, 1, 8, 8)
    h = model.project(model.encode(x))
    torch.testing.assert_close(simclr_objective(model, x, lambda images: images), nt_xent(h, h))


def test_training_brings_views_together(float32):
    x = load("digits").x_train[:256]
    torch.manual_seed(0)
    model = mlp_contrastive((1, 8, 8), 8, (64,))
    history = fit(model, x, partial(simclr_objective, views=grey_views), epochs=4, batch_size=64, progress=False)
    assert history[-1]["loss"] < history[0]["loss"] - 0.2
