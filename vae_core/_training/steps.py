"""One step of gradient descent: plain, shared by several processes, or captured as a CUDA graph."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from vae_core.runtime import Runtime, checked_input, dtype_of, random_state, unit_interval

RESERVED = ("epoch", "loss", "seconds")  # names in a row of the history that terms cannot have


class Step:
    """Gather a batch by index, differentiate minus the objective, and let the optimizer make a step.

    `step(index, rate, weight)` returns the sums of loss and terms over the batch, (1 + terms,), on the device. With
    several processes each takes every world_size-th datum of the batch; the average of their gradients is that of the
    loss over the whole batch.

    Args:
        model: on the runtime's device.
        x: data (N, ...), on the same device, or on the CPU if they are too large for it.
        objective: (model, batch, its rows of `y`, weight if `annealed`) -> values (B,), or these and a dict of terms.
        optimizer: its learning rates are the peak rates of the schedule.
        reduction: "mean" or "sum", over the batch.
        runtime: device and processes.
        annealed: whether the objective is called with the weight.
        y: labels or conditions (N, ...), or None.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        objective: Callable,
        optimizer: Optimizer,
        reduction: str,
        runtime: Runtime,
        annealed: bool = False,
        y: Tensor | None = None,
    ) -> None:
        self.model, self.x, self.optimizer, self.reduction, self.runtime = model, x, optimizer, reduction, runtime
        self.dtype = torch.promote_types(dtype_of(model), torch.float32)
        self.objective: nn.Module = _Objective(model, objective)
        self.anneal = (torch.ones((), device=runtime.device, dtype=self.dtype),) if annealed else ()
        self.y = None if y is None else y.to(runtime.device)
        self.names: list[str] = []
        self.trains = False  # whether a gradient has been seen
        self.evaluate: nn.Module = self.objective
        if runtime.world_size > 1:  # as in one process, a parameter without a gradient does not move
            self.evaluate = DistributedDataParallel(self.objective, find_unused_parameters=True)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", float(group["lr"]))  # the name that torch's own schedules use

    def __call__(self, index: Tensor, rate: float, weight: float = 1.0) -> Tensor:
        """Make one step.

        Args:
            index: the batch's rows of x, (B,), int64, on the CPU.
            rate: the learning rate as a fraction of its peak.
            weight: what an annealed objective is called with.
        """
        self.set_rate(rate)
        self.set_weight(weight)
        local = self.local_indices(index).to(self.x.device, non_blocking=True)
        return self.advance(local, self.loss_weight(local, index))

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate

    def set_weight(self, weight: float) -> None:
        for tensor in self.anneal:
            tensor.fill_(weight)

    def advance(self, index: Tensor, loss_weight: float) -> Tensor:
        """Make the step; `GraphedStep` replays a graph here."""
        return self.gradient_step(index, loss_weight)

    def gradient_step(self, index: Tensor, loss_weight: float) -> Tensor:
        """Make one step on the data of these indices, whose loss is multiplied by `loss_weight`; return the sums.

        Raises:
            TypeError, ValueError: for an objective that does not return values and terms, (B,) each, or whose values do
                not depend on the parameters.
        """
        value, terms = self.evaluate(*self.batch(self.x, self.y, index))
        self._take_names(terms)
        loss = -loss_weight * (value.mean() if self.reduction == "mean" else value.sum())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._check_gradients()
        self.optimizer.step()
        torch.clear_autocast_cache()  # within torch.autocast it holds the weights from before the step
        return torch.stack([-_sum(value), *(_sum(terms[name]) for name in self.names)]).detach()

    def batch(self, x: Tensor, y: Tensor | None, index: Tensor) -> tuple[Tensor, ...]:
        """Return the objective's arguments besides the model, for the rows `index` of x and y."""
        images = unit_interval(x[index].to(self.runtime.device), self.dtype)
        labels = () if y is None else (y[index.to(y.device)].to(self.runtime.device),)
        return (images, *labels, *self.anneal)

    @torch.no_grad()
    def mean_loss(self, x: Tensor, y: Tensor | None, batch_size: int, weight: float) -> float:
        """Return minus the objective's mean over the data x, y, nats per datum, the same number in each process."""
        self.set_weight(weight)
        batches = (
            self.batch(x, y, index.to(x.device)) for index in torch.arange(len(x), device="cpu").split(batch_size)
        )
        sums = torch.stack([-_sum(self.objective(*batch)[0]) for batch in batches])
        if self.runtime.world_size > 1:
            distributed.broadcast(sums, 0)
        return sums.cpu().double().sum().item() / len(x)

    def _take_names(self, terms: dict[str, Tensor]) -> None:
        self.names = self.names if self.trains else list(terms)
        if set(self.names) != set(terms):
            raise ValueError(f"the objective must return the same terms at each step, got {self.names}, {list(terms)}")

    def _check_gradients(self) -> None:
        parameters = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        self.trains = self.trains or any(parameter.grad is not None for parameter in parameters)
        if not self.trains:
            raise ValueError(DETACHED)

    def local_indices(self, index: Tensor) -> Tensor:
        """Return this process's part of a batch; a single process takes all of it."""
        return index[self.runtime.rank :: self.runtime.world_size]

    def loss_weight(self, local: Tensor, index: Tensor) -> float:
        """Return the weight of this process's loss such that the average over processes is the whole batch's loss."""
        return self.runtime.world_size * (len(local) / len(index) if self.reduction == "mean" else 1)

    @contextlib.contextmanager
    def own_noise(self, seed: int, epoch: int) -> Iterator[None]:
        """Inside the block, each of several processes draws its own noise; a single one continues its stream."""
        if self.runtime.world_size == 1:
            yield
            return
        with random_state(hash((seed, epoch, self.runtime.rank)) % 2**63):
            yield

    def sum_over_processes(self, sums: Tensor) -> Tensor:
        """Return the sums over the whole batches, the same in every process."""
        if self.runtime.world_size > 1:
            distributed.all_reduce(sums)
        return sums

    def share_buffers(self) -> None:
        """Copy the first process's buffers, such as batch norm's averages, to all processes, as each step does."""
        if self.runtime.world_size > 1:
            for buffer in self.model.buffers():
                distributed.broadcast(buffer, 0)


class GraphedStep(Step):
    """The same step on a CUDA device, captured once and replayed: no Python, no launches, no synchronisation.

    The first steps run eagerly, as the warm-up that capturing needs, and so does each last, smaller batch.
    Streams and graphs belong to the device of the data, which need not be the current one.
    """

    WARM_UP = 3

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.side = torch.cuda.Stream(self.x.device)  # for the warm-up and the capture
        self.eager_steps = 0
        self.size = 0  # of the captured batch, the largest one
        self.graph: torch.cuda.CUDAGraph | None = None
        self.index, self.sums = torch.empty(0), torch.empty(0)  # what the graph reads and writes
        for group in self.optimizer.param_groups:  # so that they can change between replays
            group["lr"] = torch.tensor(float(group["lr"]), device=self.x.device, dtype=torch.float32)

    def __call__(self, index: Tensor, rate: float, weight: float = 1.0) -> Tensor:
        with torch.cuda.device(self.x.device):
            return super().__call__(index, rate, weight)

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"].fill_(group["initial_lr"] * rate)

    def advance(self, index: Tensor, loss_weight: float) -> Tensor:
        if self.graph is None:
            self.size = max(self.size, len(index))
        if self.runtime.world_size > 1 or len(index) != self.size:
            return self.gradient_step(index, loss_weight)
        if self.eager_steps < self.WARM_UP:
            self.eager_steps += 1
            return self._on_side_stream(index, loss_weight)
        graph = self.graph or self._capture(index, loss_weight)
        self.index.copy_(index)
        graph.replay()
        return self.sums.clone()

    def _on_side_stream(self, index: Tensor, loss_weight: float) -> Tensor:
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            sums = self.gradient_step(index, loss_weight)
        torch.cuda.current_stream().wait_stream(self.side)
        return sums

    def _capture(self, index: Tensor, loss_weight: float) -> torch.cuda.CUDAGraph:
        self.index, self.graph = index.clone(), torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self.graph, stream=self.side):
            self.sums = self.gradient_step(self.index, loss_weight)
        return self.graph


class _Objective(nn.Module):
    """The objective as the forward pass of a module, which DistributedDataParallel needs."""

    def __init__(self, model: nn.Module, objective: Callable) -> None:
        super().__init__()
        self.model, self.function = model, objective

    def forward(self, batch: Tensor, *further: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with checked_input():  # `fit` has checked all data
            result = self.function(self.model, batch, *further)
        value, terms = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
        _check_values(value, "the objective", "one value per image", batch)
        if torch.is_grad_enabled() and not value.requires_grad:
            raise ValueError(DETACHED)
        if not isinstance(terms, Mapping):
            raise TypeError(f"the objective's second result must be a dict of terms, got {_kind(terms)}")
        for name, term in terms.items():
            if not isinstance(name, str) or name in RESERVED:
                raise ValueError(f"a term of the objective must not be called {name!r}, which a row holds already")
            _check_values(term, f"the objective's term {name!r}", "one value per image", batch)
        return value, {name: term.detach() for name, term in terms.items()}


DETACHED = (
    "the objective's value does not depend on the model's parameters; compute it from the model that it is called "
    "with, without torch.no_grad, detach or item"
)


def _check_values(value: Any, what: str, wanted: str, batch: Tensor) -> None:
    asked = f"{what} must give {wanted}, shape ({len(batch)},)"
    if not isinstance(value, Tensor):
        raise TypeError(f"{asked}, got {_kind(value)}")
    if value.shape != batch.shape[:1]:
        raise ValueError(f"{asked}, got {tuple(value.shape)}")
    if not value.is_floating_point() or value.device != batch.device:
        raise ValueError(f"{asked}, in floating point on {batch.device}, got {value.dtype} on {value.device}")


def _kind(value: Any) -> str:
    inner = f" of {len(value)}" if isinstance(value, tuple) else ""
    return "None" if value is None else f"a {type(value).__name__}{inner}"


def _sum(values: Tensor) -> Tensor:
    """Return the sum, in 32 bits at least."""
    return values.sum(dtype=torch.promote_types(values.dtype, torch.float32))
