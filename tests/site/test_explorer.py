"""The latent explorer in Python: what is exported is what the model decodes; the widget's own rules."""

import json

import ipywidgets
import numpy as np
import pytest
import torch
import traitlets
from checks import refused
from explorer_models import SHAPE, lively, make_exact
from ipywidgets.embed import dependency_state, embed_data
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

from vae_core.experiments.records import default_out, load_trained
from vae_core.interactive.explorer import FUNCTIONS, DecoderWeights, EncodedImages, LatentExplorer, export_decoder
from vae_core.interactive.sliders import latent_grid, latent_sliders
from vae_core.likelihoods import categorical
from vae_core.models import VAE, conv_vae, mlp_autoencoder, mlp_conditional_vae, mlp_vae


@pytest.fixture(autouse=True)
def widgets_are_closed():
    yield
    ipywidgets.Widget.close_all()


def with_decoder(*layers: nn.Module, likelihood="bernoulli", latent_dim: int = 3) -> VAE:
    """A model with this stack for a decoder (a single module stands for itself)."""
    decoder = layers[0] if len(layers) == 1 else nn.Sequential(*layers)
    return VAE(nn.Flatten(), decoder, 12, latent_dim, SHAPE, likelihood).eval()


def read(header: dict, blob: bytes, z: Tensor) -> np.ndarray:
    """What a reader in float64 makes of an export: by numpy, from the format's description alone."""
    flat, x, at = np.frombuffer(blob, "<f2").astype(float), z.numpy(), 0
    activations = {"none": lambda y: y, "relu": lambda y: np.maximum(y, 0), "tanh": np.tanh}
    activations["sigmoid"] = lambda y: 1 / (1 + np.exp(-y))
    for layer in header["layers"]:
        n, m = layer["outputs"], layer["inputs"]
        W, b, at = flat[at : at + n * m].reshape(n, m), flat[at + n * m : at + n * m + n], at + n * m + n
        x = activations[layer["activation"]](x @ W.T + b)
    assert at == len(flat)
    return x.reshape(-1, *header["shape"])


def difference(model: nn.Module, codes: Tensor) -> float:
    """The largest between what is exported and what the model decodes."""
    with torch.no_grad():
        return float(np.abs(read(*export_decoder(model), codes) - model.double().decode(codes).numpy()).max())


# The export


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("activation", sorted({*FUNCTIONS} - {"none"}))
def test_folding_is_exact_where_half_precision_is(activation, likelihood, batch_norm):
    model = make_exact(lively(activation=activation, likelihood=likelihood, batch_norm=batch_norm))
    assert difference(model, 2 * torch.randn(200, 2)) < 1e-6
    header, _ = export_decoder(model)
    last = "sigmoid" if likelihood == "bernoulli" else "none"
    assert [layer["activation"] for layer in header["layers"]] == [activation, activation, last]
    assert header["shape"] == list(SHAPE)


def test_batch_norm_without_an_affine_map_and_layers_without_a_bias_are_folded_too():
    layers = [nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5, affine=False), nn.ReLU(), nn.Linear(5, 12, bias=False)]
    assert difference(make_exact(with_decoder(*layers)), torch.randn(200, 3)) < 1e-6


@pytest.mark.parametrize("last", [nn.ReLU, nn.Tanh, nn.Sigmoid])
def test_a_decoder_may_end_in_an_activation(last):
    model = make_exact(with_decoder(nn.Linear(3, 12), last(), likelihood="gaussian"))
    assert difference(model, torch.randn(200, 3)) < 1e-6


@pytest.mark.parametrize("name", ["chen-mnist-d2", "chen-mnist-d20"])
@pytest.mark.parametrize("spread", ["prior", "uniform"])
def test_half_precision_costs_a_recorded_model_less_than_two_thousandths(name, spread):
    model = load_trained(name)
    codes = torch.randn(200, model.latent_dim)
    assert difference(model, codes if spread == "prior" else 3 * (2 * torch.rand_like(codes) - 1)) < 2e-3


def test_exporting_leaves_the_model_and_the_generator_as_they_were():
    model = lively().train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    export_decoder(model)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def squashed(output: Tensor) -> Independent:
    """A likelihood whose mean is neither the output nor its sigmoid."""
    return Independent(Normal(output.tanh(), 1.0), 3)


LINEAR, ONE = nn.Linear(3, 12), torch.eye(3)[0]
REFUSED = {
    "has a Unflatten where none can": lambda: conv_vae((1, 8, 8), 3, (4, 4)),
    "has a ELU where none can": lambda: lively(activation="elu"),
    "has a ReLU where none can": lambda: with_decoder(nn.ReLU(), LINEAR),
    "has a Tanh where none can": lambda: with_decoder(LINEAR, nn.ReLU(), nn.Tanh()),
    "has a BatchNorm1d where": lambda: with_decoder(nn.BatchNorm1d(3), LINEAR),
    "has a BatchNorm1d where none can": lambda: with_decoder(LINEAR, nn.ReLU(), nn.BatchNorm1d(12)),
    "keeps no running averages": lambda: with_decoder(LINEAR, nn.BatchNorm1d(12, track_running_stats=False)),
    "is a Linear, not a stack of layers": lambda: with_decoder(LINEAR),
    "not a stack of layers": lambda: with_decoder(nn.Sequential(), latent_dim=12),
    "mean is neither the decoder's output nor its sigmoid": lambda: lively(likelihood=squashed),
    "takes 5 numbers where the code has 2": lambda: mlp_conditional_vae(SHAPE, 2, 3, hidden=(7,)),
    "as with a condition; use latent_sliders(model.given(y))": lambda: mlp_conditional_vae(SHAPE, 2, 3).given(ONE),
    "outputs 24 numbers for images of 12 pixels": lambda: lively(likelihood="learned_gaussian"),
    "outputs 60 numbers": lambda: lively(likelihood=categorical(5)),
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_decoder_that_cannot_be_exported_says_why_and_what_else_to_use(words):
    model = REFUSED[words]().double()
    for attempt in (export_decoder, LatentExplorer):
        with refused(ValueError, words, "latent_sliders"):
            attempt(model)


@pytest.mark.parametrize("shape", [(4, 2, 2), (2, 3, 4), (12,), (3, 4), (1, 3, 2, 2)])
@pytest.mark.parametrize("attempt", [export_decoder, LatentExplorer, latent_sliders, latent_grid])
def test_explorers_and_sliders_refuse_other_data_than_images_of_one_or_three_channels(attempt, shape):
    with refused(ValueError, "images of 1 or 3 channels", f"got shape {shape}"):
        attempt(mlp_vae(shape, 2, hidden=(7,)))


@pytest.mark.parametrize("extent", [0.0, -3.0, float("nan"), float("inf")])
def test_an_extent_that_is_not_positive_is_refused(extent):
    with refused(ValueError, "extent must be positive and finite"):
        LatentExplorer(lively(), extent=extent)


def test_sliders_move_a_conditional_model_under_a_condition():
    model = mlp_conditional_vae(SHAPE, 2, 3, hidden=(7,))
    assert len(latent_sliders(model.given(torch.eye(3)[1])).sliders) == 2
    with refused(ValueError, "needs its condition", "model.given(y)"):
        latent_sliders(model)


def test_a_weight_too_large_for_half_precision_is_refused_with_its_size():
    model = lively()
    model.decoder[-1].bias.data[0] = -70_000.0
    with refused(ValueError, "a weight of 70000, too large for float16", "latent_sliders"):
        export_decoder(model)


# The widget


def test_explorers_of_a_model_share_its_weights_until_it_changes():
    model = lively()
    first, second = LatentExplorer(model), LatentExplorer(model)
    assert first.decoder is second.decoder
    model.decoder[-1].bias.data += 1
    assert LatentExplorer(model).decoder is not first.decoder
    assert (first.decoder.header, first.decoder.blob) == (second.decoder.header, second.decoder.blob)


def test_closed_weights_are_not_handed_out_again():
    model = lively()
    LatentExplorer(model).decoder.close()
    again = LatentExplorer(model).decoder
    assert again.comm is not None
    assert DecoderWeights.of(model) is again


def test_z_starts_at_the_origin_and_tells_who_listens():
    explorer, heard = LatentExplorer(lively(3)), []
    explorer.observe(lambda change: heard.append((change["old"], change["new"])), "z")
    assert explorer.z == [0.0, 0.0, 0.0]
    explorer.z = [1, 2.5, -3]
    assert heard == [([0.0, 0.0, 0.0], [1.0, 2.5, -3.0])]


@pytest.mark.parametrize("value", [[], [1.0], [1.0, 2.0, 3.0], [np.nan, 0.0], [0.0, -np.inf], "ab", None, [None, 0.0]])
def test_z_is_as_many_finite_numbers_as_there_are_units(value):
    explorer = LatentExplorer(lively())
    explorer.z = [1.0, 2.0]
    with pytest.raises(traitlets.TraitError, match="z"):
        explorer.z = value
    assert explorer.z == [1.0, 2.0]


def test_the_text_of_an_explorer_is_the_same_in_every_session():
    model = lively()
    bundles = [LatentExplorer(model)._repr_mimebundle_()[0] for _ in range(2)]
    assert [bundle["text/plain"] for bundle in bundles] == ["LatentExplorer of 2 latent units"] * 2
    ids = {bundle["application/vnd.jupyter.widget-view+json"]["model_id"] for bundle in bundles}
    assert len(ids) == 2


@pytest.mark.parametrize("name", ["chen-mnist-d2", "chen-mnist-d20"])
def test_a_page_with_two_explorers_of_a_model_holds_its_weights_once_and_stays_small(name):
    model, images = load_trained(name), EncodedImages.load(default_out() / f"{name}.codes.safetensors")
    explorers = [LatentExplorer(model, images) for _ in range(2)]
    layers = explorers[0].decoder.header["layers"]
    assert len(explorers[0].decoder.blob) == sum(2 * (layer["inputs"] + 1) * layer["outputs"] for layer in layers)
    sizes = []
    for shown in (explorers[:1], explorers):
        state = dependency_state(shown, drop_defaults=False)
        sizes.append(len(json.dumps(embed_data(shown, drop_defaults=False, state=state)["manager_state"])))
    assert sizes[1] - sizes[0] < 140_000  # the codes; the weights alone are 1.5 MB in base64
    assert sizes[0] < 1_600_000


# Test images


def encoded(model: VAE, n: int = 30, **options) -> tuple[EncodedImages, Tensor, Tensor]:
    """What the model makes of n images like those that it decodes."""
    like = next(model.parameters())
    with torch.no_grad():
        x = model.decode(torch.randn(n, model.latent_dim, dtype=like.dtype)).clamp(0, 1)
    y = torch.arange(n) % 10
    return EncodedImages.of(model, x, y, **options), x, y


def test_codes_are_posterior_means_and_units_are_sorted_by_their_kl_over_all_images():
    model = lively(5)
    found, x, y = encoded(model, 30, max_codes=20, starts=4)
    explorer, q = LatentExplorer(model, found), model.posterior(x)
    kl = kl_divergence(q.base_dist, Normal(0.0, 1.0)).mean(0)
    assert np.allclose(np.frombuffer(explorer.codes, "<f2").reshape(20, 5), q.mean[:20].detach(), atol=2e-3)
    assert explorer.labels == bytes(y[:20].tolist())
    assert explorer.images == bytes((255 * x[:4]).round().flatten().int().tolist())
    assert explorer.kl == pytest.approx(kl.tolist(), abs=5e-5)
    assert [explorer.kl[unit] for unit in explorer.order] == sorted(explorer.kl, reverse=True)
    assert sorted(explorer.order) == list(range(5))


def test_images_are_encoded_in_evaluation_mode_and_change_nothing():
    model = lively()
    expected, x, y = encoded(model)
    before = {k: v.clone() for k, v in model.train().state_dict().items()}
    found = EncodedImages.of(model, x, y)
    assert model.training
    assert torch.equal(found.codes, expected.codes)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_encoded_images_come_back_from_a_file(tmp_path):
    written, *_ = encoded(lively())
    written.save(tmp_path / "codes.safetensors")
    back = EncodedImages.load(tmp_path / "codes.safetensors")
    assert torch.equal(back.labels, written.labels)
    assert torch.equal(back.images, written.images)
    assert torch.allclose(back.codes.double(), written.codes, rtol=2**-11)
    assert torch.allclose(back.kl.double(), written.kl, rtol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["codes.safetensors"]


def test_classes_of_other_images_and_more_images_than_codes_are_refused():
    model = lively()
    _, x, y = encoded(model)
    with refused(ValueError, "y must hold one entry for each image", "29 for 30"):
        EncodedImages.of(model, x, y[:-1])
    with refused(ValueError, "images", "(10, 1, 3, 4)", "(5, 2)"):
        EncodedImages.of(model, x, y, max_codes=5)


@pytest.mark.parametrize("options", [{"latent_dim": 3}, {"shape": (1, 4, 3)}, {"shape": (3, 3, 4)}])
def test_codes_and_images_of_another_model_are_refused(options):
    with refused(ValueError, "encoded is of another model"):
        LatentExplorer(lively(), encoded(lively(**options))[0])


def test_classes_that_no_byte_holds_are_refused():
    """255 is the last; 256 would come out as class 0, and −1 as 255."""
    model = lively()
    _, x, y = encoded(model)
    assert EncodedImages.of(model, x, y + 246).labels.max() == 255
    for labels in (y + 247, y - 1):
        with refused(ValueError, "255"):
            EncodedImages.of(model, x, labels)


def test_encoded_images_take_arrays_lists_and_bytes():
    model = lively()
    expected, x, y = encoded(model)
    forms = [(x.numpy(), y.numpy()), (list(x), y.tolist()), (x, y.float()), (x.tolist(), tuple(y.tolist()))]
    for images, labels in forms:
        found = EncodedImages.of(model, images, labels)
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.images, expected.images)
    stored = (255 * x).round().byte()
    assert torch.equal(EncodedImages.of(model, stored, y).images, expected.images)
    assert torch.equal(EncodedImages.of(model, x > 0.5, y).images, 255 * (x[:10] > 0.5).byte())


@pytest.mark.parametrize(
    ("kind", "words", "change"),
    [
        (ValueError, ["x must hold values from 0 to 1", "got -0."], lambda x, y: (2 * x / x.max() - 1, y)),
        (ValueError, ["x must hold values from 0 to 1", "to 255"], lambda x, y: (255 * x / x.max(), y)),
        (ValueError, ["x must be finite"], lambda x, y: (x / 0, y)),
        (ValueError, ["x is uint8", "maximum is 1"], lambda x, y: ((x > 0.5).byte(), y)),
        (TypeError, ["x must not be a masked array"], lambda x, y: (np.ma.array(x.numpy(), mask=x.numpy() > 0.5), y)),
        (TypeError, ["x must hold real numbers"], lambda x, y: (x + 1j, y)),
        (ValueError, ["y must be whole numbers", "4.5"], lambda x, y: (x, y + 0.5 * (y == 4))),
        (TypeError, ["y must not be a masked array"], lambda x, y: (x, np.ma.array(y.numpy(), mask=y.numpy() > 3))),
        (TypeError, ["y must hold real numbers"], lambda x, y: (x, [f"class {k}" for k in y.tolist()])),
        (ValueError, ["y must be classes from 0 to 255", "got -1 to 8"], lambda x, y: (x, y - 1)),
        (ValueError, ["class_names must name 10 classes, got 2"], lambda x, y: (x, y, ["a", "b"])),
    ],
)
def test_encoded_images_refuse_data_whose_meaning_would_be_lost(kind, words, change):
    model = lively()
    _, x, y = encoded(model)
    x, y, *names = change(x, y)
    with refused(kind, *words):
        EncodedImages.of(model, x, y, class_names=names[0] if names else ())


def test_encoded_images_of_a_model_without_a_posterior_are_refused():
    with refused(TypeError, "model must be a VAE", "Autoencoder"):
        EncodedImages.of(mlp_autoencoder(SHAPE, 2, hidden=(7,)), torch.rand(3, *SHAPE), [0, 1, 2])


def test_class_names_are_optional_and_kept(tmp_path):
    model, names = lively(), [f"Klasse {k} é" for k in range(10)]
    found, *_ = encoded(model, class_names=names)
    found.save(tmp_path / "codes.safetensors")
    assert EncodedImages.load(tmp_path / "codes.safetensors").class_names == tuple(names)
    assert LatentExplorer(model, found).class_names == names
    assert LatentExplorer(model, encoded(model)[0]).class_names == []
