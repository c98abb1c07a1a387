"""The conditional model: what it is told, whom it tells, and that the loop hands every image its own condition."""

import numpy as np
import pytest
import torch
from checks import refused
from torch.nn.functional import one_hot

from vae_core.data import load
from vae_core.evaluation import evaluate, neighbour_accuracy
from vae_core.models import ConditionalVAE, mlp_conditional_vae
from vae_core.objectives import beta_elbo_terms, elbo, elbo_terms, iwae_bound
from vae_core.training import fit

SHAPE = (1, 4, 4)


@pytest.fixture(params=[False, True], ids=["told", "blind"])
def model(request):
    return mlp_conditional_vae(SHAPE, 2, 3, hidden=(7,), batch_norm=False, blind=request.param)


def labels(*y: int) -> torch.Tensor:
    return one_hot(torch.tensor(y), 3).double()


def test_given_a_condition_the_decoder_depends_on_it_and_the_encoder_unless_it_is_blind(model):
    x, z, one, other = torch.rand(5, *SHAPE), torch.randn(4, 5, 2), labels(0, 0, 0, 0, 0), labels(1, 1, 1, 1, 1)
    assert model.given(one).decode(z).shape == (4, 5, *SHAPE)
    assert not torch.allclose(model.given(one).decode(z), model.given(other).decode(z))
    assert torch.equal(model.given(one).encode(x), model.given(other).encode(x)) == model.blind


def test_given_a_condition_for_each_image_reconstruct_uses_them_in_order(model):
    x, y = torch.rand(3, *SHAPE), labels(2, 0, 1)
    together = model.given(y).reconstruct(x)
    alone = torch.cat([model.given(y[n]).reconstruct(x[n : n + 1]) for n in range(3)])
    assert torch.allclose(together, alone)


def test_conditional_vae_is_bounded_by_the_objectives_like_any_model(model):
    x, view = torch.rand(6, *SHAPE).round(), model.given(labels(0, 1, 2, 0, 1, 2))
    torch.manual_seed(0)
    weak = elbo(view, x, num_samples=4000, kl="monte_carlo")
    tight = iwae_bound(view, x, 4000)
    assert (tight > weak - 0.05).all()
    assert tight.mean() > weak.mean()


def test_given_returns_a_view_that_shares_the_parameters_and_leaves_the_model_without_condition(model):
    view = model.given(labels(0))
    assert all(a is b for a, b in zip(view.parameters(), model.parameters(), strict=True))
    with pytest.raises(ValueError, match="needs its condition"):
        model.decode(torch.zeros(1, 2))


def test_sample_draws_for_one_condition(model):
    drawn = model.given(torch.tensor([0.0, 1.0, 0.0])).sample(7)
    assert drawn.shape == (7, *SHAPE)
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("y", [torch.zeros(5, 2), torch.zeros(3, dtype=torch.int64), torch.zeros(1, 5, 3)])
def test_given_refuses_conditions_of_another_shape_or_dtype(model, y):
    with pytest.raises(ValueError, match="y must be float conditions of shape"):
        model.given(y)


@pytest.mark.parametrize(
    ("y", "cure"),
    [
        (torch.tensor([0, 2, 1]), "one_hot(y, 3).float()"),
        (torch.tensor([0, 2, 1, 1]), "one_hot(y, 3).float()"),
        (torch.tensor([0.0, 2.0]), "one_hot(y, 3).float()"),
        (torch.tensor(2), "one_hot(y, 3).float()"),
        ([0, 1], "one_hot(y, 3).float()"),
        (torch.eye(3, dtype=torch.int64), "use y.float()"),
        (torch.eye(3) > 0, "use y.float()"),
        (np.eye(4)[:2], "got torch.float64 (2, 4)"),
    ],
)
def test_given_says_how_to_make_conditions_of_labels(model, y, cure):
    with refused(ValueError, "y must be float conditions of shape (B, 3) or (3,)", cure):
        model.given(y)


def test_given_takes_arrays_and_lists(model):
    z, expected = torch.randn(2, 2), model.given(labels(2, 0)).decode(torch.ones(2, 2))
    for y in (np.eye(3)[[2, 0]], [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]):
        assert torch.equal(model.given(y).decode(torch.ones_like(z)), expected)


def test_sample_under_a_condition_for_each_datum_draws_one_for_each(model):
    view = model.given(labels(0, 1, 2))
    assert view.sample(3).shape == (3, *SHAPE)
    for count in (1, 2, 6):
        with refused(ValueError, "the condition is that of 3 data", f"got ({count},)", "give each batch its own y"):
            view.sample(count)


def test_given_rows_of_a_table():
    model, x = mlp_conditional_vae((5,), 2, 3, hidden=(7,), likelihood="gaussian"), torch.randn(4, 5)
    view = model.given(labels(0, 1, 2, 0))
    assert view.posterior(x).batch_shape == (4,)
    assert view.likelihood(torch.zeros(6, 4, 2)).event_shape == (5,)
    assert elbo(view, x, 6).shape == (4,)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "3"])
def test_mlp_conditional_vae_refuses_a_condition_without_numbers(size):
    with pytest.raises(ValueError, match="condition_dim must be a positive integer"):
        mlp_conditional_vae(SHAPE, 2, size)


def test_reconstruct_sample_decode_and_evaluate_refuse_conditions_of_other_data(model):
    view, x = model.given(labels(0, 1, 2)), torch.rand(4, *SHAPE)
    for ask in (lambda: view.reconstruct(x), lambda: view.sample(4), lambda: view.decode(torch.zeros(2))):
        with pytest.raises(ValueError, match=r"the condition is that of 3 data, got .*; give each batch its own y"):
            ask()
    assert evaluate(view, x[:3])["n"] == 3
    assert evaluate(view, x[:3], batch_size=2)["n"] == 3  # each batch with its own rows of y
    with pytest.raises(ValueError, match=r"given conditions of 3 data, got 4 in x; pass y"):
        evaluate(view, x, batch_size=2)
    assert model.given(labels(1)).sample(4).shape == (4, *SHAPE)


def test_given_takes_conditions_in_double_precision(float32, model):
    model = model.float()
    assert model.given(labels(0, 1)).reconstruct(torch.rand(2, *SHAPE)).dtype == torch.float32


def test_conditional_vae_takes_the_arguments_of_a_vae_by_name():
    encoder, decoder = torch.nn.Linear(19, 7), torch.nn.Linear(5, 16)
    parts = dict(feature_dim=7, latent_dim=2, input_shape=SHAPE, likelihood="gaussian")
    model = ConditionalVAE(encoder, decoder, condition_dim=3, **parts)
    assert model.given(labels(1)).likelihood(torch.zeros(1, 2)).base_dist.scale.eq(1).all()


def test_fit_hands_every_image_its_own_condition(model):
    n, seen = 10, []
    x, y = torch.linspace(0, 1, n).reshape(n, 1, 1, 1).expand(n, *SHAPE).contiguous(), labels(*[0, 1, 2, 0, 1] * 2)
    y = y + torch.arange(n)[:, None]

    def objective(model, batch, condition, weight):
        assert torch.allclose(batch[:, 0, 0, 0] * (n - 1), condition.min(1).values)
        seen.append((len(batch), weight.item()))
        return beta_elbo_terms(model.given(condition), batch, weight)

    fit(model, x, objective, y=y, epochs=2, batch_size=4, anneal=lambda progress: progress, progress=False)
    assert [size for size, _ in seen] == [4, 4, 2, 4, 4, 2]
    assert [weight for _, weight in seen] == sorted(weight for _, weight in seen)


def test_fit_refuses_too_few_conditions_before_training(model):
    with pytest.raises(ValueError, match="y must hold one entry for each image, got 9 for 10"):
        fit(model, torch.rand(10, *SHAPE), lambda *_: None, y=torch.zeros(9, 3), epochs=1, progress=False)


@pytest.mark.slow
def test_mlp_conditional_vae_draws_the_digit_of_its_condition_and_the_label_saves_nats(float32):
    """L-1.4.6: the label need not be in the code any more, so the bound rises by up to log 10 nats or so."""
    digits, settings = load("digits"), dict(epochs=40, batch_size=64, learning_rate=3e-3, progress=False)
    y, y_test = (one_hot(each, 10).float() for each in (digits.y_train, digits.y_test))
    torch.manual_seed(0)
    model = mlp_conditional_vae((1, 8, 8), 2, 10, hidden=(128, 64))

    def objective(model, x, y):
        return elbo_terms(model.given(y), x)

    fit(model, digits.x_train, objective, y=y, **settings)
    wanted = torch.arange(10).repeat_interleave(20)
    with torch.no_grad():
        images = torch.cat([model.given(condition).decode(torch.randn(20, 2)) for condition in torch.eye(10)])
    parts = (digits.x_train.flatten(1), digits.y_train, images.flatten(1), wanted)
    assert neighbour_accuracy(*parts) > 0.85
    right = evaluate(model.given(y_test), digits.x_test)["loss"]
    wrong = evaluate(model.given(y_test.roll(1, 1)), digits.x_test)["loss"]
    assert right < wrong - 3
