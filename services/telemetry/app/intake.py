"""Takes documents from senders and writes them in bulks; a sender is answered when its documents are written.

Documents are acknowledged only once they are written, so a crash of this process or an outage of the store loses
nothing that was acknowledged. Senders keep unacknowledged documents and send them again; ids derived from the content
make that harmless. The queue is bounded in bytes. A sender that finds it full, or waits in it for too long, is asked to
retry.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.kit.clock import Clock
from services.kit.errors import UnavailableError
from services.kit.retrying import Backoff
from services.telemetry.app.ports import DocumentStore, IntakeObserver
from services.telemetry.domain.days import Signal
from services.telemetry.domain.document import Document, Outcome, Receipt, WriteStatus

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 2.0
_LOG_EVERY_S = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the intake."""

    queue_bytes: int
    bulk_documents: int
    bulk_bytes: int
    bulk_wait_s: float
    """How long a bulk that is not full waits for more."""


@dataclass(slots=True, eq=False)
class _PendingBatch:
    """The documents of one request while they are being written."""

    signal: Signal
    documents: Sequence[Document]
    size: int
    arrived: float
    answer: asyncio.Future[Receipt]
    taken: int = 0
    """Number of documents that were put into bulks."""
    open: int = 0
    """Number of documents without an outcome."""
    refused: int = 0
    reason: str = ""

    def settle(self, outcome: Outcome) -> None:
        """Notes one document's outcome; the last outcome completes the request."""
        self.open -= 1
        if outcome.status is WriteStatus.REFUSED:
            self.refused += 1
            self.reason = self.reason or outcome.reason
        if not self.open and not self.answer.done():
            self.answer.set_result(Receipt(self.refused, self.reason))


_Entry = tuple[_PendingBatch, Document]


@dataclass(slots=True)
class _Throttle:
    """Allows one log line per interval, so that an outage does not fill the log."""

    clock: Clock
    last: float | None = field(default=None)

    def passes(self) -> bool:
        now = self.clock.monotonic()
        if self.last is not None and now - self.last < _LOG_EVERY_S:
            return False
        self.last = now
        return True


class Intake:
    """The queue between senders and the store, inside one event loop; `run` is its writer."""

    def __init__(self, store: DocumentStore, limits: Limits, observer: IntakeObserver, clock: Clock) -> None:
        self._store = store
        self._limits = limits
        self._observer = observer
        self._clock = clock
        self._queue: deque[_PendingBatch] = deque()
        self._arrival = asyncio.Event()
        self._bytes = 0
        self._stalled_since: float | None = None
        self._stalled_why = ""
        self._stalled_log = _Throttle(clock)
        self._full_log = _Throttle(clock)
        self._refused_log = _Throttle(clock)

    async def take(self, signal: Signal, documents: Sequence[Document], patience_s: float) -> Receipt:
        """Waits until the documents are written.

        Raises:
            UnavailableError: not all of them are written: the queue is full, or `patience_s` has passed. The sender
                should send the same documents again.
        """
        if not documents:
            return Receipt()
        size = sum(len(document.source) for document in documents)
        # A request larger than the queue is accepted when the queue is empty.
        if self._bytes and self._bytes + size > self._limits.queue_bytes:
            if self._full_log.passes():
                logger.warning("the queue is full with %d bytes; senders are asked to retry", self._bytes)
            raise UnavailableError(
                "The queue of telemetry is full; send the same again later.",
                reason="TELEMETRY_QUEUE_FULL",
                retry_after_s=_RETRY_AFTER_S,
            )
        answer: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        pending = _PendingBatch(signal, documents, size, self._clock.monotonic(), answer, open=len(documents))
        self._queue.append(pending)
        self._account(size)
        self._arrival.set()
        try:
            async with asyncio.timeout(patience_s):
                return await answer
        except TimeoutError as error:
            why = self._stalled_why if self._stalled_since is not None else "Elasticsearch is slow"
            raise UnavailableError(
                f"Not written: {why}. Send the same again later.",
                reason="TELEMETRY_NOT_WRITTEN",
                retry_after_s=_RETRY_AFTER_S,
            ) from error
        finally:
            self._account(-size)
            with contextlib.suppress(ValueError):
                self._queue.remove(pending)

    async def run(self) -> None:
        """Writes arriving documents until cancelled."""
        while True:
            await self._gather()
            await self._write(self._next_bulk())

    def _account(self, size: int) -> None:
        self._bytes += size
        self._observer.queued(self._bytes)

    async def _gather(self) -> None:
        """Waits for a first batch, and a little longer for further ones unless a bulk is full."""
        while not self._queue:
            self._arrival.clear()
            await self._arrival.wait()
        due = self._queue[0].arrived + self._limits.bulk_wait_s
        while self._queue and (left := due - self._clock.monotonic()) > 0 and not self._is_full():
            self._arrival.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrival.wait()

    def _is_full(self) -> bool:
        documents = sum(len(pending.documents) - pending.taken for pending in self._queue)
        return documents >= self._limits.bulk_documents or self._bytes >= self._limits.bulk_bytes

    def _next_bulk(self, left: Sequence[_Entry] = ()) -> list[_Entry]:
        """The rest of the previous bulk, and as much of the queue as fits."""
        bulk = list(left)
        size = sum(len(document.source) for _, document in bulk)
        while self._queue:
            pending = self._queue[0]
            document = pending.documents[pending.taken]
            size += len(document.source)
            if bulk and (len(bulk) >= self._limits.bulk_documents or size > self._limits.bulk_bytes):
                break
            bulk.append((pending, document))
            pending.taken += 1
            if pending.taken == len(pending.documents):
                self._queue.popleft()
        return bulk

    async def _write(self, bulk: list[_Entry]) -> None:
        """Writes a bulk, with retries until each document has an outcome or its sender no longer waits."""
        backoff = Backoff(0.25, longest_s=2.0)
        # Senders that disconnected will retry with the same documents.
        while bulk := [entry for entry in bulk if not entry[0].answer.done()]:
            started, tried, answered = self._clock.monotonic(), len(bulk), False
            try:
                outcomes = await self._store.write([document for _, document in bulk])
            except UnavailableError as error:
                self._note_stalled(error.message)
            else:
                answered = True
                self._observer.bulk(self._clock.monotonic() - started)
                bulk = self._settle(bulk, outcomes)
            if bulk:
                await asyncio.sleep(backoff.next_s())
                if len(bulk) < tried:
                    backoff.reset()
                if answered:
                    # Perhaps only one day's index is busy, so documents of other days are added to the retry.
                    bulk = self._next_bulk(bulk)

    def _settle(self, bulk: list[_Entry], outcomes: Sequence[Outcome]) -> list[_Entry]:
        """Gives each document its outcome.

        Returns:
            The documents to retry.
        """
        busy: list[_Entry] = []
        counts: Counter[tuple[Signal, WriteStatus]] = Counter()
        for (pending, document), outcome in zip(bulk, outcomes, strict=True):
            if outcome.status is WriteStatus.BUSY:
                if not busy:
                    self._note_stalled(outcome.reason)
                busy.append((pending, document))
                continue
            counts[pending.signal, outcome.status] += 1
            if outcome.status is WriteStatus.REFUSED:
                self._log_refused(outcome.reason)
            pending.settle(outcome)
        for (signal, status), count in counts.items():
            self._observer.settled(signal.value, status.value, count)
        if not busy:
            self._note_flowing()
        return busy

    def note_unfit(self, signal: Signal, count: int, reason: str) -> None:
        """Counts events that could not even become documents."""
        if count:
            self._observer.settled(signal.value, WriteStatus.REFUSED.value, count)
            self._log_refused(reason)

    def _log_refused(self, reason: str) -> None:
        """Logs at most one refusal per interval; the metric counts all of them."""
        if self._refused_log.passes():
            logger.warning("an event was refused: %s", reason)

    def _note_stalled(self, why: str) -> None:
        now = self._clock.monotonic()
        if self._stalled_since is None:
            self._stalled_since = now
        self._stalled_why = why
        if self._stalled_log.passes():
            logger.warning("%s; %d bytes wait, for %.0f s now", why, self._bytes, now - self._stalled_since)

    def _note_flowing(self) -> None:
        if self._stalled_since is not None:
            logger.info(
                "Elasticsearch accepts all documents again after %.1f s", self._clock.monotonic() - self._stalled_since
            )
            self._stalled_since, self._stalled_log.last = None, None
