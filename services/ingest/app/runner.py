"""Pulls imports: reads a source, publishes its records, keeps the books.

All that must outlive the process is in the store and on the bus. An import that was running when the process died is
pulled again from its beginning: identities come from the content, so what was published before is published again as
the same records, and count and digest come out the same.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from services.ingest.app.interrupt import Interrupt, InterruptedReadError
from services.ingest.app.ports import Accepted, ImportStore, Ledger, RecordSink, Sources
from services.ingest.domain.record import RawRecord, Refusal
from services.ingest.domain.source_import import Import, ImportState, Progress
from services.kit.clock import Clock
from services.kit.errors import FailedPreconditionError, TidemillError, is_retryable
from services.kit.failure import Failure

logger = logging.getLogger(__name__)

# A batch ends with whichever comes first, so that neither waiting for the bus nor memory grows with the records.
_BATCH_PIECES = 2000
_BATCH_CHARACTERS = 8 * 1024 * 1024
_SAVE_EVERY_S = 0.25
_RATE_WINDOW_S = 5.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0


class _EndedMeanwhileError(Exception):
    """The import was cancelled while it was pulled."""


class _StopError(Exception):
    """The process ends; the import stays running and is pulled again by the next one."""


class ImportRunner:
    """Pulls imports; threads share it, each with an import of its own."""

    def __init__(
        self, imports: ImportStore, sources: Sources, sink: RecordSink, ledgers: Callable[[], Ledger], clock: Clock
    ) -> None:
        self._imports = imports
        self._sources = sources
        self._sink = sink
        self._ledgers = ledgers
        self._clock = clock
        self._stop = threading.Event()

    def stop(self) -> None:
        """Lets the imports in hand end after their present batch, to be taken up by the next process."""
        self._stop.set()

    def announce(self) -> None:
        """Publishes the completion of imports that was not published yet."""
        for done in self._imports.unannounced_imports():
            self._sink.complete(done)
            self._imports.mark_import_announced(done.name)

    def run(self, running: Import, interrupt: Interrupt) -> None:
        """Pulls an import to its end, or until it is cancelled or the process ends; `interrupt` ends a hanging read."""
        books = _Books(running, self._clock)
        try:
            self._pull(books, interrupt)
            logger.info("%s succeeded with %d records", running.name, books.state.record_count)
        except _EndedMeanwhileError:
            logger.info("%s was cancelled", running.name)
        except _StopError:
            logger.info("%s is left to the next process", running.name)
        except InterruptedReadError:
            logger.info("%s was interrupted while it was read", running.name)
        except TidemillError as error:
            self._fail(books, Failure(error.reason, error.message, error.metadata))
        except Exception as error:
            logger.exception("%s failed", running.name)
            message = f"The import failed ({type(error).__name__}: {error}); the log tells more."
            self._fail(books, Failure("UNEXPECTED", message[:1000]))

    def _pull(self, books: _Books, interrupt: Interrupt) -> None:
        spec = books.state.spec
        survey = self._sources.survey(spec, interrupt)
        books.begin(survey.pieces)
        ledger = self._ledgers()
        try:
            pieces = self._sources.read(spec, survey, interrupt)
            while self._publish(books, ledger, pieces):
                self._save(books)
            if ledger.count == 0:
                raise _nothing_accepted(books)
            # Content that changed while it was read has no digest that a later source could be compared with.
            unchanged = survey.digest and self._sources.survey(spec, interrupt).digest == survey.digest
            done = books.succeeded(ledger.digest(), survey.digest if unchanged else "")
        finally:
            ledger.close()
        self._patiently(lambda: self._update(done))

    def _publish(self, books: _Books, ledger: Ledger, pieces: Iterator[RawRecord | Refusal]) -> bool:
        """Publishes the next pieces; False when there are no more."""
        spec, name = books.state.spec, books.state.name
        fresh: list[Accepted] = []
        refused: list[Refusal] = []
        more, taken, size = True, 0, 0
        while more and taken < _BATCH_PIECES and size < _BATCH_CHARACTERS:
            piece = next(pieces, None)
            if piece is None:
                more = False
                break
            taken += 1
            if isinstance(piece, Refusal):
                refused.append(piece)
                size += len(piece.content)
            # A record that this import has published with this content need not be published again.
            elif ledger.add(piece):
                fresh.append(Accepted(piece))
                size += len(piece.text) + sum(map(len, piece.attributes.values()))
                more = spec.max_records == 0 or ledger.count < spec.max_records
        if refused:
            self._patiently(lambda: self._sink.refuse(refused, name))
        if fresh:
            self._patiently(lambda: self._sink.accept(fresh, name))
        books.add(taken, ledger.count, refused)
        return more

    def _patiently(self, action: Callable[[], None]) -> None:
        """Does it, again and again while a part is away; what it publishes twice is the same."""
        pause = _FIRST_PAUSE_S
        while not self._stop.is_set():
            try:
                action()
                return
            except TidemillError as error:
                if not is_retryable(error):
                    raise
                logger.warning("an import waits %.1f s: %s", pause, error.message)
            self._stop.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)
        raise _StopError

    def _save(self, books: _Books) -> None:
        if books.due():
            self._patiently(lambda: self._update(books.state))

    def _update(self, changed: Import) -> None:
        if not self._imports.update_import(changed):
            raise _EndedMeanwhileError

    def _fail(self, books: _Books, failure: Failure) -> None:
        logger.error("%s failed: %s", books.state.name, failure.message)
        try:
            self._patiently(lambda: self._update(books.failed(failure)))
        except _EndedMeanwhileError:
            logger.info("%s was cancelled before it failed", books.state.name)
        except _StopError:
            logger.info("%s is left to the next process", books.state.name)


class _Books:
    """Counts and progress of one import while it is pulled."""

    def __init__(self, running: Import, clock: Clock) -> None:
        self.state = running
        self.first_refusal: Refusal | None = None
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque()
        self._saved = clock.monotonic()
        self._done = 0
        self._total = 0

    def begin(self, total: int) -> None:
        """Starts from nothing, whatever an earlier process has counted."""
        limit = self.state.spec.max_records
        self._total = min(total, limit) if limit else total
        self._marks.append((self._clock.monotonic(), 0))
        self.state = replace(self.state, record_count=0, rejected_count=0)

    def add(self, pieces: int, record_count: int, refused: list[Refusal]) -> None:
        """Counts a batch."""
        self._done += pieces
        if refused and self.first_refusal is None:
            self.first_refusal = refused[0]
        now = self._clock.monotonic()
        self._marks.append((now, self._done))
        while len(self._marks) > 2 and now - self._marks[0][0] > _RATE_WINDOW_S:
            self._marks.popleft()
        began, before = self._marks[0]
        rate = (self._done - before) / (now - began) if now > began else 0.0
        moment = self._clock.now()
        self.state = replace(
            self.state,
            record_count=record_count,
            rejected_count=self.state.rejected_count + len(refused),
            update_time=moment,
            progress=Progress("pull", self._done, self._total, rate, moment),
        )

    def due(self) -> bool:
        """Whether the counts are to be saved again."""
        now = self._clock.monotonic()
        if now - self._saved < _SAVE_EVERY_S:
            return False
        self._saved = now
        return True

    def succeeded(self, digest: str, source_digest: str) -> Import:
        """The import with its success; what was read is all there was, also where a cap ended it early."""
        progress = self.state.progress
        return replace(
            self.state,
            state=ImportState.SUCCEEDED,
            progress=replace(progress, total=progress.done) if progress else None,
            digest=digest,
            source_digest=source_digest,
            update_time=self._clock.now(),
        )

    def failed(self, failure: Failure) -> Import:
        """The import with its failure."""
        return replace(self.state, state=ImportState.FAILED, failure=failure, update_time=self._clock.now())


def _nothing_accepted(books: _Books) -> TidemillError:
    uri, first = books.state.spec.kind.uri, books.first_refusal
    if first is None:
        return FailedPreconditionError(
            f"{uri} holds no record; put some there, then import again.", reason="EMPTY_SOURCE", metadata={"uri": uri}
        )
    return FailedPreconditionError(
        f"Every one of the {books.state.rejected_count} pieces of {uri} was refused, the first one as {first.reason}: "
        f"{first.message} All of them are in the dead letters.",
        reason="ALL_RECORDS_REFUSED",
        metadata={"uri": uri, "location": first.location, "first_reason": first.reason},
    )
