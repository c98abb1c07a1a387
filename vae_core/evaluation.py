"""Figures on held-out data. Models are put in evaluation mode for it and left as they were."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from vae_core.objectives import elbo_terms


def evaluate(
    model: nn.Module, x: Tensor, num_samples: int = 1, kl: str = "analytic", seed: int = 0, batch_size: int = 1000
) -> dict[str, float]:
    """The mean loss over held-out images and its two terms, nats per datum.

    Returns `{"loss", "reconstruction", "kl", "n"}` with loss = reconstruction + kl = minus the mean ELBO,
    estimated with `num_samples` sampled codes per image. `x` is float in [0, 1], (N, C, H, W). The same
    seed gives the same figures; over seeds a one-sample test loss of 10,000 images moves by about 0.05.
    The caller's random state is left as it was. On grey pixels the Bernoulli loss is no log-likelihood.

    Raises ValueError for images of another shape than the model's, or for none.
    Source: Chen §4.1, listing A.2 (one sampled code, batch norm by its running averages).
    """
    if len(x) == 0:
        raise ValueError("x must hold at least one image, got none")
    device = next(model.parameters()).device
    sums = {"reconstruction": 0.0, "kl": 0.0}
    with _evaluation_mode(model), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        for batch in x.split(batch_size):
            _, terms = elbo_terms(model, batch.to(device), num_samples, kl)
            for name in sums:
                sums[name] += terms[name].double().sum().item()
    means = {name: total / len(x) for name, total in sums.items()}
    return {"loss": means["reconstruction"] + means["kl"], **means, "n": len(x)}


def kl_per_unit(model: nn.Module, x: Tensor, batch_size: int = 1000) -> Tensor:
    r"""The mean KL of each latent unit over images, (d,), nats; their sum is the mean KL.

    .. math:: \frac1N\sum_n \mathrm{KL}\big(q(z_j|x_n)\,\|\,\mathcal N(0,1)\big)

    For models whose posterior is a factorised Gaussian and whose prior is N(0, I). A unit is called active
    where this exceeds 0.01 nats. `x` is float in [0, 1], (N, C, H, W); raises ValueError for no images.
    Source: Saleh §4.2.2 asks the question (by column sums of the decoder); Burda et al. (2016) §5.3.
    """
    if len(x) == 0:
        raise ValueError("x must hold at least one image, got none")
    device = next(model.parameters()).device
    total = 0.0
    with _evaluation_mode(model):
        for batch in x.split(batch_size):
            q = model.posterior(batch.to(device)).base_dist
            total = total + torch.distributions.kl_divergence(q, Normal(0.0, 1.0)).double().sum(0)
    return total / len(x)


def entropy_floor(x: Tensor) -> float:
    r"""The least Bernoulli reconstruction error that any decoder can reach on these images; nats per datum.

    .. math:: \frac1N\sum_n\sum_j -x_{nj}\log x_{nj} - (1-x_{nj})\log(1-x_{nj})

    It is 0 for binary images, and 45.53 for MNIST's grey test images: the cross entropy of a pixel x with
    a probability s is smallest at s = x, and is the entropy of x there. `x` is float in [0, 1],
    (N, C, H, W). Raises ValueError for values outside [0, 1] or no images.
    """
    if len(x) == 0 or x.min() < 0 or x.max() > 1:
        raise ValueError(f"x must hold images with values in [0, 1], got shape {tuple(x.shape)}")
    return -(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x)).double().sum().item() / len(x)


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
