"""Objectives of generation runs: what each method learns from the rows of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.kit.prompts import Prompts
from services.training.domain.tasks import GenerationTask
from services.training.domain.training_spec import TrainingSpec
from services.training.engine.methods.dpo import Dpo
from services.training.engine.methods.kto import Kto
from services.training.engine.preferences import (
    PreferenceObjective,
    Preferred,
    Rated,
    RatingObjective,
    is_good,
    with_value,
)
from services.training.engine.prompts import training_pairs
from services.training.engine.tasks import CompletionObjective, Objective

Rows = Sequence[Mapping[str, str]]


def objective_of(spec: TrainingSpec, prompts: Prompts, tokenizer: Any, rows: Rows) -> Objective:
    """The objective of a generation run over its rows.

    Raises:
        FailedPreconditionError: the rows lack the values that the method learns from.
    """
    judged = _judged(spec, prompts, tokenizer, rows)
    if judged is not None:
        return judged
    assert isinstance(spec.task, GenerationTask)
    return CompletionObjective(training_pairs(prompts, tokenizer, spec.task, rows), _pad(tokenizer))


def agreement_with_people(
    spec: TrainingSpec, prompts: Prompts, tokenizer: Any, holdout: Rows, model: Any
) -> dict[str, float]:
    """`preference_accuracy` on held-out preferences, and their number; empty for methods without preferences."""
    method = spec.method
    if not isinstance(method, Dpo | Kto) or not any(row[getattr(method, method.COLUMN)].strip() for row in holdout):
        return {}
    judged = _judged(spec, prompts, tokenizer, holdout)
    assert judged is not None
    right = judged.accuracy(model, next(model.parameters()).device)
    return {"preference_accuracy": sum(right) / len(right), "preference_examples": float(len(right))}


def _judged(
    spec: TrainingSpec, prompts: Prompts, tokenizer: Any, rows: Rows
) -> PreferenceObjective | RatingObjective | None:
    method, task = spec.method, spec.task
    assert isinstance(task, GenerationTask)
    if isinstance(method, Dpo):
        found = with_value(rows, method.rejected_field, "spec.dpo.rejected_field")
        chosen = training_pairs(prompts, tokenizer, task, found)
        other = [{**row, task.target_field: row[method.rejected_field]} for row in found]
        rejected = training_pairs(prompts, tokenizer, task, other)
        examples = [Preferred(c.prompt, c.target, r.target) for c, r in zip(chosen, rejected, strict=True)]
        return PreferenceObjective(examples, _pad(tokenizer), beta=method.beta, label_smoothing=method.label_smoothing)
    if isinstance(method, Kto):
        field = "spec.kto.rating_field"
        found = with_value(rows, method.rating_field, field)
        pairs = training_pairs(prompts, tokenizer, task, found)
        good = [is_good(row[method.rating_field], row["record_id"], field) for row in found]
        return RatingObjective(
            [Rated(pair, each) for pair, each in zip(pairs, good, strict=True)],
            _pad(tokenizer),
            beta=method.beta,
            desirable_weight=method.desirable_weight,
            undesirable_weight=method.undesirable_weight,
        )
    return None


def _pad(tokenizer: Any) -> int:
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
