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
NOT_IN_CONFIG = ("printed", "weights", "snapshots", "more_seeds")  # no figure of a run depends on them


@dataclass(frozen=True)
class Experiment:
    """One experiment, complete but for the machine.

    `model` are the arguments of a function of `models`, which its key `network` names (`mlp_vae` without it);
    `training` those of `fit`. `seed` is its own, `more_seeds` are those that `reproduce` runs beside it.
    `label` keeps the images of one class only; `corruption` is the share of training pixels that
    `evaluation.add_outliers` hits; `binarise` draws every pixel anew for each batch, 1 with the probability that its
    grey value gives, and reports log p(x) too; with `binarise_once` the training images are drawn once and stay so;
    `kl_warm_up` is the share of training over which the KL's weight rises to 1; `track_test` tests after every
    epoch; `dequantise` adds uniform noise, so that a density of the pixels bounds the probability of their 256
    levels; `beta` weights the KL; with `num_samples` K > 0 the importance-weighted bound with K draws is maximised,
    from an output bias at the logit of the training images' mean; `permute` puts the pixels of all images into one
    fixed random order; `image_shape` (C, H, W) is set where the data set is a folder of one's own, none of `IMAGES`.
    `printed` holds what the source printed, by the names of a record's test figures; `weights` says whether a whole run
    keeps them, `snapshots` after which epochs a whole run of any seed does.

    Every field that is not in `NOT_IN_CONFIG` determines a run's figures, and is part of its config.
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
        """What determines a run's figures, as a record keeps it: a new field appears where it is not its default."""
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
        """The untrained model, initialised from torch's random state."""
        arguments, shape = dict(self.model), self.image_shape or IMAGES[self.dataset][1]
        return NETWORKS[arguments.pop("network", "mlp_vae")](shape, **arguments)

    @property
    def cost(self) -> float:
        """Floating-point operations of training: 6 per multiply-add, image and epoch (forward 2, backward 4)."""
        n = IMAGES[self.dataset][0] if self.label is None else IMAGES[self.dataset][0] // 10
        return 6.0 * multiply_adds(self.network, max(self.num_samples, 1)) * n * self.epochs


def multiply_adds(make: Callable[[], Any], num_samples: int = 1) -> int:
    """Return the multiply-adds of one image's way through the model that `make()` builds, as torch counts them.

    The image is encoded once, and `num_samples` codes are decoded. Products and convolutions count, nothing else.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # the caller's random numbers stay as they are
        model = make().eval()
        with FlopCounterMode(display=False) as counter:
            x = torch.zeros(1, *model.input_shape)
            model = model.given(torch.zeros(model.condition_dim)) if hasattr(model, "given") else model
            z = model.posterior(x).mean if hasattr(model, "posterior") else model.encode(x)
            model.likelihood(z.expand(num_samples, *z.shape))
    return counter.get_total_flops() // 2
