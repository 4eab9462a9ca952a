"""Answers whose event is still to be published, in a file that outlives a kill of the process.

A line is written before its caller has the answer. It is not forced to the disk: a crash of the machine may lose the
last of them. Each process has a file of its own and holds its lock; the next one takes over the files without a lock.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from services.kit.ids import new_id
from services.serving.app.ports import Captured, Served

logger = logging.getLogger(__name__)

_COMPACT_BYTES = 4 << 20
_FIELDS = tuple(field.name for field in fields(Served))


@dataclass(frozen=True, slots=True)
class PendingAnswer:
    """An answer to publish, and the trace of its request."""

    served: Served
    traceparent: str


class AnswerJournal:
    """One process's file below `folder`; its caller holds a lock around each call."""

    def __init__(self, folder: Path) -> None:
        """Makes the file.

        Raises:
            OSError: it cannot be made.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._path, self._file = _new_file(folder)
        self._bytes = 0
        self._failing = False
        self.unreadable = 0
        """Lines that `take_over` found damaged: of answers that are lost."""

    def take_over(self) -> Sequence[PendingAnswer]:
        """What earlier processes left: it is in this process's file from now on.

        Raises:
            OSError: a file cannot be read or written.
        """
        found: list[PendingAnswer] = []
        for path in sorted(self._folder.glob("*.jsonl")):
            if path == self._path:
                continue
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue  # another process that started just now has taken it over
            with file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # its process lives
                if not os.fstat(file.fileno()).st_nlink:
                    continue  # as above, between our opening it and our lock
                left = self._read(file.read())
                self._write(left)
                path.unlink(missing_ok=True)
                found += left
        return found

    def add(self, answers: Sequence[PendingAnswer]) -> None:
        """Writes them down; if that fails, they wait in memory only, and the log says so once."""
        try:
            self._write(answers)
        except OSError as error:
            if not self._failing:
                logger.warning("answers wait in memory only, a kill of this process would lose them: %s", error)
            self._failing = True
        else:
            self._failing = False

    def published(self, left: Collection[PendingAnswer]) -> None:
        """After some were published: forgets them when nothing is left, or when the file has grown."""
        if left and self._bytes < _COMPACT_BYTES:
            return
        try:
            if not left:
                os.ftruncate(self._file, 0)
                self._bytes = 0
                return
            before, path = self._file, self._path
            self._path, self._file = _new_file(self._folder)
            self._bytes = 0
            self._write(left)
            path.unlink(missing_ok=True)
            os.close(before)
        except OSError as error:
            # What was published would only be published once more, as the same event.
            logger.warning("%s could not be shortened: %s", self._path, error)

    def close(self) -> None:
        """Leaves the file to the next process where it holds something."""
        if not self._bytes:
            self._path.unlink(missing_ok=True)
        os.close(self._file)

    def _write(self, answers: Iterable[PendingAnswer]) -> None:
        text = b"".join(_line(item) for item in answers)
        if not text:
            return
        rest = memoryview(text)
        try:
            while rest:
                # On a nearly full disk a part is written, and only the next call fails.
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            # The part that was written would be a torn line, and the next write would continue it.
            os.ftruncate(self._file, self._bytes)
            raise
        self._bytes += len(text)

    def _read(self, content: bytes) -> list[PendingAnswer]:
        found, damaged = [], 0
        for line in content.splitlines():
            try:
                entry = json.loads(line)
                served = entry["served"] | {"answer_time": datetime.fromisoformat(entry["served"]["answer_time"])}
                if captured := served.get("captured"):
                    served["captured"] = Captured(**captured)
                found.append(PendingAnswer(Served(**served), entry["traceparent"]))
            except (ValueError, KeyError, TypeError):
                damaged += 1
        if damaged:
            self.unreadable += damaged
            logger.error("%d lines of the journal of answers are damaged; their answers are lost", damaged)
        return found


def _new_file(folder: Path) -> tuple[Path, int]:
    path = folder / f"{new_id()}.jsonl"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX)
    return path, file


def _line(item: PendingAnswer) -> bytes:
    """By hand: `asdict` copies deeply, which would cost a request more than the write itself."""
    served = item.served
    entry = {name: getattr(served, name) for name in _FIELDS}
    entry["answer_time"] = served.answer_time.isoformat()
    entry["captured"] = asdict(served.captured) if served.captured is not None else None
    return json.dumps({"served": entry, "traceparent": item.traceparent}).encode() + b"\n"
