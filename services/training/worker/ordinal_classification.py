"""A run that trains an encoder to give texts one of several labels that have an order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from services.kit.errors import FailedPreconditionError
from services.training.adapters.job import Job
from services.training.domain.tasks import OrdinalClassificationTask
from services.training.engine.metrics import QUADRATIC_KAPPA, Score, correct, mean_with_interval, ordinal_scores
from services.training.engine.tasks import ClassificationObjective
from services.training.worker.champion import Rows
from services.training.worker.encoders import EncoderRun, Tokens
from services.training.worker.phases import Material


class OrdinalClassificationRun(EncoderRun[str]):
    """An answer is a label, the most probable one; that of a champion may be of another set of labels."""

    ORDERED: ClassVar[bool] = True
    MEASURE = QUADRATIC_KAPPA

    def __init__(self, job: Job, material: Material, should_stop: Callable[[], bool]) -> None:
        task = job.spec.task
        assert isinstance(task, OrdinalClassificationTask)
        self._column, self._place = task.label_field, {label: at for at, label in enumerate(task.labels)}
        for rows in (material.train, material.holdout, material.corrections):
            self._check(rows)
        seen = {row[self._column] for row in material.train}
        if missing := [label for label in task.labels if label not in seen]:
            raise FailedPreconditionError(
                f"spec.ordinal_classification.labels: no record to learn from has {', '.join(map(repr, missing))} in "
                f"column {self._column!r}; leave them out, or collect records with them.",
                reason="LABELS_MISSING",
                metadata={"column": self._column},
            )
        super().__init__(job, material, should_stop, task.labels)

    @property
    def served_as(self) -> str:
        """The outputs are logits of labels, whichever head gave them."""
        return "text_classification"

    def objective(self, tokens: Sequence[Tokens]) -> ClassificationObjective:
        """See `EncoderRun`: the log probability of the right label."""
        wanted = [self._place[row[self._column]] for row in self.material.train]
        return ClassificationObjective([text.ids for text in tokens], wanted, self.material.tokenizer.pad_token_id)

    def named(self, found: Sequence[Any], outputs: Sequence[str], tokens: Sequence[Tokens]) -> list[str]:
        """See `EncoderRun`."""
        return [outputs[number] for number in found]

    def compared_as(self, answer: str) -> str:
        """See `EncoderRun`."""
        return answer

    def champion_answers(self, champion: Any, folder: Any, rows: Rows) -> list[str]:
        """See `TaskRun`.

        Raises:
            FailedPreconditionError: the champion has other labels, so that there is no distance to the right ones.
        """
        answers = super().champion_answers(champion, folder, rows)
        if others := sorted(set(answers) - self._place.keys()):
            raise FailedPreconditionError(
                f"it answers with {', '.join(others)}, which this run's labels do not contain"
            )
        return answers

    def scored(self, rows: Rows, answers: Sequence[str]) -> list[Score]:
        """See `TaskRun`."""
        return ordinal_scores(self._places(self._references(rows)), self._places(answers))

    def figures(self, tuned: Sequence[str]) -> Mapping[str, float]:
        """Accuracy and mean absolute error, with intervals, and those of the commonest or middle label alone."""
        wanted = self._references(self.material.holdout)
        places, given = self._places(wanted), self._places(tuned)
        errors = [float(abs(right - found)) for right, found in zip(places, given, strict=True)]
        median = sorted(places)[len(places) // 2]
        return {
            **mean_with_interval("accuracy", correct(wanted, tuned)).figures(),
            **mean_with_interval("mean_absolute_error", errors).figures(),
            "majority_accuracy": max(wanted.count(label) for label in self.outputs) / len(wanted),
            "median_mean_absolute_error": sum(abs(place - median) for place in places) / len(places),
        }

    def ranked(self, tuned: Sequence[str], base: Sequence[str] | None) -> list[int]:
        """Those farthest off first."""
        wanted, given = self._places(self._references(self.material.holdout)), self._places(tuned)
        return sorted(range(len(wanted)), key=lambda at: -abs(wanted[at] - given[at]))

    def reference(self, row: Mapping[str, str]) -> str:
        """See `TaskRun`."""
        return row[self._column]

    def _check(self, rows: Rows) -> None:
        for row in rows:
            if row[self._column] not in self._place:
                raise FailedPreconditionError(
                    f"spec.ordinal_classification.labels: column {self._column!r} of record {row.get('record_id', '')} "
                    f"holds {row[self._column]!r}, which is none of {', '.join(self._place)}.",
                    reason="LABEL_UNKNOWN",
                    metadata={"column": self._column, "record": row.get("record_id", "")},
                )

    def _references(self, rows: Rows) -> list[str]:
        return [self.reference(row) for row in rows]

    def _places(self, labels: Sequence[str]) -> list[int]:
        return [self._place[label] for label in labels]


RUN = OrdinalClassificationRun
