"""The figures of a run: losses after an epoch and at the end, and further measures of some experiments."""

from math import log

from torch import Tensor

from vae_core.data import Dataset
from vae_core.evaluation import (
    add_outliers,
    entropy_floor,
    evaluate,
    kl_per_unit,
    log_likelihood,
    reconstruction_at_code,
    reconstruction_mse,
    with_batch_statistics,
)
from vae_core.experiments.definition import Experiment
from vae_core.experiments.records import LOSSES
from vae_core.experiments.setups import conditions, noise_of
from vae_core.models import VAE, Autoencoder, ConditionalVAE
from vae_core.runtime import device_of, random_state, unit_interval
from vae_core.training import History


def bits_per_dimension(loss: float, n_pixels: int, dequantised: bool) -> float:
    r"""Return a loss in nats as bits per pixel with 256 levels; for a density of dequantised pixels, of the levels.

    .. math:: \frac{\text{loss}}{D\log 2} \quad\text{or}\quad \frac{\text{loss} + D\log 256}{D\log 2}

    Args:
        loss: nats per image.
        n_pixels: D.
        dequantised: whether the loss is that of a density of dequantised pixels.
    """
    return loss / n_pixels / log(2) + 8 * dequantised


def importance_sampled(model: VAE, x: Tensor, seed: int, num_samples: int = 1000) -> dict[str, float]:
    """Return the mean importance-sampled log p(x) of test images, nats, and its standard error over images."""
    values = log_likelihood(model, x, num_samples, seed)
    error = (values.std() / len(x) ** 0.5).item()
    return {"log_likelihood": values.mean().item(), "log_likelihood_error": error, "importance_samples": num_samples}


def losses(model: Autoencoder, x: Tensor, seed: int, batch_size: int = 1000) -> dict[str, float]:
    """Return the loss and its terms on images, nats per datum; the KL of an autoencoder is 0."""
    if isinstance(model, VAE):
        figures = evaluate(model, x, seed=seed, batch_size=batch_size)
        return {name: figures[name] for name in LOSSES}
    error = reconstruction_at_code(model, x)
    return {"loss": error, "reconstruction": error, "kl": 0.0}


def losses_of(model: Autoencoder, x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
    """Return `losses`; a conditional model gets the images' labels, all at once."""
    told = conditions(model, y)
    if isinstance(model, ConditionalVAE) and told is not None:
        return losses(model.given(told), x, seed, batch_size=len(x))
    return losses(model, x, seed)


def training_losses(
    experiment: Experiment, dataset: Dataset, seed: int, model: Autoencoder, at_once: int = 10_000
) -> dict[str, float]:
    """Return `losses_of` training images as the objective sees them (binarised, dequantised), in evaluation mode."""
    sums, noise, device = dict.fromkeys(LOSSES, 0.0), noise_of(experiment), device_of(model)
    for k, (x, y) in enumerate(zip(dataset.x_train.split(at_once), dataset.y_train.split(at_once), strict=True)):
        x = unit_interval(x.to(device))
        with random_state(seed + k):
            x = noise(x) if noise else x
        for name, value in losses_of(model, x, y, seed + k).items():
            sums[name] += value * len(x) / len(dataset.x_train)
    return sums


def test(model: Autoencoder, x: Tensor, seed: int, batch_size: int) -> dict[str, float]:
    """Return figures on test images: losses, n, entropy floor, squared error per pixel; active units of a VAE."""
    figures = losses(model, x, seed, batch_size) | {"n": len(x), "entropy_floor": entropy_floor(x)}
    figures["mse"] = reconstruction_mse(model, x, batch_size=batch_size)
    if isinstance(model, VAE):
        figures["active_units"] = int((kl_per_unit(model, x, batch_size) > 0.01).sum())
        figures["loss_at_mean_code"] = reconstruction_at_code(model, x, batch_size) + figures["kl"]
        with_batch = with_batch_statistics(model)
        figures["loss_with_batch_statistics"] = losses(with_batch, x, seed, batch_size)["loss"]
    return figures


def tested(experiment: Experiment, model: Autoencoder, dataset: Dataset, x_test: Tensor, seed: int) -> dict[str, float]:
    """Return the figures of `test`, and those of this experiment alone.

    These are the error from corrupted images, an importance-sampled log p(x), or bits per dimension.
    """
    y_test = conditions(model, dataset.y_test)
    if isinstance(model, ConditionalVAE) and y_test is not None:
        figures = test(model.given(y_test), x_test, seed, len(x_test))  # all at once, each with its y
    else:
        figures = test(model, x_test, seed, 1000)
    if experiment.corruption:
        noisy = unit_interval(add_outliers(dataset.x_test, experiment.corruption, seed + 1))
        figures["mse_from_corrupted"] = reconstruction_mse(model, noisy, x_test)
    if experiment.binarise and isinstance(model, VAE):
        figures |= importance_sampled(model, x_test, seed)
    if experiment.dequantise or experiment.model.get("likelihood") == "discretized_logistic":
        bits = bits_per_dimension(figures["loss"], x_test[0].numel(), experiment.dequantise)
        figures["bits_per_dimension"] = bits
    return figures


def lowest(history: History) -> dict[str, float]:
    """Return the lowest training and test loss of any epoch, if every epoch was tested (as Irvin reports them)."""
    if not history or "test_loss" not in history[0]:
        return {}
    names = {"lowest_train_loss": "loss", "lowest_test_loss": "test_loss"}
    return {name: min(row[key] for row in history) for name, key in names.items()}
