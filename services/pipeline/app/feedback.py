"""Record feedback on answers, and learn which model gave them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta

from services.kit.clock import Clock
from services.kit.errors import request_id_reused
from services.kit.ids import new_id
from services.pipeline.app.ports import Announcer, FeedbackStore
from services.pipeline.domain.feedback import Answer, Feedback

logger = logging.getLogger(__name__)

_PAGE = 200


class FeedbackService:
    """Records feedback. Thread-safe; `recorded` wakes the task that calls `publish_pending`."""

    def __init__(
        self,
        store: FeedbackStore,
        announcer: Announcer,
        clock: Clock,
        keep_answers_days: int,
        recorded: Callable[[], None],
    ) -> None:
        self._store, self._announcer, self._clock, self._recorded = store, announcer, clock, recorded
        self._keep = timedelta(days=keep_answers_days)

    def record(
        self, answer: str, rating: float, correction: str, author: str, request_id: str, traceparent: str
    ) -> Feedback:
        """Stores a judgement. `publish_pending` publishes it, so no caller waits for an unavailable bus.

        Raises:
            InvalidArgumentError: the request id was used for another judgement.
        """
        draft = Feedback(
            new_id(),
            answer,
            rating,
            correction,
            author,
            self._clock.now(),
            request_id=request_id,
            traceparent=traceparent,
        )
        kept = self._store.record(draft)
        if (kept.answer, kept.rating, kept.correction, kept.author) != (answer, rating, correction, author):
            raise request_id_reused(request_id, "judgement", feedback=kept.name)
        self._recorded()
        return kept

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
