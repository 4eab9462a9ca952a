"""Use cases on reviews: give answers out, and turn decisions into feedback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from services.kit.clock import Clock
from services.kit.errors import not_found
from services.pipeline.app.feedback import FeedbackService
from services.pipeline.app.review_ports import ReviewStore
from services.pipeline.domain.review import Action, Decision, Review, ReviewState, check_decision, feedback_of
from services.pipeline.engine.agreement import Agreement, agreement


class Reviews:
    """Thread-safe. A decision is first stored as feedback, by an id of its content: a repeat after a crash is one."""

    def __init__(self, store: ReviewStore, feedback: FeedbackService, clock: Clock) -> None:
        self._store, self._feedback, self._clock = store, feedback, clock

    def page(self, model: str, state: ReviewState | None, before: str, limit: int) -> Sequence[Review]:
        """Answers of a model (of all when empty) in a state, with ids before the given one, newest first."""
        return self._store.page(model, state, before, limit, self._clock.now())

    def take(self, model: str, reviewer: str) -> Review | None:
        """Leases the highest-priority answer to a reviewer; None if none is left."""
        return self._store.take(model, reviewer, self._clock.now())

    def submit(self, answer: str, reviewer: str, action: Action, target: str, comment: str, api_key: str) -> Review:
        """Records a decision.

        Raises:
            NotFoundError: the answer is not in the queue.
            AbortedError, FailedPreconditionError, InvalidArgumentError: see `check_decision`; or the text is refused.
        """
        review = self._store.get(answer)
        if review is None:
            raise not_found(
                "review",
                answer,
                "Answers are queued while their pipeline has `capture.review`, and go after its `keep_days`.",
            )
        now = self._clock.now()
        decision = Decision(reviewer, action, target, comment, now)
        check_decision(review, reviewer, action, now)
        if action is Action.SKIP:
            return self._store.decide(answer, decision)
        (kept,) = self._feedback.record([feedback_of(review, reviewer, decision, api_key)])
        stored = replace(decision, target=kept.correction or kept.label, comment=kept.comment, feedback=kept.name)
        return self._store.decide(answer, stored)

    def agreement(self, model: str) -> tuple[Agreement, int, int]:
        """How far people agree who decided about the same answers; how many answers wait, and how many are done."""
        pairs = []
        for review in self._store.doubly(model):
            one, other, *_ = review.decided
            given = review.answer.given if review.answer.is_classification else ""
            pairs.append((one.verdict(given), other.verdict(given)))
        return agreement(pairs), *self._store.counts(model)

    def now_state(self, review: Review) -> ReviewState:
        """Where a review stands now."""
        return review.state(self._clock.now())
