"""Judges: what rates sampled answers while the model serves, and when they may be relied on.

A judge says good or bad, as 1 or -1. What it says is kept apart from what people say and teaches nothing. A judge that
too few people's ratings were compared with, or that agrees with them too little, is not used for decisions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from services.kit.errors import FieldViolation, InvalidArgumentError
from services.kit.ids import sha256_hex

DEFAULT_CALLS_PER_DAY = 1000
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_MIN_COMMON = 50
DEFAULT_MIN_KAPPA = 0.4
DEFAULT_MAX_TOKENS = 200
GIVE_UP = timedelta(days=1)
"""After that an answer is not rated any more: the judge was unavailable."""
MAX_ATTEMPTS = 3
"""Responses to one answer that are not a verdict, before it is given up."""
_KEPT_REASON = 500


@dataclass(frozen=True, slots=True)
class JudgeRules:
    """What an answer must be like; lengths in characters, zero for no limit; regular expressions are RE2's."""

    json: bool = False
    min_chars: int = 0
    max_chars: int = 0
    matches: str = ""
    forbids: str = ""
    no_personal_data: bool = False
    language: str = ""


@dataclass(frozen=True, slots=True)
class ClassifierJudge:
    """A classifier of a mesh; without `good_labels` its label must be the answer's."""

    address: str
    model: str
    good_labels: tuple[str, ...] = ()
    key_env: str = ""


@dataclass(frozen=True, slots=True)
class LanguageModelJudge:
    """A language model behind an OpenAI-compatible address."""

    address: str
    model: str
    instructions: str
    key_env: str = ""
    max_tokens: int = DEFAULT_MAX_TOKENS
    plain: bool = False


JudgeKind = JudgeRules | ClassifierJudge | LanguageModelJudge


@dataclass(frozen=True, slots=True)
class JudgeSpec:
    """A judge of a pipeline: what rates, how often, at which cost, and when it may be relied on.

    `sample` is a share from 0 to 1; limits are of a day (UTC), `max_tokens_per_day` zero for none.
    """

    name: str
    kind: JudgeKind
    sample: float = 1.0
    max_calls_per_day: int = DEFAULT_CALLS_PER_DAY
    max_tokens_per_day: int = 0
    timeout_s: float = DEFAULT_TIMEOUT_S
    min_common: int = DEFAULT_MIN_COMMON
    min_kappa: float = DEFAULT_MIN_KAPPA

    @property
    def version(self) -> str:
        """Identifies what it rates by. Ratings by another version say nothing about this one."""
        what = json.dumps([type(self.kind).__name__, asdict(self.kind)], sort_keys=True)
        return sha256_hex("judge", what)[:16]

    @property
    def makes_calls(self) -> bool:
        """Whether it costs calls."""
        return not isinstance(self.kind, JudgeRules)

    def takes(self, answer: str) -> bool:
        """Whether an answer is in its share; always the same for an answer."""
        return int(sha256_hex("judged", self.name, answer)[:12], 16) / 16**12 < self.sample


@dataclass(frozen=True, slots=True)
class ModelJudge:
    """A judge of a model, and the pipeline that names it."""

    model: str
    pipeline: str
    spec: JudgeSpec

    @property
    def name(self) -> str:
        """`{model}/judges/{judge}`."""
        return f"{self.model}/judges/{self.spec.name}"


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a judge said of an answer: good or bad, why, and what it cost in tokens."""

    good: bool
    reason: str
    tokens: int = 0

    @property
    def rating(self) -> float:
        """1 or -1."""
        return 1.0 if self.good else -1.0


class NoVerdictError(Exception):
    """Raised for a response that is not a verdict: why, and what it cost in tokens."""

    def __init__(self, reason: str, tokens: int = 0) -> None:
        super().__init__(reason)
        self.reason, self.tokens = reason, tokens


class RatingState(Enum):
    """Where a judge's rating of an answer stands."""

    PENDING = "pending"
    RATED = "rated"
    FAILED = "failed"
    OVER_LIMIT = "over_limit"


@dataclass(frozen=True, slots=True)
class JudgeRating:
    """A judge's rating of an answer; `rating` is zero and `rate_time` None until it is there."""

    answer: str
    model: str
    judge: str
    version: str
    state: RatingState = RatingState.PENDING
    rating: float = 0.0
    reason: str = ""
    attempts: int = 0
    rate_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How a judge compares with people: `kappa` with its 95 % interval, None where it is not defined."""

    common: int = 0
    observed: float = 0.0
    kappa: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """Whether a judge may be used for decisions, and why in one sentence."""

    passed: bool
    why: str
    facts: dict[str, str] = field(default_factory=dict)


def check_of(spec: JudgeSpec, standing: Standing) -> Check:
    """Whether a judge may be used for decisions: the lower end of kappa's interval counts, so luck does not pass."""
    facts = {"common": str(standing.common), "observed": f"{standing.observed:.3f}"}
    if standing.common < spec.min_common:
        return Check(False, f"People rated {standing.common} of its answers; {spec.min_common} are needed.", facts)
    if standing.kappa is None:
        why = "All ratings are the same, so agreement beyond chance cannot be measured."
        return Check(False, why, facts)
    value, low, high = standing.kappa
    facts |= {"kappa": f"{value:.3f}", "kappa_low": f"{low:.3f}", "kappa_high": f"{high:.3f}"}
    # A comparison with what is not a number is false.
    passed = low >= spec.min_kappa
    found = f"Cohen's kappa with people is {value:.2f} [{low:.2f}, {high:.2f}] on {standing.common} answers"
    if passed:
        return Check(True, f"{found}; {spec.min_kappa:.2f} is required.", facts)
    return Check(False, f"{found}; its lower bound must be at least {spec.min_kappa:.2f}.", facts)


def at_odds(ratings: Iterable[float]) -> bool:
    """Whether one judge finds an answer good and another one bad."""
    given = list(ratings)
    return any(rating > 0 for rating in given) and any(rating < 0 for rating in given)


def short_reason(text: str) -> str:
    """A reason as it is kept: one line, without control characters, of limited length."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= _KEPT_REASON else line[: _KEPT_REASON - 1] + "…"


def wrong(place: str, what: str) -> InvalidArgumentError:
    """The error for a field of a judge."""
    return InvalidArgumentError(f"{place}: {what}", reason="INVALID_JUDGE", violations=[FieldViolation(place, what)])


def check_judges(judges: Sequence[JudgeSpec], place: str, *, classifies: bool) -> None:
    """Refuses judges that could not rate, before their addresses and patterns are looked at.

    Raises:
        InvalidArgumentError: two share a name, lengths contradict, or a writer is compared with labels.
    """
    seen: set[str] = set()
    for number, judge in enumerate(judges):
        here = f"{place}[{number}]"
        if judge.name in seen:
            raise wrong(f"{here}.name", f"two judges are called {judge.name!r}")
        seen.add(judge.name)
        kind: Any = judge.kind
        if isinstance(kind, JudgeRules) and 0 < kind.max_chars < kind.min_chars:
            raise wrong(f"{here}.rules.max_chars", "must not be below min_chars")
        if isinstance(kind, ClassifierJudge) and not kind.good_labels and not classifies:
            what = "name the labels of good answers: the model writes, and gives no label"
            raise wrong(f"{here}.classifier.good_labels", what)
