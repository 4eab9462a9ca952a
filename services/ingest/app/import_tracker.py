"""Tracks an import while it is pulled: counts, progress and the final state."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from services.ingest.domain.record import Refusal
from services.ingest.domain.source_import import Differences, Import, ImportState
from services.kit.clock import Clock
from services.kit.errors import FailedPreconditionError, TidemillError
from services.kit.failure import Failure
from services.kit.progress import Progress

_SAVE_EVERY_S = 0.25
_RATE_WINDOW_S = 5.0


class ImportTracker:
    """Counts and progress of one import while it is pulled."""

    def __init__(self, running: Import, clock: Clock) -> None:
        self.state = running
        self.first_refusal: Refusal | None = None
        self.capped = False
        self.cut = ""
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque()
        self._saved = clock.monotonic()
        self._done = 0
        self._total = 0
        self._withdrawn = 0
        self._unidentified = 0

    def begin(self, total: int) -> None:
        """Starts from zero, whatever an earlier process has counted."""
        limit = self.state.spec.max_records
        self._total = min(total, limit) if limit else total
        self._marks.append((self._clock.monotonic(), 0))
        self.state = replace(self.state, record_count=0, rejected_count=0)

    def add(self, pieces: int, record_count: int, refused: list[Refusal]) -> None:
        """Counts a batch."""
        self._done += pieces
        self._unidentified += sum(not refusal.identified for refusal in refused)
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

    def waits(self, error: BaseException) -> None:
        """Notes why the import does not continue at the moment, until it does."""
        if isinstance(error, Exception):
            progress = self.state.progress or Progress("pull", self._done, self._total)
            moment = self._clock.now()
            waiting = replace(progress, rate=0.0, update_time=moment, waiting=Failure.of(error, "The import"))
            self.state = replace(self.state, update_time=moment, progress=waiting)

    def due(self) -> bool:
        """Whether it is time to save the counts."""
        now = self._clock.monotonic()
        if now - self._saved < _SAVE_EVERY_S:
            return False
        self._saved = now
        return True

    def not_synchronized(self, unchanged: bool) -> str:
        """Why the source was not read completely, see `Import`; empty if it was."""
        if self.state.spec.kind.incremental:
            return "incremental"
        if self.capped:
            return "max_records"
        return self.cut or ("refused" if self._unidentified else "" if unchanged else "changed")

    def withdrew(self, count: int, total: int) -> None:
        """Adds `count` withdrawn records, of `total` to withdraw."""
        self._withdrawn += count
        moment = self._clock.now()
        progress = Progress("withdraw", self._withdrawn, total, 0.0, moment)
        self.state = replace(self.state, update_time=moment, progress=progress)

    def succeeded(self, digest: str, source_digest: str, differences: Differences, not_synchronized: str) -> Import:
        """The import as succeeded. What was read counts as the total, also if `max_records` ended it early."""
        return replace(
            self.state,
            state=ImportState.SUCCEEDED,
            progress=Progress("pull", self._done, self._done, 0.0, self._clock.now()),
            differences=differences,
            not_synchronized=not_synchronized,
            digest=digest,
            source_digest=source_digest,
            update_time=self._clock.now(),
        )

    def failed(self, failure: Failure) -> Import:
        """The import as failed."""
        return replace(self.state, state=ImportState.FAILED, failure=failure, update_time=self._clock.now())


def nothing_accepted(tracker: ImportTracker) -> TidemillError:
    """The error of an import that accepted no record."""
    uri, first = tracker.state.spec.kind.uri, tracker.first_refusal
    if first is None:
        return FailedPreconditionError(
            f"{uri} contains no records. Add some, then import again.", reason="EMPTY_SOURCE", metadata={"uri": uri}
        )
    return FailedPreconditionError(
        f"All {tracker.state.rejected_count} pieces of {uri} were refused, the first one with {first.reason}: "
        f"{first.message} All of them are in the dead letters.",
        reason="ALL_RECORDS_REFUSED",
        metadata={"uri": uri, "location": first.location, "first_reason": first.reason},
    )
