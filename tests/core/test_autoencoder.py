"""The deterministic auto-encoder beside the VAE: the same layers, no width, and its limits: PCA and the ELBO."""

import math

import pytest
import torch
from checks import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from vae_core.evaluation import reconstruction_mse
from vae_core.models import VAE, Autoencoder, conv_vae, mlp_autoencoder, mlp_vae
from vae_core.objectives import elbo_terms, reconstruction_log_likelihood

SHAPE = (1, 3, 4)
BUILDERS = {
    "dense auto-encoder": lambda: mlp_autoencoder(SHAPE, 2, hidden=(7, 5), activation="tanh"),
    "dense VAE": lambda: mlp_vae(SHAPE, 2, hidden=(7, 5), activation="tanh"),
    "convolutional VAE": lambda: conv_vae((1, 4, 8), 2, channels=(4, 3)),
}
every_model = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)


def images(model: Autoencoder, n: int = 6) -> Tensor:
    return torch.rand(n, *model.input_shape)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# What they share


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    hidden=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    latent_dim=st.integers(1, 5),
    batch_norm=st.booleans(),
)
def test_mlp_autoencoder_has_the_weights_of_mlp_vae_for_the_same_seed_except_the_second_head(
    seed, hidden, latent_dim, batch_norm
):
    states = []
    for build in (mlp_vae, mlp_autoencoder):
        torch.manual_seed(seed)
        states.append(build(SHAPE, latent_dim, hidden, batch_norm=batch_norm).state_dict())
    vae, autoencoder = states
    assert set(vae) - set(autoencoder) == {"log_variance.weight", "log_variance.bias"}
    assert all(torch.equal(vae[name], autoencoder[name]) for name in autoencoder)


def test_vae_is_an_autoencoder_and_an_autoencoder_is_no_vae():
    assert isinstance(mlp_vae(SHAPE, 2), Autoencoder)
    assert isinstance(conv_vae((1, 8, 8), 2), VAE)
    assert not isinstance(mlp_autoencoder(SHAPE, 2), VAE)


@pytest.mark.parametrize("name", ["prior", "posterior", "log_variance", "sample"])
def test_autoencoder_has_nothing_that_only_a_distribution_over_codes_could_give(name):
    assert hasattr(mlp_vae(SHAPE, 2), name)
    assert not hasattr(mlp_autoencoder(SHAPE, 2), name)


@every_model
def test_encode_and_reconstruct_are_deterministic(build):
    model = build().eval()
    x, before = images(model), torch.get_rng_state()
    assert torch.equal(model.encode(x), model.encode(x))
    assert torch.equal(model.reconstruct(x), model.reconstruct(x))
    assert torch.equal(torch.get_rng_state(), before)


@every_model
def test_reconstruct_returns_the_decoded_code(build):
    model = build().eval()
    x = images(model)
    assert model.encode(x).shape == (6, 2)
    assert model.reconstruct(x).shape == x.shape
    assert torch.equal(model.reconstruct(x), model.decode(model.encode(x)))
    assert torch.allclose(model.reconstruct(x), torch.sigmoid(model.decoder(model.encode(x))).reshape(x.shape))


@pytest.mark.parametrize("name", ["dense VAE", "convolutional VAE"])
def test_encode_of_a_vae_is_the_mean_of_its_posterior(name):
    model = BUILDERS[name]().eval()
    x = images(model)
    assert torch.equal(model.encode(x), model.posterior(x).mean)


@every_model
def test_encode_refuses_images_of_another_shape(build):
    model = build()
    with refused(ValueError, "x must be float images", "(2, 1, 5, 5)"):
        model.encode(torch.rand(2, 1, 5, 5))


# The convolutional VAE


def test_conv_vae_returns_distributions_of_the_documented_shapes():
    model = conv_vae((3, 8, 16), 5, channels=(4, 6))
    x = images(model, 4)
    q = model.posterior(x)
    p = model.likelihood(q.rsample((2,)))
    assert (q.batch_shape, q.event_shape, model.prior.event_shape) == ((4,), (5,), (5,))
    assert (p.batch_shape, p.event_shape) == ((2, 4), (3, 8, 16))
    assert p.log_prob(x).shape == (2, 4)
    assert model.eval().decode(torch.zeros(5)).shape == model.sample(1)[0].shape == (3, 8, 16)


def test_decode_of_a_grid_of_codes_by_conv_vae_is_that_of_its_rows():
    model, z = conv_vae((3, 8, 8), 2, channels=(4, 6)).eval(), torch.randn(3, 5, 2)
    assert torch.allclose(model.decode(z), torch.stack([model.decode(row) for row in z]), atol=1e-14)


@pytest.mark.parametrize("build", [conv_vae, mlp_vae, mlp_autoencoder])
@pytest.mark.parametrize(
    ("shape", "latent_dim", "words"),
    [
        ((1, 8, 8), 0, ["latent_dim must be a positive integer", "got 0"]),
        ((1, 8, 8), 2.5, ["latent_dim must be a positive integer", "got 2.5"]),
        ((8, 0, 8), 2, ["input_shape must be", "(C, H, W)", "got (8, 0, 8)"]),
    ],
)
def test_conv_vae_mlp_vae_and_mlp_autoencoder_say_what_is_wrong(build, shape, latent_dim, words):
    with refused(ValueError, *words):
        build(shape, latent_dim)


def test_conv_vae_refuses_a_size_that_three_halvings_do_not_divide():
    with refused(ValueError, "3 halvings", "28"):
        conv_vae((1, 28, 28), 2)


# Parameter counts of the documents' networks

IRVIN = dict(hidden=(500,), activation="tanh", batch_norm=False)
SALEH = dict(hidden=(400, 256, 128), batch_norm=False)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: conv_vae((3, 32, 32), 256), 1_911_235),
        (lambda: mlp_vae((3, 32, 32), 256), 3_580_672),
        (lambda: mlp_vae((1, 28, 28), 2, **SALEH), 900_660),
        (lambda: mlp_vae((1, 28, 28), 20, **SALEH), 907_608),
        (lambda: mlp_vae((1, 28, 28), 2, **IRVIN), 788_788),
        (lambda: mlp_vae((1, 28, 28), 3, **IRVIN), 790_290),
        (lambda: mlp_vae((1, 28, 28), 50, **IRVIN), 860_884),
    ],
)
def test_conv_vae_and_mlp_vae_have_the_numbers_of_parameters_of_the_documents(build, expected):
    with torch.device("meta"):
        assert count(build()) == expected


@pytest.mark.parametrize("latent_dim", [2, 10, 50])
def test_mlp_autoencoder_has_as_many_parameters_as_mlp_vae_except_one_head(latent_dim):
    with torch.device("meta"):
        vae, autoencoder = (count(build((1, 28, 28), latent_dim, **SALEH)) for build in (mlp_vae, mlp_autoencoder))
    assert vae - autoencoder == 128 * latent_dim + latent_dim


# What it maximises


@every_model
def test_reconstruction_log_likelihood_is_minus_the_cross_entropy_at_the_code(build):
    model = build().eval()
    x = images(model)
    logits = model.decoder(model.mean(model.encoder(x))).reshape(x.shape)
    cross_entropy = binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
    value, terms = reconstruction_log_likelihood(model, x)
    torch.testing.assert_close(value, -cross_entropy, rtol=1e-12, atol=0)
    assert set(terms) == {"reconstruction"}
    assert torch.equal(terms["reconstruction"], -value)


@pytest.mark.parametrize("name", ["dense VAE", "convolutional VAE"])
def test_reconstruction_log_likelihood_is_the_limit_of_the_elbos_first_term_as_the_posterior_narrows(name):
    model = BUILDERS[name]().eval()
    x = images(model)
    nn.init.zeros_(model.log_variance.weight)
    errors = []
    for log_variance in (-10.0, -20.0, -40.0):
        nn.init.constant_(model.log_variance.bias, log_variance)
        with torch.no_grad():
            first_term = -elbo_terms(model, x, num_samples=50)[1]["reconstruction"]
            errors.append((first_term - reconstruction_log_likelihood(model, x)[0]).abs().max().item())
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-7  # σ = 2·10⁻⁹


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_reconstruction_log_likelihood_has_the_gradient_of_finite_differences(likelihood):
    model = mlp_autoencoder(SHAPE, 2, hidden=(7, 5), activation="tanh", likelihood=likelihood)
    x, start, step = images(model), parameters_to_vector(model.parameters()).detach(), 1e-5
    direction = torch.randn_like(start)

    def objective(t: float) -> Tensor:
        vector_to_parameters(start + t * direction, model.parameters())
        return reconstruction_log_likelihood(model, x)[0].sum()

    difference = (objective(step) - objective(-step)).item() / (2 * step)
    gradient = torch.autograd.grad(objective(0.0), list(model.parameters()))
    slope = parameters_to_vector(gradient) @ direction
    assert slope.item() == pytest.approx(difference, rel=1e-7)
    assert abs(difference) > 1e-3


# A linear auto-encoder is PCA


def linear_autoencoder(latent_dim: int) -> Autoencoder:
    return Autoencoder(nn.Flatten(), nn.Linear(latent_dim, 12), 12, latent_dim, SHAPE, "gaussian")


def pca_error(x: Tensor, n_components: int) -> float:
    """The mean squared error per pixel of scikit-learn's reconstruction."""
    flat = x.flatten(1).numpy()
    pca = PCA(n_components, svd_solver="full").fit(flat)
    return ((pca.inverse_transform(pca.transform(flat)) - flat) ** 2).mean().item()


def squared_error(negative_log_likelihood: Tensor) -> Tensor:
    """The squared error per pixel of images of 12 pixels, from −log N(x; x̂, I)."""
    return (2 * negative_log_likelihood - 12 * math.log(2 * math.pi)) / 12


@pytest.mark.parametrize("latent_dim", [1, 2, 4])
def test_autoencoder_of_linear_layers_and_gaussian_likelihood_reaches_pca_and_goes_no_lower(latent_dim):
    model = linear_autoencoder(latent_dim)
    x, errors = images(model, 40), []
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=1000, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -reconstruction_log_likelihood(model, x)[0].mean()
        loss.backward()
        errors.append(squared_error(loss.detach()).item())
        return loss

    optimizer.step(closure)
    optimum = pca_error(x, latent_dim)
    assert errors[0] > 2 * optimum
    assert min(errors) > optimum - 1e-12  # Eckart and Young: at no step of the way
    assert reconstruction_mse(model, x) == pytest.approx(optimum, rel=1e-8)


def test_autoencoder_of_linear_layers_as_wide_as_its_images_can_reconstruct_them_exactly():
    model = linear_autoencoder(12)
    with torch.no_grad():
        for layer in (model.mean, model.decoder):
            layer.weight.copy_(torch.eye(12))
            layer.bias.zero_()
    x = images(model)
    assert torch.equal(model.reconstruct(x), x)
    torch.testing.assert_close(
        squared_error(reconstruction_log_likelihood(model, x)[1]["reconstruction"]), torch.zeros(6)
    )
