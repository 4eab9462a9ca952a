"""What reviews need from outside."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from services.pipeline.domain.review import Decision, Review, ReviewState


class ReviewStore(Protocol):
    """Keeps the queue and the decisions; each call is one transaction. Captured answers that expired are not in it."""

    def get(self, answer: str) -> Review | None:
        """An answer in the queue."""
        ...

    def page(self, model: str, state: ReviewState | None, before: str, limit: int, now: datetime) -> Sequence[Review]:
        """Answers of a model (of all when empty) in a state, with ids before the given one, newest first."""
        ...

    def take(self, model: str, reviewer: str, now: datetime) -> Review | None:
        """Gives a person the most needed answer that they may decide about, until the end of its lease.

        Args:
            model: `models/{model}`; all when empty.
            reviewer: who takes it; the one that they have already comes first.
            now: leases that ended before are free.
        """
        ...

    def decide(self, answer: str, decision: Decision) -> Review:
        """Keeps a decision and ends the lease. A repeat of the same decision changes nothing."""
        ...

    def doubly(self, model: str) -> Sequence[Review]:
        """Answers that two people or more decided about."""
        ...

    def counts(self, model: str) -> tuple[int, int]:
        """How many answers wait, and how many are done."""
        ...
