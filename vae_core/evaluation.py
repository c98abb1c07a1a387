"""Measures on held-out data, computed in evaluation mode; the model's own mode is restored afterwards.

Data are tensors, NumPy arrays or map-style Datasets, floating point or uint8. They are read in batches, each of which
is checked against the support of p(x|z).
"""

import copy
from math import log
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal

from vae_core._checks.held_out import Terms, conditions_of, means_of, terms_of
from vae_core._checks.inputs import as_labels
from vae_core._checks.model_outputs import check_latent, model_input, read_input
from vae_core.distributions import diagonal_normal, log_variance, marginals
from vae_core.inference import WithPosterior, fit_posterior, log_mean_exp
from vae_core.objectives import Codec, LatentVariableModel, elbo_terms, log_weights, reconstruction_log_likelihood
from vae_core.runtime import checked_input, evaluation_mode, positive_int, random_state, unit_interval

Model = TypeVar("Model", bound=nn.Module)


def evaluate(
    model: LatentVariableModel,
    x: Any,
    num_samples: int = 1,
    kl: str = "analytic",
    seed: int = 0,
    batch_size: int = 1000,
    y: Any = None,
) -> dict[str, float]:
    """Return the mean loss over held-out data and its two terms, nats per datum.

    The same seed gives the same result; over seeds a one-sample test loss of 10,000 images varies by about 0.05. The
    caller's random state is unchanged. On grey pixels the Bernoulli loss is not a log-likelihood.

    Args:
        model: what `objectives.LatentVariableModel` describes.
        x: data (N, …).
        num_samples: sampled codes for each datum.
        kl: as in `objectives.elbo`.
        seed: of the codes.
        batch_size: data that are evaluated together.
        y: the condition of each datum, (N, c), for a conditional model, passed to `model.given` batch by batch. The
            conditions of a model that is `model.given(y)` already are split in the same way.

    Returns:
        `{"loss", "reconstruction", "kl", "n"}` with loss = reconstruction + kl = minus the mean ELBO.

    Raises:
        ValueError: for settings or data out of range, another number of conditions, or a loss that is nan.
        TypeError: if x is not data; and what `objectives.elbo` raises.

    Source: Chen §4.1, listing A.2 (one sampled code, batch norm by its running averages).
    """

    def terms(given: Any, batch: Tensor, _: slice) -> Terms:
        return elbo_terms(given, batch, num_samples, kl).terms

    with random_state(seed):
        means, n = means_of(model, x, y, terms, batch_size)
    return {"loss": means["reconstruction"] + means["kl"], **means, "n": n}


def reconstruction_at_code(model: Codec, x: Any, batch_size: int = 1000, y: Any = None) -> float:
    r"""Return the mean of −log p(x|z) at the code z = f(x) itself, nats per datum: an autoencoder's test loss.

    For a VAE, whose code is the mean of q, it is lower than the reconstruction error, and is not a term of a bound.
    Arguments and errors are those of `evaluate`.

    Source: Saleh §4.1.4.
    """

    def terms(given: Any, batch: Tensor, _: slice) -> Terms:
        return reconstruction_log_likelihood(given, batch).terms

    return means_of(model, x, y, terms, batch_size)[0]["reconstruction"]


def reconstruction_mse(model: Codec, x: Any, target: Any = None, batch_size: int = 1000, y: Any = None) -> float:
    r"""Return the mean squared error per pixel of the reconstructions of x, against x itself or a `target`.

    .. math:: \frac1{ND}\sum_n\|\hat x(x_n)-t_n\|^2

    With corrupted images as x and the clean ones as target, it measures how much of the corruption is removed.
    Other arguments and errors are those of `evaluate`.

    Args:
        target: t, of the shape of x; x itself if None.

    Raises:
        ValueError: if the shapes differ.

    Source: Saleh §4.1.4.
    """
    x = read_input(model, x)
    clean = x if target is None else read_input(model, target, "target")
    if clean.shape != x.shape:
        raise ValueError(f"target must have the shape of x, {tuple(x.shape)}, got {tuple(clean.shape)}")

    def terms(given: Any, batch: Tensor, rows: slice) -> Terms:
        wanted = unit_interval(clean[rows].to(batch.device), batch.dtype)
        return {"mse": (given.likelihood(given.encode(batch)).mean - wanted).square().flatten(1).mean(1)}

    return means_of(model, x, y, terms, batch_size)[0]["mse"]


def add_outliers(x: Any, probability: float, seed: int = 0) -> Tensor:
    r"""Return images in which each pixel gets an outlier with this probability; same shape, uint8.

    .. math:: \tilde x_j = \min(1,\ x_j + b_j\,|\epsilon_j|), \qquad b_j \sim \mathrm{Bernoulli}(\nu),\quad
              \epsilon_j \sim \mathcal N(0, 1)

    Args:
        x: images of any shape, uint8.
        probability: ν.
        seed: the same seed gives the same corruption.

    Raises:
        ValueError: unless 0 ≤ ν ≤ 1.
        TypeError: unless x is uint8.

    Source: Saleh §4.1.4 states no distribution; this is its author's public code, clipped to [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be in [0, 1], got {probability!r}")
    if (dtype := getattr(x, "dtype", None)) != torch.uint8 and str(dtype) != "uint8":
        raise TypeError(f"x must be uint8 images, got {dtype or type(x).__name__}")
    x = torch.as_tensor(x)
    draws = torch.Generator().manual_seed(seed)
    hit = torch.rand(x.shape, generator=draws, dtype=torch.float32) < probability
    outliers = (torch.randn(x.shape, generator=draws, dtype=torch.float32).abs_() * hit).to(x.device)
    return (x + outliers * 255).round_().clamp_(0, 255).to(torch.uint8)


def log_likelihood(
    model: LatentVariableModel,
    x: Any,
    num_samples: int = 1000,
    seed: int = 0,
    batch_size: int = 100,
    at_once: int = 50,
    y: Any = None,
) -> Float[Tensor, " N"]:
    r"""Return the importance-sampled log p(x) of each datum, (N,), nats, with K = num_samples draws from q(z|x).

    .. math:: \log\hat p(x) = \log\frac1K\sum_{k=1}^K w_k, \qquad
              \log w_k = \log p(z_k) + \log p(x|z_k) - \log q(z_k|x)

    p̂(x) is unbiased for p(x), so its logarithm is too small on average: a lower bound that tightens as K grows
    (`objectives.iwae_bound`). It is a log-likelihood only for data over which p(x|z) is a distribution: binary images
    for a Bernoulli decoder. `at_once` draws are decoded together. Other arguments and errors are those of `evaluate`.

    Source: Burda et al. (2016) §5; Rezende et al. (2014) appendix E.
    """
    count, chunk = positive_int("num_samples", num_samples), positive_int("at_once", at_once)

    def terms(given: Any, batch: Tensor, _: slice) -> Terms:
        return {"log_p": log_weights_in_chunks(given, batch, count, chunk).logsumexp(0) - log(count)}

    with random_state(seed):
        return torch.cat([each["log_p"] for each in terms_of(model, x, y, terms, batch_size)])


def inference_gap(
    model: LatentVariableModel,
    x: Any,
    *,
    steps: int = 500,
    num_samples: int = 5000,
    seed: int = 0,
    at_once: int = 50,
    y: Any = None,
) -> dict[str, Float[Tensor, " B"]]:
    r"""Return how far the bound lies below log p(x), split into the cost of q's family and the cost of the encoder.

    .. math:: \underbrace{\log p(x)-\mathcal L(q)}_{\text{inference gap}}
              = \underbrace{\log p(x)-\mathcal L(q^\star)}_{\text{approximation gap}}
              + \underbrace{\mathcal L(q^\star)-\mathcal L(q)}_{\text{amortization gap}}

    q is the encoder's, q* the best factorised Gaussian, found from q by `steps` steps of `inference.fit_posterior`. The
    gaps are differences of means over common random numbers, which reduces their variance. Where the posterior has a
    second mode that q* does not cover, no draw goes there: log p(x) and the first gap are too small, and `error` does
    not show it; `inference.annealed_importance_sampling` from the prior does. `error` is unreliable, too, where codes
    are strongly correlated under the posterior: for a Gaussian one the weights have infinite variance once two codes
    have a correlation above 1 − 1/(2·1.2²) = 0.65.

    Args:
        model, x, y: as in `evaluate`; all data are taken at once.
        steps: of the optimisation of q*.
        num_samples: draws for each mean, at least two, `at_once` of them decoded together.
        seed: of all draws.

    Returns:
        tensors (B,), nats, named `log_likelihood` (importance sampling with draws from q* widened by a fifth, so
        slightly too small on average), `best_elbo`, `elbo`, `approximation_gap`, `amortization_gap`, and `error`, a
        standard error of the first gap, computed as if its two means came from independent draws.

    Raises:
        ValueError: for fewer than two draws, and as `evaluate` does.

    Source: VI slides §3; Cremer, Li and Duvenaud (2018) eq. (3).
    """
    count, chunk = positive_int("num_samples", num_samples, least=2), positive_int("at_once", at_once)
    with evaluation_mode(model), torch.no_grad():
        x = model_input(model, x)
        conditions = conditions_of(model, y, len(x))
        model = model if conditions is None else model.given(conditions)  # type: ignore[attr-defined]
        q = model.posterior(x)
        check_latent(q, model.prior, len(x))
        best = fit_posterior(model, x, q, steps=steps, seed=seed)
        wide = diagonal_normal(best.mean, log_variance(best) + 2 * log(1.2))
        log_w = []
        for each in (wide, q, best):
            with random_state(seed):
                log_w.append(log_weights_in_chunks(WithPosterior(model, each), x, count, chunk))
    (log_p, error), at_q, at_best = log_mean_exp(log_w[0]), *log_w[1:]
    gaps = {"approximation_gap": log_p - at_best.mean(0), "amortization_gap": (at_best - at_q).mean(0)}
    error = (error.square() + at_best.var(0) / count).sqrt()
    return {"log_likelihood": log_p, "best_elbo": at_best.mean(0), "elbo": at_q.mean(0), **gaps, "error": error}


def log_weights_in_chunks(
    model: LatentVariableModel, x: Tensor, num_samples: int, at_once: int
) -> Float[Tensor, "K B"]:
    """Return `objectives.log_weights` (K, B), float64, computed `at_once` draws at a time so that thousands fit."""
    sizes = [min(at_once, num_samples - done) for done in range(0, num_samples, at_once)]
    first = log_weights(model, x, sizes[0]).double()
    with checked_input():
        return torch.cat([first, *(log_weights(model, x, size).double() for size in sizes[1:])])


def kl_per_unit(model: LatentVariableModel, x: Any, batch_size: int = 1000, y: Any = None) -> Float[Tensor, " d"]:
    r"""Return the mean KL of each latent unit over data, (d,), nats; their sum is the mean KL.

    .. math:: \frac1N\sum_n \mathrm{KL}\big(q(z_j|x_n)\,\|\,\mathcal N(0,1)\big)

    The posterior must be a factorised Gaussian, and the prior N(0, I). A unit is called active if this exceeds 0.01
    nats. Arguments and other errors are those of `evaluate`.

    Raises:
        TypeError: for another q.

    Source: Saleh §4.2.2 asks the question (by column sums of the decoder); Burda et al. (2016) §5.3.
    """

    def terms(given: Any, batch: Tensor, _: slice) -> Terms:
        q = marginals(given.posterior(batch), "posterior(x)")
        return {"kl": torch.distributions.kl_divergence(q, Normal(0.0, 1.0, validate_args=False)).double().sum(0)}

    x = read_input(model, x)
    return torch.stack([each["kl"] for each in terms_of(model, x, y, terms, batch_size)]).sum(0) / len(x)


def entropy_floor(x: Any) -> float:
    r"""Return the least Bernoulli reconstruction error that any decoder can reach on these images; nats per datum.

    .. math:: \frac1N\sum_n\sum_j -x_{nj}\log x_{nj} - (1-x_{nj})\log(1-x_{nj})

    It is 0 for binary images, and 45.53 for MNIST's grey test images: the cross entropy of a pixel x with a probability
    s is smallest at s = x, and is the entropy of x there.

    Args:
        x: images (N, ...), in [0, 1] or uint8.

    Raises:
        ValueError: for values outside [0, 1] or no images.

    Source: Gibbs' inequality; the figure is computed.
    """
    x, total = read_input(None, x), 0.0
    for batch in x.split(1000):
        p = unit_interval(batch, torch.float64).double()
        if not (p.min() >= 0 and p.max() <= 1):
            raise ValueError(f"x must hold images with values in [0, 1], got {p.min():g} to {p.max():g}; divide by 255")
        total += (torch.special.entr(p) + torch.special.entr(1 - p)).sum().item()
    return total / len(x) + 0.0  # never -0.0


def with_batch_statistics(model: Model) -> Model:
    """Return a copy whose batch norm normalises by the current batch, not by its averages, in evaluation mode too.

    The result for a datum then depends on the rest of its batch, so it is not a property of the model; the copy serves
    to measure by how much. A model without batch norm is only copied.

    Source: Chen §4.1 does not state which it reports.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    return model


def linear_probe(codes: Any, y: Any, codes_test: Any, y_test: Any) -> float:
    """Return the accuracy on test data of multinomial logistic regression on the training codes.

    It measures how much of the class can be read from the codes *linearly*: a class that forms a ring is missed. The
    penalty is scikit-learn's default.

    Args:
        codes, codes_test: (N, d), standardised by the training codes' means and deviations.
        y, y_test: classes, (N,), integers.

    Raises:
        ValueError: where codes and classes differ in number or widths differ.

    Source: Chen §4.2 claims a result of this kind.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import, and rarely needed
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-3))
    return _accuracy(probe, codes, y, codes_test, y_test)


def neighbour_accuracy(codes: Any, y: Any, codes_test: Any, y_test: Any, num_neighbours: int = 10) -> float:
    """Return the share of test data for which most of the nearest training codes (Euclidean) have the right class.

    It measures how well the classes are separated, whatever their shape. Other arguments and errors are those of
    `linear_probe`.

    Args:
        num_neighbours: how many training codes decide.

    Source: Chen §4.2 and §4.3 judge this from scatter plots.
    """
    from sklearn.neighbors import KNeighborsClassifier

    count = positive_int("num_neighbours", num_neighbours)
    if count > len(codes):
        raise ValueError(f"num_neighbours must be at most the number of training codes, {len(codes)}, got {count}")
    return _accuracy(KNeighborsClassifier(count, algorithm="brute"), codes, y, codes_test, y_test)


def sharpness(x: Any) -> float:
    r"""Return the mean over images of the variance of their Laplacian: edges make it large, blur makes it small.

    .. math:: \frac1N\sum_n \operatorname{Var}_{ij}\big(x_{i+1,j}+x_{i-1,j}+x_{i,j+1}+x_{i,j-1}-4x_{ij}\big)

    over the inner pixels and channels.

    Args:
        x: images (N, C, H, W), in [0, 1] or uint8.

    Raises:
        ValueError: for other shapes or sides of less than 3.

    Source: Chen §4.3 calls reconstructions blurry; the measure is Pech-Pacheco et al.'s.
    """
    x = read_input(None, x)
    if x.dim() != 4 or min(x.shape[2:]) < 3:
        raise ValueError(f"x must be images (N, C, H, W) of at least 3 by 3 pixels, got shape {tuple(x.shape)}")
    x = unit_interval(x)
    centre = x[..., 1:-1, 1:-1]
    around = x[..., 2:, 1:-1] + x[..., :-2, 1:-1] + x[..., 1:-1, 2:] + x[..., 1:-1, :-2]
    return (around - 4 * centre).double().flatten(1).var(1, correction=0).mean().item()


def _accuracy(classifier: Any, codes: Any, y: Any, codes_test: Any, y_test: Any) -> float:
    codes, codes_test = read_input(None, codes, "codes"), read_input(None, codes_test, "codes_test")
    if codes.shape[1:] != codes_test.shape[1:] or codes.dim() != 2:
        shapes = f"{tuple(codes.shape)} and {tuple(codes_test.shape)}"
        raise ValueError(f"codes and codes_test must have shapes (N, d) with the same d, got {shapes}")
    y, y_test = as_labels(y, len(codes)), as_labels(y_test, len(codes_test), "y_test")
    if len(y.unique()) < 2:
        raise ValueError(f"y must hold at least two classes, got only {y[0].item()}")
    classifier.fit(codes.cpu().numpy(), y.cpu().numpy())
    return float(classifier.score(codes_test.cpu().numpy(), y_test.cpu().numpy()))
