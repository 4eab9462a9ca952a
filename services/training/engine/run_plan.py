"""The memory of a run, from its spec and the configuration of its base model: what it needs, and what would fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from services.kit.errors import FieldViolation, InvalidArgumentError
from services.training.domain.machine import Machine
from services.training.domain.strategies import OVER_EXAMPLES, SPLIT_FAMILIES, STRATEGIES, WHOLE_LAYERS, Strategy
from services.training.domain.students import Student
from services.training.domain.training_spec import TrainingSpec
from services.training.engine.attention import SHORT
from services.training.engine.memory_plan import Batch, MemoryPlan, devices_needed, plan_memory
from services.training.engine.method_capabilities import Footprint, Plannable
from services.training.engine.methods import make_method
from services.training.engine.model_shape import SHAPES, Shape

_PROCESS_BYTES = 900_000_000
"""Main memory of a worker with its libraries loaded, before there is a model: 0.85 to 0.9 GB (docs/benchmarks.md)."""
_FLOAT = 4


@dataclass(frozen=True, slots=True)
class StrategyPlan:
    """What one device holds under a strategy; `total` with the libraries, where the device is a processor.

    `fits` if the machine has the devices and each the memory. The processes on a processor share its memory and its
    cores, so there all of them have to fit.
    """

    strategy: Strategy
    devices: int
    memory: MemoryPlan
    total: int
    fits: bool


@dataclass(frozen=True, slots=True)
class SizePlan:
    """How many devices a published model of a size needs for this method and batch; None if no number is enough.

    `parameters` of it. Blocks are computed again in the backward pass, and the computation is in 16 bits.
    """

    name: str
    parameters: int
    devices: int | None


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The memory of a run; `nearest` is a sentence that says what would fit if the run does not."""

    parameters: int
    trainable: int
    machine: Machine
    strategies: tuple[StrategyPlan, ...]
    sizes: tuple[SizePlan, ...]
    strategy: Strategy = "single"
    nearest: str = ""

    @property
    def chosen(self) -> StrategyPlan:
        """That of the spec's strategy."""
        return next(each for each in self.strategies if each.strategy == self.strategy)


def plan_run(spec: TrainingSpec, config: Mapping[str, Any], machine: Machine) -> RunPlan:
    """The plan.

    Args:
        spec: what is trained. Texts are taken to be as long as it allows.
        config: the base model's `config.json`.
        machine: whose memory counts.

    Raises:
        InvalidArgumentError: the base model or the method cannot be planned.
    """
    shape = Shape.of_config(config)
    trainable = trained_weights(spec, shape)
    count = max(2, machine.devices) if spec.strategy == "single" else spec.processes
    able = {*getattr(spec.task, "STRATEGIES", ())} & {*getattr(spec.method, "STRATEGIES", ())}
    splits = able if config.get("model_type") in SPLIT_FAMILIES else ()
    shown = [each for each in STRATEGIES if each in OVER_EXAMPLES or each in splits]
    strategies = tuple(_strategy(spec, shape, machine, each, 1 if each == "single" else count) for each in shown)
    sizes = tuple(
        SizePlan(
            name,
            size.parameters,
            devices_needed(
                size,
                _batch(spec, size),
                trainable=trained_weights(spec, size),
                half=True,
                device_bytes=machine.memory_bytes,
                checkpointing=True,
            ),
        )
        for name, size in SHAPES.items()
    )
    plan = RunPlan(shape.parameters, trainable, machine, strategies, sizes, spec.strategy)
    return plan if plan.chosen.fits else replace(plan, nearest=_nearest(spec, shape, machine))


def trained_weights(spec: TrainingSpec, shape: Shape) -> int:
    """How many weights the method trains, with a classifier's head.

    Raises:
        InvalidArgumentError: the method, of another package, has no `footprint`.
    """
    return _footprint(spec, shape).trained + (shape.hidden if spec.task.ARCHITECTURE == "encoder" else 0)


def _footprint(spec: TrainingSpec, shape: Shape) -> Footprint:
    method = spec.method
    if isinstance(method, Plannable):
        return method.footprint(shape)
    wrong = f"the memory of {method.kind} cannot be planned: its class has no method footprint (docs/extending.md)"
    raise InvalidArgumentError(
        f"spec.method: {wrong}.", reason="METHOD_NOT_PLANNABLE", violations=[FieldViolation("spec.method", wrong)]
    )


def _batch(spec: TrainingSpec, shape: Shape) -> Batch:
    task = spec.task
    examples = spec.optimization.batch_size * _footprint(spec, shape).texts * getattr(task, "texts", 1)
    targets = task.max_tokens - task.max_input_tokens
    # The last target token is predicted, never read.
    return Batch(examples, task.max_tokens - min(targets, 1), targets)


def _strategy(spec: TrainingSpec, shape: Shape, machine: Machine, strategy: Strategy, devices: int) -> StrategyPlan:
    batch, wanted = _batch(spec, shape), spec.optimization.precision
    if strategy in OVER_EXAMPLES:
        batch = batch.share(devices)
    method, on_processor = _footprint(spec, shape), machine.kind == "cpu"
    half = wanted != "fp32" and machine.half and not (on_processor and wanted == "fp16")
    plan = plan_memory(
        shape,
        batch,
        trainable=trained_weights(spec, shape),
        half=half,
        strategy=strategy,
        devices=devices,
        eager_attention=batch.tokens <= SHORT if on_processor else not half,
        frozen_blocks=method.frozen_blocks,
        fused=on_processor and not half and strategy in WHOLE_LAYERS,
    )
    if method.copied_embeddings:
        # Tied embeddings are parted; each pass makes a copy of them with the learnt rows.
        table = shape.vocabulary * shape.hidden * _FLOAT
        parted = table if shape.tied else 0
        plan = replace(
            plan,
            weights=plan.weights + parted,
            activations=plan.activations + table,
            peak=plan.peak + parted + table,
        )
    if strategy not in WHOLE_LAYERS:
        # Each process has the whole model before it keeps its share, and rank 0 again once it has learnt.
        plan = replace(plan, peak=max(plan.peak, shape.parameters * _FLOAT))
    libraries = _PROCESS_BYTES if on_processor else 0
    needed = (plan.peak + libraries) * machine.sharing(devices)
    for student in spec.students:
        # By one process, after the training.
        learning = _distillation(spec, shape, student, half=half, on_processor=on_processor)
        needed = max(needed, learning.peak + libraries)
        plan = plan if plan.peak >= learning.peak else learning
    able = devices <= max(1, machine.max_processes)
    return StrategyPlan(strategy, devices, plan, plan.peak + libraries, able and needed <= machine.memory_bytes)


def _distillation(spec: TrainingSpec, shape: Shape, wanted: Student, *, half: bool, on_processor: bool) -> MemoryPlan:
    """The memory of a student's learning, which follows the training, on one device whatever the strategy.

    The tuned model is there beside it, with its hidden states. Pruned heads are not subtracted.
    """
    batch = Batch(spec.optimization.batch_size, spec.task.max_tokens, 0)
    student = replace(
        shape,
        layers=wanted.layers or shape.layers,
        feed_forward=wanted.neurons(shape.feed_forward),
        vocabulary=min(wanted.vocabulary or shape.vocabulary, shape.vocabulary),
        dropout=0.0,
    )
    # Its embeddings and what pools them are not trained.
    tables = replace(student, layers=0).parameters
    plan = plan_memory(
        student,
        batch,
        trainable=student.parameters - tables + shape.hidden,
        half=half,
        eager_attention=batch.tokens <= SHORT if on_processor else not half,
    )
    # One block at a time computes its values, and the states behind all of them stay.
    states = batch.examples * batch.tokens * _FLOAT * ((shape.layers + 1) * shape.hidden + 2 * shape.feed_forward)
    teacher = shape.parameters * _FLOAT
    return replace(
        plan, weights=plan.weights + teacher, activations=plan.activations + states, peak=plan.peak + teacher + states
    )


def _nearest(spec: TrainingSpec, shape: Shape, machine: Machine) -> str:
    """The first of the gentler specs that fits, and what it changes; a sentence in every case."""
    for other, change in (*_fewer(spec, machine), *_gentler(spec, shape)):
        plan = _strategy(other, shape, machine, other.strategy, other.processes)
        if plan.fits:
            return f"{change} needs {plan.total / 1e9:.1f} GB and fits"
    return "no smaller batch and no adapters make it fit; choose a smaller base model or shorter texts"


def _fewer(spec: TrainingSpec, machine: Machine) -> Iterator[tuple[TrainingSpec, str]]:
    """The same training by a strategy or a number of processes for which the machine has more room."""
    if spec.strategy == "single":
        return
    there = machine.max_processes
    if spec.processes > there > 1:
        yield replace(spec, processes=there), f"processes {there}"
    if spec.processes <= there and spec.strategy == "ddp" and "fsdp" in getattr(spec.method, "STRATEGIES", ()):
        # It shares what ddp copies.
        with suppress(InvalidArgumentError):
            yield replace(spec, strategy="fsdp"), "strategy fsdp"
    yield replace(spec, strategy="single", processes=1), "strategy single"


def _gentler(spec: TrainingSpec, shape: Shape) -> Iterator[tuple[TrainingSpec, str]]:
    """Specs that need less memory, those first that change the training least."""
    lora: TrainingSpec | None = None
    if _footprint(spec, shape).trained >= shape.parameters:
        lora = replace(spec, method=make_method("lora", {}))
    for base, prefix in ((spec, ""), (lora, "lora with ")):
        if base is None:
            continue
        if prefix:
            yield base, f"lora instead of {spec.method.kind}"
        size, accumulation = base.optimization.batch_size, base.optimization.gradient_accumulation
        least = max(_footprint(base, shape).min_batch, getattr(base.task, "MIN_BATCH", 1))
        while size % 2 == 0 and size // 2 >= max(least, base.processes):
            size, accumulation = size // 2, accumulation * 2
            changed = replace(base.optimization, batch_size=size, gradient_accumulation=accumulation)
            words = f"optimization.batch_size {size} with gradient_accumulation {accumulation}"
            yield replace(base, optimization=changed), f"{prefix}{words}"
