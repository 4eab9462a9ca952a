"""What looking for drift needs from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from services.pipeline.domain.drift import DriftLook, Signal


class DriftStore(Protocol):
    """Reads captured answers and ratings, and keeps the newest look at each signal; each call is one transaction.

    Times of windows are `after` (excluded) and `until` (included); None is open.
    """

    def looks(self, pipeline: str) -> Mapping[Signal, DriftLook]:
        """The newest look at each signal."""
        ...

    def keep(self, look: DriftLook) -> None:
        """Replaces the newest look at a signal."""
        ...

    def serving(self, model: str) -> str:
        """The version that gave the newest captured answer as the serving one; empty if there is none."""
        ...

    def count_asked(self, model: str, after: datetime) -> int:
        """How many texts, not conversations, were asked of a model; copies for a shadow do not count."""
        ...

    def asked(self, model: str, after: datetime, most: int, seed: int) -> Sequence[str]:
        """Of these texts `most` at most, drawn at random."""
        ...

    def reference_end(self, version: str, signal: Signal, least: int, span: timedelta) -> datetime | None:
        """The end of a version's first answers, or ratings: `least` of them, over `span`; None before."""
        ...

    def count_given(self, version: str, after: datetime) -> int:
        """How many answers a version gave as the serving one."""
        ...

    def given(
        self, version: str, after: datetime | None, until: datetime | None, most: int
    ) -> Sequence[tuple[str, int]]:
        """Label and length in characters of these answers, `most` at most, evenly over the window."""
        ...

    def count_rated(self, version: str, after: datetime) -> int:
        """How many people rated a version's answers."""
        ...

    def ratings(self, version: str, after: datetime | None, until: datetime | None) -> Sequence[float]:
        """The mean of each person's ratings of a version's answers; one without an author is a person of its own."""
        ...


class TrainingTexts(Protocol):
    """The data sets that models were trained on."""

    def sample(self, uri: str, most: int, seed: int) -> Sequence[str]:
        """`most` at most of a snapshot's training texts, drawn at random.

        Raises:
            NotFoundError: the snapshot is gone.
            UnavailableError: the artefact store does not respond.
        """
        ...


class DriftGauges(Protocol):
    """Shows looks to whoever scrapes metrics."""

    def show(self, look: DriftLook) -> None:
        """The newest look at a signal."""
        ...
