"""Pulls imports: reads a source, publishes its records, counts them.

Everything that must outlive the process is in the store and on the bus. If the process dies, a running import is pulled
again from the beginning: identities derive from the content, so records are published again as the same records, and
count and digest come out the same.

A source is synchronised: what earlier imports of its origin brought and this one did not is withdrawn at the end, if
the whole source was read. Nothing is lost because of the order: a record is stored before it is published, withdrawals
are published before the import succeeds, and they are forgotten only together with its success.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from services.ingest.app.import_tracker import ImportTracker, nothing_accepted
from services.ingest.app.interrupt import Interrupt, InterruptedReadError
from services.ingest.app.ports import (
    Accepted,
    ImportStore,
    Ledger,
    Position,
    Pull,
    PulledStore,
    RecordSink,
    Sources,
    Survey,
)
from services.ingest.domain.record import RawRecord, Refusal
from services.ingest.domain.source_import import Differences, Import, SourcePolicy
from services.ingest.engine.handling import handling_of
from services.kit.clock import Clock
from services.kit.errors import TidemillError
from services.kit.failure import Failure
from services.kit.ids import new_id
from services.kit.retrying import StoppedError, call_with_retries

logger = logging.getLogger(__name__)

# A batch ends at whichever limit comes first, so that neither the wait for the bus nor memory grows with the records.
_BATCH_PIECES = 2000
_BATCH_CHARACTERS = 8 * 1024 * 1024
# So that what a slow source brings is published, and its progress shown, while it is read.
_BATCH_S = 1.0
_WITHDRAWN_AT_ONCE = 2000


T = TypeVar("T")


class _EndedMeanwhileError(Exception):
    """The import was cancelled while it was pulled, or another process pulls it now."""


class ImportRunner:
    """Pulls imports. Thread-safe, with one import per thread."""

    def __init__(
        self,
        imports: ImportStore,
        pulled: PulledStore,
        sources: Sources,
        sink: RecordSink,
        ledgers: Callable[[], Ledger],
        clock: Clock,
    ) -> None:
        self._imports = imports
        self._pulled = pulled
        self._sources = sources
        self._sink = sink
        self._ledgers = ledgers
        self._clock = clock
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ends running imports after their current batch; the next process resumes them."""
        self._stop.set()

    def announce(self) -> None:
        """Publishes pending completions of imports."""
        for done in self._imports.unannounced_imports():
            self._sink.complete(done)
            self._imports.mark_import_announced(done.name)

    def run(self, running: Import, interrupt: Interrupt) -> None:
        """Pulls an import until it ends, is cancelled or the process stops; `interrupt` ends a hanging read."""
        tracker = ImportTracker(running, self._clock)
        pull = Pull(running.name, running.spec.origin, new_id())
        try:
            self._pull(tracker, pull, interrupt)
            logger.info("%s succeeded with %d records", running.name, tracker.state.record_count)
        except _EndedMeanwhileError:
            logger.info("%s was cancelled, or is pulled by another process", running.name)
        except StoppedError:
            logger.info("%s will be resumed by the next process", running.name)
        except InterruptedReadError:
            logger.info("reading %s was interrupted", running.name)
        except Exception as error:
            if not isinstance(error, TidemillError):
                logger.exception("%s failed", running.name)
            self._fail(tracker, pull, Failure.of(error, "The import"))

    def _pull(self, tracker: ImportTracker, pull: Pull, interrupt: Interrupt) -> None:
        spec = tracker.state.spec
        self._with_retries(lambda: self._unless_ended(self._pulled.begin(pull)), tracker, pull)
        survey = self._sources.survey(spec, interrupt)
        tracker.begin(survey.pieces)
        incremental = spec.kind.incremental
        begin = self._with_retries(partial(self._imports.position, pull.origin), tracker, pull) if incremental else {}
        position = Position(begin, import_name=pull.import_name)
        ledger = self._ledgers()
        try:
            pieces = _handled(spec.policy, self._sources.read(spec, survey, interrupt, position))
            while self._publish(tracker, pull, ledger, pieces):
                self._save(tracker, pull)
            tracker.cut = position.cut
            # Of a log, no new line is right; and new lines that are all refused must not be read for ever.
            if ledger.count == 0 and not incremental and (tracker.first_refusal is not None or not spec.may_be_empty):
                raise nothing_accepted(tracker)
            again = survey if incremental else self._sources.survey(spec, interrupt)
            digest = ledger.digest()
        finally:
            ledger.close()
        done = self._synchronized(tracker, pull, digest, survey, again)
        reached = position.reached() if incremental else None
        self._with_retries(lambda: self._unless_ended(self._imports.succeed_import(done, pull, reached)), tracker, pull)

    def _synchronized(self, tracker: ImportTracker, pull: Pull, digest: str, before: Survey, after: Survey) -> Import:
        """The import as succeeded, after withdrawing what is gone from the origin."""
        unchanged = before == after
        reason = tracker.not_synchronized(unchanged)
        if reason == "incremental":
            # What earlier imports brought is not kept by record, for it grows without end.
            return tracker.succeeded(digest, "", Differences(added=tracker.state.record_count), reason)
        differences = self._with_retries(lambda: self._pulled.differences(pull), tracker, pull)
        if reason:
            if differences.gone:
                logger.warning(
                    "%s: %d records are gone or were not reached, and are kept (%s)",
                    pull.import_name,
                    differences.gone,
                    reason,
                )
            differences = replace(differences, gone=0)
        elif differences.gone:
            self._withdraw(tracker, pull, differences.gone)
        # Content that changed while it was read has no digest to compare a later source with.
        return tracker.succeeded(digest, before.digest if unchanged else "", differences, reason)

    def _withdraw(self, tracker: ImportTracker, pull: Pull, total: int) -> None:
        # Nothing is withdrawn for an import that has been cancelled.
        tracker.withdrew(0, total)
        self._with_retries(lambda: self._update(tracker.state, pull), tracker, pull)
        page: Sequence[str] = [""]
        while page := self._with_retries(partial(self._pulled.gone, pull, page[-1], _WITHDRAWN_AT_ONCE), tracker, pull):
            source = tracker.state.spec.source
            self._with_retries(partial(self._sink.withdraw, source, page, pull.import_name, pull.origin), tracker, pull)
            tracker.withdrew(len(page), total)
            self._save(tracker, pull)

    def _publish(
        self, tracker: ImportTracker, pull: Pull, ledger: Ledger, pieces: Iterator[RawRecord | Refusal]
    ) -> bool:
        """Publishes the next pieces; False when there are no more."""
        spec, name = tracker.state.spec, tracker.state.name
        fresh: list[Accepted] = []
        refused: list[Refusal] = []
        more, taken, size = True, 0, 0
        until = self._clock.monotonic() + _BATCH_S
        while more and taken < _BATCH_PIECES and size < _BATCH_CHARACTERS and self._clock.monotonic() < until:
            piece = next(pieces, None)
            if piece is None:
                more = False
                break
            taken += 1
            if isinstance(piece, Refusal):
                refused.append(piece)
                size += len(piece.content)
            # A record that this import has already published with this content need not be published again.
            elif ledger.add(piece):
                fresh.append(Accepted(piece))
                size += len(piece.text) + sum(map(len, piece.attributes.values()))
                tracker.capped = 0 < spec.max_records <= ledger.count
                more = not tracker.capped
        if refused:
            self._with_retries(lambda: self._sink.refuse(refused, name), tracker, pull)
        if fresh:
            noted = [] if spec.kind.incremental else [item.record for item in fresh]
            self._with_retries(lambda: self._unless_ended(self._pulled.note(pull, noted)), tracker, pull)
            self._with_retries(lambda: self._sink.accept(fresh, name, pull.origin), tracker, pull)
        tracker.add(taken, ledger.count, refused)
        return more

    def _with_retries(self, action: Callable[[], T], tracker: ImportTracker, pull: Pull) -> T:
        """Calls `action`, retrying while a dependency is unavailable; repeated publications are the same events."""

        def show(error: BaseException) -> None:
            tracker.waits(error)
            # If the database itself is what it waits for, only the log says so.
            with contextlib.suppress(TidemillError, _EndedMeanwhileError):
                self._update(tracker.state, pull)

        return call_with_retries(action, "an import", self._stop, on_wait=show)

    def _save(self, tracker: ImportTracker, pull: Pull) -> None:
        if tracker.due():
            self._with_retries(lambda: self._update(tracker.state, pull), tracker, pull)

    def _update(self, changed: Import, pull: Pull) -> None:
        self._unless_ended(self._imports.update_import(changed, pull.generation))

    def _unless_ended(self, going_on: bool) -> None:
        if not going_on:
            raise _EndedMeanwhileError

    def _fail(self, tracker: ImportTracker, pull: Pull, failure: Failure) -> None:
        logger.error("%s failed: %s", tracker.state.name, failure.message)
        try:
            self._with_retries(lambda: self._update(tracker.failed(failure), pull), tracker, pull)
        except _EndedMeanwhileError:
            logger.info("%s was cancelled before it failed", tracker.state.name)
        except StoppedError:
            logger.info("%s will be resumed by the next process", tracker.state.name)


def _handled(policy: SourcePolicy, pieces: Iterator[RawRecord | Refusal]) -> Iterator[RawRecord | Refusal]:
    """The pieces under the policy of their source, before they are counted, compared or kept."""
    if policy == SourcePolicy():
        return pieces
    handling = handling_of(policy)
    return (
        handling.apply_to_refused(piece) if isinstance(piece, Refusal) else handling.apply(piece) for piece in pieces
    )
