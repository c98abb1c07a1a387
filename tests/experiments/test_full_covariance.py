"""The control with a full covariance: its q against torch's, its start, and the record."""

import json

import full_covariance as control
import pytest
import torch
from rows import Rows

from vae_core.distributions import kl_divergence
from vae_core.experiments.records import default_out
from vae_core.objectives import elbo_terms

PATH = default_out() / "measured-full-covariance.json"


@pytest.fixture
def model() -> control.TriangularStack:
    torch.manual_seed(0)
    return control.TriangularStack(torch.tensor([False, True]), (1, 4, 4), (8,), 3)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(7, 1, 4, 4)


def test_the_factorised_kind_has_no_correlation_and_the_other_has(model, x):
    q = model.posterior(x)
    assert q.batch_shape == (2, 7)
    covariance = q.covariance_matrix
    assert torch.equal(covariance[0], torch.diag_embed(covariance[0].diagonal(dim1=-2, dim2=-1)))
    off = covariance[1] - torch.diag_embed(covariance[1].diagonal(dim1=-2, dim2=-1))
    assert (off.abs().amax((1, 2)) > 0).all()
    torch.testing.assert_close(q.scale_tril, q.scale_tril.tril())


def test_the_gradient_reaches_the_covariance_of_the_full_kind_alone(model, x):
    below = -model.below.shape[1]
    (-elbo_terms(model, x)[0].sum()).backward()
    last = model.encoder[-2].grad[..., below:]
    assert last[0].abs().max() == 0
    assert last[1].abs().max() > 0


def test_the_kl_of_a_full_q_is_that_of_many_draws(model, x):
    """Within six standard errors; and the factorised kind has the closed form of factorised Gaussians."""
    q = model.posterior(x)
    exact = kl_divergence(q, model.prior).detach()
    z = q.sample((20_000,))
    drawn = q.log_prob(z) - model.prior.log_prob(z)
    assert ((drawn.mean(0) - exact).abs() < 6 * drawn.std(0) / 20_000**0.5).all()
    mean, variance = q.mean[0], q.variance[0]
    by_hand = 0.5 * (mean.square() + variance - 1 - variance.log()).sum(-1)
    torch.testing.assert_close(exact[0], by_hand.detach())


def test_correlation_is_that_of_the_matrix():
    covariance = torch.tensor([[4.0, 1.0], [1.0, 1.0]])
    q = torch.distributions.MultivariateNormal(torch.zeros(3, 5, 2), covariance)
    torch.testing.assert_close(control.correlation(q), torch.full((3,), 0.5))


def test_rotations_leave_no_trace_in_codes_without_axes():
    """Of codes that are rotated anyway, further rotations have the same MIG on average, within six errors."""
    v = torch.cartesian_prod(torch.arange(4), torch.arange(4)).repeat(20, 1)
    aligned = v.double() + 0.01 * torch.randn(len(v), 2)
    assert control.mig(control.mutual_information(aligned, v)).min() > 0.7
    found = control.rotated(aligned, v, 40).mean(1)
    again = control.rotated(aligned @ control.rotation(2, 99), v, 40).mean(1)
    error = ((found.var() + again.var()) / 40).sqrt()
    assert abs(found.mean() - again.mean()) < 6 * error
    assert found.mean() < 0.7


def test_all_kinds_start_alike_and_every_network_has_its_row(float32, monkeypatch, tmp_path):
    monkeypatch.setattr(control, "SEEDS", 2)
    monkeypatch.setattr(control, "LENGTHS", {1: (1.0, 4.0)})
    x, v = control.factor_images()
    started = []
    monkeypatch.setattr(control, "fit", lambda model, *_args, **_settings: started.append(model))
    model = control.train(x, 1)
    assert started == [model]
    assert model.full.tolist() == [False] * 4 + [True] * 4
    for weights in model.parameters():
        assert torch.equal(weights[:2], weights[6:])
    rows = Rows("full-covariance", tmp_path, {}, "sum")
    control.measure(model.eval(), 1, x[::9], v[::9], rows)
    assert [(row["kind"], row["beta"], row["seed"]) for row in rows.rows] == control.groups(1)
    assert rows.rows[0]["correlation"] == pytest.approx(0, abs=1e-6)
    assert rows.rows[-1]["correlation"] > 0.01
    assert rows.tensors["full-4-e1-s1"].shape == (control.ROTATIONS, len(control.FACTORS))


def test_the_record_holds_every_network_on_the_images_of_the_chapter():
    if not PATH.exists():
        pytest.skip(f"{PATH.name} is not recorded yet")
    record = json.loads(PATH.read_text())
    assert record["command"] == "python book/full_covariance.py"
    assert "dirty" not in record["commit"]
    assert record["data_sha256"] == json.loads((default_out() / "disentanglement.json").read_text())["data_sha256"]
    rows = record["figures"]["rows"]
    for epochs in control.LENGTHS:
        of_length = [(row["kind"], row["beta"], row["seed"]) for row in rows if row["epochs"] == epochs]
        assert of_length == control.groups(epochs)
        assert len(of_length) == 2 * len(control.LENGTHS[epochs]) * control.SEEDS
    for row in rows:
        assert row["lift"] == pytest.approx(row["mig"] - row["mig_rotated"])
        assert (row["correlation"] < 1e-6) == (row["kind"] == "diagonal")
