"""Dead letters and their marks in memory, as the ports of `services.ingest.app.dead_letters` describe them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from services.ingest.domain.dead_letter import DeadLetter, Mark
from services.kit.bus.topics import TOPICS

BEGIN = datetime(2026, 1, 2, tzinfo=UTC)


@dataclass
class MemoryLetters:
    """Letters by offset from `begin` on, a minute apart; what is sent again is in `sent`. `trouble` may raise first."""

    letters: list[DeadLetter] = field(default_factory=list)
    sent: list[DeadLetter] = field(default_factory=list)
    log_id: str = "one"
    begin: int = 0
    trouble: Callable[[], None] = lambda: None
    topics = frozenset(topic.name for topic in TOPICS)

    def add(self, **values: object) -> DeadLetter:
        """Adds a letter of `tidemill.inbound`, except for what is given."""
        offset = self.begin + len(self.letters)
        plain = DeadLetter(
            offset,
            BEGIN + timedelta(minutes=offset),
            "INVALID_JSON",
            "The event is not valid JSON.",
            "ingest",
            topic="tidemill.inbound",
            partition=3,
            source_offset=100 + offset,
            size=5,
            key=b"key",
            content=f"text {offset}".encode(),
            headers={"ce_id": str(offset).encode()},
        )
        letter = replace(plain, **values)  # type: ignore[arg-type]
        self.letters.append(letter)
        return letter

    @property
    def end(self) -> int:
        """See `OpenLetters`."""
        return self.begin + len(self.letters)

    @contextmanager
    def open(self) -> Iterator[MemoryLetters]:
        """See `DeadLetterLog`."""
        self.trouble()
        yield self

    def first_at(self, moment: datetime) -> int:
        """See `OpenLetters`."""
        return next((each.offset for each in self.letters if each.refuse_time >= moment), self.end)

    def newest_first(self, begin: int, end: int, *, with_content: bool = False) -> Iterator[DeadLetter]:
        """See `OpenLetters`."""
        for letter in reversed(self.letters):
            if begin <= letter.offset < end:
                yield letter if with_content else replace(letter, key=None, content=b"")

    def send_again(self, letter: DeadLetter) -> None:
        """See `DeadLetterLog`."""
        self.trouble()
        self.sent.append(letter)


@dataclass
class MemoryMarks:
    """Marks by offset; the log is always the same."""

    kept: dict[int, Mark] = field(default_factory=dict)

    def marks(self, log_id: str, begin: int, end: int) -> Mapping[int, Mark]:
        """See `MarkStore`."""
        return {offset: mark for offset, mark in self.kept.items() if begin <= offset < end}

    def mark(self, log_id: str, offset: int, mark: Mark) -> None:
        """See `MarkStore`."""
        self.kept[offset] = mark

    def count(self, log_id: str, begin: int) -> int:
        """See `MarkStore`."""
        return len([offset for offset in self.kept if offset >= begin])

    def forget(self, log_id: str, begin: int) -> None:
        """See `MarkStore`."""
