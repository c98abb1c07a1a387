"""Early stopping: a validation loss after each epoch, and the parameters of the epoch where it was lowest."""

import copy
from collections.abc import Callable
from math import inf
from typing import Any

from torch import Tensor, nn

from vae_core.runtime import check_seed, positive_int, random_state

Loss = Callable[[], float]


class EarlyStopping:
    r"""Pass it to `fit` as `after_epoch` to stop training when the validation loss no longer falls.

    .. code-block:: python

        stop = EarlyStopping(x_validation, patience=5)
        history = fit(model, x, objective, epochs=500, after_epoch=stop)

    Each row of the history gets `validation_loss`: minus the mean of the objective that is trained, over the validation
    data, in evaluation mode, in batches of the training's size, with the same random numbers each time, nats per datum.
    An annealed objective gets its weight at the end of training. Training stops after `patience` epochs in a row
    without a new lowest value (nan never is one). However training ends, even by Ctrl-C or an error, the model then has
    the parameters and buffers of the best epoch, if an epoch was completed.

    A checkpoint holds the best state too, and a resumed run stops where it would have stopped; it may have another
    `patience`. Several processes stop together, by the loss of the first one. An object may be used again: each `fit`
    resets it.

    Args:
        x: validation data, of the kinds that `fit` takes.
        y: their labels or conditions, if `fit` gets labels or conditions.
        patience: a number of epochs, 1 or more.
        seed: of the random numbers of each evaluation.

    Attributes:
        best_epoch: the number of the best epoch, from 1; 0 before there is one.
        best_loss: its validation loss, nats per datum.

    Raises:
        ValueError: The patience or seed is out of range. Data and labels are checked when `fit` starts.

    Source: Goodfellow, Bengio and Courville (2016), algorithm 7.1.
    """

    def __init__(self, x: Any, *, y: Any = None, patience: int = 5, seed: int = 0) -> None:
        check_seed(seed)
        self.x, self.y, self.patience, self.seed = x, y, positive_int("patience", patience), int(seed)
        self.start(None, {})

    def start(self, loss: Loss | None, state: dict[str, Any]) -> None:
        """Start or resume a run.

        Args:
            loss: computes the validation loss of the model as it is.
            state: from a checkpoint; empty for a new run.
        """
        self._loss = loss
        self.epoch: int = state.get("epoch", 0)
        self.best_epoch: int = state.get("best_epoch", 0)
        self.best_loss: float = state.get("best_loss", inf)
        self.best: dict[str, Tensor] = state.get("model", {})

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return the epoch's `validation_loss`, and keep the model's state if it is the lowest so far."""
        if self._loss is None:
            raise ValueError("EarlyStopping must be passed to fit itself, as after_epoch=stop")
        with random_state(self.seed):
            loss = self._loss()
        self.epoch += 1
        if loss < self.best_loss:
            self.best_epoch, self.best_loss, self.best = self.epoch, loss, copy.deepcopy(model.state_dict())
        return {"validation_loss": loss}

    @property
    def stopped(self) -> bool:
        """Whether the last `patience` epochs had no new lowest loss."""
        return self.epoch - self.best_epoch >= self.patience

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this object."""
        kept = {"epoch": self.epoch, "best_epoch": self.best_epoch, "best_loss": self.best_loss}
        return kept | {"model": self.best}

    def finish(self, model: nn.Module) -> None:
        """Load the best state into the model, if there is one, and release the validation data."""
        self._loss = None
        if self.best:
            model.load_state_dict(self.best)
