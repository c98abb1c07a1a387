"""Likelihoods, networks and models: densities that are densities, shapes, and the story they tell."""

import math
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from checks import refused
from torch import nn
from torch.distributions import Independent, Normal
from torch.nn.functional import binary_cross_entropy_with_logits

from vae_core.distributions import standard_normal
from vae_core.likelihoods import LIKELIHOODS, bernoulli, categorical, check_support, gaussian, resolve
from vae_core.models import VAE, conv_vae, mlp_autoencoder, mlp_conditional_vae, mlp_vae
from vae_core.networks import mlp
from vae_core.objectives import elbo_terms
from vae_core.training import fit

BINARY = torch.tensor(list(product([0.0, 1.0], repeat=4)), dtype=torch.float64).reshape(16, 1, 2, 2)


def small(**options):
    return mlp_vae((1, 2, 2), 1, hidden=(6,), **options).eval()


def test_bernoulli_probabilities_of_all_binary_images_sum_to_one():
    assert bernoulli(torch.randn(1, 2, 2)).log_prob(BINARY).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_bernoulli_is_minus_the_cross_entropy_also_on_grey_images():
    logits, x = torch.randn(5, 1, 3, 3), torch.rand(5, 1, 3, 3)
    cross_entropy = binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
    assert torch.allclose(bernoulli(logits).log_prob(x), -cross_entropy, atol=1e-12)


@pytest.mark.parametrize("logit", [17.0, 100.0, -100.0])
def test_bernoulli_neither_saturates_nor_loses_its_gradient(logit):
    logits = torch.full((1, 1, 1), logit, dtype=torch.float32, requires_grad=True)
    value = bernoulli(logits).log_prob(torch.full((1, 1, 1), float(logit < 0), dtype=torch.float32))
    value.backward()
    assert value.item() == pytest.approx(-abs(logit), rel=1e-6)
    assert logits.grad.item() == pytest.approx(-math.copysign(1, logit), rel=1e-6)


def test_bernoulli_mean_is_the_sigmoid():
    logits = torch.randn(1, 2, 2)
    assert torch.allclose(bernoulli(logits).mean, torch.sigmoid(logits))


@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0])
def test_gaussian_keeps_every_constant(sigma):
    mean, x = torch.randn(4, 1, 2, 3), torch.randn(4, 1, 2, 3)
    squared = ((x - mean) ** 2).sum((1, 2, 3))
    printed = -3 * math.log(2 * math.pi) - 6 * math.log(sigma) - squared / (2 * sigma**2)
    assert torch.allclose(gaussian(mean, sigma).log_prob(x), printed, rtol=1e-12)


def test_gaussian_density_integrates_to_one():
    x = torch.linspace(-20, 20, 40_001)
    density = gaussian(torch.full((1, 1, 1), 0.3), 0.8).log_prob(x.reshape(-1, 1, 1, 1)).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
def test_gaussian_refuses_a_width_that_is_not_positive(sigma):
    with pytest.raises(ValueError, match="sigma must be positive, got"):
        gaussian(torch.zeros(1, 1, 1), sigma)


def test_resolve_takes_a_name_or_a_callable():
    assert resolve("gaussian") is gaussian
    assert resolve(math.sin) is math.sin
    with pytest.raises(ValueError, match=r"one of .*'bernoulli', .*'gaussian', .* got 'poisson'"):
        resolve("poisson")


def test_mlp_blocks_are_linear_norm_activation_and_the_last_layer_is_bare():
    kinds = [type(layer) for layer in mlp((5, 4, 3), 2)]
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*block, *block, nn.Linear]
    assert [type(layer) for layer in mlp((5, 4), activation="tanh", batch_norm=False)] == [nn.Linear, nn.Tanh]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(widths=(4,)), "widths must be at least two positive integers, got"),
        (dict(widths=(4, 0)), "widths must be at least two positive integers, got"),
        (dict(widths=(4, 2), activation="swish"), "activation must be one of .* got 'swish'"),
    ],
)
def test_mlp_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        mlp(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(input_shape=(), latent_dim=2), r"input_shape must be .*\(C, H, W\) or \(D,\), got \(\)"),
        (dict(input_shape=5, latent_dim=2), r"input_shape must be .*\(C, H, W\) or \(D,\), got 5"),
        (dict(input_shape=(1, 0, 4), latent_dim=2), r"input_shape must be .*, got \(1, 0, 4\)"),
        (dict(input_shape=(2.5,), latent_dim=2), r"input_shape must be .*, got \(2.5,\)"),
        (dict(input_shape="ab", latent_dim=2), r"input_shape must be .*, got 'ab'"),
        (dict(input_shape=(1, 4, 4), latent_dim=0), "latent_dim must be a positive integer, got 0"),
        (dict(input_shape=(1, 4, 4), latent_dim=2, hidden=()), r"hidden must be at least one positive width, got \(\)"),
        (dict(input_shape=(1, 4, 4), latent_dim=2, hidden=128), "hidden must be at least one positive width, got 128"),
        (dict(input_shape=(1, 4, 4), latent_dim=2, hidden=(8, 0)), "hidden must be at least one positive width"),
        (dict(input_shape=(1, 4, 4), latent_dim=True), "latent_dim must be a positive integer, got True"),
        (dict(input_shape=(1, 4, 4), latent_dim="2"), "latent_dim must be a positive integer, got '2'"),
        (dict(input_shape=(1, 4, 4), latent_dim=2, likelihood="x"), "likelihood must be"),
        (dict(input_shape=(1, 4, 4), latent_dim=2, likelihood=["bernoulli"]), "likelihood must be"),
    ],
)
def test_mlp_vae_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        mlp_vae(**arguments)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 6)])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_mlp_vae_returns_distributions_of_the_documented_shapes(shape, likelihood):
    model, x = mlp_vae(shape, 3, hidden=(7, 5), likelihood=likelihood), torch.rand(4, *shape)
    q = model.posterior(x)
    p = model.likelihood(q.rsample((2,)))
    assert (q.batch_shape, q.event_shape) == ((4,), (3,))
    assert (model.prior.batch_shape, model.prior.event_shape) == ((), (3,))
    assert (p.batch_shape, p.event_shape) == ((2, 4), shape)
    assert p.log_prob(x).shape == (2, 4)
    assert model.reconstruct(x).shape == x.shape
    assert model.eval().decode(torch.zeros(3)).shape == shape


def test_decode_of_a_grid_of_codes_is_that_of_its_rows():
    model, z = small(), torch.randn(3, 5, 1)
    rows = torch.stack([model.decode(row) for row in z])
    assert torch.allclose(model.decode(z), rows, atol=1e-14)


def test_posterior_has_the_log_variance_that_the_encoder_outputs():
    model = small()
    nn.init.zeros_(model.log_variance.weight)
    nn.init.constant_(model.log_variance.bias, math.log(0.25))
    q = model.posterior(torch.rand(3, 1, 2, 2))
    assert torch.allclose(q.variance, torch.full((3, 1), 0.25))
    assert torch.allclose(q.stddev, torch.full((3, 1), 0.5))


def test_reconstruct_sends_gradients_to_both_networks():
    model = small()
    model.reconstruct(torch.rand(3, 1, 2, 2)).sum().backward()
    used = [p.grad is not None for name, p in model.named_parameters() if not name.startswith("log_variance")]
    assert all(used)


def evidence(model) -> torch.Tensor:
    """p(x) of all 16 binary images under a model with one latent number, by quadrature."""
    z = torch.linspace(-9, 9, 4001)[:, None]
    with torch.no_grad():
        log_joint = model.likelihood(z[:, None]).log_prob(BINARY) + standard_normal(1).log_prob(z)[:, None]
    return torch.trapezoid(log_joint.exp(), z, dim=0)


def test_likelihood_gives_all_binary_images_evidence_that_sums_to_one():
    assert evidence(small()).sum().item() == pytest.approx(1, abs=1e-9)


def test_sample_draws_images_with_their_evidence():
    model, n = small(), 200_000
    nn.init.normal_(model.decoder[-1].weight, std=2)  # make the pixels depend on z
    images = model.sample(n)
    codes = (images.reshape(n, 4) * torch.tensor([8.0, 4.0, 2.0, 1.0])).sum(1).long()
    frequency, expected = codes.bincount(minlength=16) / n, evidence(model)
    assert ((frequency - expected).abs() < 6 * (expected * (1 - expected) / n).sqrt()).all()
    assert (expected.max() / expected.min()) > 3  # the test could tell a uniform sampler


def test_sample_of_a_gaussian_carries_its_noise():
    images = small(likelihood="gaussian").sample(50_000)
    assert images.var().item() > 1  # noise of variance 1, plus what z adds


def test_sample_is_the_same_for_the_same_seed():
    model = small()
    torch.manual_seed(5)
    first = model.sample(10)
    torch.manual_seed(5)
    assert torch.equal(first, model.sample(10))


@pytest.mark.parametrize("x", [torch.zeros(2, 1, 2, 3), torch.zeros(2, 4), torch.zeros(2, 1, 2, 2, dtype=torch.uint8)])
def test_posterior_refuses_images_of_another_shape_or_dtype(x):
    with pytest.raises(ValueError, match=r"x must be float images of shape \(B, 1, 2, 2\), got"):
        small().posterior(x)


def test_likelihood_refuses_codes_of_another_dimension():
    with pytest.raises(ValueError, match=r"z must end in the latent dimension 1, got shape \(5, 2\)"):
        small().likelihood(torch.zeros(5, 2))


def test_likelihood_of_a_standard_decoder_matches_its_normal_density():
    model, z, x = small(likelihood="gaussian"), torch.randn(3, 1), torch.rand(3, 1, 2, 2)
    mean = model.decoder(z).reshape(3, 1, 2, 2)
    assert torch.allclose(model.likelihood(z).log_prob(x), Normal(mean, 1.0).log_prob(x).sum((1, 2, 3)), atol=1e-12)


# Any rank of data

RANKS = {"a row": (5,), "a sequence": (3, 4), "an image": (1, 2, 3), "a video": (2, 1, 3, 2)}
EVERY = {**{name: name for name in LIKELIHOODS}, "categorical": categorical(3)}


@pytest.mark.parametrize("shape", RANKS.values(), ids=RANKS)
@pytest.mark.parametrize("likelihood", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("build", [mlp_vae, mlp_autoencoder])
def test_mlp_vae_and_mlp_autoencoder_take_data_of_any_rank_with_any_likelihood(build, likelihood, shape):
    model, x = build(shape, 2, hidden=(7,), likelihood=likelihood), torch.randint(0, 2, (4, *shape)).double()
    p = model.likelihood(torch.randn(3, 4, 2))
    assert (p.batch_shape, p.event_shape) == ((3, 4), shape)
    assert p.log_prob(x).shape == (3, 4)
    check_support(p, x)
    assert model.reconstruct(x).shape == model.decode(torch.zeros(4, 2)).shape == x.shape
    if build is mlp_vae:
        assert model.sample(6).shape == (6, *shape)


@pytest.mark.parametrize("likelihood", EVERY.values(), ids=EVERY)
def test_mlp_vae_of_rows_is_that_of_images_of_one_pixel_row(likelihood):
    """The same weights and numbers, whatever the shape they are given."""
    models = []
    for shape in ((6,), (1, 2, 3)):
        torch.manual_seed(1)
        models.append(mlp_vae(shape, 2, hidden=(7,), likelihood=likelihood).eval())
    x, z = torch.randint(0, 2, (4, 6)).double(), torch.randn(4, 2)
    rows, images = (model.likelihood(z).log_prob(x.reshape(4, *model.input_shape)) for model in models)
    assert torch.equal(rows, images)
    assert torch.equal(models[0].encode(x), models[1].encode(x.reshape(4, 1, 2, 3)))


def test_mlp_vae_trains_on_standardised_columns():
    x = torch.randn(400, 2) @ torch.randn(2, 5) + 0.3 * torch.randn(400, 5)
    x = (x - x.mean(0)) / x.std(0)
    model = mlp_vae((5,), 2, hidden=(20,), likelihood="shared_gaussian")
    history = fit(model, x, elbo_terms, epochs=30, learning_rate=1e-2, progress=False)
    assert history[-1]["loss"] < 5 * 0.5 * math.log(2 * math.pi * math.e) - 0.5  # of independent columns
    assert model.output_distribution.log_variance < 0


def test_likelihood_takes_a_users_callable_for_rows_as_it_is():
    model = mlp_vae((5,), 2, hidden=(7,), likelihood=lambda mean: Independent(Normal(mean, 1.0), 1))
    assert model.likelihood(torch.zeros(3, 2)).event_shape == (5,)
    option = mlp_vae((5,), 2, hidden=(7,), likelihood=partial(gaussian, sigma=0.3))
    assert option.likelihood(torch.zeros(3, 2)).event_shape == (5,)


@pytest.mark.parametrize(
    ("likelihood", "words"),
    [
        (lambda mean: Normal(mean, 1.0), ["event shape (5,), got ()"]),
        (lambda mean: Independent(Normal(mean, 1.0), 2), ["event shape (5,), got (3, 5)"]),
    ],
)
def test_likelihood_refuses_a_callable_that_returns_another_event_shape(likelihood, words):
    with refused(ValueError, "the likelihood must have the", *words):
        mlp_vae((5,), 2, hidden=(7,), likelihood=likelihood).likelihood(torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("shape", "x", "words"),
    [
        ((5,), torch.zeros(3, 4), ["x must be float data of shape (B, 5)", "float32 (3, 4)"]),
        ((5,), torch.zeros(5), ["(B, 5)", "(5,)", "x[None]"]),
        ((1, 2, 2), torch.zeros(1, 2, 2), ["x must be float images of shape (B, 1, 2, 2)", "x[None]"]),
        ((1, 2, 2), torch.zeros(3, 2, 2), ["(B, 1, 2, 2)", "(3, 2, 2)"]),
        ((1, 2, 2), torch.zeros(3, 1, 2, 2, dtype=torch.uint8), ["uint8", "unit_interval(x) divides bytes by 255"]),
        ((1, 2, 2), torch.zeros(3, 1, 2, 2, dtype=torch.complex64), ["complex64"]),
    ],
)
def test_posterior_refuses_data_of_another_shape_or_dtype_with_a_cure(shape, x, words):
    with refused(ValueError, *words):
        mlp_vae(shape, 2, hidden=(7,)).posterior(x)


def test_posterior_refuses_what_is_no_tensor():
    with refused(TypeError, "x must be a tensor, got ndarray", "torch.as_tensor(x)"):
        small().posterior(np.zeros((3, 1, 2, 2)))


# forward, sample, decode, reconstruct


def fresh(build=mlp_vae, **options):
    """A model as it is built: in training mode, with batch norm."""
    return build((1, 4, 4), 2, **options)


BUILT = {
    "dense": lambda: fresh(hidden=(7,)),
    "convolutional": lambda: fresh(conv_vae, channels=(4, 3)),
    "conditional": lambda: fresh(mlp_conditional_vae, condition_dim=3, hidden=(7,)).given(torch.eye(3)[0]),
}


@pytest.mark.parametrize("build", BUILT.values(), ids=BUILT)
def test_forward_is_the_posterior_and_of_an_autoencoder_the_code(build):
    model, x = build().eval(), torch.rand(3, 1, 4, 4)
    assert torch.equal(model(x).mean, model.posterior(x).mean)
    assert torch.equal(model(x).stddev, model.posterior(x).stddev)
    autoencoder = fresh(mlp_autoencoder, hidden=(7,)).eval()
    assert torch.equal(autoencoder(x), autoencoder.encode(x))


def test_forward_of_an_autoencoder_can_be_exported():
    model, x = fresh(mlp_autoencoder, hidden=(7,)).eval(), torch.rand(3, 1, 4, 4)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("build", BUILT.values(), ids=BUILT)
def test_sample_decode_and_reconstruct_work_on_a_fresh_model_and_change_nothing(build, training):
    model, x = build().train(training), torch.rand(1, 1, 4, 4)
    model.decoder.eval()  # a mode of its own
    state, modes = {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]
    for drawn in (model.sample(1), model.sample(5), model.decode(torch.zeros(1, 2)), model.reconstruct(x)):
        assert drawn.shape[1:] == (1, 4, 4)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    torch.manual_seed(3)
    first = model.sample(4)
    torch.manual_seed(3)
    assert torch.equal(first, model.eval().sample(4))
    assert torch.equal(model.train().decode(torch.ones(1, 2)), model.eval().decode(torch.ones(1, 2)))


def test_decode_takes_arrays_lists_and_another_precision():
    model, z = small().float(), [[0.5], [1.0]]
    expected = model.decode(torch.tensor(z, dtype=torch.float32))
    for codes in (z, np.array(z), np.array(z, dtype=np.float32), torch.tensor(z), torch.tensor(z).half()):
        assert torch.equal(model.decode(codes), expected)


@pytest.mark.parametrize("z", [torch.zeros(5, 2), torch.zeros(2), torch.tensor(0.0), np.zeros((3, 4))])
def test_decode_refuses_codes_of_another_dimension(z):
    with refused(ValueError, "z must end in the latent dimension 1, got shape"):
        small().decode(z)


@pytest.mark.parametrize("ask", ["encode", "posterior", "likelihood"])
def test_encode_posterior_and_likelihood_refuse_a_batch_of_one_for_batch_norm_in_training_mode(ask):
    model = fresh(hidden=(7,))
    one = torch.zeros(1, 2) if ask == "likelihood" else torch.zeros(1, 1, 4, 4)
    with refused(ValueError, "batch norm in training mode needs at least two data", "got 1", "model.eval()"):
        getattr(model, ask)(one)
    assert getattr(model.eval(), ask)(one) is not None
    assert getattr(fresh(hidden=(7,), batch_norm=False), ask)(one) is not None


def test_posterior_leaves_an_error_of_a_users_network_as_it_is():
    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        VAE(Fails(), nn.Linear(2, 4), 3, 2, (1, 2, 2)).posterior(torch.zeros(3, 1, 2, 2))


@pytest.mark.parametrize("count", [np.int64(3), np.int32(3), 3])
def test_sample_takes_numpys_integers(count):
    assert small().sample(count).shape == (3, 1, 2, 2)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "3", None])
def test_sample_refuses_what_is_no_positive_integer(count):
    with refused(ValueError, "num_samples must be a positive integer", repr(count)):
        small().sample(count)


@pytest.mark.parametrize("build", [mlp_vae, mlp_autoencoder, conv_vae])
def test_mlp_vae_mlp_autoencoder_and_conv_vae_take_numpys_integers(build):
    widths = dict(channels=np.array([4, 3])) if build is conv_vae else dict(hidden=np.array([5]))
    model = build(np.array([1, 4, 4]), np.int64(2), **{k: tuple(v) for k, v in widths.items()})
    assert model.encode(torch.rand(3, 1, 4, 4)).shape == (3, 2)
    assert type(model.latent_dim) is int
