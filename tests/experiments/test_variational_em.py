"""Variational EM at equal work: what is counted, what is updated, and the judge against a model known exactly."""

import json
from math import sqrt

import pytest
import torch
import variational_em as vem
from torch import nn

from vae_core.distributions import standard_normal
from vae_core.experiments.records import default_out
from vae_core.inference import LocalPosteriors
from vae_core.linear import PPCA
from vae_core.objectives import elbo

PATH = default_out() / "measured-variational-em.json"


@pytest.fixture
def x() -> torch.Tensor:
    return (torch.rand(300, 1, 8, 8) > 0.5).double()


@pytest.mark.parametrize("way", list(vem.PASSES))
def test_the_passes_counted_are_those_of_the_budget(way, x, monkeypatch):
    monkeypatch.setattr(vem, "EPOCHS", 3)
    monkeypatch.setattr(vem, "BUDGETS", {"decoder": 20, "both": 40})
    run = vem.Run(way, "both", 0)
    model = vem.network(0)
    with vem.counting(model) as passed:
        vem.train(run, model, x)
    assert passed["decoder"] == run.epochs * vem.PASSES[way] * len(x)
    assert passed["encoder"] == (run.epochs * len(x) if way == "amortized" else 0)


def test_an_encoder_pass_weighs_what_it_multiplies():
    model = vem.network(0)
    assert vem.work(model, {"decoder": 60, "encoder": 0}) == 60
    in_all = 60 * (1 + (64 * 64 + 2 * 4 * 64) / (4 * 64 + 64 * 64))
    assert vem.work(model, {"decoder": 60, "encoder": 60}) == pytest.approx(in_all)
    assert in_all == pytest.approx(vem.BUDGETS["both"], rel=0.01)


def test_all_ways_start_from_the_same_decoder_and_a_table_leaves_the_encoder_alone(x, monkeypatch):
    monkeypatch.setattr(vem, "BUDGETS", {"decoder": 2, "both": 4})
    start = vem.network(1).state_dict()
    for way in ("joint", "vEM-1"):
        model = vem.network(1)
        assert all(torch.equal(start[name], value) for name, value in model.state_dict().items())
        vem.train(vem.Run(way, "both", 1), model, x)
        moved = {name for name, value in model.state_dict().items() if not torch.equal(start[name], value)}
        assert moved == {name for name in start if name.startswith("decoder")}


def test_a_joint_step_moves_table_and_decoder_along_the_gradient_of_one_draw(x):
    """Adam's first step is −rate · g / (|g| + ε), with g at the starting values; SparseAdam's ε is 1e-8/√(1 − β₂)."""
    model, table = vem.network(0), LocalPosteriors(300, vem.D)
    with vem.random_state(5):
        index = torch.randperm(300)
        loss = -elbo(vem.WithPosterior(model, table(index)), x[index]).mean()
    before = model.decoder[0].weight.detach().clone()
    g_decoder, g_table = torch.autograd.grad(loss, [model.decoder[0].weight, table.table.weight])
    vem.joint(model, x, table, rate=1e-3, local_rate=1e-2, epochs=1, batch_size=300, seed=5)
    for found, rate, g, small in (
        (model.decoder[0].weight - before, 1e-3, g_decoder, 1e-8),
        (table.table.weight, 1e-2, g_table.to_dense(), 1e-8 / 0.001**0.5),
    ):
        torch.testing.assert_close(found, -rate * g / (g.abs() + small), rtol=1e-6, atol=1e-9)


class Linear(nn.Module):
    """PPCA of 3 codes in 5 pixels as a latent variable model without an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.exact = PPCA(3)
        self.exact.mean_, self.exact.noise_variance_ = torch.zeros(5), torch.tensor(0.5)
        self.exact.components_ = torch.linalg.qr(torch.randn(5, 3)).Q.T * torch.tensor([[1.5], [1.0], [0.7]])

    @property
    def prior(self):
        return standard_normal(3, like=self.exact.components_)

    def likelihood(self, z):
        mean = (z @ self.exact.components_).unflatten(-1, (1, 1, 5))
        return torch.distributions.Independent(torch.distributions.Normal(mean, sqrt(0.5)), 3)


def test_the_judge_gives_log_p_where_it_is_known():
    model = Linear()
    x = model.exact.sample(40).view(40, 1, 1, 5)
    judged = vem.judge(model, x, num_samples=4000)
    off = judged["log_likelihood"] - model.exact.score_samples(x.flatten(1))
    assert (off.abs() < 6 * judged["error"]).all()
    assert abs(off.mean()) < 0.01


@pytest.fixture
def record() -> dict:
    if not PATH.exists():
        pytest.skip(f"{PATH.name} is not recorded yet")
    return json.loads(PATH.read_text())


def test_the_record_holds_every_run_at_its_work(record):
    assert record["command"] == "python book/variational_em.py"
    assert "dirty" not in record["commit"]
    rows = record["figures"]["rows"]
    wanted = [run._asdict() for run in vem.runs()]
    assert sorted(map(str, wanted)) == sorted(str({key: row[key] for key in wanted[0]}) for row in rows)
    for row in rows:
        budget = {"decoder": 60, "both": 124, "double": 248}[row["budget"]]
        assert row["work"] == pytest.approx(budget, rel=0.04)
        assert row["log_likelihood"] < 0 < row["approximation_gap"]
        assert row["error_of_an_image"] < 0.1


def test_a_recorded_run_gives_its_figures_again(record):
    """The shortest one, on the digits themselves."""
    digits = vem.load("digits")
    assert digits.sha256 == record["data_sha256"]
    x, x_test = ((part >= 0.5).double() for part in (digits.x_train, digits.x_test[: vem.SIZES["images"]]))
    run = vem.Run("vEM-19", "decoder", 0)
    row = next(row for row in record["figures"]["rows"] if run._asdict().items() <= row.items())
    model = vem.network(0)
    assert -vem.train(run, model, x) == pytest.approx(row["train_bound"], abs=0.3)
    judged = vem.judge(model, x_test, vem.SIZES["num_samples"])
    assert judged["log_likelihood"].mean().item() == pytest.approx(row["log_likelihood"], abs=0.3)
