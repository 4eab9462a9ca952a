"""What feedback teaches: one record at most for each captured answer, and which of them a data set takes.

A correction wins over acceptance, and of several corrections the last one counts. Conversations teach nothing yet: a
record is one text, and a prompt of several messages is not one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from services.kit.ids import sha256_hex
from services.pipeline.domain.capture import CapturedAnswer
from services.pipeline.domain.feedback import Feedback, Signal

_GOOD = 0.5
DEFAULT_CAP = 100
NEW_LABEL_RECORDS, NEW_LABEL_PEOPLE = 20, 3
_LONGEST_SOURCE = 64
SOURCE_PREFIX = "answers."
"""Of the sources that hold feedback; no other source may be called so."""


class Kind(Enum):
    """How an answer was judged."""

    CORRECTION = "correction"
    ACCEPTED = "accepted"


@dataclass(frozen=True, slots=True)
class Lesson:
    """A captured answer with what it should have been; `person` is a pseudonym of who said so."""

    answer: str
    model_version: str
    kind: Kind
    prompt: str
    given: str
    target: str
    classification: bool
    person: str
    api_key: str
    feedback: str
    time: datetime

    @property
    def model(self) -> str:
        """`models/{model}`."""
        return self.model_version.partition("/versions/")[0]


@dataclass(frozen=True, slots=True)
class FeedbackUse:
    """How lessons count in a data set: weights 0 to 100 by kind, and the most of one person and of one API key.

    A product sends the feedback of all its users with one key, so a key has no cap unless one is given (0 is none).
    A label that no source has becomes a class with `new_label_records` lessons of `new_label_people` people; with 0
    lessons none ever does.
    """

    corrections: int = 1
    accepted: int = 0
    per_person_cap: int = DEFAULT_CAP
    per_key_cap: int = 0
    new_label_records: int = NEW_LABEL_RECORDS
    new_label_people: int = NEW_LABEL_PEOPLE

    def weight(self, kind: Kind) -> int:
        """How often a lesson of this kind is learnt from."""
        return self.corrections if kind is Kind.CORRECTION else self.accepted


def lesson_of(answer: CapturedAnswer, judgements: Iterable[Feedback], salt: bytes) -> Lesson | None:
    """What the judgements of an answer teach; None if nothing.

    Args:
        answer: the answer.
        judgements: all of it, in any order; those of other tenants do not count.
        salt: makes pseudonyms of this mesh differ from those of another.
    """
    if answer.conversation or not answer.prompt.strip():
        return None
    fit = sorted((j for j in judgements if j.tenant == answer.tenant), key=lambda j: (j.create_time, j.feedback_id))
    corrections = [j for j in fit if _target(answer, j)]
    if corrections:
        last = corrections[-1]
        target = _target(answer, last)
        kind = Kind.ACCEPTED if target == answer.given else Kind.CORRECTION
    else:
        opinions = [j for j in fit if j.rating or j.signal is not Signal.UNKNOWN]
        if not opinions or not _accepts(opinions[-1]) or not answer.given.strip():
            return None
        last, target, kind = opinions[-1], answer.given, Kind.ACCEPTED
    return Lesson(
        answer=answer.name,
        model_version=answer.model_version,
        kind=kind,
        prompt=answer.prompt,
        given=answer.given,
        target=target,
        classification=answer.is_classification,
        person=pseudonym(last, salt),
        api_key=last.api_key,
        feedback=last.name,
        time=last.create_time,
    )


def pseudonym(item: Feedback, salt: bytes) -> str:
    """Stands for the author, or for the API key where no author is named."""
    if item.author:
        return pseudonym_of("author", item.tenant, item.author, salt)
    return pseudonym_of("key", item.tenant, item.api_key, salt)


def pseudonym_of(kind: str, tenant: str, who: str, salt: bytes) -> str:
    """The pseudonym of an author or of a key, by kind."""
    return "p-" + sha256_hex(salt, kind, tenant, who)[:16]


def chosen(lessons: Iterable[Lesson], use: FeedbackUse, quarantined: Collection[str] = ()) -> Sequence[Lesson]:
    """The lessons that a data set takes, by answer: of each person and API key the newest, up to the caps.

    Args:
        lessons: all of a model.
        use: weights and cap; lessons of weight 0 do not count against the cap.
        quarantined: pseudonyms and API keys of which nothing is learnt.
    """
    taken: Counter[str] = Counter()
    by_key: Counter[str] = Counter()
    kept: list[Lesson] = []
    for lesson in sorted(lessons, key=lambda item: (item.time, item.feedback), reverse=True):
        if use.weight(lesson.kind) == 0 or lesson.person in quarantined or lesson.api_key in quarantined:
            continue
        if use.per_key_cap and by_key[lesson.api_key] >= use.per_key_cap:
            continue
        if taken[lesson.person] < use.per_person_cap:
            taken[lesson.person] += 1
            by_key[lesson.api_key] += 1
            kept.append(lesson)
    return sorted(kept, key=lambda item: item.answer)


def source_of(pipeline: str) -> str:
    """Name of the source that holds a pipeline's feedback: `answers.{pipeline}`, shortened where it is too long."""
    name = SOURCE_PREFIX + pipeline
    return name if len(name) <= _LONGEST_SOURCE else f"{name[: _LONGEST_SOURCE - 9]}-{sha256_hex(pipeline)[:8]}"


def _target(answer: CapturedAnswer, item: Feedback) -> str:
    return (item.label if answer.is_classification else item.correction).strip()


def _accepts(item: Feedback) -> bool:
    return item.rating >= _GOOD or (item.signal is Signal.ACCEPTED and item.rating >= 0)
