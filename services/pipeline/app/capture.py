"""Captured answers: the rules, the answers, and the records that feedback on them becomes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from services.kit.clock import Clock
from services.kit.errors import not_found
from services.masking.masks import Mask, mask_of
from services.pipeline.app.ports import CaptureStore, LessonFiles
from services.pipeline.domain.capture import Capture, CapturedAnswer, CapturePolicy
from services.pipeline.domain.cycle import Json, PipelineSpec
from services.pipeline.domain.learning import Kind, Lesson, chosen

logger = logging.getLogger(__name__)

# The most that ingest takes as an attribute, and as a text.
_MAX_ATTRIBUTE, _MAX_TEXT = 16_384, 524_288


class Captures:
    """Use cases on captured answers. Thread-safe."""

    def __init__(self, store: CaptureStore, files: LessonFiles, clock: Clock) -> None:
        self._store, self._files, self._clock = store, files, clock

    def put_policy(self, model: str, pipeline: str, capture: Capture | None) -> None:
        """Sets how answers of a model are captured from now on. The last pipeline of a model wins."""
        before = self._store.put_policy(model, pipeline, capture, self._clock.now())
        if before is not None and before.pipeline != pipeline and capture is not None:
            logger.warning("%s is captured as %s says, no longer as %s", model, pipeline, before.pipeline)

    def policies(self) -> Sequence[CapturePolicy]:
        """The rules of all models whose answers are kept."""
        return self._store.policies()

    def user_key(self) -> str:
        """What data planes make the pseudonyms of users with."""
        return self._store.user_key()

    def masks(self, models: Sequence[str]) -> Mapping[str, Mask]:
        """How texts about answers of these models are masked: by their rule, else by the default."""
        rules = {policy.model: policy.capture.masks for policy in self._store.policies()}
        return {model: mask_of(rules.get(model, ())) for model in set(models)}

    def keep(self, answers: Sequence[CapturedAnswer]) -> None:
        """Stores answers that a data plane has captured, but none of a model whose rule has ended, or of the erased."""
        if answers and (refused := self._store.keep(answers)):
            why = "their pipelines capture no more, or their users were erased"
            logger.info("%d captured answers are not kept: %s", refused, why)

    def answers(self, names: Sequence[str]) -> Sequence[CapturedAnswer]:
        """Those of these answers that were captured and are still stored."""
        return self._store.answers(names)

    def get(self, name: str) -> CapturedAnswer:
        """A captured answer.

        Raises:
            NotFoundError: it was not captured, or is older than `keep_days`.
        """
        found = self._store.answers([name])
        if not found:
            raise not_found(
                "captured_answer",
                name,
                "Answers are captured while their pipeline has `capture`, and deleted after its `keep_days`.",
            )
        return found[0]

    def page(self, model: str, before: str, limit: int) -> Sequence[CapturedAnswer]:
        """Captured answers of a model (of all when empty) with ids before the given one, newest first."""
        return self._store.page(model, before, limit)

    def expire(self) -> None:
        """Deletes answers that are older than their pipelines keep them."""
        if expired := self._store.expire(self._clock.now()):
            logger.info("deleted %d captured answers that are older than their pipelines keep them", expired)

    def count_corrections(self, spec: PipelineSpec, since: datetime | None) -> int:
        """The corrections after a moment that a data set of a pipeline would take; all of them when None."""
        if spec.feedback is None:
            return 0
        lessons = self._chosen(spec)
        return sum(lesson.kind is Kind.CORRECTION and (since is None or lesson.time > since) for lesson in lessons)

    def _chosen(self, spec: PipelineSpec) -> Sequence[Lesson]:
        assert spec.feedback is not None
        found = [lesson for lesson in self._store.lessons(spec.model) if _fits(lesson)]
        return chosen(found, spec.feedback, self._store.quarantined())

    def write_lessons(self, spec: PipelineSpec, cycle: str = "") -> Json:
        """Writes what feedback teaches a pipeline's model as JSON lines, a record each.

        Args:
            spec: the pipeline.
            cycle: whose cycle it is for, so that it is known later whose feedback it took.

        Returns:
            `uri`, `count`, and the counts by kind and of people.
        """
        lessons = self._chosen(spec)
        if cycle:
            records = Counter((lesson.person, lesson.api_key) for lesson in lessons)
            self._store.note_taught(cycle, spec.name, records)
        lines = (_record(lesson, spec) for lesson in lessons)
        uri = self._files.write(spec.name, lines)
        counts = {kind.value: sum(lesson.kind is kind for lesson in lessons) for kind in Kind}
        return {"uri": uri, "count": len(lessons), "people": len({lesson.person for lesson in lessons}), **counts}


def _record(lesson: Lesson, spec: PipelineSpec) -> dict[str, Any]:
    """A raw record: the prompt as its text, and as attributes what should have been answered and where it is from."""
    assert spec.feedback is not None
    record = {
        "record_id": lesson.answer,
        "text": lesson.prompt,
        "feedback_kind": lesson.kind.value,
        "feedback_weight": str(spec.feedback.weight(lesson.kind)),
        "feedback_person": lesson.person,
        "feedback_version": lesson.model_version,
        "feedback": lesson.feedback,
        "feedback_time": lesson.time.isoformat(),
        spec.target_field: lesson.target,
    }
    if lesson.classification:
        record["feedback_label_field"] = spec.target_field
    elif lesson.kind is Kind.CORRECTION and len(lesson.given.encode()) <= _MAX_ATTRIBUTE:
        # With the target a preference: corrected above given.
        record["rejected_answer"] = lesson.given
    return record


def _fits(lesson: Lesson) -> bool:
    """Whether ingest takes it: a refused record would keep the import from withdrawing what is gone."""
    return len(lesson.target.encode()) <= _MAX_ATTRIBUTE and len(lesson.prompt.encode()) <= _MAX_TEXT
