"""Figures on held-out images: reconstruction at the code, squared errors, and the corruption of images."""

import numpy as np
import pytest
import torch
from checks import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import Bernoulli, Normal

from vae_core import data
from vae_core.distributions import diagonal_normal
from vae_core.evaluation import (
    add_outliers,
    entropy_floor,
    evaluate,
    kl_per_unit,
    reconstruction_at_code,
    reconstruction_mse,
)
from vae_core.models import VAE, conv_vae, mlp_autoencoder, mlp_vae
from vae_core.objectives import elbo_terms
from vae_core.training import fit

SHAPE = (1, 4, 4)
BUILDERS = {
    "auto-encoder": lambda: mlp_autoencoder(SHAPE, 2, hidden=(7,)),
    "VAE": lambda: mlp_vae(SHAPE, 2, hidden=(7,)),
    "convolutional VAE": lambda: conv_vae(SHAPE, 2, channels=(3,)),
}
FIGURES = [reconstruction_at_code, reconstruction_mse]
every_figure = pytest.mark.parametrize("figure", FIGURES)


@pytest.fixture(params=BUILDERS.values(), ids=BUILDERS)
def model(request) -> nn.Module:
    """In training mode, with running averages that are not those of any batch here."""
    model = request.param()
    model.reconstruct(torch.rand(50, *SHAPE))
    return model


def trained_on_digits(likelihood: str = "bernoulli") -> tuple[VAE, Tensor]:
    digits = data.load("digits")
    torch.manual_seed(1)
    model = mlp_vae((1, 8, 8), 2, hidden=(16, 8), likelihood=likelihood)
    fit(model, digits.x_train, elbo_terms, epochs=5, batch_size=64, learning_rate=1e-2, progress=False)
    return model, digits.x_test


# Where and in what precision


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch knows no CUDA")
def test_add_outliers_stays_on_the_device():
    """Without a device: tensors that have shapes and places but no values (torch's FakeTensorMode)."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        assert add_outliers(torch.zeros(3, *SHAPE, dtype=torch.uint8), 0.5).device.type == "cuda"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kl_per_unit_and_evaluate_take_data_on_the_device():
    class Own:  # no nn.Module: nobody can ask where its parameters are
        prior = property(lambda self: self.q(torch.zeros(2, device="cuda")))

        def q(self, mean: Tensor):
            return diagonal_normal(mean, torch.zeros_like(mean))

        def posterior(self, x: Tensor):
            return self.q(x.flatten(1)[:, :2] + torch.zeros(2, device="cuda"))

    x = torch.rand(3, *SHAPE, device="cuda")
    assert kl_per_unit(Own(), x).device.type == "cuda"
    model = mlp_vae(SHAPE, 2, hidden=(7,)).cuda()
    assert evaluate(model, x) == evaluate(model, x.cpu())


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_reconstruction_mse_takes_images_of_another_precision(dtypes, model):
    of_model, of_images = dtypes
    model, x = model.to(of_model), torch.rand(6, *SHAPE, dtype=torch.float32)
    as_its_own, as_other = (reconstruction_mse(model, x.to(dtype)) for dtype in (of_model, of_images))
    assert as_its_own == pytest.approx(as_other, rel=1e-5)


# reconstruction_at_code


def test_reconstruction_at_code_is_the_cross_entropy_with_the_reconstruction(model):
    x = torch.rand(9, *SHAPE)
    figure = reconstruction_at_code(model, x)
    with torch.no_grad():
        s = model.eval().reconstruct(x).numpy()
    cross_entropy = -(x.numpy() * np.log(s) + (1 - x.numpy()) * np.log1p(-s)).sum((1, 2, 3))
    assert figure == pytest.approx(cross_entropy.mean(), rel=1e-10)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_reconstruction_at_code_is_below_that_of_evaluate_for_a_trained_vae(likelihood, float32):
    model, x = trained_on_digits(likelihood)
    assert reconstruction_at_code(model, x) < evaluate(model, x)["reconstruction"]


# kl_per_unit


@pytest.mark.parametrize("batch_size", [4, 1000])
def test_kl_per_unit_is_the_formula_and_sums_to_the_kl(batch_size):
    model, x = mlp_vae(SHAPE, 3, hidden=(7,)), torch.rand(9, *SHAPE)
    found = kl_per_unit(model, x, batch_size)
    with torch.no_grad():
        q = model.eval().posterior(x)
    expected = (q.mean.square() + q.variance - 1 - q.variance.log()) / 2
    torch.testing.assert_close(found, expected.mean(0))
    assert found.sum().item() == pytest.approx(evaluate(model, x)["kl"], rel=1e-10)


# reconstruction_mse


def test_reconstruction_mse_is_that_of_numpy(model):
    x, target = torch.rand(9, *SHAPE), torch.rand(9, *SHAPE)
    itself, other = reconstruction_mse(model, x), reconstruction_mse(model, x, target)
    with torch.no_grad():
        reconstruction = model.eval().reconstruct(x).numpy()
    assert itself == pytest.approx(np.mean((reconstruction - x.numpy()) ** 2), rel=1e-12)
    assert other == pytest.approx(np.mean((reconstruction - target.numpy()) ** 2), rel=1e-12)


def test_reconstruction_mse_against_the_reconstruction_is_zero(model):
    x = torch.rand(9, *SHAPE)
    with torch.no_grad():
        reconstruction = model.eval().reconstruct(x)
    assert reconstruction_mse(model, x, reconstruction) < 1e-30
    assert reconstruction_mse(model, x) > 1e-3


@pytest.mark.parametrize("shape", [(8, *SHAPE), (9, 1, 4, 5), (9, 16), (1, *SHAPE)])
def test_reconstruction_mse_refuses_a_target_of_another_shape(shape, model):
    with refused(ValueError, "target must have the shape of x", (9, *SHAPE), shape):
        reconstruction_mse(model, torch.rand(9, *SHAPE), torch.rand(shape))


# Both


@every_figure
@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_reconstruction_at_code_and_mse_do_not_depend_on_the_batch_size(figure, batch_size, model):
    x = torch.rand(9, *SHAPE)
    assert figure(model, x, batch_size=batch_size) == pytest.approx(figure(model, x, batch_size=1000), rel=1e-12)


@every_figure
def test_reconstruction_at_code_and_mse_leave_mode_state_and_random_state(figure, model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    figure(model, torch.rand(9, *SHAPE, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes


@every_figure
def test_reconstruction_at_code_and_mse_refuse_no_images(figure, model):
    with refused(ValueError, "x must hold at least one image"):
        figure(model, torch.rand(0, *SHAPE))


@every_figure
def test_reconstruction_at_code_and_mse_refuse_images_of_another_shape(figure, model):
    with refused(ValueError, "x must be float images", "(3, 1, 4, 5)"):
        figure(model, torch.rand(3, 1, 4, 5))


# corrupt

PIXELS = 4_000_000
BLACK = torch.zeros(PIXELS, 1, 1, 1, dtype=torch.uint8)


def law(probability: float) -> Tensor:
    """P(pixel ≤ v) for v = 0, …, 254 of a black pixel: 255 |ε| rounded to v or less, or no hit at all."""
    half_normal = 2 * Normal(0.0, 1.0).cdf((torch.arange(255) + 0.5) / 255) - 1
    return 1 - probability + probability * half_normal


@settings(deadline=None)
@given(
    images=st.lists(st.integers(0, 255), min_size=1, max_size=30),
    probability=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_add_outliers_lowers_no_pixel_and_keeps_shape_and_dtype(images, probability, seed):
    x = torch.tensor(images, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    corrupted = add_outliers(x, probability, seed)
    assert (corrupted >= x).all()
    assert (corrupted.dtype, corrupted.shape) == (torch.uint8, x.shape)
    assert x.flatten().tolist() == images


@pytest.mark.parametrize("probability", [0.1, 0.3, 1.0])
def test_add_outliers_hits_a_share_of_pixels(probability):
    visible = 1 - law(probability)[0].item()  # an outlier below half a grey level rounds to nothing
    share = (add_outliers(BLACK, probability) > 0).double().mean().item()
    assert abs(share - visible) < 6 * (visible * (1 - visible) / PIXELS) ** 0.5
    assert visible == pytest.approx(probability, rel=2e-3)


@pytest.mark.parametrize("probability", [0.1, 1.0])
def test_add_outliers_on_black_is_half_normal_clipped_at_one(probability):
    counts = add_outliers(BLACK, probability).flatten().long().bincount(minlength=256)
    found, expected = counts.cumsum(0)[:255] / PIXELS, law(probability)
    assert ((found - expected).abs() < 6 * (expected * (1 - expected) / PIXELS).sqrt()).all()
    assert 1 - found[254] > 0.3 * probability  # P(|ε| > 1) = 0.317, all of it white


def test_add_outliers_does_not_depend_on_the_image():
    x = torch.randint(256, (1000, 1, 4, 4), dtype=torch.uint8)
    added = add_outliers(torch.zeros_like(x), 0.5, seed=3).int()
    difference = add_outliers(x, 0.5, seed=3).int() - (x.int() + added).clamp(max=255)
    assert difference.abs().max() <= 1  # a tie that rounds to even


def test_add_outliers_with_probability_zero_changes_nothing():
    x = torch.randint(256, (100, 1, 4, 4), dtype=torch.uint8)
    assert torch.equal(add_outliers(x, 0), x)
    assert not torch.equal(add_outliers(x, 0.01), x)


def test_add_outliers_is_fixed_by_a_seed():
    x = torch.randint(256, (100, 1, 4, 4), dtype=torch.uint8)
    before, first = torch.get_rng_state(), add_outliers(x, 0.3, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(add_outliers(x, 0.3, seed=5), first)
    assert not torch.equal(add_outliers(x, 0.3, seed=6), first)


def test_add_outliers_does_not_depend_on_the_default_dtype():
    x = torch.randint(256, (100, 1, 4, 4), dtype=torch.uint8)
    first = add_outliers(x, 0.3)
    torch.set_default_dtype(torch.float32)
    assert torch.equal(add_outliers(x, 0.3), first)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan"), float("inf")])
def test_add_outliers_refuses_a_probability_outside_of_0_to_1(probability):
    with refused(ValueError, "probability must be in [0, 1]", repr(probability)):
        add_outliers(BLACK, probability)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_add_outliers_refuses_images_that_are_not_uint8(dtype):
    with refused(TypeError, "x must be uint8 images", dtype):
        add_outliers(BLACK.to(dtype), 0.3)


# entropy_floor


def test_entropy_floor_is_the_entropy_of_the_pixels_per_image():
    x = torch.rand(7, *SHAPE)
    expected = Bernoulli(x).entropy().sum((1, 2, 3)).mean().item()
    assert entropy_floor(x) == pytest.approx(expected, rel=1e-12)


def test_entropy_floor_of_black_and_white_pixels_is_zero():
    assert str(entropy_floor(torch.bernoulli(torch.full((5, *SHAPE), 0.4)))) == "0.0"  # not -0.0


@pytest.mark.parametrize(
    "x",
    [
        torch.full((2, *SHAPE), 1.01),
        torch.full((2, *SHAPE), -0.01),
        torch.cat((torch.rand(2000, *SHAPE), torch.full((1, *SHAPE), 255.0))),
    ],
)
def test_entropy_floor_refuses_values_outside_of_the_unit_interval(x):
    with refused(ValueError, "x must hold images with values in [0, 1]"):
        entropy_floor(x)


@every_figure
@pytest.mark.parametrize("batch_size", [0, -1])
def test_reconstruction_at_code_and_mse_refuse_a_bad_batch_size(figure, batch_size):
    with refused(ValueError, "batch_size must be a positive integer, got"):
        figure(BUILDERS["VAE"](), torch.rand(2, *SHAPE), batch_size=batch_size)


def test_entropy_floor_takes_bytes_and_arrays():
    x = torch.randint(0, 256, (7, *SHAPE), dtype=torch.uint8)
    expected = entropy_floor(x.double() / 255)
    assert entropy_floor(x) == pytest.approx(expected, rel=1e-12)
    assert entropy_floor(x.numpy()) == pytest.approx(expected, rel=1e-12)
    assert entropy_floor((x / 255.0).numpy()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("value", [1e-45, 1e-38, 1e-12, 1e-7, 1 - 6e-8])
def test_entropy_floor_of_float32_is_exact_at_the_ends_of_the_interval(value):
    x = torch.full((3, *SHAPE), value, dtype=torch.float32)
    p = x[0, 0, 0, 0].double().item()
    expected = 16 * (-p * np.log(p) - (1 - p) * np.log1p(-p))
    assert entropy_floor(x) == pytest.approx(expected, rel=1e-8)


def test_add_outliers_takes_arrays():
    x = torch.randint(256, (100, 1, 4, 4), dtype=torch.uint8)
    assert torch.equal(add_outliers(x.numpy(), 0.3), add_outliers(x, 0.3))
    with refused(TypeError, "x must be uint8 images", "float64"):
        add_outliers(x.numpy() / 255, 0.3)
    with refused(TypeError, "x must be uint8 images", "list"):
        add_outliers(x.tolist(), 0.3)
