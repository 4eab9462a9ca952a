"""A run that trains an encoder to classify texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from services.kit.errors import FailedPreconditionError
from services.training.adapters.job import Job
from services.training.domain.tasks import TextClassificationTask
from services.training.engine.metrics import Score, alone, correct, mean_of
from services.training.engine.tasks import ClassificationObjective
from services.training.worker.champion import Rows
from services.training.worker.encoders import EncoderRun, Tokens
from services.training.worker.phases import Material


class TextClassificationRun(EncoderRun[str]):
    """An answer is a label."""

    MEASURE = mean_of("accuracy")

    def __init__(self, job: Job, material: Material, should_stop: Callable[[], bool]) -> None:
        task = job.spec.task
        assert isinstance(task, TextClassificationTask)
        self._column = task.label_field
        labels = sorted({row[self._column] for row in material.train})
        if len(labels) < 2:
            raise FailedPreconditionError(
                f"spec.text_classification.label_field: column {self._column!r} holds one label only, {labels[0]!r}, "
                "in the records to learn from; two or more are needed.",
                reason="LABELS_MISSING",
                metadata={"column": self._column},
            )
        super().__init__(job, material, should_stop, labels)

    def objective(self, tokens: Sequence[Tokens]) -> ClassificationObjective:
        """See `EncoderRun`."""
        index = {label: number for number, label in enumerate(self.outputs)}
        wanted = [index[row[self._column]] for row in self.material.train]
        return ClassificationObjective([text.ids for text in tokens], wanted, self.material.tokenizer.pad_token_id)

    def named(self, found: Sequence[Any], outputs: Sequence[str], tokens: Sequence[Tokens]) -> list[str]:
        """See `EncoderRun`."""
        return [outputs[number] for number in found]

    def compared_as(self, answer: str) -> str:
        """See `EncoderRun`."""
        return answer

    def scored(self, rows: Rows, answers: Sequence[str]) -> list[Score]:
        """See `TaskRun`."""
        return alone(correct(self._references(rows), answers))

    def figures(self, tuned: Sequence[str]) -> Mapping[str, float]:
        """The accuracy of always answering with the commonest label."""
        references = self._references(self.material.holdout)
        return {"majority_accuracy": max(references.count(label) for label in self.outputs) / len(references)}

    def ranked(self, tuned: Sequence[str], base: Sequence[str] | None) -> list[int]:
        """Wrong ones first."""
        references = self._references(self.material.holdout)
        return sorted(range(len(references)), key=lambda at: references[at] == tuned[at])

    def reference(self, row: Mapping[str, str]) -> str:
        """See `TaskRun`."""
        return row[self._column]

    def _references(self, rows: Rows) -> list[str]:
        return [self.reference(row) for row in rows]


RUN = TextClassificationRun
