"""Record feedback on answers, and learn which model gave them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from datetime import timedelta

from services.kit.clock import Clock
from services.kit.errors import UnavailableError
from services.kit.ids import new_id
from services.pipeline.app.ports import Announcer, FeedbackStore
from services.pipeline.domain.feedback import Answer, Feedback

logger = logging.getLogger(__name__)

_PAGE = 200


class FeedbackBook:
    """Threads share it."""

    def __init__(self, store: FeedbackStore, announcer: Announcer, clock: Clock, keep_answers_days: int) -> None:
        self._store, self._announcer, self._clock = store, announcer, clock
        self._keep = timedelta(days=keep_answers_days)
        self._announcing = threading.Lock()

    def record(
        self, answer: str, rating: float, correction: str, author: str, request_id: str, traceparent: str
    ) -> Feedback:
        """Stores a judgement and tells the others; they hear later where the bus is away."""
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
        try:
            self.announce()
        except UnavailableError as error:
            # It is stored, so it counts; `tend` tells the others when the bus is back.
            logger.warning("feedback is told later: %s", error.message)
        return kept

    def page(self, model: str, before: str, limit: int) -> Sequence[Feedback]:
        """Feedback on a model, on all when empty, older than the given id, newest first."""
        return self._store.page(model, before, limit)

    def remember(self, answers: Sequence[Answer]) -> None:
        """Keeps which version gave each answer."""
        self._store.remember(answers)

    def announce(self) -> None:
        """Publishes all feedback that has not been published."""
        with self._announcing:
            while pending := self._store.unannounced(_PAGE):
                self._announcer.feedback(pending)
                self._store.mark_announced([item.feedback_id for item in pending])

    def tend(self) -> None:
        """What is due now and then: announce what is left, drop answers that are too old to be judged."""
        self.announce()
        dropped = self._store.forget(self._clock.now() - self._keep)
        if dropped:
            logger.info(
                "%d answers are older than %d days; feedback on them is kept without its model",
                dropped,
                self._keep.days,
            )
