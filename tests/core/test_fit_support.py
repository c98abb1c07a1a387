"""`fit` asks once whether the data, as the objective uses them, lie in the support of the model's likelihood."""

import math
from functools import partial

import pytest
import torch
from checks import refused
from torch import Tensor, nn
from torch.distributions import Independent
from torch.nn.functional import one_hot
from training_runs import flat, network, same_state, squared_error, timeless, train, x

from vae_core.distributions import standard_normal
from vae_core.likelihoods import LIKELIHOODS, NegativeBinomialCounts
from vae_core.models import VAE, mlp_autoencoder, mlp_conditional_vae, mlp_vae
from vae_core.objectives import elbo, elbo_terms, iwae_bound, reconstruction_log_likelihood
from vae_core.training import fit

pytestmark = pytest.mark.usefixtures("float32")


# Values outside of the likelihood's support


def of(likelihood, shape=(1, 8, 8)) -> VAE:
    torch.manual_seed(1)
    return mlp_vae(shape, 2, hidden=(8,), batch_norm=False, likelihood=likelihood)


OUTSIDE = {
    "0 to 255": lambda x: 255 * x,
    "normalised": lambda x: 2 * x - 1,
    "standardised": lambda x: (x - x.mean()) / x.std(),
    "one value of all": lambda x: x.index_put((torch.tensor([200]),), x[200] + 1),
    "an array": lambda x: (255 * x).numpy(),
}
OBJECTIVES = {
    "elbo_terms": elbo_terms,
    "a partial": partial(iwae_bound, num_samples=2),
    "a lambda": lambda model, batch: elbo(model, batch),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("values", OUTSIDE)
@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli"])
def test_fit_refuses_images_outside_the_support(likelihood, values, objective, x, tmp_path):
    model = of(likelihood)
    with refused(ValueError, "x must", "got"):
        train(OUTSIDE[values](x), OBJECTIVES[objective], model, checkpoint=tmp_path / "new" / "c.pt")
    assert same_state(model, of(likelihood))
    assert list(tmp_path.iterdir()) == []


def test_fit_refuses_levels_and_counts_that_are_none(x):
    for model in (of("discretized_logistic"), of(NegativeBinomialCounts)):
        with refused(ValueError, "x must"):
            train(x / 3, model=model)


@pytest.mark.parametrize("likelihood", [*LIKELIHOODS, NegativeBinomialCounts])
def test_fit_takes_all_values_of_the_support(likelihood, x):
    values = {"gaussian": 9 * x - 4, "discretized_logistic": (255 * x).round() / 255}
    if likelihood in ("negative_binomial", NegativeBinomialCounts):
        x = (16 * x).round()
    _, history = train(values.get(likelihood, x), model=of(LIKELIHOODS.get(likelihood, likelihood)), epochs=1)
    assert math.isfinite(history[0]["loss"])


def test_fit_refuses_images_outside_the_support_of_a_conditional_model_or_an_autoencoder(x):
    y = one_hot(torch.arange(256) % 10, 10).float()
    models = mlp_conditional_vae((1, 8, 8), 2, 10, hidden=(8,)), mlp_autoencoder((1, 8, 8), 2, hidden=(8,))
    objectives = (lambda model, batch, y: elbo_terms(model.given(y), batch)), reconstruction_log_likelihood
    for model, objective, settings in zip(models, objectives, (dict(y=y), {}), strict=True):
        with refused(ValueError, "x must"):
            train(255 * x, objective, model, **settings)
        train(x, objective, model, epochs=1, **settings)


def test_fit_takes_what_the_objective_brings_into_the_support(x):
    """It is the objective that knows: what it hands the likelihood counts, conditional models' too."""
    plain, _ = train(x, elbo, network())
    scaled, _ = train(256 * x, lambda model, batch: elbo(model, batch / 256), network())
    assert same_state(scaled, plain)
    counted, _ = train(x, lambda model, batch: elbo(model, (16 * batch).round()), of(NegativeBinomialCounts))
    assert torch.allclose(flat(counted), flat(train((16 * x).round(), elbo, of(NegativeBinomialCounts))[0]), atol=1e-6)
    y = one_hot(torch.arange(256) % 10, 10).float()
    model = mlp_conditional_vae((1, 8, 8), 2, 10, hidden=(8,))
    train(255 * x, lambda model, batch, y: elbo(model.given(y), batch / 255), model, y=y, epochs=1)


def test_fit_asks_no_likelihood_that_does_not_see_the_data(x):
    """Noise in a second channel; an objective that uses the decoder's mean alone; a model without a likelihood."""
    beside = torch.cat([x, torch.randn_like(x)], 1)
    _, beside_noise = train(beside, lambda model, batch: elbo(model, batch[:, :1]), epochs=1)
    _, alone = train(x, elbo, epochs=1)
    assert beside_noise[0]["loss"] == alone[0]["loss"]
    _, squares = train(2 * x - 1, squared_error, epochs=1)
    means = train(2 * x - 1, lambda model, batch: -model(batch.flatten(1)).square().mean(1), nn.Linear(64, 3))[1]
    assert math.isfinite(squares[0]["loss"] + means[0]["loss"])


def test_fit_decodes_nothing_beside_the_batches(x):
    """Chapter 07 counts the decoder's passes."""
    model, passes = network(), []
    model.decoder.register_forward_hook(lambda _layer, _inputs, output: passes.append(len(output)))
    train(x, model=model, epochs=1)
    assert passes == [64] * 4


class Poisson(nn.Module):
    """A model of counts without our base class: q is its prior."""

    def __init__(self, p: int) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.zeros(p))

    @property
    def prior(self):
        return standard_normal(2, like=self.log_rate)

    def posterior(self, x: Tensor):
        return self.prior.expand(x.shape[:1])

    def likelihood(self, z: Tensor):
        rate = self.log_rate.exp().expand(*z.shape[:-1], -1)
        return Independent(torch.distributions.Poisson(rate, validate_args=False), 1)


def test_fit_asks_other_peoples_models_too():
    counts = torch.poisson(torch.tensor([0.5, 3.0, 8.0]).expand(500, -1))
    model = Poisson(3)
    fit(model, counts, elbo, epochs=200, batch_size=500, learning_rate=0.1)
    assert torch.allclose(model.log_rate.exp(), counts.mean(0), atol=1e-3)  # the maximum of the likelihood
    for bad in (counts - 1, counts / 2):
        with refused(ValueError, "x must"):
            fit(Poisson(3), bad, elbo, epochs=1)
    fit(Poisson(3), counts / 2, lambda model, batch: elbo(model, 2 * batch), epochs=1)


def test_fit_asks_about_the_support_once_and_changes_nothing_by_it(x, monkeypatch):
    asked = []
    monkeypatch.setattr("vae_core._training.support.check_support", lambda p, x, name="x": asked.append((name, len(x))))
    (a, rows), model = train(x, epochs=3), network()
    assert asked == [("x", 256)]
    monkeypatch.setattr("vae_core.training.check_data", lambda *_: None)
    assert timeless(train(x, model=model, epochs=3)[1]) == timeless(rows)
    assert same_state(a, model)
