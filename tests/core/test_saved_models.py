"""`save` and `load`: one's own model in a file without pickle, the same bit for bit, and nothing else taken for one."""

import json
import os
import pickle
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from checks import Payload, files_below, refused
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from vae_core._files import model_files
from vae_core.evaluation import with_batch_statistics
from vae_core.likelihoods import (
    NegativeBinomialCounts,
    SharedGaussian,
    categorical,
    discretized_logistic,
    gaussian,
    learned_gaussian,
)
from vae_core.models import VAE, conv_vae, load, mlp_autoencoder, mlp_conditional_vae, mlp_vae, save
from vae_core.objectives import elbo_terms
from vae_core.training import fit

SHAPE = (1, 4, 4)
MODELS = {
    "dense": lambda: mlp_vae(SHAPE, 2, hidden=(7, 5), activation="tanh"),
    "by position": lambda: mlp_vae(SHAPE, 2, (7,), "elu", False, "gaussian"),
    "rows": lambda: mlp_vae((5,), 2, hidden=(7,), likelihood="shared_gaussian"),
    "numpy's integers": lambda: mlp_vae(torch.Size(SHAPE), np.int64(2), hidden=(np.int32(7),)),
    "autoencoder": lambda: mlp_autoencoder(SHAPE, 3, hidden=[7]),
    "conditional": lambda: mlp_conditional_vae(SHAPE, 2, 3, hidden=(7,), blind=True),
    "convolutional": lambda: conv_vae((3, 8, 8), 2, channels=(4, 3), likelihood="learned_gaussian"),
    "an instance": lambda: mlp_vae(SHAPE, 2, hidden=(7,), likelihood=SharedGaussian(0.3)),
    "a class": lambda: mlp_vae(SHAPE, 2, hidden=(7,), likelihood=NegativeBinomialCounts),
    "a function": lambda: mlp_vae(SHAPE, 2, hidden=(7,), likelihood=learned_gaussian),
    "an option": lambda: mlp_vae(SHAPE, 2, hidden=(7,), likelihood=partial(gaussian, sigma=np.float32(0.3))),
    "levels": lambda: mlp_vae(SHAPE, 2, hidden=(7,), likelihood=partial(discretized_logistic, num_levels=17)),
    "17 classes": lambda: mlp_vae(SHAPE, 2, hidden=(7,), likelihood=categorical(17)),
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def used(model):
    """The model with other running averages and weights than at the start."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.1 * torch.rand_like(tensor)
    return model


def outputs(model, dtype) -> list[torch.Tensor]:
    x = torch.linspace(0, 1, 4 * int(np.prod(model.input_shape)), dtype=dtype).reshape(4, *model.input_shape).round()
    view = model.given(torch.eye(3, dtype=dtype)[[0, 1, 2, 0]]) if hasattr(model, "given") else model
    with torch.no_grad():
        codes = view.encode(x)
        return [codes, view.decode(codes), view.likelihood(codes).log_prob(x)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_model
def test_load_returns_what_was_saved_bit_for_bit(build, dtype, path):
    torch.set_default_dtype(dtype)
    model = used(build())
    expected = outputs(model.eval(), dtype)
    save(model.train(), path)
    torch.set_default_dtype(torch.float32)
    found = load(path)
    assert (type(found), found.training) == (type(model), False)
    assert {name: value.dtype for name, value in found.state_dict().items()} == {
        name: value.dtype for name, value in model.state_dict().items()
    }
    assert all(torch.equal(a, b) for a, b in zip(outputs(found, dtype), expected, strict=True))
    assert model.training


@every_model
def test_load_returns_a_model_that_can_be_saved_trained_and_pickled(build, path):
    save(build(), path)
    found = load(path)
    save(found, path.with_name("again.safetensors"))
    assert path.with_name("again.safetensors").read_bytes() == path.read_bytes()
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in found.parameters())
    assert pickle.dumps(found)  # `deepcopy` makes the copy from the same description
    assert all(map(torch.equal, outputs(deepcopy(found), torch.float64), outputs(found, torch.float64)))


def test_load_after_training_goes_on_from_the_same_numbers(path):
    x = torch.rand(20, *SHAPE).round()
    model = mlp_vae(SHAPE, 2, hidden=(7,))
    fit(model, x, elbo_terms, epochs=2, progress=False)
    save(model, path)
    rows = [fit(each, x, elbo_terms, epochs=1, progress=False)[-1] for each in (model, load(path))]
    assert rows[0]["loss"] == rows[1]["loss"]


def test_load_draws_no_random_number_and_outlives_its_file(path):
    save(mlp_vae(SHAPE, 2, hidden=(7,)), path)
    before = torch.get_rng_state()
    model = load(str(path))
    assert torch.equal(torch.get_rng_state(), before)
    expected = model.decode(torch.ones(1, 2))
    os.truncate(path, 0)
    assert torch.equal(model.decode(torch.ones(1, 2)), expected)


def test_save_writes_safetensors_that_everybody_may_read_and_replaces_what_was_there(path):
    path.write_text("old")
    model = mlp_vae(SHAPE, 2, hidden=(7,))
    save(model, path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in load_file(path).items())
    assert path.stat().st_mode & 0o777 == 0o644
    with safe_open(path, "pt") as file:
        described = json.loads(file.metadata()["vae_core"])
    assert (described["format"], described["function"]) == (1, "mlp_vae")
    assert described["arguments"]["likelihood"] == {"name": "bernoulli"}
    assert list(files_below(path.parent)) == [path.name]


def test_save_leaves_the_old_file_if_it_cannot_finish(path, monkeypatch):
    path.write_text("old")

    def crash(tensors, part, metadata):
        part.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(model_files, "save_file", crash)
    with pytest.raises(OSError, match="disk full"):
        save(mlp_vae(SHAPE, 2, hidden=(7,)), path)
    assert files_below(path.parent) == {path.name: b"old"}


# What is not saved


def changed(change) -> VAE:
    model = mlp_vae(SHAPE, 2, hidden=(7,))
    change(model)
    return model


FOREIGN = {
    "of one's own": lambda: VAE(nn.Flatten(), nn.Linear(2, 16), 16, 2, SHAPE),
    "a network": lambda: nn.Linear(2, 2),
    "weights": lambda: mlp_vae(SHAPE, 2, hidden=(7,)).state_dict(),
    "another layer": lambda: changed(lambda model: model.decoder.append(nn.Sigmoid())),
    "another activation": lambda: changed(lambda model: model.decoder.__setitem__(2, nn.Tanh())),
    "a head of its own": lambda: changed(lambda model: setattr(model, "mean", nn.Linear(7, 3))),
    "batch statistics": lambda: with_batch_statistics(mlp_vae(SHAPE, 2, hidden=(7,))),
    "compiled": lambda: torch.compile(mlp_vae(SHAPE, 2, hidden=(7,))),
}


@pytest.mark.parametrize("build", FOREIGN.values(), ids=FOREIGN)
def test_save_refuses_a_model_that_no_function_of_the_module_built(build, path):
    with refused(TypeError, "model", "torch.save(model.state_dict(), path)"):
        save(build(), path)
    assert not path.exists()


UNNAMED = {
    "a lambda": lambda output: gaussian(output),
    "a tensor for an option": partial(gaussian, sigma=torch.tensor(0.3)),
    "an argument by position": partial(discretized_logistic, torch.zeros(2, 1)),
    "a partial of a lambda": partial(lambda output, sigma: gaussian(output, sigma), sigma=0.3),
    "a module of one's own": type("Mine", (SharedGaussian,), {})(),
}


@pytest.mark.parametrize("likelihood", UNNAMED.values(), ids=UNNAMED)
def test_save_refuses_a_likelihood_without_a_name(likelihood, path):
    with refused(ValueError, "likelihood must be", "categorical(n)"):
        save(mlp_vae(SHAPE, 2, hidden=(7,), likelihood=likelihood), path)


def test_save_refuses_a_model_under_a_condition(path):
    model = mlp_conditional_vae(SHAPE, 2, 3, hidden=(7,))
    with refused(ValueError, "not model.given(y)"):
        save(model.given(torch.eye(3)[0]), path)


def test_save_refuses_a_folder_that_is_not_there(tmp_path):
    with refused(FileNotFoundError, "folder that exists", "none/model"):
        save(mlp_vae(SHAPE, 2, hidden=(7,)), tmp_path / "none" / "model")


# What is not loaded


def rewritten(path, tensors=lambda t: t, **changes) -> None:
    """Save a model, then change its tensors or its description."""
    save(mlp_vae(SHAPE, 2, hidden=(7,)), path)
    with safe_open(path, "pt") as file:
        described = json.loads(file.metadata()["vae_core"])
    described["arguments"] |= changes.pop("arguments", {})
    save_file(tensors(load_file(path)), path, {"vae_core": json.dumps(described | changes)})


ALTERED = {
    "a later format": (dict(format=2), ["format 2", "reads 1", "update vae_core"]),
    "another function": (dict(function="exec"), ["cannot build", "exec"]),
    "an argument of later days": (dict(arguments={"depth": 3}), ["cannot build", "depth"]),
    "a shape that is none": (dict(arguments={"input_shape": [0]}), ["cannot build", "input_shape"]),
    "an unknown likelihood": (dict(arguments={"likelihood": {"name": "os.system"}}), ["cannot build", "os.system"]),
    "a likelihood without a name": (dict(arguments={"likelihood": {}}), ["cannot build"]),
    "a likelihood that is no description": (dict(arguments={"likelihood": 3}), ["cannot build"]),
    "another latent dimension": (dict(arguments={"latent_dim": 3}), ["other weights", "mlp_vae"]),
    "a tensor more": (dict(tensors=lambda t: t | {"more": torch.zeros(1)}), ["other weights"]),
    "a tensor less": (dict(tensors=lambda t: {k: v for k, v in t.items() if k != "mean.bias"}), ["other weights"]),
}


@pytest.mark.parametrize(("changes", "words"), ALTERED.values(), ids=ALTERED)
def test_load_refuses_another_description_or_other_weights(changes, words, path):
    rewritten(path, **changes)
    with refused(ValueError, "model.safetensors", *words):
        load(path)


@pytest.mark.parametrize("tenth", range(10))
def test_load_refuses_a_file_cut_at_any_tenth(tenth, path):
    save(mlp_vae(SHAPE, 2, hidden=(7,)), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * tenth // 10])
    with refused(ValueError, "model.safetensors is damaged or no safetensors file"):
        load(path)


@pytest.mark.parametrize(
    "metadata", [None, {"format": "pt"}, {"vae_core": "no json"}, {"vae_core": "[1]"}, {"vae_core": "{}"}]
)
def test_load_refuses_safetensors_of_other_origin(metadata, path):
    save_file({"weight": torch.zeros(2)}, path, metadata)
    with refused(ValueError, "model.safetensors holds no model that models.save wrote"):
        load(path)


def test_load_executes_nothing(path):
    torch.save(Payload(path.with_name("executed")), path)
    with refused(ValueError, "damaged or no safetensors file"):
        load(path)
    path.write_bytes(pickle.dumps(Payload(path.with_name("executed"))))
    with refused(ValueError, "damaged or no safetensors file"):
        load(path)
    assert not path.with_name("executed").exists()


def test_load_refuses_what_is_not_there(path):
    for missing in (path, path.parent):
        with refused(FileNotFoundError, "path must be a file that models.save wrote"):
            load(missing)
