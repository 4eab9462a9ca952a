"""Reviews: which captured answers people are to look at, and what they may decide about them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from services.kit.errors import AbortedError, FailedPreconditionError, FieldViolation, InvalidArgumentError
from services.kit.ids import sha256_hex
from services.pipeline.domain.capture import CapturedAnswer, ReviewRules
from services.pipeline.domain.feedback import Feedback, Signal
from services.pipeline.domain.judge import at_odds


class Need(Enum):
    """Why an answer is in the queue."""

    BAD_RATING = "bad_rating"
    JUDGES_AT_ODDS = "judges_at_odds"
    LOW_CONFIDENCE = "low_confidence"
    RANDOM = "random"

    @property
    def priority(self) -> int:
        """Answers of a higher one are given out first."""
        return {Need.BAD_RATING: 3, Need.JUDGES_AT_ODDS: 2, Need.LOW_CONFIDENCE: 2, Need.RANDOM: 1}[self]


class Action(Enum):
    """What a person decided."""

    ACCEPT = "accept"
    EDIT = "edit"
    RELABEL = "relabel"
    REJECT = "reject"
    SKIP = "skip"


class ReviewState(Enum):
    """Where a review stands."""

    PENDING = "pending"
    TAKEN = "taken"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Decision:
    """What one person decided; `feedback` is empty for a skip."""

    reviewer: str
    action: Action
    target: str
    comment: str
    time: datetime
    feedback: str = ""

    def verdict(self, given: str) -> str:
        """What two people are compared by: the right label, or what was to be done with a text."""
        if self.action is Action.RELABEL:
            return f"label {self.target}"
        return f"label {given}" if self.action is Action.ACCEPT else self.action.value


@dataclass(frozen=True, slots=True)
class Review:
    """An answer in the queue, with what was decided, oldest first; skips do not count as decisions."""

    answer: CapturedAnswer
    need: Need
    wanted: int
    decisions: tuple[Decision, ...] = ()
    reviewer: str = ""
    lease_end: datetime | None = None

    @property
    def decided(self) -> tuple[Decision, ...]:
        """Those that were not skips."""
        return tuple(item for item in self.decisions if item.action is not Action.SKIP)

    def taken_by(self, now: datetime) -> str:
        """Who has it now; empty if no one has."""
        return self.reviewer if self.lease_end is not None and self.lease_end > now else ""

    def state(self, now: datetime) -> ReviewState:
        """Where it stands at a moment."""
        if len(self.decided) >= self.wanted:
            return ReviewState.DONE
        return ReviewState.TAKEN if self.taken_by(now) else ReviewState.PENDING


def need_of(
    answer: CapturedAnswer, rules: ReviewRules, judgements: Iterable[Feedback], judges: Iterable[float] = ()
) -> Need | None:
    """Why an answer is to be reviewed; None if it is not. Conversations teach nothing, so they are not reviewed.

    Args:
        answer: the answer.
        rules: of its model.
        judgements: what people said of it.
        judges: what judges rated it, 1 or -1. Those that no one checked count, too: people decide here.
    """
    if answer.conversation or not answer.prompt.strip():
        return None
    given = list(judgements)
    if any(item.correction or item.label for item in given):
        return None
    if any(item.rating < 0 for item in given):
        return Need.BAD_RATING
    if rules.judges_at_odds and at_odds(judges):
        return Need.JUDGES_AT_ODDS
    if answer.is_classification and answer.score < rules.low_confidence:
        return Need.LOW_CONFIDENCE
    return Need.RANDOM if _share("random", answer.name) < rules.random_share else None


def wanted_of(answer: CapturedAnswer, rules: ReviewRules) -> int:
    """How many people are to decide about it."""
    return 2 if _share("double", answer.name) < rules.double_share else 1


def check_decision(review: Review, reviewer: str, action: Action, now: datetime) -> None:
    """Refuses a decision that this person cannot make.

    Raises:
        AbortedError: someone else has taken the answer.
        FailedPreconditionError: enough people have decided, or this one has.
        InvalidArgumentError: a text is relabelled, or a label edited.
    """
    name = review.answer.name
    other = review.taken_by(now)
    if other and other != reviewer:
        raise AbortedError(f"{name} was taken by {other}. Take another one.", reason="REVIEW_TAKEN")
    if any(item.reviewer == reviewer for item in review.decided):
        raise FailedPreconditionError(f"{reviewer} has decided about {name} already.", reason="REVIEW_DECIDED")
    if review.state(now) is ReviewState.DONE:
        raise FailedPreconditionError(f"{name} is reviewed already. Take another one.", reason="REVIEW_DONE")
    wrong = Action.EDIT if review.answer.is_classification else Action.RELABEL
    if action is wrong:
        right = "relabel" if wrong is Action.EDIT else "edit"
        what = f"{review.answer.model} {'classifies' if wrong is Action.EDIT else 'writes'}; {right} its answer"
        raise InvalidArgumentError(f"action: {what}", violations=[FieldViolation("action", what)])


def feedback_of(review: Review, reviewer: str, decision: Decision, api_key: str) -> Feedback:
    """The judgement that a decision is, still without id. An equal decision is the same request."""
    answer, action = review.answer, decision.action
    said = sha256_hex(answer.name, reviewer, action.value, decision.target, decision.comment)
    return Feedback(
        feedback_id="",
        answer=answer.name,
        rating={Action.ACCEPT: 1.0, Action.REJECT: -1.0}.get(action, 0.0),
        correction=decision.target if action is Action.EDIT else "",
        author=reviewer,
        create_time=decision.time,
        request_id=f"review-{said[:48]}",
        label=decision.target if action is Action.RELABEL else "",
        comment=decision.comment,
        signal=Signal.ACCEPTED if action is Action.ACCEPT else Signal.UNKNOWN,
        # Reviewers see the answers of every tenant, and judge them in the name of the one that asked.
        tenant=answer.tenant,
        api_key=api_key,
    )


def _share(salt: str, name: str) -> float:
    """A number from 0 to 1 that is always the same for a name."""
    return int(sha256_hex("review", salt, name)[:12], 16) / 16**12
