"""One step of gradient descent: plain, as part of several processes, or captured whole in a CUDA graph."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from vae_core.runtime import Runtime, random_state, unit_interval


class Step:
    """Gather a batch by index, differentiate minus the objective, let the optimiser step.

    `step(index, rate, weight)` returns the sums of loss and terms over the batch, (1 + terms,), on the device;
    `annealed` says whether the objective is handed the weight.
    Of several processes each takes every world_size-th image of the batch; the average of their gradients is
    then that of the loss over the whole batch.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        objective: Callable,
        optimizer,
        reduction: str,
        runtime: Runtime,
        annealed: bool = False,
        y: Tensor | None = None,
    ) -> None:
        self.x, self.optimizer, self.reduction, self.runtime = x, optimizer, reduction, runtime
        self.evaluate: nn.Module = _Evaluate(model, objective)
        self.anneal = (torch.ones((), device=x.device),) if annealed else ()
        self.given = () if y is None else (y.to(x.device),)
        self.names: list[str] = []
        if runtime.world_size > 1:
            self.evaluate = DistributedDataParallel(self.evaluate)

    def __call__(self, index: Tensor, rate: float, weight: float = 1.0) -> Tensor:
        self.set_rate(rate)
        for tensor in self.anneal:
            tensor.fill_(weight)
        mine = self.share(index).to(self.x.device, non_blocking=True)
        return self.advance(mine, self.part(mine, index))

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def advance(self, index: Tensor, part: float) -> Tensor:
        """How the step is made: `gradient_step` it is here."""
        return self.gradient_step(index, part)

    def gradient_step(self, index: Tensor, part: float) -> Tensor:
        """One step on the images of these indices, which are this `part` of the whole batch's loss.

        Raises ValueError for an objective of another shape than theirs.
        """
        value, terms = self.evaluate(unit_interval(self.x[index]), *(y[index] for y in self.given), *self.anneal)
        if value.shape != index.shape:
            asked = f"the objective must give one value per image, shape ({len(index)},)"
            raise ValueError(f"{asked}, got {tuple(value.shape)}")
        self.names = list(terms)
        loss = -part * (value.mean() if self.reduction == "mean" else value.sum())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return torch.stack([-value.sum(), *(term.sum() for term in terms.values())]).detach()

    def share(self, index: Tensor) -> Tensor:
        """What this process takes of a batch: all of it, if it is alone."""
        return index[self.runtime.rank :: self.runtime.world_size]

    def part(self, mine: Tensor, index: Tensor) -> float:
        """With it the average over processes of their losses is the loss of the whole batch; 1 if alone."""
        return self.runtime.world_size * (len(mine) / len(index) if self.reduction == "mean" else 1)

    @contextlib.contextmanager
    def own_noise(self, seed: int, epoch: int) -> Iterator[None]:
        """Within one epoch each of several processes draws noise of its own; alone it just goes on drawing."""
        if self.runtime.world_size == 1:
            yield
            return
        with random_state(hash((seed, epoch, self.runtime.rank)) % 2**63):
            yield

    def sum_over_processes(self, sums: Tensor) -> Tensor:
        """Sums over the whole batches, the same in every process."""
        if self.runtime.world_size > 1:
            distributed.all_reduce(sums)
        return sums


class GraphedStep(Step):
    """The same step on a CUDA device, captured once and replayed: no Python, no launches, no synchronisation.

    The first steps run eagerly, which is the warm-up that capturing needs; so does a last, smaller batch, always.
    Streams and graphs belong to the device of the images, which need not be the current one.
    """

    WARM_UP = 3

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.side = torch.cuda.Stream(self.x.device)  # for the warm-up and the capture
        self.eager_steps = 0
        self.size = 0  # of the batch that is captured, the largest one
        self.graph: torch.cuda.CUDAGraph | None = None
        self.index, self.sums = torch.empty(0), torch.empty(0)  # what the graph reads and writes
        for group in self.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=self.x.device)  # may change between replays

    def __call__(self, index: Tensor, rate: float, weight: float = 1.0) -> Tensor:
        with torch.cuda.device(self.x.device):
            return super().__call__(index, rate, weight)

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"].fill_(rate)

    def advance(self, index: Tensor, part: float) -> Tensor:
        if self.graph is None:
            self.size = max(self.size, len(index))
        if self.runtime.world_size > 1 or len(index) != self.size:
            return self.gradient_step(index, part)
        if self.eager_steps < self.WARM_UP:
            self.eager_steps += 1
            return self._on_side_stream(index, part)
        graph = self.graph or self._capture(index, part)
        self.index.copy_(index)
        graph.replay()
        return self.sums.clone()

    def _on_side_stream(self, index: Tensor, part: float) -> Tensor:
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            sums = self.gradient_step(index, part)
        torch.cuda.current_stream().wait_stream(self.side)
        return sums

    def _capture(self, index: Tensor, part: float) -> torch.cuda.CUDAGraph:
        self.index, self.graph = index.clone(), torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self.graph, stream=self.side):
            self.sums = self.gradient_step(self.index, part)
        return self.graph


class _Evaluate(nn.Module):
    """The objective as a forward pass, which is where DistributedDataParallel looks."""

    def __init__(self, model: nn.Module, objective: Callable) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Tensor, *further: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        result = self.objective(self.model, batch, *further)
        return result if isinstance(result, tuple) else (result, {})
