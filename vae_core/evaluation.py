"""Figures on held-out data. Models are put in evaluation mode for it and left as they were."""

import copy
from collections.abc import Callable
from math import log
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from vae_core.distributions import diagonal_normal, marginals
from vae_core.inference import WithPosterior, fit_posterior, log_mean_exp
from vae_core.objectives import Codec, LatentVariableModel, elbo_terms, log_weights, reconstruction_log_likelihood
from vae_core.runtime import device_of, evaluation_mode, random_state

Model = TypeVar("Model", bound=nn.Module)


def evaluate(
    model: LatentVariableModel,
    x: Tensor,
    num_samples: int = 1,
    kl: str = "analytic",
    seed: int = 0,
    batch_size: int = 1000,
) -> dict[str, float]:
    """The mean loss over held-out images and its two terms, nats per datum.

    Returns `{"loss", "reconstruction", "kl", "n"}` with loss = reconstruction + kl = minus the mean ELBO,
    estimated with `num_samples` sampled codes per image. `x` is float in [0, 1], (N, C, H, W). The same
    seed gives the same figures; over seeds a one-sample test loss of 10,000 images moves by about 0.05.
    The caller's random state is left as it was. On grey pixels the Bernoulli loss is no log-likelihood. A conditional
    model that was given one condition for each image is to be asked about all at once, with `batch_size=len(x)`.

    Raises ValueError for images of another shape than the model's, or for none, or for batches of none.
    Source: Chen §4.1, listing A.2 (one sampled code, batch norm by its running averages).
    """
    with random_state(seed):
        means = _mean_terms(model, x, lambda batch: elbo_terms(model, batch, num_samples, kl)[1], batch_size)
    return {"loss": means["reconstruction"] + means["kl"], **means, "n": len(x)}


def reconstruction_at_code(model: Codec, x: Tensor, batch_size: int = 1000) -> float:
    r"""The mean of −log p(x|z) at the code z = f(x) itself, nats per datum: an auto-encoder's test loss.

    For a VAE, whose code is the mean of q, it is lower than its reconstruction error and part of no bound.
    Raises ValueError as `evaluate` does. Source: Saleh §4.1.4.
    """
    means = _mean_terms(model, x, lambda batch: reconstruction_log_likelihood(model, batch)[1], batch_size)
    return means["reconstruction"]


def reconstruction_mse(model: Codec, x: Tensor, target: Tensor | None = None, batch_size: int = 1000) -> float:
    r"""The mean squared error per pixel of the reconstructions of x, against x itself or a `target`.

    .. math:: \frac1{ND}\sum_n\|\hat x(x_n)-t_n\|^2

    With corrupted images x and the clean ones as target it says how much of the corruption was taken out.
    Raises ValueError if the shapes differ, and as `evaluate` does. Source: Saleh §4.1.4.
    """
    target = x if target is None else target
    if target.shape != x.shape:
        raise ValueError(f"target must have the shape of x, {tuple(x.shape)}, got {tuple(target.shape)}")

    def squared_error(batch: Tensor) -> dict[str, Tensor]:  # x and target side by side, (B, 2, C, H, W)
        decoded = model.likelihood(model.encode(batch[:, 0])).mean
        return {"mse": (decoded - batch[:, 1]).square().flatten(1).mean(1)}

    return _mean_terms(model, torch.stack((x, target), 1), squared_error, batch_size)["mse"]


def add_outliers(x: Tensor, probability: float, seed: int = 0) -> Tensor:
    r"""Images whose pixels are hit, each with this probability, by outliers; same shape, uint8.

    .. math:: \tilde x_j = \min(1,\ x_j + b_j\,|\epsilon_j|), \qquad b_j \sim \mathrm{Bernoulli}(\nu),\quad
              \epsilon_j \sim \mathcal N(0, 1)

    `x` is uint8. The same seed gives the same corruption. Raises ValueError unless 0 ≤ ν ≤ 1, TypeError for
    another dtype. Source: Saleh §4.1.4 states no law; this one is its author's public code, clipped to [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be in [0, 1], got {probability!r}")
    if x.dtype != torch.uint8:
        raise TypeError(f"x must be uint8 images, got {x.dtype}")
    draws = torch.Generator().manual_seed(seed)
    hit = torch.rand(x.shape, generator=draws, dtype=torch.float32) < probability
    outliers = (torch.randn(x.shape, generator=draws, dtype=torch.float32).abs_() * hit).to(x.device)
    return (x + outliers * 255).round_().clamp_(0, 255).to(torch.uint8)


def log_likelihood(
    model: LatentVariableModel,
    x: Tensor,
    num_samples: int = 1000,
    seed: int = 0,
    batch_size: int = 100,
    at_once: int = 50,
) -> Tensor:
    r"""The importance-sampled log p(x) of each image, (N,), nats, with K = num_samples draws from q(z|x).

    .. math:: \log\hat p(x) = \log\frac1K\sum_{k=1}^K w_k, \qquad
              \log w_k = \log p(z_k) + \log p(x|z_k) - \log q(z_k|x)

    p̂(x) is unbiased for p(x), so its logarithm is on average too small, the less the larger K is: a lower bound
    that tightens (`objectives.iwae_bound`). It is a log-likelihood only for data that p(x|z) is a law of: binary
    images for a Bernoulli decoder. `at_once` draws are decoded together. Same seed, same figures; the caller's
    random state is left as it was. Raises ValueError as `evaluate` does, or unless all counts are positive.
    Source: Burda et al. (2016) §5; Rezende et al. (2014) appendix E.
    """
    if min(len(x), num_samples, batch_size, at_once) < 1:
        counts = f"{len(x)}, {num_samples}, {batch_size} and {at_once}"
        raise ValueError(f"one image, sample, image to a batch and sample at once at least, got {counts}")
    device, totals = device_of(model, x.device), []
    with evaluation_mode(model), torch.no_grad(), random_state(seed):
        for batch in x.split(batch_size):
            log_w = log_weights_in_chunks(model, batch.to(device), num_samples, at_once)
            totals.append(log_w.logsumexp(0) - log(num_samples))
    return torch.cat(totals)


def inference_gap(
    model: LatentVariableModel,
    x: Tensor,
    *,
    steps: int = 500,
    num_samples: int = 5000,
    seed: int = 0,
    at_once: int = 50,
) -> dict[str, Tensor]:
    r"""How far the bound lies below log p(x), and whose fault it is: (B,) each, nats.

    .. math:: \underbrace{\log p(x)-\mathcal L(q)}_{\text{inference gap}}
              = \underbrace{\log p(x)-\mathcal L(q^\star)}_{\text{approximation gap}}
              + \underbrace{\mathcal L(q^\star)-\mathcal L(q)}_{\text{amortization gap}}

    q is the encoder's, q* the best factorised Gaussian (`inference.fit_posterior`, `steps` of them from q on). Returns
    `log_likelihood` (importance sampling with `num_samples` draws from q* widened by a fifth, so a little too small on
    average), `best_elbo`, `elbo`, `approximation_gap`, `amortization_gap`, and `error`, a standard error for the first
    gap: that of its two means as if each had draws of its own. The gaps are differences of means over common random
    numbers, so they vary less. `x` is float, (B, …), all of it taken at once. Where the posterior has a second hump
    that q* does not cover, no draw goes there: log p(x) and the first gap come out too small, and `error` does not show
    it; `inference.annealed_importance_sampling` from the prior does. Nor can `error` be trusted where codes are
    strongly tied under the posterior: for a Gaussian one the weights have no variance as soon as two codes are
    correlated by more than 1 − 1/(2·1.2²) = 0.65. Raises ValueError for no images, or fewer than two draws. Source: VI
    slides §3; Cremer, Li and Duvenaud (2018) eq. (3).
    """
    if len(x) == 0 or num_samples < 2:
        raise ValueError(f"one image and two samples at least, got {len(x)} and {num_samples}")
    with evaluation_mode(model), torch.no_grad():
        x = x.to(device_of(model, x.device))
        q = model.posterior(x)
        best = fit_posterior(model, x, q, steps=steps, seed=seed)
        wide = diagonal_normal(best.mean, best.variance.log() + 2 * log(1.2))
        log_w = []
        for each in (wide, q, best):
            with random_state(seed):
                log_w.append(log_weights_in_chunks(WithPosterior(model, each), x, num_samples, at_once))
    (log_p, error), at_q, at_best = log_mean_exp(log_w[0]), *log_w[1:]
    gaps = {"approximation_gap": log_p - at_best.mean(0), "amortization_gap": (at_best - at_q).mean(0)}
    error = (error.square() + at_best.var(0) / num_samples).sqrt()
    return {"log_likelihood": log_p, "best_elbo": at_best.mean(0), "elbo": at_q.mean(0), **gaps, "error": error}


def log_weights_in_chunks(model: LatentVariableModel, x: Tensor, num_samples: int, at_once: int) -> Tensor:
    """`objectives.log_weights`, `at_once` draws at a time, so that thousands fit into memory: (K, B), float64, nats."""
    shares = [min(at_once, num_samples - done) for done in range(0, num_samples, at_once)]
    return torch.cat([log_weights(model, x, share).double() for share in shares])


def kl_per_unit(model: LatentVariableModel, x: Tensor, batch_size: int = 1000) -> Tensor:
    r"""The mean KL of each latent unit over images, (d,), nats; their sum is the mean KL.

    .. math:: \frac1N\sum_n \mathrm{KL}\big(q(z_j|x_n)\,\|\,\mathcal N(0,1)\big)

    For models whose posterior is a factorised Gaussian and whose prior is N(0, I). A unit is called active where this
    exceeds 0.01 nats. `x` is float in [0, 1], (N, C, H, W); raises ValueError for no images, TypeError for another q.
    Source: Saleh §4.2.2 asks the question (by column sums of the decoder); Burda et al. (2016) §5.3.
    """
    if len(x) == 0:
        raise ValueError("x must hold at least one image, got none")
    sums = []
    with evaluation_mode(model), torch.no_grad():
        for batch in x.split(batch_size):
            q = marginals(model.posterior(batch.to(device_of(model, x.device))))
            sums.append(torch.distributions.kl_divergence(q, Normal(0.0, 1.0, validate_args=False)).double().sum(0))
    return torch.stack(sums).sum(0) / len(x)


def entropy_floor(x: Tensor) -> float:
    r"""The least Bernoulli reconstruction error that any decoder can reach on these images; nats per datum.

    .. math:: \frac1N\sum_n\sum_j -x_{nj}\log x_{nj} - (1-x_{nj})\log(1-x_{nj})

    It is 0 for binary images, and 45.53 for MNIST's grey test images: the cross entropy of a pixel x with
    a probability s is smallest at s = x, and is the entropy of x there. `x` is float in [0, 1],
    (N, C, H, W). Raises ValueError for values outside [0, 1] or no images.
    """
    if len(x) == 0 or not (x.min() >= 0 and x.max() <= 1):  # nan is neither
        raise ValueError(f"x must hold images with values in [0, 1], got shape {tuple(x.shape)}")
    return -(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x)).double().sum().item() / len(x) + 0.0  # never -0.0


def with_batch_statistics(model: Model) -> Model:
    """A copy whose batch norm, in evaluation mode too, normalises by the batch at hand instead of running averages.

    A datum's figures then depend on its neighbours, so they are those of no model; the copy is here to show by
    how much. Without batch norm it is just a copy. Source: Chen §4.1 does not say which it reports.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    return model


def _mean_terms(
    model: object, x: Tensor, terms: Callable[[Tensor], dict[str, Tensor]], batch_size: int
) -> dict[str, float]:
    """Means over images of what `terms(batch)` returns, (B,) each, with the model in evaluation mode."""
    if len(x) == 0:
        raise ValueError("x must hold at least one image, got none")
    if batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
    device = device_of(model, x.device)
    sums: dict[str, float] = {}
    with evaluation_mode(model), torch.no_grad():
        for batch in x.split(batch_size):
            for name, values in terms(batch.to(device)).items():
                sums[name] = sums.get(name, 0.0) + values.double().sum().item()
    return {name: total / len(x) for name, total in sums.items()}


def linear_probe(codes: Tensor, y: Tensor, codes_test: Tensor, y_test: Tensor) -> float:
    """The share of test data that multinomial logistic regression on the training codes gets right.

    Codes are (N, d), standardised by the training codes' means and deviations; classes are (N,). The penalty is
    scikit-learn's default. It tells how much of the class is in the codes *linearly*: a class in a ring is missed.
    Raises ValueError where codes and classes differ in number. Source: Chen §4.2 claims a result of this kind.
    """
    from sklearn.linear_model import LogisticRegression  # not at start-up, which most commands pay without probing
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-3))
    return _accuracy(probe, codes, y, codes_test, y_test)


def neighbour_accuracy(codes: Tensor, y: Tensor, codes_test: Tensor, y_test: Tensor, num_neighbours: int = 10) -> float:
    """The share of test data to which most of their nearest training codes (Euclidean) give the right class.

    Shapes and errors are those of `linear_probe`; it tells how far the classes keep apart, in whatever form.
    Source: Chen §4.2 and §4.3 read this off pictures.
    """
    from sklearn.neighbors import KNeighborsClassifier

    return _accuracy(KNeighborsClassifier(num_neighbours, algorithm="brute"), codes, y, codes_test, y_test)


def _accuracy(classifier, codes: Tensor, y: Tensor, codes_test: Tensor, y_test: Tensor) -> float:
    if len(codes) != len(y) or len(codes_test) != len(y_test):
        counts = f"{len(codes)} and {len(y)}, {len(codes_test)} and {len(y_test)}"
        raise ValueError(f"every code needs its class, got {counts}")
    classifier.fit(codes.cpu().numpy(), y.cpu().numpy())
    return float(classifier.score(codes_test.cpu().numpy(), y_test.cpu().numpy()))


def sharpness(x: Tensor) -> float:
    r"""The mean over images of the variance of their Laplacian: edges make it large, blur makes it small.

    .. math:: \frac1N\sum_n \operatorname{Var}_{ij}\big(x_{i+1,j}+x_{i-1,j}+x_{i,j+1}+x_{i,j-1}-4x_{ij}\big)

    over the inner pixels and channels. `x` is float in [0, 1] or uint8, (N, C, H, W) with sides of at least 3. Raises
    ValueError for other shapes. Source: Chen §4.3 calls reconstructions blurry; the measure is Pech-Pacheco et al.'s.
    """
    if x.dim() != 4 or len(x) == 0 or min(x.shape[2:]) < 3:
        raise ValueError(f"x must be images (N, C, H, W) of at least 3 by 3 pixels, got shape {tuple(x.shape)}")
    x = x / 255 if x.dtype == torch.uint8 else x
    centre = x[..., 1:-1, 1:-1]
    around = x[..., 2:, 1:-1] + x[..., :-2, 1:-1] + x[..., 1:-1, 2:] + x[..., 1:-1, :-2]
    return (around - 4 * centre).double().flatten(1).var(1, correction=0).mean().item()
