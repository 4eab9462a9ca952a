"""Objectives of generation runs: what each method learns from the rows of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.kit.prompts import Prompts
from services.training.domain.tasks import GenerationTask
from services.training.domain.training_spec import TrainingSpec
from services.training.engine.method_capabilities import LearnsFromPeople, pad_token
from services.training.engine.prompts import training_pairs
from services.training.engine.tasks import CompletionObjective, Objective

Rows = Sequence[Mapping[str, str]]


def objective_of(spec: TrainingSpec, prompts: Prompts, tokenizer: Any, rows: Rows) -> Objective:
    """The objective of a generation run over its rows.

    Raises:
        FailedPreconditionError: the rows lack the values that the method learns from.
    """
    method, task = spec.method, spec.task
    assert isinstance(task, GenerationTask)
    if isinstance(method, LearnsFromPeople):
        return method.objective(task, prompts, tokenizer, rows)
    return CompletionObjective(training_pairs(prompts, tokenizer, task, rows), pad_token(tokenizer))


def agreement_with_people(
    spec: TrainingSpec, prompts: Prompts, tokenizer: Any, holdout: Rows, model: Any
) -> dict[str, float]:
    """`preference_accuracy` on held-out preferences, and their number; empty for methods without preferences."""
    method, task = spec.method, spec.task
    assert isinstance(task, GenerationTask)
    if not isinstance(method, LearnsFromPeople):
        return {}
    if not any(row[getattr(method, method.COLUMN)].strip() for row in holdout):
        return {}
    judged = method.objective(task, prompts, tokenizer, holdout)
    right = judged.accuracy(model, next(model.parameters()).device)
    return {"preference_accuracy": sum(right) / len(right), "preference_examples": float(len(right))}
