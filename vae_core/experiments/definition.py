"""What defines an experiment: network, data, settings, seeds; what a record keeps of them; what it costs."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vae_core.experiments.residual import residual_vae
from vae_core.models import Autoencoder, conv_vae, mlp_autoencoder, mlp_conditional_vae, mlp_vae

NETWORKS: dict[str, Callable[..., Autoencoder]] = {
    "mlp_vae": mlp_vae,
    "conv_vae": conv_vae,
    "mlp_autoencoder": mlp_autoencoder,
    "mlp_conditional_vae": mlp_conditional_vae,
    "residual_vae": residual_vae,
}
IMAGES = {  # number of training images, and their shape
    "digits": (1437, (1, 8, 8)),
    "mnist": (60_000, (1, 28, 28)),
    "fashion-mnist": (60_000, (1, 28, 28)),
    "cifar10": (50_000, (3, 32, 32)),
    "svhn": (73_257, (3, 32, 32)),
}
ALWAYS_IN_CONFIG = ("name", "source", "dataset", "model", "training")
NOT_IN_CONFIG = ("printed", "weights", "snapshots", "more_seeds")  # no result of a run depends on them


@dataclass(frozen=True)
class Experiment:
    """One experiment: everything that determines its run, except the machine.

    Every field that is not in `NOT_IN_CONFIG` determines a run's results, and is part of its config.

    Args:
        name: what the command line calls it.
        source: the document and section that it belongs to.
        dataset: a name in `data.NAMES`, or `folder:NAME`.
        epochs: passes over the training images.
        seed: its own seed.
        model: the arguments of a function of `models`, which the key `network` names (`mlp_vae` without it).
        training: arguments of `training.fit`.
        more_seeds: those that `reproduce` runs too.
        printed: what the source printed, by the names of a record's test figures.
        weights: whether a complete run keeps its weights.
        label: the only class of images that is used; None uses all.
        corruption: the share of training pixels that `evaluation.add_outliers` changes.
        binarise: whether every pixel is drawn again for each batch, as 1 with the probability of its grey value; the
            record then has log p(x) too.
        binarise_once: whether these draws are made once, before training.
        kl_warm_up: the share of training over which the KL's weight rises to 1.
        track_test: whether every epoch ends with a test.
        dequantise: whether uniform noise is added, so that a density of the pixels bounds the probability of their 256
            levels.
        beta: the weight of the KL.
        num_samples: K; above 0, the importance-weighted bound with K draws is maximised, from an output bias at the
            logit of the training images' mean.
        permute: whether the pixels of all images are put into one fixed random order.
        image_shape: (C, H, W) where the data set is a folder of images, which `IMAGES` does not list.
        snapshots: the epochs after which a complete run of any seed keeps its weights.
    """

    name: str
    source: str
    dataset: str
    epochs: int
    seed: int
    model: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    more_seeds: tuple[int, ...] = ()
    printed: dict[str, float] = field(default_factory=dict)
    weights: bool = False
    label: int | None = None
    corruption: float = 0.0
    binarise: bool = False
    binarise_once: bool = False
    kl_warm_up: float = 0.0
    track_test: bool = False
    dequantise: bool = False
    beta: float = 1.0
    num_samples: int = 0
    permute: bool = False
    image_shape: tuple[int, int, int] | None = None
    snapshots: tuple[int, ...] = ()

    def config(self, epochs: int, seed: int) -> dict[str, Any]:
        """Return what determines a run's results, for a record; newer fields appear only if they are not defaults."""
        always = (*ALWAYS_IN_CONFIG, "epochs", "seed")
        own = {name: getattr(self, name) for name in ALWAYS_IN_CONFIG}
        for f in fields(self):
            if f.name not in (*always, *NOT_IN_CONFIG) and getattr(self, f.name) != f.default:
                own[f.name] = getattr(self, f.name)
        return json.loads(json.dumps(own | {"epochs": epochs, "seed": seed}))

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds that `reproduce` runs, its own first."""
        return self.seed, *self.more_seeds

    def network(self) -> Autoencoder:
        """Return the untrained model, initialised from torch's random state."""
        arguments, shape = dict(self.model), self.image_shape or IMAGES[self.dataset][1]
        return NETWORKS[arguments.pop("network", "mlp_vae")](shape, **arguments)

    @property
    def cost(self) -> float:
        """Floating-point operations of training, 6 per multiply-add, image and epoch (forward 2, backward 4)."""
        n = IMAGES[self.dataset][0] if self.label is None else IMAGES[self.dataset][0] // 10
        return 6.0 * multiply_adds(self.network, max(self.num_samples, 1)) * n * self.epochs


def multiply_adds(make: Callable[[], Any], num_samples: int = 1) -> int:
    """Return the multiply-adds of one image's pass through the model that `make()` builds, as torch counts them.

    The image is encoded once, and `num_samples` codes are decoded. Only products and convolutions count.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # keeps the caller's random state
        model = make().eval()
        with FlopCounterMode(display=False) as counter:
            x = torch.zeros(1, *model.input_shape)
            model = model.given(torch.zeros(model.condition_dim)) if hasattr(model, "given") else model
            z = model.posterior(x).mean if hasattr(model, "posterior") else model.encode(x)
            model.likelihood(z.expand(num_samples, *z.shape))
    return counter.get_total_flops() // 2
