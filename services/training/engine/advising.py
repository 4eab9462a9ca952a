"""Picks recipe and build for a device and its limits: predicts each build of each base model, and ranks them.

Of two base models it knows the sizes only: which of them learns a task better, a run has to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.training.domain.advice import (
    EXPECTED_LOSS,
    Candidate,
    Goal,
    Miss,
    Predicted,
    Preference,
    Wishes,
    misses,
    preference_of,
    ranked,
    reason_of,
)
from services.training.domain.device import Device
from services.training.domain.machine import Machine
from services.training.domain.tasks import (
    TASKS,
    GenerationTask,
    MultiLabelClassificationTask,
    OrdinalClassificationTask,
    Task,
    TextClassificationTask,
    TextEmbeddingTask,
    TokenClassificationTask,
    VariantName,
)
from services.training.domain.training_spec import Method, Optimization, TrainingSpec
from services.training.engine.build_costs import file_bytes, reading, serving_bytes, writing
from services.training.engine.methods import make_method
from services.training.engine.model_shape import Shape
from services.training.engine.run_plan import plan_run

_CACHE_BYTES = 256 * 10**6
_OPTIMIZATION: Mapping[str, Mapping[str, Any]] = {
    "causal": {"epochs": 1.0, "batch_size": 4},
    "encoder": {"epochs": 2.0, "batch_size": 16},
}
_RATES = {"lora": 1e-3, "full": 3e-4}
_FULL_RATE_OF_WRITERS = 5e-5
MeasuredLoss = Mapping[tuple[str, VariantName], Sequence[float]]
"""Losses of quality that runs of the task have measured, by base model and build."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How the pick is served: devices that answer side by side, and bytes for answers that are kept, zero for none."""

    replicas: int
    answer_cache_bytes: int


@dataclass(frozen=True, slots=True)
class Advice:
    """The candidates, best first, and what follows from the first of them.

    `spec` trains it, `notes` say what a person must know. If nothing fits, `fits` is false, the first candidate is the
    nearest, and `relax` says which limits it would need.
    """

    device: Device
    goal: Goal
    candidates: tuple[Candidate, ...]
    reason: str
    spec: TrainingSpec
    preference: Preference
    max_quality_loss: float
    serving: Serving
    relax: tuple[Miss, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def pick(self) -> Candidate:
        """The first one; it fits unless there is something to relax."""
        return self.candidates[0]


def advise(
    wishes: Wishes,
    device: Device,
    bases: Mapping[str, Mapping[str, Any]],
    trainer: Machine,
    measured: MeasuredLoss,
) -> Advice:
    """The advice.

    Args:
        wishes: task and limits.
        device: what serves.
        bases: `config.json` of each base model, by its name; of the task's architecture, at least one.
        trainer: the machine that trains.
        measured: see there.

    Raises:
        InvalidArgumentError: a base model cannot be planned.
    """
    goal = wishes.goal_on(device)
    shapes = {name: Shape.of_config(config) for name, config in bases.items()}
    task = TASKS[wishes.task]
    found = [
        _candidate(wishes, device, name, shape, build, measured)
        for name, shape in shapes.items()
        for build in task.VARIANTS
    ]
    candidates = tuple(ranked(goal, found))
    pick = candidates[0]
    spec, notes = _recipe(wishes, goal, pick, bases[pick.base_model], trainer)
    fitting = sum(each.fits for each in candidates)
    return Advice(
        device,
        goal,
        candidates,
        reason_of(goal, fitting) if fitting else "nothing fits; this is the nearest",
        spec,
        preference_of(goal),
        wishes.quality_limit,
        _serving(wishes, device, goal, pick.predicted),
        pick.misses,
        notes,
    )


def predict(wishes: Wishes, device: Device, shape: Shape, build: VariantName) -> Predicted:
    """What a build takes on the device, with the loss of quality that is expected of its kind."""
    speed = device.speeds[wishes.architecture][build]
    size = file_bytes(shape, build)
    first = speed.ms(reading(shape, build, wishes.max_input_tokens))
    if shape.encoder:
        latency, rate, tokens = first, 1000 / first, wishes.max_input_tokens
    else:
        later = speed.ms(writing(shape, build, wishes.max_input_tokens))
        latency, rate = first + later * (wishes.max_target_tokens - 1), 1000 / later
        tokens = wishes.max_input_tokens + wishes.max_target_tokens
    loss = EXPECTED_LOSS[wishes.architecture, build]
    return Predicted(size, serving_bytes(shape, build, tokens), latency * device.tail, rate, loss)


def _candidate(
    wishes: Wishes, device: Device, name: str, shape: Shape, build: VariantName, measured: MeasuredLoss
) -> Candidate:
    found = predict(wishes, device, shape, build)
    losses = sorted(measured.get((name, build), ()))
    if losses:
        found = Predicted(
            found.size_bytes, found.memory_bytes, found.latency_ms, found.per_second, losses[len(losses) // 2]
        )
    return Candidate(name, shape.parameters, build, found, len(losses), misses(wishes, device, found))


def _recipe(
    wishes: Wishes, goal: Goal, pick: Candidate, config: Mapping[str, Any], trainer: Machine
) -> tuple[TrainingSpec, tuple[str, ...]]:
    """The training of the pick: full where accuracy comes first and memory allows, else adapters."""
    lora = _spec(wishes, pick, make_method("lora", {"r": 8, "alpha": 16.0}))
    if goal == "accuracy":
        full = _spec(wishes, pick, make_method("full", {}))
        plan = plan_run(full, config, trainer)
        if plan.chosen.fits:
            return full, ()
        note = f"full fine-tuning needs {plan.chosen.total / 1e9:.1f} GB here, so adapters are trained"
    else:
        note = ""
    plan = plan_run(lora, config, trainer)
    short = f"the training does not fit on this machine either: {plan.nearest}" if plan.nearest else ""
    return lora, tuple(each for each in (note, short) if each)


def _spec(wishes: Wishes, pick: Candidate, method: Method) -> TrainingSpec:
    rate = _RATES[method.kind]
    if method.kind == "full" and wishes.architecture == "causal":
        rate = _FULL_RATE_OF_WRITERS
    optimization = Optimization(**_OPTIMIZATION[wishes.architecture], learning_rate=rate, precision="auto")
    return TrainingSpec(
        "advised", pick.base_model, "", "", "", _task(wishes), method, optimization, variants=(pick.build,)
    )


def _task(wishes: Wishes) -> Task:
    """The task with columns, and ordered labels, that a person replaces by those of the data set."""
    kind = TASKS[wishes.task]
    if kind is GenerationTask:
        return GenerationTask("{text}", "answer", wishes.max_input_tokens, wishes.max_target_tokens)
    if kind is TextClassificationTask:
        return TextClassificationTask("label", wishes.max_input_tokens)
    if kind is TextEmbeddingTask:
        return TextEmbeddingTask("positive", wishes.max_input_tokens)
    if kind is MultiLabelClassificationTask:
        return MultiLabelClassificationTask("labels", wishes.max_input_tokens)
    if kind is OrdinalClassificationTask:
        return OrdinalClassificationTask("label", wishes.max_input_tokens, ("lowest", "highest"))
    return TokenClassificationTask("spans", wishes.max_input_tokens)


def _serving(wishes: Wishes, device: Device, goal: Goal, found: Predicted) -> Serving:
    """Devices so that all callers have their answer within the limit: they wait for those before them."""
    if goal != "concurrency":
        return Serving(1, 0)
    lanes = device.cores if wishes.architecture == "encoder" else 1
    waiting = found.latency_ms * math.ceil(wishes.callers / lanes)
    limit = max(wishes.max_latency_ms, found.latency_ms) if wishes.max_latency_ms else waiting
    return Serving(math.ceil(waiting / limit), _CACHE_BYTES)
