"""Refused messages, and which of them can be sent to their topics again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum


class LetterState(Enum):
    """What became of a dead letter."""

    OPEN = "open"
    REPLAYED = "replayed"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Mark:
    """Who decided what about a letter, and when."""

    state: LetterState
    actor: str
    decide_time: datetime


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A refused message, or a refused piece of an import; key, content and headers are empty in lists.

    `size` is the length of what was refused, in bytes; with `truncated` only the beginning is kept.
    """

    offset: int
    refuse_time: datetime
    reason: str
    message: str
    service: str
    topic: str = ""
    partition: int = 0
    source_offset: int = 0
    import_name: str = ""
    location: str = ""
    size: int = 0
    truncated: bool = False
    mark: Mark | None = None
    key: bytes | None = None
    content: bytes = b""
    headers: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`dead-letters/{offset}`."""
        return f"dead-letters/{self.offset}"

    @property
    def state(self) -> LetterState:
        """What became of it."""
        return self.mark.state if self.mark else LetterState.OPEN


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which letters are meant; what is empty matches all. `since` is included, `until` is not."""

    reason: str = ""
    service: str = ""
    topic: str = ""
    import_name: str = ""
    since: datetime | None = None
    until: datetime | None = None
    state: LetterState | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Whether a letter is meant."""
        wanted = (self.reason, self.service, self.topic, self.import_name)
        given = (letter.reason, letter.service, letter.topic, letter.import_name)
        return (
            all(want in ("", have) for want, have in zip(wanted, given, strict=True))
            and (self.since is None or letter.refuse_time >= self.since)
            and (self.until is None or letter.refuse_time < self.until)
            and self.state in (None, letter.state)
        )


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a letter was neither replayed nor dropped: a code, and a sentence that says what to do."""

    reason: str
    message: str


def why_not_replayed(letter: DeadLetter, topics: frozenset[str]) -> Refused | None:
    """Why a letter cannot be sent to its topic again; None if it can.

    Args:
        letter: the letter.
        topics: names of all topics.
    """
    place = f"{letter.topic}[{letter.partition}]@{letter.source_offset}"
    if letter.state is LetterState.REPLAYED:
        return Refused(
            "ALREADY_REPLAYED",
            f"{letter.name} was replayed already. If it was refused again, that is another dead letter.",
        )
    if letter.import_name or not letter.topic:
        return Refused(
            "NO_SOURCE_TOPIC",
            f"{letter.name} is a piece of {letter.import_name or 'a source'}, not a message of a topic. Correct "
            f"{letter.location or 'the source'} and run the pipeline again; it pulls what changed.",
        )
    if letter.topic not in topics:
        return Refused(
            "NO_SOURCE_TOPIC", f"{letter.name} came from {letter.topic[:80]!a}, which is not a topic of this mesh."
        )
    if letter.reason == "UNREADABLE_MESSAGE":
        return Refused(
            "UNREADABLE_MESSAGE",
            f"{letter.name} has no content, because the Kafka client could not decode {place}. Have its producer send "
            "it again, compressed by lz4 or gzip and with header names in UTF-8.",
        )
    if letter.truncated:
        return Refused(
            "TRUNCATED",
            f"{letter.name} keeps only the beginning of {letter.size} bytes. Have its producer send {place} again in "
            "smaller parts.",
        )
    return None
