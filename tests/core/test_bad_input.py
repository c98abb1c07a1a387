"""Bad input, in one table: each is refused before anything happens, in one sentence that names it and what is allowed.

The files of data sets have their own table (test_data.py), the command line its own (test_experiments.py), killed runs
and full disks theirs (test_faults.py, test_precautions.py), the linear models theirs (test_linear_refusals.py).
"""

import importlib
import json
import pickle
import shutil
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.distributions import Laplace

from vae_core import data, evaluation, objectives
from vae_core._training import checkpoints
from vae_core.distributions import diagonal_normal, kl_divergence, standard_normal
from vae_core.experiments.records import default_out, load_trained, read_record, record_path
from vae_core.experiments.registry import find
from vae_core.inference import annealed_importance_sampling, fit_posterior, log_mean_exp
from vae_core.interactive import explorer
from vae_core.likelihoods import NegativeBinomialCounts, categorical, gaussian, resolve
from vae_core.models import conv_vae, mlp_autoencoder, mlp_conditional_vae, mlp_vae
from vae_core.networks import mlp
from vae_core.runtime import Runtime, seed_everything
from vae_core.training import fit

pytestmark = pytest.mark.usefixtures("float32")
SHAPE, NAME = (1, 8, 8), "conditional-mnist-d2"
X = torch.rand(12, *SHAPE)


def vae(**changes):
    return mlp_vae(SHAPE, 2, **dict(hidden=(7,), batch_norm=False) | changes)


def trained(x=X, model=None, **changes):
    return fit(model or vae(), x, objectives.elbo_terms, **dict(epochs=1, batch_size=4, progress=False) | changes)


q = diagonal_normal(torch.zeros(12, 2), torch.zeros(12, 2))
prior = standard_normal(2)
NAN = X.clone().index_fill(0, torch.tensor([3]), float("nan"))

TABLE = {
    # models
    "no latent unit": (lambda: mlp_vae(SHAPE, 0), ValueError, ["latent_dim", "0"]),
    "half a latent unit": (lambda: mlp_vae(SHAPE, 1.5), ValueError, ["latent_dim", "1.5"]),
    "fewer than no latent units": (lambda: conv_vae((3, 32, 32), -1), ValueError, ["latent_dim", "-1"]),
    "a convolution of rows": (lambda: conv_vae((64,), 2), ValueError, ["input_shape", "(64,)"]),
    "an empty picture": (lambda: mlp_vae((1, 0, 8), 2), ValueError, ["input_shape", "(1, 0, 8)"]),
    "no hidden layer": (lambda: mlp_vae(SHAPE, 2, hidden=()), ValueError, ["hidden"]),
    "a hidden layer of no unit": (lambda: mlp_vae(SHAPE, 2, hidden=(5, 0)), ValueError, ["hidden", "0"]),
    "one width": (lambda: mlp((4,)), ValueError, ["widths", "(4,)"]),
    "an unknown activation": (lambda: vae(activation="swish"), ValueError, ["activation", "'swish'", "relu"]),
    "an unknown likelihood": (lambda: vae(likelihood="laplace"), ValueError, ["likelihood", "'laplace'", "bernoulli"]),
    "an unknown likelihood of an auto-encoder": (
        lambda: mlp_autoencoder(SHAPE, 2, likelihood="cauchy"), ValueError, ["likelihood", "'cauchy'"],
    ),
    "a height that cannot be halved": (lambda: conv_vae((3, 30, 32), 8), ValueError, ["30"]),
    "images of another shape": (lambda: vae().posterior(X[:, :, :4]), ValueError, ["x", "(12, 1, 4, 8)", "1, 8, 8"]),
    "images of bytes": (lambda: vae().posterior(X.byte()), ValueError, ["x", "uint8", "float"]),
    "flat images": (lambda: vae().encode(X.flatten(1)), ValueError, ["x", "(12, 64)", "1, 8, 8"]),
    "codes of another dimension": (lambda: vae().likelihood(torch.zeros(3, 5)), ValueError, ["z", "2", "(3, 5)"]),
    "a condition of another size": (
        lambda: mlp_conditional_vae(SHAPE, 2, 10).given(torch.zeros(12, 9)), ValueError, ["y", "(12, 9)", "10"],
    ),
    "a condition of whole numbers": (
        lambda: mlp_conditional_vae(SHAPE, 2, 10).given(torch.zeros(12, 10).long()), ValueError, ["y", "int64"],
    ),
    "no condition": (lambda: mlp_conditional_vae(SHAPE, 2, 10).posterior(X), ValueError, ["given"]),
    # likelihoods and divergences
    "a width of zero": (lambda: gaussian(X, 0.0), ValueError, ["sigma", "positive"]),
    "a width below zero somewhere": (lambda: gaussian(X, -X), ValueError, ["sigma", "positive"]),
    "one level": (lambda: categorical(1), ValueError, ["num_levels", "1"]),
    "two and a half levels": (lambda: categorical(2.5), ValueError, ["num_levels", "2.5"]),
    "levels that are none": (
        lambda: resolve("discretized_logistic")(torch.zeros(2, *SHAPE)).log_prob(0.3 * X[:1]), ValueError, ["256"],
    ),
    "a dispersion of zero": (lambda: NegativeBinomialCounts(0.0), ValueError, ["dispersion", "0"]),
    "divergence of a Laplace law": (
        lambda: kl_divergence(Laplace(torch.zeros(2), torch.ones(2)), prior), TypeError, ["q", "Laplace"],
    ),
    "divergence across dimensions": (lambda: kl_divergence(standard_normal(3), prior), ValueError, ["(3,)", "(2,)"]),
    # objectives
    "no sample": (lambda: objectives.elbo(vae(), X, 0), ValueError, ["num_samples", "0"]),
    "half a sample": (lambda: objectives.iwae_bound(vae(), X, 2.5), ValueError, ["num_samples", "2.5"]),
    "an unknown way to the KL": (lambda: objectives.elbo(vae(), X, kl="no"), ValueError, ["kl", "'no'", "analytic"]),
    "negative free bits": (lambda: objectives.free_bits_terms(vae(), X, -0.1), ValueError, ["floor", "-0.1"]),
    "free bits that are no number": (lambda: objectives.free_bits_terms(vae(), X, float("nan")), ValueError, ["floor"]),
    "a negative beta": (lambda: objectives.beta_elbo_terms(vae(), X, beta=-1.0), ValueError, ["beta", "-1.0"]),
    "a warm-up longer than the training": (lambda: objectives.linear_warm_up(1.5), ValueError, ["share", "1.5"]),
    "no cycle": (lambda: objectives.cyclical(0), ValueError, ["cycles", "0"]),
    # training
    "fewer than no epochs": (lambda: trained(epochs=-1), ValueError, ["epochs", "-1"]),
    "an epoch and a half": (lambda: trained(epochs=1.5), ValueError, ["epochs", "1.5"]),
    "no image": (lambda: trained(X[:0]), ValueError, ["x", "image"]),
    "an empty batch": (lambda: trained(batch_size=0), ValueError, ["batch_size", "0"]),
    "a batch that is no number": (lambda: trained(batch_size="all"), ValueError, ["batch_size", "'all'"]),
    "a batch of one for batch norm": (lambda: trained(model=vae(batch_norm=True), batch_size=11), ValueError, ["one"]),
    "a learning rate of zero": (lambda: trained(learning_rate=0.0), ValueError, ["learning_rate", "0.0"]),
    "an infinite learning rate": (lambda: trained(learning_rate=float("inf")), ValueError, ["learning_rate", "inf"]),
    "a learning rate that is none": (lambda: trained(learning_rate=float("nan")), ValueError, ["learning_rate", "nan"]),
    "a negative weight decay": (lambda: trained(weight_decay=-1.0), ValueError, ["weight_decay", "-1.0"]),
    "a decay rate of one": (
        lambda: trained(optimizer=partial(torch.optim.Adam, betas=(0.9, 1.0))), ValueError, ["betas", "1.0"],
    ),
    "an unknown reduction": (lambda: trained(reduction="max"), ValueError, ["reduction", "'max'", "mean"]),
    "an unknown schedule": (lambda: trained(schedule="cosine"), ValueError, ["schedule", "'cosine'", "one-cycle"]),
    "a negative seed": (lambda: trained(seed=-1), ValueError, ["seed", "-1"]),
    "a seed too large": (lambda: seed_everything(2**32), ValueError, ["seed", str(2**32)]),
    "labels of fewer images": (lambda: trained(y=torch.zeros(5, 10)), ValueError, ["y", "5", "12"]),
    "images of whole numbers": (lambda: trained(X.long()), TypeError, ["int64", "uint8"]),
    "an objective of one number": (
        lambda: fit(vae(), X, lambda model, x: objectives.elbo(model, x).mean(), epochs=1, batch_size=4),
        ValueError, ["objective", "(4,)", "got ()"],
    ),
    "an objective for each sample": (
        lambda: fit(vae(), X, partial(objectives.log_weights, num_samples=3), epochs=1, batch_size=4),
        ValueError, ["objective", "(4,)", "got (3, 4)"],
    ),
    "images that hold nan": (lambda: trained(NAN), ValueError, ["x", "nan"]),
    "a device that does not exist": (lambda: Runtime.detect("tpu"), ValueError, ["device", "'tpu'", "cpu"]),
    # evaluation and inference
    "figures of no image": (lambda: evaluation.evaluate(vae(), X[:0]), ValueError, ["image", "none"]),
    "figures of other images": (lambda: evaluation.evaluate(vae(), X[..., :4]), ValueError, ["x", "(12, 1, 8, 4)"]),
    "units of no image": (lambda: evaluation.kl_per_unit(vae(), X[:0]), ValueError, ["x", "none"]),
    "a target of another shape": (lambda: evaluation.reconstruction_mse(vae(), X, X[:3]), ValueError, ["(3, 1"]),
    "corruption above one": (lambda: evaluation.add_outliers(X.byte(), 1.5), ValueError, ["probability", "1.5"]),
    "corruption of floats": (lambda: evaluation.add_outliers(X, 0.1), TypeError, ["uint8", "float32"]),
    "no importance sample": (lambda: evaluation.log_likelihood(vae(), X, 0), ValueError, ["sample", "0"]),
    "a gap of one sample": (
        lambda: evaluation.inference_gap(vae(), X, num_samples=1), ValueError, ["num_samples", "2", "1"],
    ),
    "codes without classes": (
        lambda: evaluation.linear_probe(X.flatten(1), torch.zeros(3), X.flatten(1), torch.zeros(12)),
        ValueError, ["12", "3"],
    ),
    "sharpness of a line": (lambda: evaluation.sharpness(X[:, :, :2]), ValueError, ["3 by 3", "(12, 1, 2, 8)"]),
    "fewer than no steps": (lambda: fit_posterior(vae(), X, steps=-1), ValueError, ["steps", "-1"]),
    "no temperature": (
        lambda: annealed_importance_sampling(vae(), X, q, temperatures=0), ValueError, ["temperatures", "0"],
    ),
    "the error of one weight": (lambda: log_mean_exp(torch.zeros(1, 3)), ValueError, ["two", "1"]),
    # names
    "an unknown data set": (lambda: data.load("imagenet"), ValueError, ["'imagenet'", "mnist"]),
    "an unknown experiment": (lambda: find("chen-mnist-d3"), ValueError, ["'chen-mnist-d3'", "chen-mnist-d2"]),
    "weights that are not kept": (lambda: load_trained("chen-mnist-d5"), ValueError, ["chen-mnist-d5", "no weights"]),
    "an explorer of a convolution": (
        lambda: explorer.export_decoder(conv_vae((3, 32, 32), 8)), ValueError, ["latent_sliders"],
    ),
    "an explorer of another model's images": (
        lambda: explorer.LatentExplorer(vae(), explorer.EncodedImages.of(mlp_vae(SHAPE, 3), X, torch.zeros(12))),
        ValueError, ["another model"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_vae_core_refuses_bad_input_in_one_sentence_that_names_it(name):
    action, kind, words = TABLE[name]
    with pytest.raises(kind) as caught:
        action()
    said = str(caught.value)
    assert "\n" not in said
    assert [word for word in words if word not in said] == [], said
    assert len(said) < 400
    assert type(caught.value) is kind


FIRST = {  # what each script that measures does first
    "bounds": "load",
    "explorer_codes": "encoded",
    "disentanglement": "train",
    "linear_mnist": "load",
    "measurements": "measure",
    "representations": "load",
}


@pytest.mark.parametrize("name", FIRST)
def test_main_of_each_script_refuses_a_folder_that_cannot_be_written_before_it_computes(name, tmp_path, monkeypatch):
    script = importlib.import_module(name)
    monkeypatch.setattr(script, FIRST[name], lambda *_args, **_kwargs: pytest.fail("computed before it looked"))
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--out", str(tmp_path / "file" / "results")])
    with pytest.raises(OSError, match=r"the folder for records .*results cannot be written .*--out"):
        script.main()


# Files


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder with one recorded model and its record, which tests damage copies of."""
    folder = tmp_path_factory.mktemp("recorded")
    for suffix in ("json", "safetensors"):
        shutil.copy(default_out() / f"{NAME}.{suffix}", folder)
    return folder


@pytest.fixture
def copied(recorded, tmp_path):
    return shutil.copytree(recorded, tmp_path / "copied")


def refused(folder, kind=ValueError):
    with pytest.raises(kind) as caught:
        load_trained(NAME, folder)
    assert "\n" not in str(caught.value)
    assert f"python -m vae_core run {NAME}" in str(caught.value)


def cut(path, tenth):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * tenth // 10])


@pytest.mark.parametrize("tenth", range(10))
def test_load_trained_refuses_weights_cut_at_any_tenth(copied, tenth):
    cut(copied / f"{NAME}.safetensors", tenth)
    refused(copied)


@pytest.mark.parametrize("tenth", range(10))
def test_read_record_takes_a_record_cut_at_any_tenth_for_none(copied, tenth):
    cut(copied / f"{NAME}.json", tenth)
    assert read_record(find(NAME), 723, copied) is None
    refused(copied)


@pytest.mark.parametrize("missing", ["json", "safetensors"])
def test_load_trained_names_a_missing_half_with_the_command_that_makes_it(copied, missing):
    (copied / f"{NAME}.{missing}").unlink()
    refused(copied, FileNotFoundError)


def test_load_trained_refuses_a_pickle_under_the_name_of_weights_and_executes_nothing(copied, tmp_path):
    class Mine:
        def __reduce__(self):
            return (tmp_path.joinpath("executed").write_text, ("yes",))

    (copied / f"{NAME}.safetensors").write_bytes(pickle.dumps(Mine()))
    refused(copied)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("change", ["another network", "one tensor less", "one number"])
def test_load_trained_refuses_other_weights_than_the_recorded_ones(copied, change):
    path = copied / f"{NAME}.safetensors"
    state = load_file(path)
    if change == "another network":
        state = {key: value.half() for key, value in vae().state_dict().items()}
    elif change == "one tensor less":
        state.pop(sorted(state)[0])
    else:
        state[sorted(state)[0]].view(-1)[0] += 1
    save_file(state, path)
    refused(copied)


def test_load_trained_refuses_weights_of_another_network_even_without_a_checksum_in_the_record(copied):
    """As in records from before they held a checksum."""
    path = copied / f"{NAME}.json"
    record = json.loads(path.read_text())
    record.pop("weights_sha256", None)
    path.write_text(json.dumps(record))
    save_file({key: value.half() for key, value in vae().state_dict().items()}, path.with_suffix(".safetensors"))
    refused(copied)


OLD = dict(epochs=2, batch_size=4, progress=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "run.pt"
    fit(vae(), X, objectives.elbo_terms, checkpoint=path, **OLD)
    return path.read_bytes()


@pytest.mark.parametrize("tenth", range(10))
def test_fit_refuses_a_checkpoint_cut_at_any_tenth_and_leaves_it_alone(checkpoint, tmp_path, tenth):
    path = tmp_path / "run.pt"
    path.write_bytes(left := checkpoint[: len(checkpoint) * tenth // 10])
    with pytest.raises(ValueError, match=r"run\.pt is no complete checkpoint"):
        fit(vae(), X, objectives.elbo_terms, checkpoint=path, resume=True, **OLD)
    assert path.read_bytes() == left


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(learning_rate=1e-2), "another run"),
        (dict(batch_size=5), "another run"),
        (dict(epochs=1), "2 epochs already"),
    ],
)
def test_fit_refuses_a_checkpoint_of_another_run(checkpoint, tmp_path, change, said):
    path = tmp_path / "run.pt"
    path.write_bytes(checkpoint)
    with pytest.raises(ValueError, match=said):
        fit(vae(), X, objectives.elbo_terms, checkpoint=path, resume=True, **OLD | change)


def test_fit_refuses_a_checkpoint_of_another_network(checkpoint, tmp_path):
    path = tmp_path / "run.pt"
    path.write_bytes(checkpoint)
    with pytest.raises(ValueError, match="another network"):
        fit(vae(hidden=(9,)), X, objectives.elbo_terms, checkpoint=path, resume=True, **OLD)


def test_fit_overwrites_no_checkpoint_without_resume(checkpoint, tmp_path):
    path = tmp_path / "run.pt"
    path.write_bytes(checkpoint)
    with pytest.raises(FileExistsError, match="resume"):
        fit(vae(), X, objectives.elbo_terms, checkpoint=path, **OLD)
    assert path.read_bytes() == checkpoint


# Fuzzing the readers: whatever stands in a file, they answer with their own errors or None

BRIEFLY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["name", "config", "history", "test", "seed", "weights_sha256"])


@BRIEFLY
@given(content=st.dictionaries(FIELDS, JSON) | JSON)
def test_read_record_takes_any_json_for_no_record_or_a_whole_one(content, tmp_path):
    experiment = replace(find("digits-d2"), epochs=0)
    record_path(experiment, 0, tmp_path).write_text(json.dumps(content))
    found = read_record(experiment, 0, tmp_path)
    assert found is None or found["config"] == experiment.config(0, 0)


@BRIEFLY
@given(content=st.binary(max_size=300))
def test_read_record_takes_any_bytes_for_no_record(content, tmp_path):
    record_path(find("digits-d2"), 0, tmp_path).write_bytes(content)
    assert read_record(find("digits-d2"), 0, tmp_path) is None


@settings(BRIEFLY, max_examples=50)
@given(content=st.binary(max_size=300), length=st.integers(0, 400))
def test_load_trained_refuses_any_bytes_as_weights(content, length, copied):
    """Also behind a plausible header length, which is where a safetensors file begins."""
    record = json.loads((copied / f"{NAME}.json").read_text())
    if record.pop("weights_sha256", None):  # it would refuse all of it before it is read
        (copied / f"{NAME}.json").write_text(json.dumps(record))
    (copied / f"{NAME}.safetensors").write_bytes(length.to_bytes(8, "little") + content)
    refused(copied)


@BRIEFLY
@given(content=st.binary(max_size=300), at=st.floats(0, 1))
def test_restore_refuses_a_checkpoint_with_other_bytes_inside(content, at, checkpoint, tmp_path):
    path, place = tmp_path / "run.pt", int(at * len(checkpoint))
    path.write_bytes(checkpoint[:place] + content + checkpoint[place + len(content) :])
    model, optimizer = vae(), None
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    wanted = {"batch_size": 4}
    with pytest.raises(ValueError, match=r"run\.pt"):
        checkpoints.restore(path, model, optimizer, wanted, 2, resume=True)


@BRIEFLY
@given(content=st.binary(max_size=300), magic=st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00"]))
def test_load_refuses_any_bytes_as_a_data_set(content, magic, tmp_path):
    (tmp_path / "mnist.npz").write_bytes(magic + content)
    with pytest.raises(ValueError, match=r"mnist\.npz is (damaged|not)"):
        data.load("mnist", tmp_path)


@BRIEFLY
@given(header=st.binary(min_size=0, max_size=24), rest=st.binary(max_size=64))
def test_load_refuses_any_bytes_as_idx_files(header, rest, tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: (_ for _ in ()).throw(OSError("no network in tests")))
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(header + rest)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        data.load("mnist", tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mnist.npz").exists()
