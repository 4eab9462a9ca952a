"""The training loop: AdamW, warm-up and cosine decay, accumulation, mixed precision, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from services.training.domain.strategies import WHOLE_LAYERS
from services.training.domain.training_spec import Optimization, Precision
from services.training.engine.allocation import Allocation
from services.training.engine.batches import batch_order
from services.training.engine.parallel import Parallel, Trainee
from services.training.engine.tasks import Objective

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_ALONE = Parallel()
_CLIP = 1.0
_RATE_WINDOW = 8


class Cancelled(Exception):  # noqa: N818 - not an error
    """Training was asked to stop; the last checkpoint has its state."""


@dataclass(frozen=True, slots=True)
class StepProgress:
    """Progress of training; `loss` is the last step's, `tokens_per_second` and `remaining_s` cover several steps."""

    step: int
    total: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    remaining_s: float


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that a resume needs, in tensors and plain numbers, so that it can be stored without pickle."""

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    random_state: Tensor
    losses: list[float] = field(default_factory=list)
    accelerator: dict[str, Tensor] = field(default_factory=dict)
    """On a GPU: its random state, and the scale of fp16 losses with the number of steps since the scale changed."""
    ranks: dict[str, Tensor] = field(default_factory=dict)
    """The random states of further processes, by `rank/name`."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of training."""

    losses: list[float]
    tokens: int
    seconds: float


def learning_rate_at(step: int, total: int, peak: float, warmup_ratio: float) -> float:
    """Linear warm-up, then cosine decay to zero (Loshchilov and Hutter 2016, arXiv:1608.03983)."""
    warmup = max(1, round(total * warmup_ratio)) if warmup_ratio else 0
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def usable_precision(wanted: Precision, device: torch.device) -> Precision:
    """The requested precision if the device supports it, else fp32, which is faster there than emulation."""
    import torch

    if wanted == "fp32" or (device.type != "cpu" and wanted != "auto"):
        return wanted
    if device.type == "cpu":
        # The processor has it, and the library that computes on it may use it: ONEDNN_MAX_CPU_ISA can forbid that.
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        has_bf16 = native and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if wanted in ("bf16", "auto") and has_bf16 else "fp32"


def train(
    model: nn.Module,
    objective: Objective,
    options: Optimization,
    *,
    device: torch.device,
    parallel: Parallel = _ALONE,
    resume: Checkpoint | None = None,
    on_step: Callable[[StepProgress], None] = lambda _: None,
    on_checkpoint: Callable[[Checkpoint], object] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    allocation: Allocation | None = None,
) -> Outcome:
    """Trains the trainable weights of `model` in place.

    A run resumed from a checkpoint ends with the same weights as one that was never interrupted. Where several
    processes share the training, all call this with the same arguments; only rank 0 has the result in `model`, and only
    its `on_step` and `on_checkpoint` are called. `allocation` says how memory is asked for on a processor.

    Raises:
        Cancelled: `should_stop` returned True, in any of them; `on_checkpoint` got a checkpoint of that step before.
        FloatingPointError: the loss is not finite; the spec's learning rate is too high for the model.
    """
    import torch

    from services.training.engine.fused import FusedLayers

    total = options.total_steps(len(objective.lengths))
    accumulate = max(1, options.gradient_accumulation)
    trainee = parallel.trainee(model, objective, device)
    torch.manual_seed(options.seed + parallel.seed_offset)
    named = trainee.named
    kinds = _by_kind([weight for _, weight in named])
    optimizer = torch.optim.AdamW(
        [{"params": weights} for weights in kinds],
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
        foreach=True,
    )
    # 1) Restore weights, optimizer and random state, so that a resumed run repeats no step.
    start, losses = 0, []
    if resume is not None:
        _load_weights(trainee, resume.weights)
        _load_optimizer(optimizer, trainee, resume.optimizer)
        torch.set_rng_state(_of_rank(resume, parallel.rank).get("random_state", torch.get_rng_state()))
        start, losses = resume.step, list(resume.losses)
    # 2) Mixed precision: bf16 needs no loss scaling, fp16 does.
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(usable_precision(options.precision, device))
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16" and device.type == "cuda")
    if resume is not None:
        load_accelerator(device, scaler, {**resume.accelerator, **_of_rank(resume, parallel.rank, "accelerator/")})
    batches = batch_order(objective.lengths, options.batch_size, options.seed, start=start * accumulate)

    def checkpoint(step: int) -> Checkpoint:
        accelerator = accelerator_state(device, scaler)
        own = {"random_state": torch.get_rng_state(), **{f"accelerator/{k}": v for k, v in accelerator.items()}}
        return Checkpoint(
            step,
            {name: trainee.whole(weight) for name, weight in named},
            _optimizer_state(optimizer, trainee),
            own["random_state"],
            list(losses),
            accelerator,
            trainee.gathered(own),
        )

    # 3) On a processor, layers in fewer passes over memory, and memory for speed where there is room.
    on_processor = device.type == "cpu"
    allocation = allocation or Allocation()
    layers: Any = (
        FusedLayers(model) if on_processor and half is None and parallel.strategy in WHOLE_LAYERS else nullcontext()
    )
    # 4) One optimizer step: `accumulate` batches, clip, update, report, and a checkpoint when one is due.
    model.train()
    began, tokens_all = time.perf_counter(), 0
    recent: list[tuple[float, int]] = []
    for step in range(start, total):
        step_began, tokens, loss_sum = time.perf_counter(), 0, 0.0
        rate = learning_rate_at(step, total, options.learning_rate, options.warmup_ratio)
        for group in optimizer.param_groups:
            group["lr"] = rate
        accumulated = list(islice(batches, accumulate))
        # The step is that of one large batch, the mean over all of its targets, of which some batches have more.
        targets = max(1, sum(objective.targets(indices) for indices in accumulated))
        for number, indices in enumerate(accumulated, 1):
            with trainee.accumulating() if number < accumulate else nullcontext():
                with layers, torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None):
                    loss, read = trainee.loss(indices, targets)
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            tokens += read
            loss_sum += float(loss.detach())
        loss_sum, tokens = trainee.total(loss_sum, tokens)
        if not math.isfinite(loss_sum):
            raise FloatingPointError(f"the loss is {loss_sum} at step {step + 1}; lower optimization.learning_rate")
        scaler.unscale_(optimizer)
        _clip(kinds)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if on_processor:
            allocation.after_step()
        losses.append(loss_sum)
        tokens_all += tokens
        recent = [*recent[-(_RATE_WINDOW - 1) :], (time.perf_counter() - step_began, tokens)]
        seconds = sum(s for s, _ in recent)
        per_second, remaining = sum(t for _, t in recent) / seconds, seconds / len(recent) * (total - step - 1)
        if not parallel.rank:
            on_step(StepProgress(step + 1, total, loss_sum, rate, per_second, remaining))
        stop = trainee.agreed(should_stop())
        if stop or (step + 1) % options.checkpoint_every == 0 or step + 1 == total:
            state = checkpoint(step + 1)
            if not parallel.rank:
                on_checkpoint(state)
            del state
        if stop and step + 1 < total:
            raise Cancelled
    trainee.finish()
    model.eval()
    return Outcome(losses, tokens_all, time.perf_counter() - began)


def _by_kind(weights: Sequence[Any]) -> list[list[Any]]:
    """Whole weights, and those of which processes have parts: torch computes no list that mixes them."""
    kinds: dict[type, list[Any]] = {}
    for weight in weights:
        kinds.setdefault(type(weight.data), []).append(weight)
    return list(kinds.values())


def _clip(kinds: Sequence[Sequence[Any]]) -> None:
    """Scales all gradients so that their norm, over all kinds of weights, is at most `_CLIP`."""
    import torch

    if len(kinds) == 1:
        torch.nn.utils.clip_grad_norm_(kinds[0], _CLIP)
        return
    norms: list[Any] = [
        torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        for weights in kinds
    ]
    whole = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
    total = torch.linalg.vector_norm(torch.stack(whole))
    for weights in kinds:
        torch.nn.utils.clip_grads_with_norm_(weights, _CLIP, total)


def accelerator_state(device: torch.device, scaler: Any) -> dict[str, Tensor]:
    """State that only a GPU has; without it a resumed run would draw other random numbers and use another scale."""
    import torch

    found: dict[str, Tensor] = {}
    if device.type == "cuda":
        found["random_state"] = torch.cuda.get_rng_state(device)
    if scaler.is_enabled():
        state = scaler.state_dict()
        found["scale"] = torch.tensor([state["scale"], state["_growth_tracker"]], dtype=torch.float64)
    return found


def load_accelerator(device: torch.device, scaler: Any, state: dict[str, Tensor]) -> None:
    """Restores the result of `accelerator_state`."""
    import torch

    # A run may resume on another kind of device; then there is nothing to restore.
    if device.type == "cuda" and "random_state" in state:
        torch.cuda.set_rng_state(state["random_state"], device)
    if scaler.is_enabled() and "scale" in state:
        scale, tracker = state["scale"].tolist()
        scaler.load_state_dict({**scaler.state_dict(), "scale": scale, "_growth_tracker": int(tracker)})


def _of_rank(checkpoint: Checkpoint, rank: int, prefix: str = "") -> dict[str, Tensor]:
    """What a checkpoint has of one process only, by its name without the prefix."""
    if not rank:
        return {} if prefix else {"random_state": checkpoint.random_state}
    start = f"{rank}/{prefix}"
    return {name.removeprefix(start): value for name, value in checkpoint.ranks.items() if name.startswith(start)}


def _load_weights(trainee: Trainee, state: dict[str, Tensor]) -> None:
    """Restores the weights of a checkpoint.

    Raises:
        ValueError: the names differ, so the checkpoint belongs to another training spec.
    """
    import torch

    own = dict(trainee.named)
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())[:3]
        raise ValueError(
            f"the checkpoint belongs to another training spec; for example {', '.join(odd)} is on one side only"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(trainee.part(state[name], parameter))


def _optimizer_state(optimizer: torch.optim.Optimizer, trainee: Trainee) -> dict[str, Tensor]:
    """AdamW's moments by parameter name."""
    return {
        f"{name}/{key}": value.detach().contiguous() if key == "step" else trainee.whole(value)
        for name, parameter in trainee.named
        for key, value in optimizer.state[parameter].items()
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, trainee: Trainee, state: dict[str, Tensor]) -> None:
    for parameter_name, parameter in trainee.named:
        prefix = f"{parameter_name}/"
        # Loaded files are in main memory. Moments move to the device of their parameter; the step count stays.
        optimizer.state[parameter] = {
            name: value.clone() if name == "step" else trainee.part(value, parameter)
            for name, value in ((key.removeprefix(prefix), v) for key, v in state.items() if key.startswith(prefix))
        }
