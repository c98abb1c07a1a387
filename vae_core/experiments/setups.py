"""The parts of an experiment: its model, its images, and what it maximises on them."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from vae_core.data import Dataset, load
from vae_core.evaluation import add_outliers
from vae_core.experiments.definition import IMAGES, Experiment
from vae_core.models import VAE, Autoencoder, ConditionalVAE
from vae_core.objectives import beta_elbo_terms, elbo_terms, iwae_bound, linear_warm_up, reconstruction_log_likelihood
from vae_core.runtime import seed_everything, unit_interval

DENSITIES = ("continuous_bernoulli", "gaussian", "shared_gaussian", "learned_gaussian")


def prepare(experiment: Experiment, dataset: Dataset, seed: int) -> Dataset:
    """Return the images of the experiment: of its class, training ones corrupted or binarised, pixels permuted."""
    dataset = of_class(experiment, dataset)
    if experiment.corruption:
        dataset = replace(dataset, x_train=add_outliers(dataset.x_train, experiment.corruption, seed))
    if experiment.binarise_once:
        binary = torch.bernoulli(unit_interval(dataset.x_train), generator=torch.Generator().manual_seed(seed + 1))
        dataset = replace(dataset, x_train=(255 * binary).byte())
    if experiment.permute:
        dataset = replace(dataset, x_train=permuted(dataset.x_train), x_test=permuted(dataset.x_test))
    return dataset


def of_class(experiment: Experiment, dataset: Dataset) -> Dataset:
    """Return the images of the experiment's class; all of them if it has none."""
    if experiment.label is None:
        return dataset
    train, test = dataset.y_train == experiment.label, dataset.y_test == experiment.label
    x, y = (dataset.x_train[train], dataset.x_test[test]), (dataset.y_train[train], dataset.y_test[test])
    return replace(dataset, x_train=x[0], y_train=y[0], x_test=x[1], y_test=y[1])


def on_folder(experiment: Experiment, data: str) -> Experiment:
    """Return the experiment with its network and settings, on the images of a folder: its data set is `folder:NAME`.

    NAME is the folder's name, not its path, which would differ on another machine.

    Raises:
        ValueError: unless `data` is `"folder:PATH"`.
    """
    if not isinstance(data, str) or not data.startswith("folder:"):
        raise ValueError(f"data must be 'folder:PATH', a folder of images, got {data!r}; --data-root is for data sets")
    name = Path(data.removeprefix("folder:")).expanduser().resolve().name
    plain = re.sub(r"[^\w-]+", "-", name)[:40]
    return replace(experiment, dataset=f"folder:{plain}", image_shape=IMAGES[experiment.dataset][1])


def with_folder(experiment: Experiment, data: str, root: str | Path | None) -> tuple[Experiment, Dataset]:
    """Return the experiment `on_folder`, and the images in this folder, with the experiment's size and channels.

    If a last batch of a single image would remain, `drop_last` leaves it out of each epoch: batch norm needs two.

    Raises:
        ValueError: for an experiment that needs classes which the folder does not have, and for fewer than two training
            or test images; and what `data.from_folder` raises.
    """
    channels, size, _ = IMAGES[experiment.dataset][1]
    moved, dataset = on_folder(experiment, data), load(data, root, size=size, grey=channels == 1)
    if problem := _missing_classes(experiment, dataset) or _too_few(experiment, dataset):
        raise ValueError(f"the experiment {experiment.name} {problem}")
    if len(of_class(experiment, dataset).x_train) % experiment.training["batch_size"] == 1:
        moved = replace(moved, training=moved.training | {"drop_last": True})
    return moved, dataset


def _missing_classes(experiment: Experiment, dataset: Dataset) -> str | None:
    """Return, in words, which classes the experiment needs and its images do not have; None if there are none."""
    n, label, conditions = len(dataset.class_names), experiment.label, experiment.model.get("condition_dim")
    found = f"but {dataset.name} has {n or 'no'} sub-folders of images"
    if conditions is not None and n != conditions:
        return f"needs {conditions} classes, {found}; give another folder, or an experiment without conditions"
    if label is not None and label >= n:
        return f"trains on class {label} alone, sub-folder number {label + 1}, {found}; give one with {label + 1}"
    return None


def _too_few(experiment: Experiment, dataset: Dataset) -> str | None:
    """Return, in words, why the images are too few (batch norm and standard errors need two); None if they are not."""
    chosen = of_class(experiment, dataset)
    train, test = len(chosen.x_train), len(chosen.x_test)
    counts = f"{dataset.name} has {train} and {test}"
    if experiment.label is not None:
        counts += f" in sub-folder {dataset.class_names[experiment.label]!r}"
    return f"needs two training and two test images, but {counts}; add images" if min(train, test) < 2 else None


def permuted(x: Tensor) -> Tensor:
    """Return images (N, C, H, W) with their pixels in a random order, the same for all images, channels and runs."""
    order = torch.randperm(x[0, 0].numel(), generator=torch.Generator().manual_seed(0))
    return x.flatten(2)[..., order].reshape(x.shape)


def build(experiment: Experiment, seed: int) -> Autoencoder:
    """Return the untrained model, initialised from `seed`."""
    seed_everything(seed)
    return experiment.network()


def objective_of(experiment: Experiment, model: nn.Module) -> tuple[Callable, Callable[[float], float] | None]:
    """Return what the experiment maximises, called as `training.fit` does, and its schedule of the KL's weight or None.

    Raises:
        ValueError: for settings that do not go together.
    """
    if problem := _contradiction(experiment, model):
        raise ValueError(f"the experiment {experiment.name} asks for {problem}")
    objective: Callable = bound_of(experiment, model)
    if isinstance(model, ConditionalVAE):
        objective = partial(of_conditional, objective)
    if noise := noise_of(experiment):
        objective = partial(of_noisy_images, objective, noise)
    if not experiment.kl_warm_up:
        return objective, None
    rise = linear_warm_up(experiment.kl_warm_up)
    return objective, lambda progress: experiment.beta * rise(progress)


def bound_of(experiment: Experiment, model: nn.Module) -> Callable:
    """Return the objective for images as they are; with a warm-up it takes the KL's weight as well."""
    if not isinstance(model, VAE):
        return reconstruction_log_likelihood
    if experiment.num_samples:
        return partial(iwae_bound, num_samples=experiment.num_samples)
    if experiment.kl_warm_up:
        return beta_elbo_terms
    return elbo_terms if experiment.beta == 1 else partial(beta_elbo_terms, beta=experiment.beta)


def noise_of(experiment: Experiment) -> Callable[[Tensor], Tensor] | None:
    """Return the function that draws each batch of training images from the stored ones; None without noise."""
    if experiment.dequantise:
        return dequantised
    return torch.bernoulli if experiment.binarise and not experiment.binarise_once else None


def _contradiction(experiment: Experiment, model: nn.Module) -> str | None:
    """Return, in words, two settings of which one would be ignored; None if there are none."""
    weighted = experiment.kl_warm_up or experiment.beta != 1
    if experiment.num_samples and weighted:
        return "num_samples with beta or kl_warm_up, but the importance-weighted bound has no KL of its own to weight"
    if not isinstance(model, VAE) and (weighted or experiment.num_samples):
        return "beta, kl_warm_up or num_samples for an auto-encoder, which has no KL and draws no codes"
    if experiment.dequantise and (experiment.binarise or experiment.binarise_once):
        return "dequantise with binarise, but binary images have no grey levels to spread; set one of them"
    if experiment.binarise_once and not experiment.binarise:
        return "binarise_once without binarise, so that its test images would stay grey; set both"
    return _without_likelihood(experiment, model)


def _without_likelihood(experiment: Experiment, model: nn.Module) -> str | None:
    """A setting that the likelihood or the decoder gives no sense to, in words."""
    likelihood = experiment.model.get("likelihood", "bernoulli")
    if experiment.dequantise and likelihood not in DENSITIES:
        return f"dequantise with the likelihood {likelihood}, but only a density bounds the probability of grey levels"
    if experiment.num_samples:
        *_, last = model.get_submodule("decoder").modules()
        if likelihood != "bernoulli" or not isinstance(last, nn.Linear):
            return "num_samples, which starts at the mean image, without a dense decoder of one logit per pixel"
    return None


def conditions(model: nn.Module, y: Tensor) -> Tensor | None:
    """Return the labels, one-hot, for a conditional model; None for any other model."""
    return one_hot(y, model.condition_dim).float() if isinstance(model, ConditionalVAE) else None


def of_conditional(bound: Callable, model: ConditionalVAE, x: Tensor, y: Tensor, *further: Tensor) -> Any:
    """Return a bound on log p(x|y).

    Source: lecture notes (27).
    """
    return bound(model.given(y), x, *further)


def start_at_mean_image(model: Autoencoder, x: Tensor) -> None:
    """Set the decoder's output bias so that it starts with the mean image: the logit of each pixel's mean.

    Otherwise the first epochs are spent on learning that the border is black.

    Source: Burda et al. (2016), their code.
    """
    mean = unit_interval(x).mean(0).flatten().clamp(1e-3, 1 - 1e-3)
    *_, last = (module for module in model.decoder.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        last.bias.copy_(torch.logit(mean))


def test_images(experiment: Experiment, dataset: Dataset, seed: int) -> Tensor:
    """Return the test images as floats in [0, 1]; binarised once, if the experiment is about binary images."""
    x, draws = unit_interval(dataset.x_test), torch.Generator().manual_seed(seed)
    if experiment.dequantise:
        return dequantised(x, draws)
    return torch.bernoulli(x, generator=draws) if experiment.binarise else x


def dequantised(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Return grey levels k/255 as real numbers, (k + u)/256 with u uniform on [0, 1).

    A density of them bounds the levels' probability: E log P(k) ≥ E log p(x) − D log 256.

    Source: Uria et al. (2013); Theis et al. (2016) §3.1.
    """
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return (x * 255 + u) / 256


def of_noisy_images(
    bound: Callable, noise: Callable[[Tensor], Tensor], model: Autoencoder, x: Tensor, *further: Tensor
) -> Any:
    """Return a bound for images that are drawn from grey ones in each step: binary, or dequantised.

    Source: Salakhutdinov and Murray (2008) for the binary ones.
    """
    return bound(model, noise(x), *further)
