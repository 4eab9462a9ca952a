"""Record feedback on answers, and learn which model gave them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from services.kit.clock import Clock
from services.kit.ids import new_id
from services.pipeline.app.capture import Captures
from services.pipeline.app.ports import Announcer, FeedbackStore
from services.pipeline.domain.feedback import Answer, Feedback, check_fits, check_texts

logger = logging.getLogger(__name__)

_PAGE = 200


class FeedbackService:
    """Records feedback. Thread-safe; `recorded` wakes the task that calls `publish_pending`."""

    def __init__(
        self,
        store: FeedbackStore,
        captures: Captures,
        announcer: Announcer,
        clock: Clock,
        keep_answers_days: int,
        recorded: Callable[[], None],
    ) -> None:
        self._store, self._captures = store, captures
        self._announcer, self._clock, self._recorded = announcer, clock, recorded
        self._keep = timedelta(days=keep_answers_days)

    def record(
        self, drafts: Sequence[Feedback], place: str = "", sent: Sequence[datetime] | None = None
    ) -> Sequence[Feedback]:
        """Stores judgements, all or none. `publish_pending` publishes them, so no caller waits for an unavailable bus.

        Args:
            drafts: without id and time; corrections and comments are masked before they are stored.
            place: before the number of a judgement in messages; empty for a single one.
            sent: when each was sent, of those that come from a bus. What an erased person sent before, and what is
                said of an erased answer, is left out.

        Returns:
            What is stored, in order; for a repeated request id, what it stored first.

        Raises:
            InvalidArgumentError: a judgement has control characters, does not fit its answer, or its request id was
                used for another one.
            PermissionDeniedError: an answer was given to another tenant.
            NotFoundError: an answer was erased, and `sent` is None.
        """
        places = [f"{place}[{number}]." if place else "" for number in range(len(drafts))]
        captured = {answer.name: answer for answer in self._captures.answers([draft.answer for draft in drafts])}
        for draft, where in zip(drafts, places, strict=True):
            check_texts(draft, where)
            if draft.answer in captured:
                check_fits(draft, captured[draft.answer], where)
        masked = self._masked(drafts)
        now = self._clock.now()
        items = [replace(item, feedback_id=new_id(), create_time=now) for item in masked]
        recorded = self._store.record(items, sent)
        if len(recorded) < len(items):
            logger.info("%d judgements are not kept: they belong to what was erased", len(items) - len(recorded))
        self._recorded()
        return recorded

    def _masked(self, drafts: Sequence[Feedback]) -> Sequence[Feedback]:
        versions = self._store.versions([draft.answer for draft in drafts])
        models = [versions.get(draft.answer, "").partition("/versions/")[0] for draft in drafts]
        masks = self._captures.masks(models)
        return [
            replace(draft, correction=masks[model](draft.correction), comment=masks[model](draft.comment))
            for draft, model in zip(drafts, models, strict=True)
        ]

    def page(self, model: str, before: str, limit: int) -> Sequence[Feedback]:
        """Feedback on a model, on all when empty, older than the given id, newest first."""
        return self._store.page(model, before, limit)

    def remember(self, answers: Sequence[Answer]) -> None:
        """Keeps which version gave each answer."""
        self._store.remember(answers)

    def publish_pending(self) -> None:
        """Publishes pending feedback, and deletes answers that are too old to be judged."""
        while pending := self._store.unannounced(_PAGE):
            self._announcer.feedback(pending)
            self._store.mark_announced([item.feedback_id for item in pending])
        dropped = self._store.forget(self._clock.now() - self._keep)
        if dropped:
            logger.info(
                "%d answers are older than %d days; feedback on them is kept without its model",
                dropped,
                self._keep.days,
            )
        self._captures.expire()
