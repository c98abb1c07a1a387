r"""Finding q: datum by datum, in turn with the decoder (variational EM), and a strong estimate of log p(x) to judge by.

All work on any object with `prior` and `likelihood(z)`, the prior being N(0, I_d). A `torch.nn.Module` is used in the
mode in which it is; only `fit_posterior` and `annealed_importance_sampling` put it in evaluation mode for the time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from vae_core.distributions import diagonal_normal
from vae_core.gradients import stop_gradient
from vae_core.objectives import LatentVariableModel, elbo
from vae_core.runtime import evaluation_mode, random_state


@dataclass(frozen=True)
class WithPosterior:
    """The model with `q` in the place of its own posterior, as the objectives ask for it."""

    model: Any
    q: Distribution

    @property
    def prior(self) -> Distribution:
        """The model's own p(z)."""
        return self.model.prior

    def posterior(self, x: Tensor) -> Distribution:
        """q, whatever x is: it was fitted to it."""
        return self.q

    def likelihood(self, z: Tensor) -> Distribution:
        """The model's own p(x|z)."""
        return self.model.likelihood(z)


class LocalPosteriors(nn.Module):
    r"""A factorised Gaussian for each of N data: λ_n = (μ_n, log σ_n²), 2dN numbers in all. They start at N(0, I).

    Calling it with indices (B,) gives q, batch (B,), event (d,). Source: VI slides (15); lecture notes §1.3.
    """

    def __init__(self, n: int, latent_dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(n, 2 * latent_dim, sparse=True)
        nn.init.zeros_(self.table.weight)

    def forward(self, index: Tensor) -> Independent:
        """q(z_n) for these data."""
        return diagonal_normal(*self.table(index).chunk(2, -1))


def fit_posterior(
    model: LatentVariableModel,
    x: Tensor,
    start: Distribution | None = None,
    *,
    steps: int = 500,
    learning_rate: float = 0.05,
    num_samples: int = 8,
    seed: int = 0,
) -> Independent:
    r"""Stochastic variational inference, datum by datum: q with batch (B,), event (d,), no gradient. The model stays.

    .. math:: \lambda_n^\star = \arg\max_{\lambda_n}\ \mathbb E_{q_{\lambda_n}}[\log p(x_n|z)]
              - \mathrm{KL}(q_{\lambda_n}\|p(z))

    Adam on pathwise gradients from `num_samples` draws, its rate falling to 0 like half a cosine; so the bound ends a
    little short of its maximum: by about 0.001 nats by default in two dimensions, the less the more draws. `start` is a
    factorised Gaussian, by default the prior. Data do not interact, so a larger batch gives the same answer in law.
    The caller's random state is left as it was. Raises ValueError unless steps is a non-negative integer.
    Source: VI slides (16)-(17); Hoffman et al. (2013).
    """
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps must be a non-negative integer, got {steps!r}")
    q = start or model.prior.expand(torch.Size([len(x)]))
    mean, log_variance = (part.detach().clone().requires_grad_() for part in (q.mean, q.variance.log()))
    optimizer = torch.optim.Adam([mean, log_variance], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    with evaluation_mode(model), random_state(seed), torch.enable_grad():
        for _ in range(steps):
            bound = elbo(WithPosterior(model, diagonal_normal(mean, log_variance)), x, num_samples).sum()
            mean.grad, log_variance.grad = torch.autograd.grad(-bound, (mean, log_variance))  # none for the model
            optimizer.step()
            schedule.step()
    return diagonal_normal(mean.detach(), log_variance.detach())


def variational_em(
    model: nn.Module,
    x: Tensor,
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
    r"""Variational EM with mini-batches; a row per epoch: epoch, loss (nats per datum), and what `after_epoch` adds.

    .. math:: \text{E: } \lambda_n \leftarrow \lambda_n + \alpha\,\nabla_{\lambda_n}\mathcal L(x_n)
              \quad(n\in B,\ \texttt{e_steps}\text{ times}), \qquad
              \text{M: } \theta \leftarrow \theta + \frac{\alpha'}{|B|}\sum_{n\in B}\nabla_\theta\mathcal L(x_n)

    `model` needs `prior` and `likelihood(z)`; θ are the parameters that these reach, x (N, …) floats. Each datum keeps
    its λ_n in `q` from epoch to epoch. Both steps are Adam's, on pathwise gradients from `num_samples` draws; the loss
    is that of the M-steps. Their gradient is that of the mean over data, where the slides print a sum: the factor N is
    in the slides' step size. The model keeps its mode (training or not); the caller's random state is left as it was.
    Raises ValueError unless all counts are positive and q has a row for each datum. Source: VI slides, "vEM",
    (18)-(22); Chen §3.3.
    """
    _check_positive(epochs=epochs, batch_size=batch_size, e_steps=e_steps)
    if not 1 <= len(x) <= q.table.num_embeddings:
        raise ValueError(f"q must have a row for each of at least one datum, got {q.table.num_embeddings} for {len(x)}")
    local = torch.optim.SparseAdam(q.parameters(), lr=local_learning_rate)
    decoder = torch.optim.Adam(model.parameters(), lr=learning_rate)
    steps, history = [local] * e_steps + [decoder], []
    with random_state(seed):
        for epoch in range(1, epochs + 1):
            total = 0.0
            for index in torch.randperm(len(x)).to(x.device).split(batch_size):
                for optimizer in steps:
                    local.zero_grad()
                    decoder.zero_grad()
                    loss = -elbo(WithPosterior(model, q(index)), x[index], num_samples).mean()
                    loss.backward()
                    optimizer.step()
                total += loss.item() * len(index)
            history.append({"epoch": epoch, "loss": total / len(x)})
            with random_state(seed):
                history[-1] |= after_epoch() if after_epoch else {}
    return history


def annealed_importance_sampling(
    model: LatentVariableModel,
    x: Tensor,
    q: Independent,
    *,
    num_samples: int = 16,
    temperatures: int = 200,
    leapfrog_steps: int = 5,
    step_size: float = 0.3,
    seed: int = 0,
) -> Tensor:
    r"""The log weights of K chains that cool from q to p(z|x), (K, B), nats; the mean of the weights estimates p(x).

    .. math:: \log w = \sum_t (\beta_t-\beta_{t-1})\,[\log p(x,z_{t-1})-\log q(z_{t-1})], \qquad
              z_t \sim T_t(\cdot|z_{t-1}),\quad T_t \text{ leaves } q^{1-\beta_t}p(x,z)^{\beta_t} \text{ as it is}

    E[w] = p(x) exactly, for any number of temperatures and any step; more of them make w vary less. T is one step of
    Hamiltonian Monte Carlo: `leapfrog_steps` of `step_size` standard deviations of q. With one temperature it is
    importance sampling from q. Begin with a q that covers the posterior, such as the prior: what a narrow q never
    reaches is missing, and the weights do not tell. The caller's random state is left as it was; no gradient flows
    into q or the model.
    Raises ValueError unless all counts are positive. Source: Neal (2001) §2; for decoders, Wu et al. (2017).
    """
    _check_positive(num_samples=num_samples, temperatures=temperatures, leapfrog_steps=leapfrog_steps)
    start = stop_gradient(q)
    with evaluation_mode(model), random_state(seed):
        z = start.sample(torch.Size([num_samples]))
        log_w = torch.zeros(z.shape[:-1], dtype=z.dtype, device=z.device)
        betas = torch.linspace(0, 1, temperatures + 1).tolist()
        for cooler, beta in pairwise(betas):
            with torch.no_grad():
                log_p = model.prior.log_prob(z) + model.likelihood(z).log_prob(x)
                log_w = log_w + (beta - cooler) * (log_p - start.log_prob(z))
            if beta < 1:
                log_density = partial(_annealed, model, x, start, beta)
                z = _hamiltonian_step(log_density, z, start.stddev, leapfrog_steps, step_size)
    return log_w


def log_mean_exp(log_w: Tensor) -> tuple[Tensor, Tensor]:
    r"""log of the mean of K weights and its standard error by the delta method: (K, B) -> (B,), (B,); nats.

    .. math:: \log\hat p = \log\frac1K\sum_k w_k, \qquad \widehat{\text{s.e.}} = \frac{s_w}{\bar w\sqrt K}

    Raises ValueError for fewer than two weights. An error above about 0.3 says that few weights carry the mean; then
    the error itself is not to be trusted.
    """
    count = len(log_w)
    if count < 2:
        raise ValueError(f"log_w must hold at least two weights for each datum, got {count}")
    estimate = log_w.logsumexp(0) - log(count)
    return estimate, (log_w - estimate).exp().std(0) / count**0.5


def _check_positive(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a positive integer, got {count!r}")


def _annealed(model: LatentVariableModel, x: Tensor, q: Distribution, beta: float, z: Tensor) -> Tensor:
    """log of q^(1−β) p(x, z)^β, up to a constant: (K, B)."""
    return (1 - beta) * q.log_prob(z) + beta * (model.prior.log_prob(z) + model.likelihood(z).log_prob(x))


def _hamiltonian_step(log_density: Callable, z: Tensor, scale: Tensor, steps: int, size: float) -> Tensor:
    """Leapfrog from z with a fresh momentum, coordinates in units of `scale`; accepted or not as Metropolis says."""

    @torch.enable_grad()
    def slope(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        value = log_density(z)
        return value.detach(), torch.autograd.grad(value.sum(), z)[0] * scale

    momentum, new = torch.randn_like(z), z
    (before, force), energy = slope(z), 0.5 * momentum.square().sum(-1)
    for _ in range(steps):
        momentum = momentum + 0.5 * size * force
        new = new + size * scale * momentum
        after, force = slope(new)
        momentum = momentum + 0.5 * size * force
    gain = after - 0.5 * momentum.square().sum(-1) - (before - energy)
    return torch.where((torch.rand_like(gain).log() < gain).unsqueeze(-1), new, z)
