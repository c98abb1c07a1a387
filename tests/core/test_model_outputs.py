"""What a model returns and what it is given: refused in one sentence where an objective or a figure would be wrong."""

import copy

import numpy as np
import pytest
import torch
from checks import refused
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, MixtureSameFamily, Normal
from torch.utils.data import TensorDataset

from vae_core.distributions import diagonal_normal, standard_normal
from vae_core.evaluation import (
    evaluate,
    inference_gap,
    kl_per_unit,
    log_likelihood,
    reconstruction_at_code,
    reconstruction_mse,
)
from vae_core.inference import annealed_importance_sampling, fit_posterior
from vae_core.likelihoods import NegativeBinomialCounts
from vae_core.models import mlp_autoencoder, mlp_conditional_vae, mlp_vae
from vae_core.objectives import (
    beta_elbo_terms,
    elbo,
    elbo_terms,
    free_bits_terms,
    iwae_bound,
    log_weights,
    reconstruction_log_likelihood,
)
from vae_core.runtime import checked_input

SHAPE = (1, 2, 3)
X = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BOUNDS = {
    "elbo": elbo,
    "elbo, sampled kl": lambda model, x: elbo(model, x, kl="monte_carlo"),
    "elbo_terms": elbo_terms,
    "beta_elbo_terms": lambda model, x: beta_elbo_terms(model, x, 2.0),
    "free_bits_terms": lambda model, x: free_bits_terms(model, x, 0.1),
    "iwae_bound": lambda model, x: iwae_bound(model, x, 3),
    "log_weights": lambda model, x: log_weights(model, x, 3),
}
FIGURES = {
    "evaluate": evaluate,
    "evaluate, sampled kl": lambda model, x: evaluate(model, x, kl="monte_carlo"),
    "log_likelihood": lambda model, x: log_likelihood(model, x, 3),
    "inference_gap": lambda model, x: inference_gap(model, x, steps=2, num_samples=4),
    "fit_posterior": lambda model, x: fit_posterior(model, x, steps=2),
    "annealed_importance_sampling": lambda model, x: annealed_importance_sampling(
        model, x, diagonal_normal(torch.zeros(6, 2), torch.zeros(6, 2)), temperatures=2
    ),
}
EACH = pytest.mark.parametrize("use", [*BOUNDS.values(), *FIGURES.values()], ids=[*BOUNDS, *FIGURES])


def vae(**changes):
    return mlp_vae(SHAPE, 2, hidden=(5,), batch_norm=False, **changes)


def bernoulli(logits: Tensor, dims: int = 3) -> Independent:
    return Independent(Bernoulli(logits=logits, validate_args=False), dims)


class Model:
    """A model with replaceable parts."""

    def __init__(self, **parts):
        self.mean, self.parts = nn.Linear(6, 2), parts

    @property
    def prior(self):
        return self.parts.get("prior", standard_normal(2))

    def posterior(self, x: Tensor):
        mean = self.mean(x.flatten(1))
        return self.parts.get("posterior", diagonal_normal)(mean, torch.zeros_like(mean))

    def likelihood(self, z: Tensor):
        logits = z.sum(-1)[..., None, None, None].expand(*z.shape[:-1], *SHAPE)
        return self.parts.get("likelihood", bernoulli)(logits)


# The shapes and kinds of distributions


def numbers(result) -> list[Tensor]:
    """All numbers of a result; of a distribution its means."""
    if isinstance(result, dict | tuple):
        return [each for part in (result.values() if isinstance(result, dict) else result) for each in numbers(part)]
    return [result.mean if isinstance(result, Distribution) else torch.as_tensor(result)]


@EACH
def test_elbo_and_all_figures_take_a_model_that_keeps_its_promises(use):
    found = numbers(use(Model(), X))
    assert found
    assert all(each.isfinite().all() for each in found)


BATCHED = torch.zeros(2), torch.ones(2)
WRONG = {
    "q without Independent": (
        dict(posterior=lambda m, v: Normal(m, v.exp())), ValueError,
        ["posterior(x)", "batch shape (6, 2) and event shape ()", "Independent"],
    ),
    "prior without Independent": (
        dict(prior=Normal(*BATCHED)), ValueError, ["prior", "batch shape (2,) and event shape ()", "Independent"],
    ),
    "prior of another dimension": (dict(prior=standard_normal(3)), ValueError, ["prior", "(2,)", "(3,)"]),
    "a batch of priors": (dict(prior=standard_normal(2).expand((5,))), ValueError, ["prior", "batch shape (5,)"]),
    "a number of priors that is no distribution": (dict(prior=(0.0, 1.0)), TypeError, ["prior", "tuple"]),
    "likelihood without Independent": (
        dict(likelihood=lambda t: Bernoulli(logits=t)), ValueError, ["likelihood(z)", "event shape ()", "Independent"],
    ),
    "likelihood of another shape": (
        dict(likelihood=lambda t: bernoulli(t.flatten(-3), 1)), ValueError, ["likelihood(z)", "(1, 2, 3)", "(6,)"],
    ),
    "likelihood that loses the draws": (
        dict(likelihood=lambda t: bernoulli(t[0])), ValueError, ["likelihood(z)", "batch shape (6,)"],
    ),
    "likelihood that is a tensor": (dict(likelihood=lambda t: t), TypeError, ["likelihood(z)", "Tensor"]),
}  # fmt: skip


NOT_ASKED = {  # neither takes the model's q; that of `fit_posterior` has the dimension of the prior
    "fit_posterior": ["q without Independent", "prior of another dimension"],
    "annealed_importance_sampling": ["q without Independent"],
}
ASKED = [(use, case) for use in (*BOUNDS, *FIGURES) for case in WRONG if case not in NOT_ASKED.get(use, ())]


@pytest.mark.parametrize(("use", "case"), ASKED)
def test_elbo_and_all_figures_refuse_distributions_of_another_shape(use, case):
    parts, kind, words = WRONG[case]
    with refused(kind, *words):
        (BOUNDS | FIGURES)[use](Model(**parts), X)


class Observed:
    """p of the first pixels alone: no distribution of torch's, but it has a log_prob."""

    def __init__(self, logits: Tensor, count: int) -> None:
        self.pixels, self.seen = Bernoulli(logits=logits, validate_args=False), torch.arange(6).reshape(SHAPE) < count

    def log_prob(self, x: Tensor) -> Tensor:
        return (self.pixels.log_prob(x) * self.seen).sum((-3, -2, -1))


@EACH
def test_elbo_and_all_figures_take_a_likelihood_that_only_has_a_log_prob(use):
    use(Model(likelihood=lambda t: Observed(t, 4)), X)
    with refused(ValueError, "likelihood(z).log_prob(x)", "6"):
        use(Model(likelihood=lambda t: Observed(t.sum(-1, keepdim=True)[None], 4)), X)


@pytest.mark.parametrize("use", BOUNDS.values(), ids=BOUNDS)
def test_elbo_refuses_a_posterior_that_is_a_pair(use):
    with refused(TypeError, "posterior(x)", "tuple"):
        use(Model(posterior=lambda m, v: (m, v)), X)


def test_elbo_refuses_a_posterior_of_fewer_data():
    with refused(ValueError, "posterior(x)", "batch shape (6,)", "(3,)"):
        elbo(Model(posterior=lambda m, v: diagonal_normal(m[:3], v[:3])), X)


def mixture(mean: Tensor, log_variance: Tensor) -> MixtureSameFamily:
    parts = diagonal_normal(torch.stack((mean, mean + 1), -2), torch.stack((log_variance, log_variance), -2))
    return MixtureSameFamily(Categorical(logits=torch.zeros(len(mean), 2)), parts)


def test_elbo_of_a_posterior_without_rsample_is_refused_for_training_and_estimated_without_gradients():
    model = Model(posterior=mixture)
    with refused(ValueError, "posterior(x)", "rsample", "score_function", "no_grad"):
        elbo(model, X, kl="monte_carlo")
    many = X[:1].expand(20_000, *SHAPE)
    with torch.no_grad():
        value = elbo(model, many, kl="monte_carlo")
    z = torch.cartesian_prod(torch.linspace(-9, 9, 181), torch.linspace(-9, 9, 181))
    log_q = model.posterior(X[:1]).log_prob(z)
    f = model.prior.log_prob(z) + model.likelihood(z).log_prob(X[0]) - log_q
    exact = (log_q.exp() * f).sum() * 0.1**2
    assert (value.mean() - exact).abs() < 6 * value.std() / len(value) ** 0.5 + 1e-3


def test_elbo_keeps_leading_dimensions_of_a_stack_of_models():
    """Several networks at once, batch (S, B): the bounds of each."""
    model = Model(
        posterior=lambda m, v: diagonal_normal(torch.stack((m, m + 1)), torch.stack((v, v))),
    )
    assert elbo(model, X).shape == iwae_bound(model, X, 3).shape == (2, 6)


def test_reconstruction_log_likelihood_refuses_a_likelihood_of_another_shape():
    model = mlp_autoencoder(SHAPE, 2, hidden=(5,), batch_norm=False)
    model.likelihood = lambda z: Bernoulli(logits=torch.zeros(6, *SHAPE))
    with refused(ValueError, "likelihood(z)", "(6, 1, 2, 3)", "Independent"):
        reconstruction_log_likelihood(model, X)


# The support of p(x|z)


OUTSIDE = {
    "255": (vae, 255 * X, ["0, 1", "divide by 255"]),
    "normalised": (vae, 2 * X - 1, ["0, 1"]),
    "continuous": (lambda: vae(likelihood="continuous_bernoulli"), 255 * X, ["0, 1"]),
    "one pixel": (vae, X.clone().index_fill_(0, torch.tensor([5]), 1.001), ["0, 1"]),
    "nan": (vae, X.clone().index_fill_(0, torch.tensor([5]), torch.nan), ["x", "nan"]),
    "counts": (lambda: vae(likelihood=NegativeBinomialCounts), X - 0.5, ["x"]),
    "levels": (lambda: vae(likelihood="discretized_logistic"), X, ["256"]),
}


@EACH
@pytest.mark.parametrize("case", OUTSIDE)
def test_elbo_and_all_figures_refuse_values_outside_of_the_support(use, case):
    build, x, words = OUTSIDE[case]
    with refused(ValueError, *words):
        use(build(), x)


@pytest.mark.parametrize("figure", [reconstruction_at_code])
def test_reconstruction_at_code_refuses_values_outside_of_the_support(figure):
    with refused(ValueError, "[0, 1]", "divide by 255"):
        figure(vae(), 255 * X)


def test_elbo_takes_grey_values_for_a_bernoulli_and_any_for_a_gaussian():
    assert elbo(vae(), X).isfinite().all()
    assert elbo(vae(likelihood="gaussian"), 255 * X - 7).isfinite().all()


def test_elbo_does_not_look_at_values_within_checked_input():
    with checked_input():
        assert elbo(vae(), 255 * X).isfinite().all()
    with refused(ValueError, "x must"):
        elbo(vae(), 255 * X)


def test_elbo_can_be_vectorised_and_compiled_away_from_values():
    model = Model()
    torch.manual_seed(1)
    together = torch.vmap(lambda x: elbo(model, x[None])[0], randomness="same")(X)
    assert together.shape == (6,)


# β, the floor and the number of samples


@pytest.mark.parametrize("beta", [torch.ones(6, 1), torch.ones(1, 6), torch.ones(3), torch.ones(2, 3)])
def test_beta_elbo_terms_refuse_a_beta_of_another_shape(beta):
    with refused(ValueError, "beta", "shape () or (6,)", tuple(beta.shape)):
        beta_elbo_terms(vae(), X, beta)


@pytest.mark.parametrize("beta", [-1.0, float("nan"), float("inf"), torch.tensor(-0.1), torch.full((6,), torch.nan)])
def test_beta_elbo_terms_refuse_a_beta_that_is_negative_or_not_finite(beta):
    with refused(ValueError, "beta must be finite and not negative"):
        beta_elbo_terms(vae(), X, beta)


@pytest.mark.parametrize("beta", [2, 2.0, np.float32(2), torch.tensor(2.0), torch.tensor([2.0]), torch.full((6,), 2.0)])
def test_beta_elbo_terms_take_a_number_or_one_for_each_datum(beta):
    model, found = vae(), []
    for weight in (beta, 2.0):
        torch.manual_seed(1)
        found.append(beta_elbo_terms(model, X, weight).value)
    assert torch.equal(*found)


@pytest.mark.parametrize("floor", [-1.0, float("nan"), float("inf")])
def test_free_bits_terms_refuse_a_floor_that_is_negative_or_not_finite(floor):
    with refused(ValueError, "floor must be finite and not negative", repr(floor)):
        free_bits_terms(vae(), X, floor)


@pytest.mark.parametrize("count", [np.int64(3), 3])
def test_elbo_takes_the_integers_of_numpy(count):
    assert elbo(vae(), X, count).shape == (6,)
    assert log_weights(vae(), X, count).shape == (3, 6)


def test_elbo_terms_and_the_others_return_named_pairs():
    value, terms = pair = elbo_terms(vae(), X)
    assert pair.value is value
    assert pair.terms is terms
    assert free_bits_terms(vae(), X, 0.1).terms.keys() == {"reconstruction", "kl"}


def test_iwae_bound_of_a_datum_that_no_draw_explains_is_minus_infinity():
    model = Model(likelihood=lambda t: bernoulli(-1e9 + t))
    assert (iwae_bound(model, torch.ones(6, *SHAPE), 4) < -1e2).all()


# Data and their conditions


def conditional(blind: bool = False):
    torch.manual_seed(3)
    return mlp_conditional_vae(SHAPE, 2, 3, hidden=(5,), activation="tanh", batch_norm=False, blind=blind)


Y = nn.functional.one_hot(torch.arange(6) % 3, 3).double()
WITH_Y = {
    "evaluate": lambda model, size, **y: evaluate(model, X, batch_size=size, num_samples=3000, **y)["loss"],
    "reconstruction_at_code": lambda model, size, **y: reconstruction_at_code(model, X, size, **y),
    "reconstruction_mse": lambda model, size, **y: reconstruction_mse(model, X, batch_size=size, **y),
    "log_likelihood": lambda model, size, **y: log_likelihood(model, X, 3000, batch_size=size, **y).mean().item(),
    "kl_per_unit": lambda model, size, **y: kl_per_unit(model, X, size, **y).sum().item(),
}


@pytest.mark.parametrize(
    "figure", [pytest.param(name, marks=pytest.mark.slow) if name == "log_likelihood" else name for name in WITH_Y]
)
@pytest.mark.parametrize("blind", [False, True])
def test_evaluate_and_the_others_give_each_batch_its_own_conditions(figure, blind):
    use, model = WITH_Y[figure], conditional(blind)
    one_by_one = [
        {
            "evaluate": lambda m, x: evaluate(m, x, num_samples=3000)["loss"],
            "reconstruction_at_code": reconstruction_at_code,
            "reconstruction_mse": reconstruction_mse,
            "log_likelihood": lambda m, x: log_likelihood(m, x, 3000).item(),
            "kl_per_unit": lambda m, x: kl_per_unit(m, x).sum().item(),
        }[figure](model.given(Y[n]), X[n : n + 1])
        for n in range(6)
    ]
    sampled = figure in ("evaluate", "log_likelihood")
    expected = pytest.approx(sum(one_by_one) / 6, abs=0.03 if sampled else 1e-9)
    for size in (6, 2, 4):
        assert use(model, size, y=Y) == expected
        assert use(model.given(Y), size) == expected
        assert use(model.given(Y.roll(1, 0)), size, y=Y) == expected  # y replaces what it was given
    if not (blind and figure == "kl_per_unit"):  # a blind encoder has the same q for any y
        assert use(model, 2, y=Y.roll(1, 0)) != pytest.approx(sum(one_by_one) / 6, abs=1e-9)


@pytest.mark.parametrize("figure", WITH_Y)
def test_evaluate_and_the_others_refuse_conditions_of_other_data(figure):
    use, model = WITH_Y[figure], conditional()
    for given in (Y[:3], Y[:2], Y.repeat(2, 1)):
        with refused(ValueError, f"conditions of {len(given)} data", "6"):
            use(model.given(given), 3)
        with refused(ValueError, "y must hold one entry for each image", f"got {len(given)} for 6"):
            use(model, 3, y=given)
    with refused(ValueError, "y is for conditional models", "VAE"):
        use(vae(), 3, y=Y)
    with refused(ValueError, "given"):
        use(model, 3)


def test_inference_gap_takes_conditions():
    model, options = conditional(), dict(steps=5, num_samples=20)
    given = inference_gap(model.given(Y), X, **options)
    assert torch.equal(given["elbo"], inference_gap(model, X, y=Y, **options)["elbo"])
    with refused(ValueError, "conditions of 3 data"):
        inference_gap(model.given(Y[:3]), X, **options)


def test_evaluate_takes_one_condition_for_all_data():
    model = conditional()
    same = evaluate(model, X, y=Y[:1].expand(6, 3), batch_size=6)
    assert evaluate(model.given(Y[0]), X, batch_size=6) == evaluate(model.given(Y[:1]), X, batch_size=6) == same


BYTES = (255 * X).round().to(torch.uint8)
FORMS = {
    "float32": (BYTES / 255.0).float(),
    "bytes": BYTES,
    "array": (BYTES / 255.0).numpy(),
    "array of bytes": BYTES.numpy(),
    "nested list": (BYTES / 255.0).tolist(),
    "Dataset": TensorDataset(BYTES),
    "Dataset of pairs": TensorDataset(BYTES, torch.arange(6)),
    "requires grad": (BYTES / 255.0).requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("use", FIGURES.values(), ids=FIGURES)
def test_evaluate_and_all_figures_take_the_data_that_people_have(form, use):
    torch.manual_seed(2)
    model, figures = vae(), []
    for x in (BYTES.double() / 255, FORMS[form]):
        found = use(copy.deepcopy(model), x)
        found = found.mean if isinstance(found, Independent) else found
        figures.append(torch.as_tensor(next(iter(found.values()))) if isinstance(found, dict) else found)
    torch.testing.assert_close(*figures, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use", FIGURES.values(), ids=FIGURES)
@pytest.mark.parametrize("x", [None, "images", {"x": 1}, X[0, 0, 0, 0], np.ma.masked_array(X.numpy(), X.numpy() > 0.5)])
def test_evaluate_and_all_figures_refuse_what_is_no_data(x, use):
    with pytest.raises((TypeError, ValueError), match=r"^x must"):
        use(vae(), x)


def test_evaluate_refuses_a_model_that_returns_nan():
    model = vae()
    model.mean.bias.data[0] = torch.nan
    for figure in (evaluate, reconstruction_at_code, kl_per_unit, lambda m, x: log_likelihood(m, x, 3)):
        with refused(ValueError, "is nan for some of data 0 to 5", "parameters"):
            figure(model, X)


@pytest.mark.parametrize("size", [0, -3, 2.5, "2", True])
def test_evaluate_and_the_others_refuse_a_bad_batch_size(size):
    for figure in WITH_Y.values():
        with refused(ValueError, "batch_size must be a positive integer", repr(size)):
            figure(vae(), size)
