r"""Inference without an encoder: q for each datum, variational EM, and annealed importance sampling for log p(x).

All work on any object with `prior` and `likelihood(z)`, the prior being N(0, I_d). A `torch.nn.Module` keeps its mode,
except that `fit_posterior` and `annealed_importance_sampling` put it in evaluation mode while they run.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import inf, isfinite, log
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from vae_core._checks.model_outputs import check_latent, expanded_prior, log_likelihood_of, model_input
from vae_core.distributions import diagonal_normal, log_variance
from vae_core.gradients import stop_gradient
from vae_core.objectives import LatentVariableModel, elbo
from vae_core.runtime import (
    checked_input,
    device_of,
    dtype_of,
    evaluation_mode,
    gradients_recorded,
    positive_int,
    random_state,
)


@dataclass(frozen=True)
class WithPosterior:
    """A model with the distribution `q` instead of its own posterior, for the objectives."""

    model: Any
    q: Distribution

    @property
    def prior(self) -> Distribution:
        """The prior p(z) of the model."""
        prior: Distribution = self.model.prior
        return prior

    def posterior(self, x: Tensor) -> Distribution:
        """Return q for any x: it belongs to the data that it was fitted to."""
        return self.q

    def likelihood(self, z: Tensor) -> Distribution:
        """Return p(x|z) of the model."""
        likelihood: Distribution = self.model.likelihood(z)
        return likelihood


class LocalPosteriors(nn.Module):
    r"""A factorised Gaussian for each of N data: λ_n = (μ_n, log σ_n²), 2dN numbers in all. They start at N(0, I).

    Calling it with indices (B,) returns q, batch (B,), event (d,).

    Args:
        n: N.
        latent_dim: d.

    Raises:
        ValueError: unless both are positive integers.

    Source: VI slides (15); lecture notes §1.3.
    """

    def __init__(self, n: int, latent_dim: int) -> None:
        super().__init__()
        rows, columns = positive_int("n", n), 2 * positive_int("latent_dim", latent_dim)
        self.table = nn.Embedding(rows, columns, sparse=True)
        nn.init.zeros_(self.table.weight)

    def forward(self, index: Int[Tensor, " B"]) -> Independent:
        """Return q(z_n) for these data."""
        return diagonal_normal(*self.table(index).chunk(2, -1))


def fit_posterior(
    model: LatentVariableModel,
    x: Any,
    start: Distribution | None = None,
    *,
    steps: int = 500,
    learning_rate: float = 0.05,
    num_samples: int = 8,
    seed: int = 0,
) -> Independent:
    r"""Return the best factorised Gaussian q for each datum, by stochastic variational inference for a fixed model.

    .. math:: \lambda_n^\star = \arg\max_{\lambda_n}\ \mathbb E_{q_{\lambda_n}}[\log p(x_n|z)]
              - \mathrm{KL}(q_{\lambda_n}\|p(z))

    Adam follows pathwise gradients, with a learning rate that falls to 0 along half a cosine. The bound ends slightly
    below its maximum: by about 0.001 nats for the default settings in two dimensions, and by less with more draws. Data
    do not interact, so a larger batch gives the same result in distribution. The caller's random state is unchanged.

    Args:
        model: with `prior` and `likelihood(z)`.
        x: data (B, …), as `data.as_images` takes them.
        start: the first q, factorised, batch (B,), event (d,); the prior if None.
        steps: of Adam; 0 returns the start itself.
        learning_rate: that of the first step, the largest.
        num_samples: draws from q in each step.
        seed: of the draws.

    Returns:
        q with batch (B,), event (d,), without a gradient.

    Raises:
        ValueError: for settings out of range, a start of another shape, and as `objectives.elbo` does.
        ArithmeticError: if the search diverges.

    Source: VI slides (16)-(17); Hoffman et al. (2013).
    """
    count = positive_int("steps", steps, least=0)
    _check_rates(learning_rate=learning_rate)
    with evaluation_mode(model), random_state(seed), gradients_recorded():
        x = model_input(model, x)
        q = expanded_prior(model.prior, len(x)) if start is None else start
        check_latent(q, model.prior, len(x), "start")
        mean, width = (part.detach().clone().requires_grad_() for part in (q.mean, log_variance(q)))
        optimizer = torch.optim.Adam([mean, width], lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(count, 1))
        for step in range(count):
            with checked_input() if step else nullcontext():
                bound = elbo(WithPosterior(model, diagonal_normal(mean, width)), x, num_samples).sum()
            mean.grad, width.grad = torch.autograd.grad(-bound, (mean, width))  # no gradients in the model
            optimizer.step()
            schedule.step()
    if not (mean.isfinite() & width.isfinite()).all():
        raise ArithmeticError("the search for q became nan or infinite; a smaller learning_rate often helps")
    return diagonal_normal(mean.detach(), width.detach())


def variational_em(
    model: nn.Module,
    x: Any,
    q: LocalPosteriors,
    *,
    epochs: int,
    batch_size: int = 100,
    e_steps: int = 1,
    learning_rate: float = 1e-3,
    local_learning_rate: float = 0.05,
    num_samples: int = 1,
    seed: int = 0,
    after_epoch: Callable[[], dict[str, float]] | None = None,
) -> list[dict[str, float]]:
    r"""Train the decoder and each datum's own q in turn, with mini-batches (variational EM); return a row per epoch.

    .. math:: \text{E: } \lambda_n \leftarrow \lambda_n + \alpha\,\nabla_{\lambda_n}\mathcal L(x_n)
              \quad(n\in B,\ \texttt{e_steps}\text{ times}), \qquad
              \text{M: } \theta \leftarrow \theta + \frac{\alpha'}{|B|}\sum_{n\in B}\nabla_\theta\mathcal L(x_n)

    Both steps are Adam's, on pathwise gradients of the mean over data. The slides print a sum; its factor N is in their
    step size. The model keeps its mode (training or evaluation); the caller's random state is unchanged.

    Args:
        model: with `prior` and `likelihood(z)`; θ are the parameters that these reach.
        x: data (N, …), as `data.as_images` takes them.
        q: each datum's λ_n, updated in place; it is moved to the model's device and dtype.
        epochs, batch_size, e_steps, num_samples: positive integers.
        learning_rate, local_learning_rate: of θ, and of all λ_n.
        seed: of the order and the draws.
        after_epoch: called after each epoch; the numbers that it returns are added to the row.

    Returns:
        a row per epoch with `epoch`, `loss` (that of the M-steps, nats per datum), and what `after_epoch` adds.

    Raises:
        ValueError: unless all settings are positive and q has a row for each datum, for parameters that were created
            inside `torch.inference_mode`, and as `objectives.elbo` does.
        ArithmeticError: if the loss becomes nan or infinite.

    Source: VI slides, "vEM", (18)-(22); Chen §3.3.
    """
    epochs, size = positive_int("epochs", epochs), positive_int("batch_size", batch_size)
    turns = positive_int("e_steps", e_steps)
    _check_rates(learning_rate=learning_rate, local_learning_rate=local_learning_rate)
    history: list[dict[str, float]] = []
    with gradients_recorded(), random_state(seed):
        x = _with_rows(model, x, q)
        local = torch.optim.SparseAdam(q.parameters(), lr=local_learning_rate)
        decoder = torch.optim.Adam(model.parameters(), lr=learning_rate)
        steps = [local] * turns + [decoder]
        for epoch in range(1, epochs + 1):
            with checked_input() if history else nullcontext():
                loss = _em_epoch(model, x, q, steps, size, num_samples)
            if not isfinite(loss):
                raise ArithmeticError(f"the loss became {loss} in epoch {epoch}; smaller learning rates often help")
            history.append({"epoch": epoch, "loss": loss})
            with random_state(seed):
                history[-1] |= after_epoch() if after_epoch else {}
    return history


def annealed_importance_sampling(
    model: LatentVariableModel,
    x: Any,
    q: Independent,
    *,
    num_samples: int = 16,
    temperatures: int = 200,
    leapfrog_steps: int = 5,
    step_size: float = 0.3,
    seed: int = 0,
) -> Float[Tensor, "K B"]:
    r"""Return the log weights of K chains that move from q to p(z|x); the mean of the weights estimates p(x).

    .. math:: \log w = \sum_t (\beta_t-\beta_{t-1})\,[\log p(x,z_{t-1})-\log q(z_{t-1})], \qquad
              z_t \sim T_t(\cdot|z_{t-1}),\quad T_t \text{ leaves } q^{1-\beta_t}p(x,z)^{\beta_t} \text{ invariant}

    E[w] = p(x) exactly, for any number of temperatures and any step size; more temperatures make w vary less. T is one
    step of Hamiltonian Monte Carlo. With one temperature this is importance sampling from q. Start from a q that covers
    the posterior, such as the prior: regions that a narrow q never reaches are missing from the estimate, and the
    weights do not show it. The caller's random state is unchanged; no gradient flows into q or the model.

    Args:
        model: with `prior` and `likelihood(z)`.
        x: data (B, …), as `data.as_images` takes them.
        q: where the chains start, batch (B,), event (d,).
        num_samples: K.
        temperatures: how many β_t > 0, evenly spaced.
        leapfrog_steps, step_size: of T, in standard deviations of q.
        seed: of all draws.

    Returns:
        nats, shape (K, B).

    Raises:
        ValueError: unless all settings are positive, and as `objectives.log_weights` does.

    Source: Neal (2001) §2; for decoders, Wu et al. (2017).
    """
    size = torch.Size([positive_int("num_samples", num_samples)])
    count = positive_int("temperatures", temperatures)
    betas = torch.linspace(0, 1, count + 1, dtype=torch.float64).tolist()
    leaps = positive_int("leapfrog_steps", leapfrog_steps)
    _check_rates(step_size=step_size)
    with evaluation_mode(model), random_state(seed), gradients_recorded(), torch.no_grad():
        x = model_input(model, x)
        check_latent(q, model.prior, len(x), "q")
        start = stop_gradient(q)
        z = start.sample(size)
        log_likelihood_of(model.likelihood(z), z.shape[:-1], x)  # checked once for all temperatures
        log_w = torch.zeros(z.shape[:-1], dtype=z.dtype, device=z.device)
        for previous, beta in pairwise(betas):
            log_p = model.prior.log_prob(z) + model.likelihood(z).log_prob(x)
            log_w = log_w + (beta - previous) * (log_p - start.log_prob(z))
            if beta < 1:
                log_density = partial(_annealed, model, x, start, beta)
                z = _hamiltonian_step(log_density, z, start.stddev, leaps, step_size)
    return log_w


def log_mean_exp(log_w: Float[Tensor, " K *B"]) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B"]]:
    r"""Return log of the mean of K weights and its standard error by the delta method.

    .. math:: \log\hat p = \log\frac1K\sum_k w_k, \qquad \widehat{\text{s.e.}} = \frac{s_w}{\bar w\sqrt K}

    An error above about 0.3 means that few weights dominate the mean; the error itself is then unreliable. If all
    weights are 0, the logarithm is −∞ and its error ∞.

    Args:
        log_w: log weights (K, B), nats; −∞ for a weight of 0.

    Returns:
        two tensors (B,), nats.

    Raises:
        ValueError: for fewer than two weights.
    """
    if not isinstance(log_w, Tensor) or log_w.dim() == 0 or len(log_w) < 2:
        count = len(log_w) if isinstance(log_w, Tensor) and log_w.dim() else type(log_w).__name__
        raise ValueError(f"log_w must hold at least two weights for each datum, got {count}")
    estimate = log_w.logsumexp(0) - log(len(log_w))
    error = (log_w - estimate).exp().std(0) / len(log_w) ** 0.5
    return estimate, torch.where(estimate == -inf, inf, error)


def _check_rates(**rates: float) -> None:
    for name, rate in rates.items():
        if isinstance(rate, str) or not 0 < rate < inf:
            raise ValueError(f"{name} must be positive and finite, got {rate!r}")


def _with_rows(model: nn.Module, x: Any, q: LocalPosteriors) -> Tensor:
    """Return the data, and move q to them. Raise ValueError unless q has a row for each, and all can be trained."""
    x, rows = model_input(model, x), q.table.num_embeddings
    if len(x) > rows:
        raise ValueError(f"q must have a row for each datum, got {rows} for {len(x)}")
    if any(parameter.is_inference() for module in (model, q) for parameter in module.parameters()):
        raise ValueError("model and q must be made outside of torch.inference_mode, or they cannot be trained")
    q.to(device_of(model), dtype_of(model))
    return x


def _em_epoch(
    model: Any, x: Tensor, q: LocalPosteriors, steps: Sequence[torch.optim.Optimizer], size: int, num_samples: int
) -> float:
    """Return the mean loss, in the last of `steps` on each batch, of one pass over the data in random order."""
    total = 0.0
    for index in torch.randperm(len(x)).to(x.device).split(size):
        for optimizer in steps:
            steps[0].zero_grad()
            steps[-1].zero_grad()
            torch.clear_autocast_cache()  # it holds the weights from before the step
            loss = -elbo(WithPosterior(model, q(index)), x[index], num_samples).mean()
            loss.backward()
            optimizer.step()
        total += loss.item() * len(index)
    return total / len(x)


def _annealed(model: LatentVariableModel, x: Tensor, q: Distribution, beta: float, z: Tensor) -> Tensor:
    """Return the log of q^(1−β) p(x, z)^β, up to a constant: (K, B)."""
    return (1 - beta) * q.log_prob(z) + beta * (model.prior.log_prob(z) + model.likelihood(z).log_prob(x))


def _hamiltonian_step(
    log_density: Callable[[Tensor], Tensor], z: Tensor, scale: Tensor, steps: int, size: float
) -> Tensor:
    """Return z after a leapfrog trajectory with a fresh momentum, in units of `scale`, and Metropolis' test."""

    @torch.enable_grad()
    def gradient(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        value = log_density(z)
        return value.detach(), torch.autograd.grad(value.sum(), z)[0] * scale

    momentum, new = torch.randn_like(z), z
    (before, force), energy = gradient(z), 0.5 * momentum.square().sum(-1)
    for _ in range(steps):
        momentum = momentum + 0.5 * size * force
        new = new + size * scale * momentum
        after, force = gradient(new)
        momentum = momentum + 0.5 * size * force
    gain = after - 0.5 * momentum.square().sum(-1) - (before - energy)
    return torch.where((torch.rand_like(gain).log() < gain).unsqueeze(-1), new, z)
