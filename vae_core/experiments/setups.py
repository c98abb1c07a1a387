"""What a named experiment is made of: its model, its images, and what it maximises on them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from vae_core.data import Dataset
from vae_core.evaluation import add_outliers
from vae_core.experiments.registry import Experiment
from vae_core.models import VAE, Autoencoder, ConditionalVAE
from vae_core.objectives import beta_elbo_terms, elbo_terms, iwae_bound, linear_warm_up, reconstruction_log_likelihood
from vae_core.runtime import seed_everything, unit_interval


def prepare(experiment: Experiment, dataset: Dataset, seed: int) -> Dataset:
    """The images that the experiment is about: those of its class, the training ones corrupted, or binarised once."""
    if experiment.label is not None:
        train, test = dataset.y_train == experiment.label, dataset.y_test == experiment.label
        x, y = (dataset.x_train[train], dataset.x_test[test]), (dataset.y_train[train], dataset.y_test[test])
        dataset = replace(dataset, x_train=x[0], y_train=y[0], x_test=x[1], y_test=y[1])
    if experiment.corruption:
        dataset = replace(dataset, x_train=add_outliers(dataset.x_train, experiment.corruption, seed))
    if experiment.binarise_once:
        binary = torch.bernoulli(unit_interval(dataset.x_train), generator=torch.Generator().manual_seed(seed + 1))
        dataset = replace(dataset, x_train=(255 * binary).byte())
    return dataset


def build(experiment: Experiment, seed: int) -> Autoencoder:
    """The untrained model, initialised from `seed`."""
    seed_everything(seed)
    return experiment.network()


def objective_of(experiment: Experiment, model: nn.Module) -> tuple[Callable, Callable[[float], float] | None]:
    """What the experiment maximises, and how its KL's weight changes, if it does."""
    if experiment.kl_warm_up:
        return beta_elbo_terms, linear_warm_up(experiment.kl_warm_up)
    if isinstance(model, ConditionalVAE):
        return conditional_elbo_terms, None
    if not isinstance(model, VAE):
        return reconstruction_log_likelihood, None
    bound: Callable = elbo_terms if experiment.beta == 1 else partial(beta_elbo_terms, beta=experiment.beta)
    if experiment.num_samples:
        bound = partial(iwae_bound, num_samples=experiment.num_samples)
    anew = torch.bernoulli if experiment.binarise and not experiment.binarise_once else None
    if noise := dequantised if experiment.dequantise else anew:
        return partial(of_noisy_images, bound, noise), None
    return bound, None


def conditions(model: nn.Module, y: Tensor) -> Tensor | None:
    """What a conditional model is told of labels: them, one-hot. None for any other model."""
    return one_hot(y, model.condition_dim).float() if isinstance(model, ConditionalVAE) else None


def conditional_elbo_terms(model: ConditionalVAE, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The bound on log p(x|y). Source: lecture notes (27)."""
    return elbo_terms(model.given(y), x)


def start_at_mean_image(model: Autoencoder, x: Tensor) -> None:
    """Set the decoder's output bias so that it begins with the mean image: the logit of each pixel's mean.

    Without it the first epochs go into learning that the border is black. Source: Burda et al. (2016), their code.
    """
    mean = unit_interval(x).mean(0).flatten().clamp(1e-3, 1 - 1e-3)
    *_, last = (module for module in model.decoder.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        last.bias.copy_(torch.logit(mean))


def test_images(experiment: Experiment, dataset: Dataset, seed: int) -> Tensor:
    """The test images as floats in [0, 1]; binarised once, if the experiment is about binary images."""
    x, draws = unit_interval(dataset.x_test), torch.Generator().manual_seed(seed)
    if experiment.dequantise:
        return dequantised(x, draws)
    return torch.bernoulli(x, generator=draws) if experiment.binarise else x


def dequantised(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Grey levels k/255 as reals, (k + u)/256 with u uniform on [0, 1).

    A density of them bounds the levels' probability: E log P(k) ≥ E log p(x) − D log 256.
    Source: Uria et al. (2013); Theis et al. (2016) §3.1.
    """
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return (x * 255 + u) / 256


def of_noisy_images(bound: Callable, noise: Callable[[Tensor], Tensor], model: VAE, x: Tensor):
    """A bound for images that are drawn anew, each time, from grey ones: binary, or dequantised.

    Source of the binary ones: Salakhutdinov and Murray (2008).
    """
    return bound(model, noise(x))
