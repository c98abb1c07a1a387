"""The named experiments: those of the source documents, and the book's own."""

from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from vae_core.experiments.definition import Experiment

THESIS = dict(batch_size=128, learning_rate=1e-3, weight_decay=1e-5, reduction="sum")
ADAM = dict(batch_size=128, learning_rate=1e-3)
FAST = dict(batch_size=256, learning_rate=2e-2, betas=(0.9, 0.99), schedule="one-cycle")


def _chen() -> Iterator[Experiment]:
    """Yield the thesis's: dense networks over d on MNIST and Fashion-MNIST; dense and convolutional on CIFAR-10."""
    for short, dataset, source, seed in (
        ("mnist", "mnist", "Chen §4.2, listing A.3", 723),
        ("fashion", "fashion-mnist", "Chen §4.3, listing A.4", 237),
    ):
        for d in (2, 5, 10, 15, 20, 25):
            headline: dict[str, Any] = dict(more_seeds=(0, 1), weights=True) if d in (2, 20) else {}
            yield Experiment(f"chen-{short}-d{d}", source, dataset, 20, seed, dict(latent_dim=d), THESIS, **headline)
    source, cnn = "Chen §4.4, Table 4.3", dict(network="conv_vae", latent_dim=256)
    printed = {"loss": 1864.54, "reconstruction": 1847.17, "kl": 17.37}
    yield Experiment("chen-cifar10-fc", source, "cifar10", 25, 723, dict(latent_dim=256), THESIS, (0, 1), printed)
    printed = {"loss": 1822.52, "reconstruction": 1779.06, "kl": 43.46}
    yield Experiment(
        "chen-cifar10-cnn", source, "cifar10", 25, 723, cnn, THESIS, (0, 1), printed, weights=True, track_test=True
    )
    yield Experiment("svhn-cnn", "Chen listing A.2 (loads SVHN, trains nothing on it)", "svhn", 25, 723, cnn, THESIS)


def _irvin() -> Iterator[Experiment]:
    """Yield one tanh layer of 500. Data, optimiser and batch size are not printed; N_z = 2's result is not legible."""
    lowest = {3: (133.74, 136.30), 50: (100.47, 100.78)}
    for d in (2, 3, 50):
        network = dict(latent_dim=d, hidden=(500,), activation="tanh", batch_norm=False)
        printed = dict(zip(("lowest_train_loss", "lowest_test_loss"), lowest.get(d, ()), strict=False))
        yield Experiment(
            f"irvin-z{d}",
            "Irvin §3",
            "mnist",
            550,
            0,
            network,
            dict(batch_size=256, learning_rate=1e-3),
            printed=printed,
            weights=d == 2,
            track_test=True,
        )


def _saleh() -> Iterator[Experiment]:
    """Yield the report's. Activation, optimiser, epochs and seed are not printed but in the author's public code."""
    source, network = "Saleh §4", dict(hidden=(400, 256, 128), batch_norm=False)
    for name, dataset, k, epochs, label in (
        ("saleh-mnist-k2", "mnist", 2, 30, None),
        ("saleh-fashion-k2", "fashion-mnist", 2, 30, None),
        ("saleh-boots-k2", "fashion-mnist", 2, 20, 9),
        ("saleh-boots-k20", "fashion-mnist", 20, 20, 9),
    ):
        settings: dict[str, Any] = dict(more_seeds=(2, 3) if label else (), weights=True, label=label, track_test=True)
        yield Experiment(name, source, dataset, epochs, 1, network | dict(latent_dim=k), ADAM, **settings)
    for kind, k, percent in ((kind, k, p) for k in (2, 10, 50) for p in (0, 10, 30) for kind in ("vae", "autoencoder")):
        name, model = f"saleh-robustness-{kind}-k{k}-n{percent}", dict(network=f"mlp_{kind}", latent_dim=k) | network
        source = "Saleh §4.1.4, robustness"
        yield Experiment(name, source, "mnist", 10, 1, model, ADAM, (2, 3), corruption=percent / 100)


def _this_book() -> Iterator[Experiment]:
    """Yield what the thesis leaves out: binary images, one setting changed at a time, the same loss in less time."""
    for d in (2, 20):
        name, source = f"binary-mnist-d{d}", "this book: Chen §4.2 on binarised MNIST"
        yield Experiment(name, source, "mnist", 20, 723, dict(latent_dim=d), THESIS, binarise=True)
    source, network = "this book: Chen §4.2 at d = 20 with one setting changed", dict(latent_dim=20)
    for change, model, training in (
        ("mean-reduction", {}, dict(reduction="mean")),
        ("no-weight-decay", {}, dict(weight_decay=0.0)),
        ("no-batch-norm", dict(batch_norm=False), {}),
    ):
        yield Experiment(f"ablation-{change}", source, "mnist", 20, 723, network | model, THESIS | training)
    source = "this book: the preset fast"
    yield Experiment("fast-mnist-d20", source, "mnist", 6, 723, network, FAST, (0, 1), kl_warm_up=0.25)


def _beyond() -> Iterator[Experiment]:
    """Yield those of chapters 14 to 17: other likelihoods, weights of the KL, conditions, tighter bounds, on MNIST."""
    network: dict[str, Any] = dict(latent_dim=20)
    source = "this book, chapter 14: Chen §3.5"
    for likelihood in ("continuous_bernoulli", "shared_gaussian", "learned_gaussian"):
        model = network | dict(likelihood=likelihood)
        name = f"bits-mnist-{likelihood.replace('_', '-')}"
        yield Experiment(name, source, "mnist", 20, 723, model, THESIS, dequantise=True)
    model = network | dict(likelihood="discretized_logistic")
    yield Experiment("bits-mnist-discretized-logistic", source, "mnist", 20, 723, model, THESIS)
    source = "this book, chapter 15: lecture notes §1.5"
    for beta in (0.1, 0.3, 3.0, 10.0):
        yield Experiment(f"beta-mnist-{beta:g}", source, "mnist", 20, 723, network, THESIS, beta=beta)
    source = "this book, chapter 16: lecture notes §1.4"
    conditional = dict(network="mlp_conditional_vae", latent_dim=2, condition_dim=10)
    yield Experiment("conditional-mnist-d2", source, "mnist", 20, 723, conditional, THESIS, weights=True)
    source = "this book, chapter 17: Burda et al. (2016)"
    network = dict(latent_dim=50, hidden=(200, 200), activation="tanh", batch_norm=False)
    training = dict(batch_size=100, learning_rate=3e-3, schedule="one-cycle")
    for kind, once in (("iwae", False), ("static-iwae", True)):
        binary: dict[str, Any] = dict(binarise=True, binarise_once=once, weights=not once)
        for k in (1, 5, 50):
            seeds = (1,) if k < 50 and not once else ()
            name = f"{kind}-mnist-k{k}"
            yield Experiment(name, source, "mnist", 20, 0, network, training, seeds, num_samples=k, **binary)


def _controls() -> Iterator[Experiment]:
    """Yield what the chapters' conclusions need in addition: controls, sweeps, more seeds."""
    source, dense = "this book, chapter 12: a control", dict(network="mlp_vae")
    cnn: dict[str, Any] = dict(network="conv_vae", latent_dim=256)
    settings: dict[str, Any] = dict(training=THESIS, more_seeds=(0, 1))
    for d in (64, 128):
        yield Experiment(f"cifar10-fc-d{d}", source, "cifar10", 25, 723, dense | dict(latent_dim=d), **settings)
    yield Experiment("cifar10-cnn-permuted", source, "cifar10", 25, 723, cnn, permute=True, **settings)
    learned = cnn | dict(likelihood="shared_gaussian")
    yield Experiment("bits-cifar10-shared-gaussian", source, "cifar10", 25, 723, learned, dequantise=True, **settings)
    yield from _units_in_use()
    yield Experiment(
        "binary-fashion-d20", "this book, chapter 11: Chen §4.3 on binarised Fashion-MNIST", "fashion-mnist", 20, 237,
        dict(latent_dim=20), THESIS, (0, 1, 2, 3), binarise=True,
    )  # fmt: skip
    for d in (2, 3, 50):
        long = find_in(_irvin(), f"irvin-z{d}")
        short = replace(long, name=f"irvin-z{d}-e100", source="this book, chapter 10: the first 100 epochs of Irvin §3")
        yield replace(short, epochs=100, more_seeds=(1, 2), printed={}, weights=False, snapshots=(40, 94))
    source = "this book, chapter 15: β on binarised MNIST"
    for beta in (0.1, 0.3, 0.6, 1.5, 2.0, 3.0, 5.0, 10.0):  # β = 1 is binary-mnist-d20
        name, model = f"beta-binary-mnist-{beta:g}", dict(latent_dim=20)
        yield Experiment(name, source, "mnist", 20, 723, model, beta=beta, binarise=True, **settings)


def _units_in_use() -> Iterator[Experiment]:
    """Yield variants of Chen §4.2 at d = 20: what decides how many units are active, except prior and decoder?"""
    source = "this book, chapter 09: Chen §4.2 at d = 20, trained another way"
    for change, model, training, warm_up in (
        ("warm-up", {}, {}, 0.25),
        ("warm-up-no-batch-norm", dict(batch_norm=False), {}, 0.25),
        ("rate-3e-4", {}, dict(learning_rate=3e-4), 0.0),
        ("rate-3e-3", {}, dict(learning_rate=3e-3), 0.0),
        ("no-momentum", {}, dict(betas=(0.0, 0.999)), 0.0),
    ):
        yield Experiment(
            f"units-mnist-{change}", source, "mnist", 20, 723, dict(latent_dim=20) | model, THESIS | training,
            (0, 1, 2, 3), kl_warm_up=warm_up,
        )  # fmt: skip


def _residual() -> Iterator[Experiment]:
    """Yield a larger network for a GPU, and the thesis's network with the same likelihood, in bits per dimension."""
    logistic: dict[str, Any] = dict(likelihood="discretized_logistic")
    source, cnn = "this book, chapter 12: a proper likelihood", dict(network="conv_vae", latent_dim=256)
    yield Experiment("bits-cifar10-cnn", source, "cifar10", 25, 723, cnn | logistic, THESIS, (0, 1))
    network = dict(network="residual_vae") | logistic
    for dataset in ("cifar10", "svhn"):
        # with a peak rate of 3e-3 bfloat16 became nan in epochs 6 and 7 (two seeds, H100)
        for ending, precision, rate in (("", "float32", 3e-3), ("-bf16", "bfloat16", 1e-3)):
            model, name = network | dict(precision=precision), f"residual-{dataset}{ending}"
            training = dict(batch_size=128, learning_rate=rate, schedule="one-cycle")
            yield Experiment(name, "this book: a residual network", dataset, 20, 0, model, training, (1,))


def find_in(experiments: Iterator[Experiment], name: str) -> Experiment:
    """Return the experiment with this name among these."""
    return next(experiment for experiment in experiments if experiment.name == name)


DIGITS = Experiment(
    "digits-d2", "this book, chapter 00", "digits", 60, 0, dict(latent_dim=2, hidden=(256, 128)), dict(batch_size=64)
)
EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        *(DIGITS, *_chen(), *_irvin(), *_saleh(), *_this_book(), *_beyond()),
        *(*_controls(), *_residual()),
    )
}


def find(name: str) -> Experiment:
    """Return the experiment with this name. Raise ValueError for an unknown one, with the names spelt most like it."""
    if name not in EXPERIMENTS:
        near = ", ".join(get_close_matches(str(name), EXPERIMENTS))
        perhaps = f"perhaps {near}? " if near else ""
        raise ValueError(f"unknown experiment {name!r}; {perhaps}`python -m vae_core list` shows all")
    return EXPERIMENTS[name]
