"""What judges need from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from services.pipeline.domain.audit import AuditEntry
from services.pipeline.domain.capture import CapturedAnswer
from services.pipeline.domain.judge import JudgeRating, JudgeSpec, ModelJudge, Opinion


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer that waits for a judge, and how often it was tried."""

    answer: CapturedAnswer
    attempts: int


@dataclass(frozen=True, slots=True)
class Tally:
    """Answers of a judge by state, and its calls and tokens of today."""

    rated: int = 0
    good: int = 0
    pending: int = 0
    failed: int = 0
    over_limit: int = 0
    calls_today: int = 0
    tokens_today: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The newest check of a judge that is in the audit trail."""

    version: str
    passed: bool


class JudgeStore(Protocol):
    """Keeps what judges said and cost; each call is one transaction."""

    def due(self, judge: ModelJudge, limit: int, now: datetime) -> Sequence[Asked]:
        """Answers that wait for a judge and may be tried now, oldest first."""
        ...

    def give_up(self, judge: ModelJudge, before: datetime, now: datetime) -> int:
        """Fails the answers that have waited since before a moment; returns their number."""
        ...

    def spend(self, judge: ModelJudge, now: datetime) -> bool:
        """Counts a call before it is made; False if the day's limit of calls or tokens is reached."""
        ...

    def rate(self, judge: ModelJudge, answer: str, opinion: Opinion, now: datetime) -> None:
        """Keeps a rating with its cost, and queues the answer for a review if judges are at odds."""
        ...

    def skip(self, judge: ModelJudge, answer: str, first: AuditEntry, now: datetime) -> None:
        """Leaves an answer unrated because the day's limit is reached; only the day's first gets an audit entry."""
        ...

    def postpone(self, judge: ModelJudge, answer: str, until: datetime) -> None:
        """Delays the next attempt at an answer, so that others are tried first."""
        ...

    def fail(
        self, judge: ModelJudge, answer: str, reason: str, tokens: int, retry: datetime | None, now: datetime
    ) -> None:
        """Counts an attempt that gave no verdict: tried again at `retry`, given up when None."""
        ...

    def tally(self, judge: ModelJudge, now: datetime) -> Tally:
        """Counts of a judge."""
        ...

    def common(self, judge: ModelJudge) -> Sequence[tuple[bool, bool]]:
        """The ratings (people's, the judge's) of answers that both have rated; True is good.

        Of the judge only ratings by its current settings count. If several people rated an answer, the last rating
        counts, as in training data; ratings in quarantine do not count.
        """
        ...

    def verdict(self, judge: ModelJudge) -> Verdict | None:
        """What was last decided about a judge."""
        ...

    def decide(self, judge: ModelJudge, passed: bool, entry: AuditEntry, now: datetime) -> None:
        """Keeps a check with its entry in the audit trail."""
        ...

    def page(self, model: str, judge: str, answer: str, before: str, limit: int) -> Sequence[JudgeRating]:
        """Ratings, newest answer first, after the place `{answer id}/{judge}`."""
        ...


class Evaluators(Protocol):
    """Asks judges."""

    async def rate(self, judge: JudgeSpec, answer: CapturedAnswer, tokens: Mapping[str, str]) -> Opinion:
        """What a judge says of an answer.

        Args:
            judge: which.
            answer: the answer.
            tokens: what the masks of the model replaced personal data by, by kind.

        Raises:
            NoVerdictError: it answered, but not with a verdict.
            TidemillError: it cannot be asked at the moment; the answer waits.
        """
        ...

    def check(self, judge: JudgeSpec, place: str) -> None:
        """Refuses a judge that could never be asked.

        Raises:
            InvalidArgumentError: a pattern, language or address; the violation names the field below `place`.
        """
        ...
