"""What chapter 07 proves: EM as exact variational EM, the linear VAE's optimum, the gaps, costs, step sizes."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal

from vae_core.data import load
from vae_core.distributions import diagonal_normal, kl_divergence, standard_normal
from vae_core.evaluation import inference_gap
from vae_core.exact import QuadratureModel, two_humps
from vae_core.gradients import pathwise, score_function
from vae_core.inference import (
    LocalPosteriors,
    WithPosterior,
    annealed_importance_sampling,
    log_mean_exp,
    refine,
    variational_em,
)
from vae_core.linear import PPCA
from vae_core.linear_gaussian import initial_loadings
from vae_core.models import VAE, mlp_vae
from vae_core.objectives import elbo_terms
from vae_core.runtime import seed_everything
from vae_core.training import fit

seeds = st.integers(0, 2**31 - 1)
HUMPS, X = QuadratureModel(two_humps, sigma=0.3), torch.tensor([[1.5]], dtype=torch.float64)


def bell(mean, width):
    mean, width = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1) for v in (mean, width))
    return diagonal_normal(mean, 2 * width.log())


def linear_model(W, sigma2=1.0, mean=None):
    model = PPCA(W.shape[1])
    model.mean_ = torch.zeros(len(W)) if mean is None else mean
    model.components_, model.noise_variance_ = W.T, torch.as_tensor(sigma2)
    return model


def linear_vae(W, b):
    """z ~ N(0, I), x|z ~ N(Wz + b, I), with the optimal encoder; `exact` has evidence and ELBO in closed form."""
    M = torch.eye(W.shape[1]) + W.T @ W

    def posterior(x):
        mean = (x - b) @ W @ torch.linalg.inv(M)
        return diagonal_normal(mean, -M.diagonal().log().expand_as(mean))

    def likelihood(z):
        return Independent(Normal(z @ W.T + b, 1.0), 1)

    prior, exact = standard_normal(W.shape[1], like=W), linear_model(W, 1.0, b)
    return SimpleNamespace(prior=prior, posterior=posterior, likelihood=likelihood, M=M, exact=exact)


def formula(M):
    return 0.5 * (M.diagonal().log().sum() - torch.logdet(M))


def binary_digits():
    data = load("digits")
    return [(x >= 0.5).double() for x in (data.x_train, data.x_test)]


def network(d=4):
    seed_everything(0)
    return mlp_vae((1, 8, 8), d, hidden=(64,), activation="tanh", batch_norm=False)


PACE = dict(batch_size=128, learning_rate=6e-3)


def trained(model, x, epochs):
    fit(model, x, elbo_terms, epochs=epochs, progress=False, **PACE)
    return model


# Exact variational EM


def exact_vem(X, d, rounds, diagonal=False, every=1):
    """E: best Gaussian q, with or without correlations; M: both slopes zero. Rows of (bound, evidence), and W."""
    (N, D), rows = X.shape, []
    s2 = X.square().sum() / N / D
    W = initial_loadings(D, d) * s2.sqrt()
    for k in range(rounds):
        M = torch.eye(d) + W.T @ W / s2
        z, V = torch.linalg.solve(M, W.T @ X.T / s2).T, torch.linalg.inv(M)
        V = torch.diag(1 / M.diagonal()) if diagonal else V
        if k % every == 0:
            model = linear_model(W, s2)
            rows.append((model.elbo(X, MultivariateNormal(z, V)).mean().item(), model.score(X)))
        cross = X.T @ z / N
        W = cross @ torch.linalg.inv(z.T @ z / N + V)
        s2 = (X.square().sum() / N - (cross * W).sum()) / D
    return torch.tensor(rows).T, W


def centred_data(n=200, p=7, d=3):
    X = torch.randn(n, d) @ torch.randn(d, p) + 0.5 * torch.randn(n, p)
    return X - X.mean(0)


@given(seed=seeds, d=st.integers(1, 4))
@settings(max_examples=8, deadline=None)
def test_exact_vem_steps_are_em_and_climb(seed, d):
    torch.manual_seed(seed)
    data = centred_data()
    em = torch.tensor(PPCA(d, method="em", tol=1e-4).fit(data).log_likelihoods_)
    (bound, evidence), _ = exact_vem(data, d, len(em))
    assert torch.allclose(bound, em, rtol=1e-9, atol=1e-9)
    assert torch.allclose(evidence, em, rtol=1e-9, atol=1e-9)
    assert (bound.diff() > -1e-10).all()


@pytest.mark.parametrize("seed", range(2))
def test_exact_vem_without_correlations_climbs_and_turns_the_axes_to_ppca(seed):
    torch.manual_seed(seed)
    data = centred_data() * torch.tensor([3.0, 2.0, 1.5, 1.0, 1.0, 1.0, 1.0])
    (bound, evidence), W = exact_vem(data, 2, 4001, diagonal=True, every=40)
    assert (bound.diff() > -1e-10).all()
    assert (evidence >= bound - 1e-10).all()
    assert bound[-1].item() == pytest.approx(PPCA(2).fit(data).score(data), abs=1e-3)
    gram = W.T @ W
    assert gram[0, 1].abs() < 0.05 * gram.diagonal().min()


# The best q, datum by datum


def test_a_search_picks_one_hump_and_the_start_decides_which():
    centres = torch.cat([torch.linspace(-2, -0.6, 20), torch.linspace(0.6, 2, 20)])
    ends = refine(HUMPS, X.expand(40, 1), bell(centres, torch.full((40,), 0.5)), steps=800)
    assert ((ends.mean[:, 0] - 1.18 * centres.sign()).abs() < 0.1).all()
    gaps = HUMPS.gap(X.expand(40, 1), ends)
    assert gaps.median().item() == pytest.approx(math.log(2), abs=0.03)
    assert gaps.min() > math.log(2)  # no bell curve is nearer than half the mass


def test_a_search_from_the_prior_can_stay_between_the_humps():
    ends = refine(HUMPS, X.expand(200, 1))
    assert ((ends.mean.abs() - 1.18).abs() > 0.1).double().mean() > 0.3


def climb(surrogate, start, steps):
    parts = [start.mean.clone(), start.variance.log()]
    optimizer = torch.optim.Adam([v.requires_grad_() for v in parts], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (-surrogate(diagonal_normal(*parts)).sum()).backward()
        optimizer.step()
        schedule.step()
    return diagonal_normal(*(v.detach() for v in parts))


def test_score_and_path_gradients_lead_to_the_same_q():
    def f(q):
        return lambda z: HUMPS.prior.log_prob(z) + HUMPS.likelihood(z).log_prob(X) - q.log_prob(z)

    start, losses = bell(torch.ones(50), torch.full((50,), 0.3)), []
    for estimator, options in ((pathwise, {}), (score_function, {"baseline": "leave-one-out"}), (score_function, {})):
        q = climb(lambda q, e=estimator, o=options: e(f(q), q, 8, **o), start, 400)
        losses.append((HUMPS.gap(X.expand(50, 1), q) - 0.7025).mean().item())
        assert q.mean.median().item() == pytest.approx(1.186, abs=0.02)
        assert q.stddev.median().item() == pytest.approx(0.126, abs=0.02)
    assert -1e-4 < losses[0] < losses[1] < losses[2] < 0.05


# The linear VAE


@given(seed=seeds, d=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_the_best_lambda_of_a_linear_model_is_a_known_function(seed, d):
    torch.manual_seed(seed)
    vae, x = linear_vae(torch.randn(6, d), torch.randn(6)), 2 * torch.randn(5, 6)
    best = vae.posterior(x)
    parts = [v.clone().requires_grad_() for v in (best.mean, best.variance.log())]
    slopes = torch.autograd.grad(vae.exact.elbo(x, diagonal_normal(*parts)).sum(), parts)
    assert max(slope.abs().max() for slope in slopes) < 1e-9
    other = diagonal_normal(best.mean + 0.3 * torch.randn(5, d), best.variance.log() + 0.3 * torch.randn(5, d))
    assert (vae.exact.elbo(x, other) < vae.exact.elbo(x, best)).all()


def test_a_search_finds_that_function():
    vae, x = linear_vae(torch.randn(6, 3), torch.randn(6)), 2 * torch.randn(30, 6)
    found, best = refine(vae, x, steps=700), vae.posterior(x)
    assert (found.mean - best.mean).abs().max() < 0.05
    assert (found.stddev / best.stddev - 1).abs().max() < 0.05


@given(seed=seeds, d=st.integers(2, 4))
@settings(max_examples=30, deadline=None)
def test_the_diagonal_posterior_is_exact_if_and_only_if_the_columns_are_orthogonal(seed, d):
    torch.manual_seed(seed)
    x, W = 2 * torch.randn(5, 6), torch.randn(6, d)
    orthogonal = torch.linalg.qr(W).Q * (0.3 + torch.rand(d))
    for columns, tight in ((orthogonal, True), (W, False)):
        vae = linear_vae(columns, torch.randn(6))
        q, exact = vae.posterior(x), vae.exact.posterior(x)
        gap = vae.exact.score_samples(x) - vae.exact.elbo(x, q)
        assert torch.allclose(gap, formula(vae.M).expand(5), atol=1e-10)
        assert bool((gap < 1e-10).all()) == tight
        assert bool((torch.diag_embed(q.variance) - exact.covariance_matrix).abs().max() < 1e-10) == tight
        assert torch.allclose(q.mean, exact.mean, atol=1e-10)


@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_two_codes_lose_half_the_log_of_one_minus_their_squared_correlation(seed):
    torch.manual_seed(seed)
    M = linear_vae(torch.randn(4, 2), torch.zeros(4)).M
    c = M[0, 1] / (M[0, 0] * M[1, 1]).sqrt()
    assert torch.allclose(formula(M), -0.5 * (1 - c**2).log(), atol=1e-11)


def test_gradient_ascent_on_a_linear_vae_reaches_ppca():
    """On the grey digits, decoder and encoder from random starts; the bound is exact, through S alone."""
    data = load("digits").x_train.flatten(1).double()
    data = data - data.mean(0)
    (N, D), d, S = data.shape, 5, data.T @ data / len(data)

    def bound(W, log_s2, A, log_variance):
        s2, variance, R = log_s2.exp(), log_variance.exp(), torch.eye(D) - W @ A
        squares = ((R @ S) * R).sum() + (W.square().sum(0) * variance).sum()
        kl = ((A @ S) * A).sum() + (variance - log_variance - 1).sum()
        return -0.5 * (D * (math.log(2 * math.pi) + log_s2) + squares / s2 + kl)

    parts = [0.1 * torch.randn(D, d), torch.zeros(()), 0.1 * torch.randn(d, D), torch.zeros(d)]
    optimizer = torch.optim.Adam([v.requires_grad_() for v in parts], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    for _ in range(1000):
        optimizer.zero_grad()
        (-bound(*parts)).backward()
        optimizer.step()
        schedule.step()
    W, log_s2, A, log_variance = (v.detach() for v in parts)
    model, best = linear_model(W, log_s2.exp()), PPCA(d).fit(data).score(data)
    reached = bound(*parts).item()
    assert reached == pytest.approx(
        model.elbo(data, diagonal_normal(data @ A.T, log_variance.expand(N, d))).mean().item(), abs=1e-9
    )
    assert 0 <= best - model.score(data) < 1e-3
    assert 0 <= best - reached < 1e-3


# The gaps


@given(seed=seeds, d=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_gap_identities_in_the_linear_case(seed, d):
    """Inference gap = ½(Σ log M_jj − log det M) + ½ (m−μ)ᵀM(m−μ) + ½ Σ (M_jj s² − 1 − log M_jj s²), to 1e-10."""
    torch.manual_seed(seed)
    vae, x = linear_vae(torch.randn(6, d), torch.randn(6)), 2 * torch.randn(5, 6)
    best = vae.posterior(x)
    q = diagonal_normal(best.mean + 0.3 * torch.randn(5, d), best.variance.log() + 0.5 * torch.randn(5, d))
    shift, ratio = q.mean - best.mean, q.variance * vae.M.diagonal()
    amortization = 0.5 * (((shift @ vae.M) * shift).sum(1) + (ratio - 1 - ratio.log()).sum(1))
    inference = vae.exact.score_samples(x) - vae.exact.elbo(x, q)
    assert (inference - formula(vae.M) - amortization).abs().max() < 1e-10
    assert (kl_divergence(q, vae.exact.posterior(x)) - inference).abs().max() < 1e-10
    assert torch.allclose(vae.exact.elbo(x, best) - vae.exact.elbo(x, q), amortization, atol=1e-10)


def test_the_estimated_gaps_are_those_of_the_formulas_where_there_are_some():
    vae, x = linear_vae(torch.randn(6, 3), torch.randn(6)), 2 * torch.randn(30, 6)
    best = vae.posterior(x)
    q = diagonal_normal(0.8 * best.mean, best.variance.log() + 0.5)
    gaps = inference_gap(WithPosterior(vae, q), x, steps=700, num_samples=2000)
    assert ((gaps["log_likelihood"] - vae.exact.score_samples(x)).abs() < 6 * gaps["error"]).all()
    assert ((gaps["approximation_gap"] - formula(vae.M)).abs() < 6 * gaps["error"] + 1e-3).all()
    amortization = vae.exact.elbo(x, best) - vae.exact.elbo(x, q)
    assert (gaps["amortization_gap"] - amortization).mean().item() == pytest.approx(0, abs=0.03)
    total = gaps["log_likelihood"] - gaps["elbo"]
    assert (gaps["approximation_gap"] + gaps["amortization_gap"] - total).abs().max() < 1e-10


@pytest.fixture(scope="module")
def flat():
    """A d = 2 model of binary digits, a hundred test digits, and their exact log p(x) from a grid."""
    train, test = binary_digits()
    model, x = trained(network(2).double(), train, 40), test[:100]
    ticks = torch.linspace(-6, 6, 241, dtype=torch.float64)
    z = torch.cartesian_prod(ticks, ticks)
    with torch.no_grad():
        logits, pixels, s = model.decoder(z), x.flatten(1), nn.functional.logsigmoid
        log_joint = pixels @ s(logits).T + (1 - pixels) @ s(-logits).T + model.prior.log_prob(z)
    return model, x, log_joint.logsumexp(1) + 2 * math.log(0.05)


def test_gaps_are_never_negative_beyond_their_error_nor_larger_than_the_exact_ones(flat):
    model, x, exact = flat
    gaps = inference_gap(model, x, steps=200, num_samples=1000)
    assert (gaps["approximation_gap"] > -6 * gaps["error"]).all()
    assert gaps["amortization_gap"].min() > -0.05
    assert (gaps["log_likelihood"] - exact < 6 * gaps["error"]).all()  # never too large; too small where q* is blind
    assert (gaps["log_likelihood"] - exact).median().abs() < 0.03


def test_annealing_from_the_prior_agrees_with_the_grid(flat):
    model, x, exact = flat
    prior = diagonal_normal(torch.zeros(100, 2), torch.zeros(100, 2))
    log_w = annealed_importance_sampling(model, x, prior, temperatures=80, leapfrog_steps=3)
    estimate, error = log_mean_exp(log_w)
    assert ((estimate - exact).abs() < 6 * error).all()
    assert (estimate - exact).mean().abs() < 0.1


def test_importance_sampling_is_blind_to_the_hump_where_q_never_goes():
    """Exactly known: half of the integral is missing, and the standard error says nothing of it."""
    q = refine(HUMPS, X, bell(1.0, 0.3), steps=500)
    model = WithPosterior(HUMPS, q)
    gaps = inference_gap(model, X, steps=0, num_samples=5000)
    assert gaps["log_likelihood"].item() == pytest.approx(HUMPS.log_prob(X).item() - math.log(2), abs=0.02)
    assert gaps["error"].item() < 0.02


def test_a_linear_encoder_loses_nothing_on_a_linear_model_and_something_on_a_deep_one(flat):
    vae, x = linear_vae(torch.randn(6, 3), torch.randn(6)), 2 * torch.randn(30, 6)
    gaps = inference_gap(vae, x, steps=500, num_samples=300)
    assert gaps["amortization_gap"].mean().item() == pytest.approx(0, abs=0.01)
    model, seen, _ = flat
    seed_everything(1)
    small = VAE(nn.Flatten(), model.decoder, 64, 2, (1, 8, 8))
    model.decoder.requires_grad_(False)
    trained(small, binary_digits()[0], 20)
    model.decoder.requires_grad_(True)
    lost = inference_gap(small, seen, steps=150, num_samples=200)["amortization_gap"]
    assert lost.mean() > 6 * lost.std() / 10
    assert lost.mean() > 0.3


# Costs


def decoder_passes(train_one_epoch):
    model, rows = network(), []
    model.decoder.register_forward_hook(lambda _layer, _inputs, out: rows.append(len(out)))
    train_one_epoch(model)
    return sum(rows)


@pytest.mark.parametrize("e_steps", [1, 3])
def test_an_e_step_costs_a_pass_per_datum_and_the_encoder_none(e_steps):
    x = binary_digits()[0][:300]
    table = LocalPosteriors(300, 4)
    em = decoder_passes(lambda model: variational_em(model, x, table, epochs=1, e_steps=e_steps))
    assert em == 300 * (e_steps + 1)
    assert decoder_passes(lambda model: trained(model, x, 1)) == 300


def encoder_weights(model):
    return sum(v.numel() for name, v in model.named_parameters() if "decoder" not in name)


def test_a_table_grows_with_the_data_and_an_encoder_does_not():
    """The digits of the chapter, and MNIST with the thesis' network."""
    assert encoder_weights(network(4)) == 64 * 64 + 64 + 2 * (64 * 4 + 4) == 4680
    assert encoder_weights(mlp_vae((1, 28, 28), 20)) == 573_096
    for n, d, numbers in ((1437, 4, 11_496), (60_000, 20, 2_400_000)):
        assert sum(v.numel() for v in LocalPosteriors(n, d).parameters()) == 2 * d * n == numbers


def test_for_equal_decoder_passes_amortized_training_is_ahead_and_many_local_steps_behind():
    """20 passes per digit each; judged by the bound of test digits after the same search for all."""
    train, test = binary_digits()
    decoders = [trained(network(), train, 20)]
    for e_steps in (1, 19):
        decoders.append(network())
        table = LocalPosteriors(len(train), 4)
        variational_em(decoders[-1], train, table, epochs=20 // (e_steps + 1), e_steps=e_steps, **PACE)
    found = [refine(model, test[:100], steps=100, learning_rate=0.1) for model in decoders]
    with torch.no_grad():
        bounds = [
            elbo_terms(WithPosterior(model, q), test[:100], 100)[0].mean().item()
            for model, q in zip(decoders, found, strict=True)
        ]
    assert bounds[0] > bounds[1] + 1
    assert bounds[1] > bounds[2] + 1


# The loop


def test_one_datum_gives_an_unbiased_gradient_of_the_mean_and_n_over_m_scales_a_batch():
    """Over all choices of one datum, and over all batches of a partition: means, not samples."""
    model, x = network(), binary_digits()[0][:60]
    q = model.posterior(x)
    z = q.mean.detach() + 0.5 * torch.randn(60, 4)
    bias = model.decoder[-1].bias

    def gradient(index):
        return torch.autograd.grad(model.likelihood(z[index]).log_prob(x[index]).sum(), bias)[0]

    full = gradient(torch.arange(60))
    single = torch.stack([gradient(torch.tensor([n])) for n in range(60)])
    assert torch.allclose(60 * single.mean(0), full, atol=1e-10)
    assert torch.allclose(single, (x - model.decode(z)).flatten(1), atol=1e-10)
    batches = [60 / 12 * gradient(index) for index in torch.randperm(60).split(12)]
    assert torch.allclose(torch.stack(batches).mean(0), full, atol=1e-10)
    assert not torch.allclose(batches[0], full, rtol=0.01)


@pytest.mark.parametrize(
    ("schedule", "mean", "sd"),
    [
        (lambda i: 1 / i, 2.0, 2000**-0.5),
        (lambda i: 0.1, 2.0, math.sqrt(0.1 / 1.9)),
        (lambda i: 0.5 / i**2, 2 - 2 * math.sin(math.pi / 2**0.5) / (math.pi / 2**0.5), None),
        (lambda i: 0.1 / i, 2 - 2 * math.exp(math.lgamma(2000.9) - math.lgamma(0.9) - math.lgamma(2001)), None),
    ],
    ids=["converges", "hovers", "stalls", "crawls"],
)
def test_step_sizes_converge_hover_or_stall_as_computed_by_hand(schedule, mean, sd):
    theta = torch.zeros(2000)
    for i in range(1, 2001):
        theta = theta + schedule(i) * (2 - theta + torch.randn(2000))
    slack = 2 / 4000 if mean not in (2.0,) else 0.0  # the product is infinite, the run is not
    assert abs(theta.mean().item() - mean) < 6 * theta.std().item() / 2000**0.5 + slack
    if sd:
        assert theta.std().item() == pytest.approx(sd, rel=6 / 4000**0.5)
