"""The measurements behind chapter 17: the tools against a model that is known exactly, and the recorded figures."""

import json
from math import log, sqrt

import bounds
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vae_core.data import Dataset, load
from vae_core.distributions import diagonal_normal, standard_normal
from vae_core.experiments.records import default_out, load_trained
from vae_core.experiments.registry import find
from vae_core.experiments.setups import test_images as binarised
from vae_core.linear import PPCA
from vae_core.objectives import iwae_bound


class Linear(nn.Module):
    """PPCA of 3 codes in 5 pixels, with an encoder that is off by a factor in its widths."""

    def __init__(self, widen: float = 1.2) -> None:
        super().__init__()
        self.exact, self.widen = PPCA(3), widen
        self.exact.mean_, self.exact.noise_variance_ = torch.zeros(5), torch.tensor(0.5)
        self.exact.components_ = torch.linalg.qr(torch.randn(5, 3)).Q.T * torch.tensor([[1.5], [1.0], [0.7]])

    @property
    def prior(self):
        return standard_normal(3, like=self.exact.components_)

    def posterior(self, x):
        q = self.exact.posterior(x.flatten(1))
        return diagonal_normal(q.mean, (self.widen**2 * q.covariance_matrix.diagonal(dim1=-2, dim2=-1)).log())

    def likelihood(self, z):
        mean = (z @ self.exact.components_).unflatten(-1, (1, 1, 5))
        return torch.distributions.Independent(torch.distributions.Normal(mean, sqrt(0.5)), 3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Linear()


@pytest.fixture
def x(model):
    return model.exact.sample(40).view(40, 1, 1, 5)


def test_a_pool_has_the_law_of_the_weights(model, x):
    """E[w] = p(x): its mean over many draws within six of its errors, in whatever portions."""
    for portions in (dict(images=7, at_once=333), dict(images=40, at_once=4000)):
        log_w = bounds.pool(model, x, 4000, **portions)
        assert log_w.shape == (4000, 40)
        ratio = (log_w - model.exact.score_samples(x.flatten(1))).exp()
        assert ((ratio.mean(0) - 1).abs() < 6 * ratio.std(0) / 4000**0.5).all()


def test_the_bound_of_a_pool_is_the_bound(model, x):
    """Its mean is that of `iwae_bound` for each k, within six errors over 200 pools."""
    for k in (1, 2, 10):
        pools = torch.stack([bounds.bound_of(bounds.pool(model, x, 20, seed), k) for seed in range(100)]).mean(1)
        direct = iwae_bound(model, x.expand(-1, 1, 1, 5).repeat(100, 1, 1, 1), k).view(100, -1).mean(1).detach()
        error = (pools.var() / len(pools) + direct.var() / len(direct)).sqrt()
        assert abs(pools.mean() - direct.mean()) < 6 * error


def test_the_bound_of_a_pool_never_falls_from_a_count_to_its_multiples():
    log_w = 3 * torch.randn(5000, 20)
    values = {k: bounds.bound_of(log_w, k) for k in bounds.COUNTS}
    for k in bounds.COUNTS:
        for multiple in (m for m in bounds.COUNTS if m % k == 0):
            assert (values[multiple] >= values[k] - 1e-12).all()
    assert torch.allclose(values[1], log_w.mean(0))
    assert torch.allclose(values[5000], log_w.exp().mean(0).log())
    with pytest.raises(ValueError, match="must divide"):
        bounds.bound_of(log_w, 3)


def test_effective_draws_count_equal_weights():
    log_w = torch.full((100, 3), -7.0)
    log_w[30:, 1] = -torch.inf
    log_w[1:, 2] = -torch.inf
    assert bounds.effective_draws(log_w).tolist() == pytest.approx([100, 30, 1])


def test_all_that_is_asked_of_a_model_is_right_where_the_answer_is_known(model, x, monkeypatch):
    """log p(x) and the two parts of the gap of a linear model: widths a fifth too large cost 3 (0.44 − log 1.44)/2."""
    short = dict(num_samples=64, temperatures=30, leapfrog_steps=3, step_size=0.3)
    monkeypatch.setattr(bounds, "ANNEALING", {"prior": short, "encoder": short})
    figures, kept = bounds.measure(model, x, {"bounds": 40, "gaps": 20, "annealed": 10})
    exact = model.exact.score_samples(x.flatten(1))
    assert figures["bounds"]["bound"][-1]["mean"] == pytest.approx(exact.mean().item(), abs=0.01)
    below = [row["mean"] for row in figures["bounds"]["below_last"]]
    assert below[0] == pytest.approx(1.5 * (0.44 - log(1.44)), abs=0.02)
    assert below[-1] == 0
    assert figures["gaps"]["approximation_gap"]["mean"] == pytest.approx(0, abs=0.03)
    assert figures["gaps"]["amortization_gap"]["mean"] == pytest.approx(1.5 * (0.44 - log(1.44)), abs=0.05)
    *annealed, prior_error, encoder_error, sampled = kept["annealed"]
    for value, error in zip(annealed, (prior_error, encoder_error), strict=True):
        assert ((value - exact[:10]).abs() < 6 * error).all()
    assert torch.equal(sampled, kept["bounds"][-1, :10])
    assert [kept[key].shape for key in ("bounds", "gaps", "annealed")] == [(9, 40), (4, 20), (5, 10)]


def test_runs_start_at_the_mean_image_or_do_not(float32):
    digits = load("digits")
    padded = {part: torch.nn.functional.pad(getattr(digits, part)[:100], (10,) * 4) for part in ("x_train", "x_test")}
    dataset = Dataset("mnist", y_train=digits.y_train[:100], y_test=digits.y_test[:100], **padded)
    found = bounds.starts(dataset, epochs=1, seeds=(0,))
    assert found["mean image"][0] < found["zero"][0] - 100  # one step: the border costs log 2 a pixel


@pytest.fixture(scope="module")
def recorded():
    path = default_out() / f"{bounds.NAME}.json"
    return json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))


def test_the_measurement_is_recorded_with_its_command(recorded):
    record, tensors = recorded
    assert record["command"] == "python book/bounds.py"
    assert record["config"]["images"] == bounds.SIZES
    assert "dirty" not in record["commit"]
    assert set(tensors) == {f"{kind}-{name}" for kind in bounds.SIZES for name in bounds.MODELS}


@pytest.mark.parametrize("name", bounds.MODELS)
def test_the_recorded_figures_are_those_of_the_recorded_images(recorded, name):
    figures, values = recorded[0]["figures"][name], recorded[1][f"bounds-{name}"]
    assert values.shape == (len(bounds.COUNTS), bounds.SIZES["bounds"])
    for row, summary in zip(values, figures["bounds"]["bound"], strict=True):
        assert row.double().mean().item() == pytest.approx(summary["mean"], abs=1e-4)
    for k, row in zip(bounds.COUNTS, values, strict=True):
        for other, higher in zip(bounds.COUNTS, values, strict=True):
            assert other % k or (higher >= row - 1e-4).all()
    approximation, amortization, log_p, elbo = recorded[1][f"gaps-{name}"].double()
    assert torch.allclose(approximation + amortization, log_p - elbo, atol=1e-3)


@pytest.mark.parametrize("name", bounds.MODELS)
def test_the_recorded_bounds_hold_on_the_real_images(recorded, name, data_root, float32):
    if not (default_out() / f"{name}.safetensors").exists():
        pytest.skip(f"the weights of {name} are not in the repository; `python -m vae_core run {name}` makes them")
    x = binarised(find(name), load("mnist", data_root), seed=0)[:50]
    log_w = bounds.pool(load_trained(name), x, 100, seed=1)
    found, kept = bounds.bound_of(log_w, 100), recorded[1][f"bounds-{name}"][bounds.COUNTS.index(100), :50]
    assert (found - kept).mean().item() == pytest.approx(0, abs=0.5)  # other draws; the bound of one image varies by 1
