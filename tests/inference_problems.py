"""Linear models whose posteriors are known."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal

from vae_core.distributions import diagonal_normal, kl_divergence, standard_normal

SVI_ERROR = 0.01  # nats, the worst of 300 data: `fit_posterior` with its defaults against the optimum


class Linear(nn.Module):
    """x = Wz + b + noise of variance σ²; its own q is the best diagonal one, moved and widened by `off`."""

    def __init__(self, weight: Tensor, off: float = 0.0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.zeros(len(weight)))
        self.log_noise, self.off, self.dropout = nn.Parameter(torch.tensor(-1.0)), off, nn.Dropout(0.5)
        self.modes, self.grown = [], []  # of each call: whether in training mode, whether z drags a graph along

    @property
    def prior(self) -> Independent:
        return standard_normal(self.weight.shape[1], like=self.weight)

    def likelihood(self, z: Tensor) -> Independent:
        self.modes.append(self.dropout.training)
        self.grown.append(z.grad_fn is not None and not torch.is_grad_enabled())
        mean = z @ self.weight.T + self.bias
        return diagonal_normal(mean, self.log_noise.expand_as(mean))

    def posterior(self, x: Tensor) -> Independent:
        mean = self.exact_posterior(x).mean
        log_variance = -self.precision.diagonal().log() + self.off
        return diagonal_normal(mean + self.off, log_variance.expand_as(mean))

    @property
    def precision(self) -> Tensor:
        """M = I + WᵀW/σ²."""
        return torch.eye(self.weight.shape[1]) + self.weight.T @ self.weight / self.log_noise.exp()

    def exact_posterior(self, x: Tensor) -> MultivariateNormal:
        mean = torch.linalg.solve(self.precision, ((x - self.bias) @ self.weight / self.log_noise.exp()).T).T
        return MultivariateNormal(mean, precision_matrix=self.precision)

    def log_prob(self, x: Tensor) -> Tensor:
        covariance = self.weight @ self.weight.T + self.log_noise.exp() * torch.eye(len(self.weight))
        return MultivariateNormal(self.bias, covariance).log_prob(x)

    def exact_elbo(self, x: Tensor, q: Independent) -> Tensor:
        return self.log_prob(x) - kl_divergence(q, self.exact_posterior(x))

    def mean_field_gap(self) -> Tensor:
        """½(Σ log M_jj − log det M): what the best diagonal q misses (E-D7)."""
        return 0.5 * (self.precision.diagonal().log().sum() - torch.logdet(self.precision))


X = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


STRAIGHT = torch.linalg.qr(torch.randn(5, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q


STRAIGHT = STRAIGHT * torch.tensor([1.2, 0.5])


SKEW = STRAIGHT @ torch.tensor([[1.0, 0.6], [0.3, 1.0]]).double()


@pytest.fixture(params=[STRAIGHT, SKEW], ids=["orthogonal", "skew"])
def linear(request) -> Linear:
    return Linear(request.param.clone())
