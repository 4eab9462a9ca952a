"""How the processes of a training share a step; the training loop knows nothing else about strategies.

With ddp and fsdp each process computes the loss of its share of every batch. Shares are weighted by their number of
targets, so that the sum of their gradients is that of the step in one process: the mean over all of its targets, not a
mean of means. With tp each computes its part of every layer for the whole batch. The processes are those of torch's
default process group, which exists already (services.training.worker.ranks).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from services.training.domain.strategies import Strategy
from services.training.engine.tasks import Objective

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Trainee(Protocol):
    """A model in training, as one process has it. What is said to be of all processes must be called by all of them."""

    @property
    def named(self) -> Sequence[tuple[str, Any]]:
        """The trainable weights that this process has, or its parts of them, by their name in the model."""
        ...

    def loss(self, indices: Sequence[int], targets: int) -> tuple[Tensor, int]:
        """The loss of this process's part of a batch, weighted for its backward pass, and the tokens that it read.

        Args:
            indices: the examples of the batch.
            targets: of the whole step, at least 1, over which the loss is a mean.
        """
        ...

    def accumulating(self) -> AbstractContextManager[object]:
        """Around forward and backward passes whose gradients are not needed by the others yet."""
        ...

    def total(self, loss: float, tokens: int) -> tuple[float, int]:
        """The step's loss and tokens, from what `loss` gave to each process; of all processes."""
        ...

    def agreed(self, stop: bool) -> bool:
        """Whether any process wants to stop; of all processes."""
        ...

    def whole(self, value: Tensor) -> Tensor:
        """A weight or moment as one tensor; of all processes, and only rank 0 gets the values."""
        ...

    def part(self, value: Tensor, like: Any) -> Tensor:
        """What this process has of a whole tensor in main memory that has the shape of the weight `like`."""
        ...

    def gathered(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the ranks from 1 on have, by `rank/name`; equal names and shapes everywhere; of all processes."""
        ...

    def finish(self) -> None:
        """Puts what was learnt into the model that was given, in rank 0; of all processes."""
        ...


@dataclass(frozen=True, slots=True)
class Parallel:
    """Which of the processes of a training this is."""

    strategy: Strategy = "single"
    processes: int = 1
    rank: int = 0

    def trainee(self, model: nn.Module, objective: Objective, device: torch.device) -> Trainee:
        """The model as this process trains it."""
        if self.strategy == "single":
            return _Single(model, objective, device)
        kinds: dict[str, type[_Shared]] = {"ddp": _Ddp, "fsdp": _Fsdp, "tp": _Tp}
        return kinds[self.strategy](self, model, objective, device)

    @property
    def seed_offset(self) -> int:
        """What is added to a seed: processes with examples of their own drop out others, those of tp must not."""
        return 0 if self.strategy == "tp" else self.rank

    def share(self, indices: Sequence[int]) -> list[int]:
        """The process's own examples of a batch: every n-th one, for neighbours in a batch have similar lengths."""
        return list(indices[self.rank :: self.processes])


class _Single:
    """One process has all of it."""

    def __init__(self, model: nn.Module, objective: Objective, device: torch.device) -> None:
        self._model, self._objective, self._device = model, objective, device
        self.named = _trainable(model)

    def loss(self, indices: Sequence[int], targets: int) -> tuple[Tensor, int]:
        loss, read = self._objective.loss(self._model, indices, self._device)
        return loss * (self._objective.targets(indices) / targets), read

    def accumulating(self) -> AbstractContextManager[object]:
        return nullcontext()

    def total(self, loss: float, tokens: int) -> tuple[float, int]:
        return loss, tokens

    def agreed(self, stop: bool) -> bool:
        return stop

    def whole(self, value: Tensor) -> Tensor:
        return value.detach().contiguous()

    def part(self, value: Tensor, like: Any) -> Tensor:
        return value.to(like.device, copy=True)

    def gathered(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def finish(self) -> None:
        """The model itself was trained."""


class _Shared:
    """What ddp and fsdp have in common: shares of batches, and sums over the processes."""

    def __init__(self, parallel: Parallel, model: nn.Module, objective: Objective, device: torch.device) -> None:
        self._parallel, self._model, self._objective, self._device = parallel, model, objective, device
        self.named = _trainable(model)
        self._step: Any = None

    def loss(self, indices: Sequence[int], targets: int) -> tuple[Tensor, int]:
        own = self._parallel.share(indices)
        loss, read = self._step(own)
        # The gradients of the processes are averaged.
        weight = self._objective.targets(own) / targets * self._parallel.processes
        return loss * weight, read

    def accumulating(self) -> AbstractContextManager[object]:
        return nullcontext()

    def total(self, loss: float, tokens: int) -> tuple[float, int]:
        import torch
        from torch import distributed

        sums = torch.tensor([loss, tokens], dtype=torch.float64)
        distributed.all_reduce(sums)
        return float(sums[0]) / self._parallel.processes, int(sums[1])

    def agreed(self, stop: bool) -> bool:
        import torch
        from torch import distributed

        flag = torch.tensor([int(stop)])
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        return bool(flag)

    def whole(self, value: Tensor) -> Tensor:
        return value.detach().contiguous()

    def part(self, value: Tensor, like: Any) -> Tensor:
        return value.to(like.device, copy=True)

    def gathered(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        import torch
        from torch import distributed

        found: dict[str, Tensor] = {}
        for name in sorted(own):
            everyones = [torch.empty_like(own[name]) for _ in range(self._parallel.processes)]
            distributed.all_gather(everyones, own[name].contiguous())
            found.update({f"{rank}/{name}": each for rank, each in enumerate(everyones) if rank})
        return found

    def finish(self) -> None:
        """The model itself was trained."""


class _Ddp(_Shared):
    """torch's DistributedDataParallel; it copies the weights of rank 0 to the other processes first."""

    def __init__(self, parallel: Parallel, model: nn.Module, objective: Objective, device: torch.device) -> None:
        import torch
        from torch.nn.parallel import DistributedDataParallel

        super().__init__(parallel, model, objective, device)
        step = _step_of(model, objective, device)
        # Not every model uses all of its weights, for example the pooler of BERT's kind. Those have to be looked for in
        # each step, or the processes wait for their gradients.
        loss, _ = step([0])
        found = torch.autograd.grad(loss, [weight for _, weight in self.named], allow_unused=True)
        unused = any(gradient is None for gradient in found)
        del loss, found
        self._step = DistributedDataParallel(step, find_unused_parameters=unused)

    def accumulating(self) -> AbstractContextManager[object]:
        waiting: AbstractContextManager[object] = self._step.no_sync()
        return waiting


class _Sharded(_Shared, ABC):
    """What fsdp and tp have in common: the weights are shared out in a copy of the modules.

    Those of the given model are empty meanwhile, and filled again by `finish`, without any trace of the shares.
    """

    def __init__(self, parallel: Parallel, model: nn.Module, objective: Objective, device: torch.device) -> None:
        import torch
        from torch import distributed
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor

        super().__init__(parallel, model, objective, device)
        # Frozen weights come from the same file everywhere; what is new was drawn by each process for itself.
        with torch.no_grad():
            for _, weight in self.named:
                distributed.broadcast(weight, 0)
        shared = {id(weight): weight for weight in model.parameters()}
        self._copied: Any = copy.deepcopy(model, memo=shared)
        self._step = _step_of(self._copied, objective, device)
        self._shard(init_device_mesh(device.type, (parallel.processes,)))
        given = dict(model.named_parameters())
        for name, weight in self._copied.named_parameters():
            if isinstance(weight, DTensor):
                given[name].data = torch.empty(0, dtype=weight.dtype, device=device)
        self.named = _trainable(self._copied)

    @abstractmethod
    def _shard(self, mesh: Any) -> None:
        """Shares the weights of `self._copied` out."""

    def whole(self, value: Tensor) -> Tensor:
        import torch

        found = _whole(value)
        # Only rank 0 stores it, and it may not fit on one device together with the others.
        return found.cpu().contiguous() if not self._parallel.rank else torch.empty(0)

    def part(self, value: Tensor, like: Any) -> Tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        # Every process has read all of it.
        whole = value.to(self._device, copy=True)
        if not isinstance(like, DTensor):
            return whole
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)

    def finish(self) -> None:
        given = dict(self._model.named_parameters())
        for name, weight in self._copied.named_parameters():
            if given[name] is not weight:
                whole = _whole(weight)
                if not self._parallel.rank:
                    given[name].data = whole


class _Fsdp(_Sharded):
    """torch's FSDP2: each process has its share of every weight, and gathers those of a layer when it computes it."""

    def _shard(self, mesh: Any) -> None:
        from torch.distributed.fsdp import fully_shard

        for block in _blocks(self._copied):
            fully_shard(block, mesh=mesh)
        fully_shard(self._step, mesh=mesh)

    def accumulating(self) -> AbstractContextManager[object]:
        return _Unsynchronized(self._step)


class _Tp(_Sharded):
    """torch's tensor parallel styles, by the plan that transformers has for the model.

    Every process computes all examples: of attention some heads, of a feed-forward layer some units. What is not in
    the plan, such as embeddings and norms, each has whole, and computes alike (Shoeybi et al. 2019, arXiv:1909.08053).
    """

    def _shard(self, mesh: Any) -> None:
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        styles: dict[str, Any] = {}
        for name, style in _planned(self._copied):
            module = self._copied.get_submodule(name)
            if style == _PARTIAL:
                for weight in module.parameters():
                    weight.register_hook(_summed)
                continue
            kind = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}[style]
            inside = {found for found, _ in module.named_modules() if found}
            # An adapter's narrow side stays whole: what it reads for rows, what it writes for columns is split.
            adapter = "lora_B." if style == "colwise" else "lora_A."
            parts = [part for part in inside if part == "base_layer" or part.startswith(adapter)]
            styles.update({f"{name}.{part}" if part else name: kind() for part in parts or [""]})
        parallelize_module(self._copied, mesh, styles)

    def loss(self, indices: Sequence[int], targets: int) -> tuple[Tensor, int]:
        loss, read = self._step(indices)
        return loss * (self._objective.targets(indices) / targets), read

    def total(self, loss: float, tokens: int) -> tuple[float, int]:
        # All have computed the same.
        return loss, tokens


_PARTIAL = "replicated_with_grad_allreduce"
"""transformers' name for a weight that each process has whole, and uses for its own heads only."""


def _planned(model: nn.Module) -> list[tuple[str, str]]:
    """The modules that transformers' plan for the model names, each with how it is split."""
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    plan: dict[str, str] = next(named for each in configs if (named := getattr(each, "base_model_tp_plan", None)))
    found: list[tuple[str, str]] = []
    for name, _ in model.named_modules():
        # `layers.0.mlp.up_proj`, after the names of what is around the transformer, is `layers.*.mlp.up_proj` there.
        general = "." + ".".join("*" if part.isdigit() else part for part in name.split("."))
        found += [(name, style) for key, style in plan.items() if general.endswith(f".{key}")]
    return found


def _summed(gradient: Tensor) -> Tensor:
    """The sum of the processes' gradients of a weight."""
    from torch import distributed

    total = gradient.clone()
    distributed.all_reduce(total)
    return total


def _whole(value: Any) -> Tensor:
    """All of a tensor that may be shared out; of all processes."""
    from torch.distributed.tensor import DTensor

    found: Tensor = value.detach()
    return found.full_tensor() if isinstance(found, DTensor) else found


class _Unsynchronized(AbstractContextManager[None]):
    """FSDP2's gradients stay in this process."""

    def __init__(self, step: Any) -> None:
        self._step = step

    def __enter__(self) -> None:
        self._step.set_requires_gradient_sync(False)

    def __exit__(self, *_: object) -> None:
        self._step.set_requires_gradient_sync(True)


def _step_of(model: nn.Module, objective: Objective, device: torch.device) -> nn.Module:
    """A module whose forward pass is the loss of examples, so that ddp and fsdp see all that an objective computes."""
    import torch

    class Step(torch.nn.Module):
        """Calls the objective."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, indices: list[int]) -> tuple[Tensor, int]:
            return objective.loss(self.model, indices, device)

    return Step()


def _trainable(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of the transformer: the modules of the outermost lists, which are gathered one at a time."""
    from torch import nn

    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outermost = [
        module
        for name, module in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists if other != name)
    ]
    return [block for each in outermost for block in each]
