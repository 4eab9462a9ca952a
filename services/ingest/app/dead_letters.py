"""Use cases on refused messages: list them, send them to their topics again, mark them as not needed.

A letter is sent first and marked afterwards. If the process is killed in between, the letter is still open and is sent
again by the next replay: the same event under the same id, which its readers handle once. A letter with a mark is never
sent again by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from services.ingest.domain.dead_letter import (
    DeadLetter,
    LetterFilter,
    LetterState,
    Mark,
    Refused,
    why_not_replayed,
)
from services.kit.clock import Clock
from services.kit.errors import not_found

# A page ends after this many letters although it is not full, so that a rare reason does not read the whole topic.
_SCANNED = 5000
_MARKS_AT_ONCE = 500


class OpenLetters(Protocol):
    """The dead letters as they are when they are opened. For one thread."""

    @property
    def log_id(self) -> str:
        """Identifies the log; the offsets of another one mean other letters."""
        ...

    @property
    def begin(self) -> int:
        """The first offset."""
        ...

    @property
    def end(self) -> int:
        """The offset after the last one."""
        ...

    def first_at(self, moment: datetime) -> int:
        """Offset of the first letter that came at a time or later; `end` if none did."""
        ...

    def newest_first(self, begin: int, end: int, *, with_content: bool = False) -> Iterator[DeadLetter]:
        """Letters of the offsets from `begin` to before `end`, without their marks, the last one first."""
        ...


class DeadLetterLog(Protocol):
    """Where refused messages are kept."""

    @property
    def topics(self) -> frozenset[str]:
        """Names of all topics."""
        ...

    def open(self) -> AbstractContextManager[OpenLetters]:
        """The letters during the block.

        Raises:
            UnavailableError: the bus does not answer.
        """
        ...

    def send_again(self, letter: DeadLetter) -> None:
        """Sends a letter to its topic with key, content and headers as they first came; durable on return.

        Raises:
            UnavailableError: it may not be durable; send it again.
        """
        ...


class MarkStore(Protocol):
    """What was decided about letters; every method is one transaction."""

    def marks(self, log_id: str, begin: int, end: int) -> Mapping[int, Mark]:
        """Marks of the letters from `begin` to before `end`, by offset."""
        ...

    def mark(self, log_id: str, offset: int, mark: Mark) -> None:
        """Keeps or replaces a mark."""
        ...

    def count(self, log_id: str, begin: int) -> int:
        """Number of marked letters from an offset on."""
        ...

    def forget(self, log_id: str, begin: int) -> None:
        """Deletes the marks of letters that are gone: of other logs, and before an offset."""
        ...


@dataclass(frozen=True, slots=True)
class LetterPage:
    """Letters, the offset that the next page ends before (None at the end), and how many letters are open."""

    letters: Sequence[DeadLetter]
    before: int | None
    open_count: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """A letter after a decision; `refused` says why the decision was not carried out."""

    letter: DeadLetter
    refused: Refused | None = None


class DeadLetters:
    """Lists, replays and drops dead letters. Thread-safe."""

    def __init__(self, log: DeadLetterLog, marks: MarkStore, clock: Clock) -> None:
        self._log = log
        self._marks = marks
        self._clock = clock
        # Two replays of one letter at once would both find it open.
        self._deciding = threading.Lock()

    def page(self, wanted: LetterFilter, before: int | None, limit: int) -> LetterPage:
        """Letters, newest first, that came before an offset; all when None.

        Raises:
            UnavailableError: the bus does not answer.
        """
        with self._log.open() as opened:
            begin = opened.first_at(wanted.since) if wanted.since else opened.begin
            end = opened.first_at(wanted.until) if wanted.until else opened.end
            end = end if before is None else min(end, before)
            found: list[DeadLetter] = []
            stop = max(begin, end - _SCANNED)
            for letter in self._marked(opened, begin=stop, end=end):
                if wanted.matches(letter):
                    found.append(letter)
                    if len(found) == limit:
                        stop = letter.offset
                        break
            more = self._any_left(opened, wanted, begin, stop)
            count = opened.end - opened.begin - self._marks.count(opened.log_id, opened.begin)
            return LetterPage(found, stop if more else None, max(0, count))

    def _any_left(self, opened: OpenLetters, wanted: LetterFilter, begin: int, end: int) -> bool:
        """Whether the next page has a letter; assumed if none of the next few thousand is one."""
        stop = max(begin, end - _SCANNED)
        return any(map(wanted.matches, self._marked(opened, begin=stop, end=end))) or stop > begin

    def get(self, name: str) -> DeadLetter:
        """A letter with its content.

        Raises:
            NotFoundError: it does not exist, or has expired.
            UnavailableError: the bus does not answer.
        """
        with self._log.open() as opened:
            return self._one(opened, name)

    def replay(self, names: Sequence[str], actor: str) -> Sequence[Outcome]:
        """Sends letters to their topics again, in the order in which they first came, and marks them.

        Returns:
            An outcome for each name, in order.

        Raises:
            NotFoundError: a letter does not exist; nothing was sent.
            UnavailableError: the bus does not answer; replay again.
        """

        def send(letter: DeadLetter) -> Refused | None:
            refused = why_not_replayed(letter, self._log.topics)
            if refused is None:
                self._log.send_again(letter)
            return refused

        return self._decide(names, LetterState.REPLAYED, actor, send)

    def drop(self, names: Sequence[str], actor: str) -> Sequence[Outcome]:
        """Marks letters as not needed.

        Returns:
            An outcome for each name, in order.

        Raises:
            NotFoundError: a letter does not exist; nothing was marked.
            UnavailableError: the bus does not answer; drop again.
        """

        def look(letter: DeadLetter) -> Refused | None:
            if letter.state is LetterState.REPLAYED:
                return Refused("ALREADY_REPLAYED", f"{letter.name} was replayed; it is not open any more.")
            if letter.state is LetterState.DROPPED:
                return Refused("ALREADY_DROPPED", f"{letter.name} was dropped already.")
            return None

        return self._decide(names, LetterState.DROPPED, actor, look)

    def _decide(
        self, names: Sequence[str], state: LetterState, actor: str, act: Callable[[DeadLetter], Refused | None]
    ) -> Sequence[Outcome]:
        with self._deciding, self._log.open() as opened:
            # All are looked up before the first is sent. The contents, up to 4 MiB each, are read one at a time.
            offsets = {name: self._one(opened, name, with_content=False).offset for name in names}
            outcomes: dict[str, Outcome] = {}
            for name in sorted(offsets, key=offsets.__getitem__):
                letter = self._one(opened, name)
                refused = act(letter)
                if refused is None:
                    mark = Mark(state, actor, self._clock.now())
                    self._marks.mark(opened.log_id, letter.offset, mark)
                    letter = replace(letter, mark=mark)
                outcomes[name] = Outcome(replace(letter, key=None, content=b"", headers={}), refused)
            self._marks.forget(opened.log_id, opened.begin)
            return [outcomes[name] for name in names]

    def _one(self, opened: OpenLetters, name: str, *, with_content: bool = True) -> DeadLetter:
        number = name.removeprefix("dead-letters/")
        if number.isascii() and number.isdigit():
            offset = int(number)
            for letter in self._marked(opened, begin=offset, end=offset + 1, with_content=with_content):
                return letter
        raise not_found("dead_letter", name, "Refused messages are kept for 30 days; `tidemill dlq list` lists them.")

    def _marked(self, opened: OpenLetters, *, begin: int, end: int, with_content: bool = False) -> Iterator[DeadLetter]:
        """Letters with their marks, the last one first."""
        marks: Mapping[int, Mark] = {}
        known_from = end
        for letter in opened.newest_first(begin, end, with_content=with_content):
            if letter.offset < known_from:
                known_from = max(begin, letter.offset - _MARKS_AT_ONCE + 1)
                marks = self._marks.marks(opened.log_id, known_from, letter.offset + 1)
            yield replace(letter, mark=marks.get(letter.offset))
