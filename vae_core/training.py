"""The one training loop: maximise any objective on a CPU, a CUDA device or several processes."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.optim import Adam, Optimizer
from tqdm.auto import tqdm

from vae_core._checks.inputs import as_images, as_labels
from vae_core._training import checkpoints
from vae_core._training.early_stopping import EarlyStopping
from vae_core._training.epochs import NonFiniteLossError, Schedule, figures_of, one_cycle, train_epoch, training_seed
from vae_core._training.fingerprints import describe, digest_of
from vae_core._training.settings import (
    check_batches,
    check_callables,
    check_model,
    check_numbers,
    find_runtime,
    make_optimizer,
)
from vae_core._training.steps import GraphedStep, Step
from vae_core._training.support import check_data
from vae_core.runtime import Runtime, dtype_of, positive_int, progress_bar, random_state

__all__ = ["EarlyStopping", "History", "NonFiniteLossError", "Objective", "fit", "one_cycle", "training_seed"]

Objective = Callable[..., Tensor | tuple[Tensor, dict[str, Tensor]]]  # of the model, a batch, and what `fit` adds
History = list[dict[str, float]]
VALIDATION = "the validation data"


def fit(
    model: nn.Module,
    x: Any,
    objective: Objective,
    *,
    epochs: int,
    y: Any = None,
    batch_size: int = 128,
    drop_last: bool = False,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    optimizer: Callable[..., Optimizer] = Adam,
    reduction: str = "mean",
    schedule: str = "constant",
    anneal: Callable[[float], float] | None = None,
    seed: int = 0,
    device: str | torch.device | Runtime | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    fingerprint: str | None = None,
    after_epoch: Callable[[nn.Module], dict[str, float] | None] | None = None,
    progress: bool = True,
) -> History:
    r"""Train `model` on the data `x` by stochastic gradient ascent on the objective; return one row per epoch.

    .. math:: \text{loss} = -\frac1{|B|}\sum_{n\in B}\mathcal L(x_n)
              \quad(\texttt{reduction="sum"}: \text{ without } 1/|B|)

    A row holds `epoch` (from 1), `loss` and the objective's terms (training means per datum, nats), `seconds`, and what
    `after_epoch` returns. The same seed on the same machine gives the same parameters, bit for bit on a CPU; the
    caller's random state is unchanged. All modules train in training mode and are in evaluation mode afterwards.
    torch.no_grad and torch.inference_mode around the call have no effect inside it; torch.autocast with bfloat16 has,
    and the weights that it caches are renewed at each step.

    On a CUDA device the data move there once, if they fit, whole steps are captured in a graph (with Adam or AdamW),
    and nothing leaves the device within an epoch. With several processes (`torchrun` and a `device`) each takes its
    part of every batch, and their gradients are averaged (torch's DistributedDataParallel): the same loss as in one
    process, but each draws its own noise, and batch norm normalises by its own part. Buffers, such as batch norm's
    averages, are those of the first process everywhere.

    Nothing is lost when training ends early. Every exception, including KeyboardInterrupt, carries the rows of the
    completed epochs in its attribute `history` (in a notebook: `sys.last_value.history`). After Ctrl-C the model has
    the parameters that it had reached, unless these are not finite; after an error, those of the last complete epoch.
    Either way it is in evaluation mode.

    Args:
        model: any module with parameters to train; it moves to the device.
        x: data (N, ...), images or tables: a tensor, an array or a map-style Dataset, which is read once into memory
            (without its labels: pass them as `y`). uint8 data are divided by 255, batch by batch; others are converted
            to the model's precision. They must lie in the support of the model's likelihood, unless the objective
            transforms them first.
        objective: `objective(model, batch)` returns values (B,) to be maximised, or a pair of these and a dict of
            further (B,) terms to record, as `objectives.elbo_terms` does.
        epochs: the total number of passes over the data, including those before a resumption.
        y: a label or condition for each datum, (N,) or (N, c); the objective gets its batch after that of x.
        batch_size: of a step, over all processes; the last batch of an epoch may be smaller.
        drop_last: leave out a last, smaller batch.
        learning_rate: of the optimizer; the peak of the schedule.
        weight_decay: of the optimizer. With `reduction="sum"`, w acts as w/|B| does with "mean".
        optimizer: called with (parameters, lr=..., weight_decay=...), such as `torch.optim.AdamW` or
            `functools.partial(torch.optim.SGD, momentum=0.9)`.
        reduction: "mean" or "sum" (the thesis' listing).
        schedule: "constant", or "one-cycle": the learning rate rises twenty-five-fold over the first 30 % of all steps
            and falls to zero by the last one.
        anneal: maps progress over all steps, from 0 to 1, to a weight. The objective is called with this weight, a
            scalar tensor, as its last argument: β for `objectives.beta_elbo_terms`.
        seed: of shuffling and noise, 0 to 2³² − 1.
        device: "cpu", "cuda", "cuda:1", "mps", "auto", a torch.device or a `runtime.Runtime`; None: where the model is.
        checkpoint: a file; after each epoch, everything needed to continue is written to it.
        resume: continue from the checkpoint, if there is one. Settings, data and functions must be the same.
        fingerprint: a string that identifies the objective in the checkpoint; None: its name, code, arguments and the
            numbers that it uses, as far as these can be seen (not those inside objects and lists).
        after_epoch: called with the model, in evaluation mode, after each epoch; it returns a dict of numbers to add to
            the row. It may draw random numbers without effect on training. An `EarlyStopping` ends training early.
        progress: whether a progress bar is drawn.

    Returns:
        The history, one dict per epoch.

    Raises:
        ValueError: An argument is out of range; data lie outside of the likelihood's support; the checkpoint is of
            another run; the objective's values or terms have another shape than (B,), or do not depend on the
            parameters; a term has the name of another number in the row; the processes have different settings.
        TypeError: An argument, or what a function returns, is of another type.
        FileExistsError: The checkpoint exists, and `resume` is False.
        NonFiniteLossError: The loss, a term or a parameter became nan or infinite.

    Source: Chen Algorithm 1, listing A.2 (`train`); one cycle: Smith and Topin (2019).
    """
    check_callables(objective, optimizer, anneal, after_epoch)
    check_model(model)
    given = dict(batch_size=batch_size, drop_last=drop_last, learning_rate=learning_rate, weight_decay=weight_decay)
    settings = check_numbers(given | dict(reduction=reduction, schedule=schedule, seed=seed))
    epochs, runtime = positive_int("epochs", epochs, 0), find_runtime(device, model)
    stop, progress = after_epoch if isinstance(after_epoch, EarlyStopping) else None, progress and runtime.rank == 0
    if resume and checkpoint is None:
        raise ValueError("resume=True needs the checkpoint to go on from; give its path as checkpoint")
    with torch.inference_mode(False), torch.enable_grad(), random_state(training_seed(settings["seed"])):
        data = _data(model, x, y, progress)
        held_out = _data(model, stop.x, stop.y, progress, like=data) if stop else None
        check_batches(len(data.x), model, settings["batch_size"], drop_last, runtime.world_size)
        model = model.to(runtime.device)
        for name, each in {"x": data, VALIDATION: held_out}.items():
            if each:
                check_data(model, each.x, objective, partial(_further, each.y, anneal, runtime.device), name)
        made = make_optimizer(optimizer, model, settings["learning_rate"], settings["weight_decay"])
        if checkpoint or runtime.world_size > 1:
            functions = dict(objective=fingerprint or objective, optimizer=optimizer, anneal=anneal)
            settings |= _identity(data, held_out, functions)
            settings |= dict(epochs=epochs) if anneal or schedule != "constant" else {}
        history, best = _restore(checkpoint, model, made, settings, epochs, resume, runtime)
        step = _step(model, data, objective, made, reduction, runtime, anneal is not None)
        pace = Schedule(settings, len(data.x), epochs, anneal)
        if stop and held_out:
            stop.start(partial(step.mean_loss, *held_out, settings["batch_size"], pace.weight(1.0)), best)
        with _nothing_lost(model, history, stop), _bar(pace, epochs, len(history), progress) as bar:
            while len(history) < epochs and not (stop and stop.stopped):
                history.append(train_epoch(step, model, pace, len(history), bar))
                history[-1] |= figures_of(after_epoch, model, history[-1]) if after_epoch else {}
                if checkpoint and runtime.rank == 0:
                    kept = stop.state() if stop else {}
                    checkpoints.save(Path(checkpoint), model, made, history, settings, kept)
    return history


class _Data(NamedTuple):
    x: Tensor
    y: Tensor | None


def _data(model: nn.Module, x: Any, y: Any, progress: bool, like: _Data | None = None) -> _Data:
    """Return data and labels as tensors in the model's precision, 32 bits at least; `like` has the shape of a datum."""
    dtype = torch.promote_types(dtype_of(model), torch.float32)
    x = as_images(x, VALIDATION if like else "x", dtype=dtype, progress=progress)
    y = None if y is None else as_labels(y, len(x), f"y of {VALIDATION}" if like else "y", dtype=dtype)
    if like and x.shape[1:] != like.x.shape[1:]:
        raise ValueError(f"{VALIDATION} must have the shape of x, {tuple(like.x.shape)}, got {tuple(x.shape)}")
    if like and (y is None) != (like.y is None):
        raise ValueError("EarlyStopping needs y if fit gets y, and only then: pass EarlyStopping(x, y=y)")
    return _Data(x, y)


def _further(y: Tensor | None, anneal: Callable | None, device: torch.device, rows: slice) -> tuple:
    """Return the objective's arguments besides model and batch, for a slice of rows, at the end of training."""
    labels = () if y is None else (y[rows].to(device),)
    return (*labels, torch.as_tensor(anneal(1.0), device=device)) if anneal else labels


def _identity(data: _Data, held_out: _Data | None, functions: dict[str, Any]) -> dict[str, Any]:
    """Return the checksums of data and the descriptions of functions, which a checkpoint keeps."""
    tensors = dict(x=data.x, y=data.y) | (dict(validation_x=held_out.x, validation_y=held_out.y) if held_out else {})
    words = {name: each if isinstance(each, str) else describe(each) for name, each in functions.items()}
    words |= {f"sha256 of {name}": digest_of(each) for name, each in tensors.items() if each is not None}
    return words | dict(n=len(data.x))


def _restore(
    checkpoint: Any, model: nn.Module, optimizer: Optimizer, settings: dict, epochs: int, resume: bool, runtime: Runtime
) -> tuple[History, dict[str, Any]]:
    """Return the history and what early stopping had kept, if there is a checkpoint; the same in all processes."""
    runtime.join()
    history: History = []
    best: dict[str, Any] = {}
    if checkpoint:
        history, best = checkpoints.restore(Path(checkpoint), model, optimizer, settings, epochs, resume)
    if runtime.world_size > 1:
        theirs: list[Any] = [None] * runtime.world_size
        distributed.all_gather_object(theirs, settings | dict(epochs=epochs, finished_epochs=len(history)))
        for other in theirs[1:]:
            if words := checkpoints.differences(other, theirs[0]):
                raise ValueError(f"the processes must train alike, but in one of them {words} in the first")
    return history, best


def _step(
    model: nn.Module, data: _Data, objective: Any, optimizer: Any, reduction: str, runtime: Runtime, annealed: bool
) -> Step:
    """Return a captured step on CUDA if data and optimizer allow it, else a plain one."""
    fits = runtime.device.type != "cuda" or data.x.nbytes < 0.8 * torch.cuda.mem_get_info(runtime.device)[0]
    x = data.x.to(runtime.device) if fits else data.x
    capturable = isinstance(optimizer, Adam) and all(group["capturable"] for group in optimizer.param_groups)
    kind = GraphedStep if x.is_cuda and capturable else Step
    return kind(model, x, objective, optimizer, reduction, runtime, annealed, data.y)


@contextlib.contextmanager
def _nothing_lost(model: nn.Module, history: History, stop: EarlyStopping | None) -> Iterator[None]:
    """Train in training mode inside the block, leave in evaluation mode, and attach the history to any exception."""
    model.train()
    torch.clear_autocast_cache()  # within torch.autocast it may hold weights from before a checkpoint was loaded
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(AttributeError):  # a few exceptions take no attributes
            error.history = history  # type: ignore[attr-defined]
        raise
    finally:
        if stop:
            stop.finish(model)
        torch.clear_autocast_cache()
        model.eval()


def _bar(pace: Schedule, epochs: int, done: int, progress: bool) -> tqdm:
    return progress_bar(total=epochs * pace.images, initial=done * pace.images, unit=" images", disable=not progress)
