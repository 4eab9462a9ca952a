"""What the use cases need from outside, by role."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from services.ingest.app.interrupt import Interrupt
from services.ingest.domain.record import RawRecord, Refusal
from services.ingest.domain.source_import import Differences, Import, SourceSpec


@dataclass(frozen=True, slots=True)
class Accepted:
    """A record with its final identity; `trace` are the W3C headers to continue, or the current trace if empty."""

    record: RawRecord
    trace: Mapping[str, str] = field(default_factory=dict)


class RecordSink(Protocol):
    """Publishes records; durable when a method returns. Equal facts get equal event ids."""

    def accept(self, records: Sequence[Accepted], import_name: str = "", origin: str = "") -> None:
        """Publishes accepted records, either pushed or of an import.

        Raises:
            UnavailableError: not all of them are durable; retry all of them.
            ResourceExhaustedError: the disk is nearly full; retry all of them later.
        """
        ...

    def refuse(self, refusals: Sequence[Refusal], import_name: str) -> None:
        """Publishes refused pieces of a source, each with its reason.

        Raises:
            UnavailableError: not all of them are durable; retry all of them.
            ResourceExhaustedError: the disk is nearly full; retry all of them later.
        """
        ...

    def withdraw(self, source: str, record_ids: Sequence[str], import_name: str, origin: str) -> None:
        """Publishes that an import found records gone from an origin.

        Raises:
            UnavailableError: not all of it is durable; retry all of it.
        """
        ...

    def complete(self, done: Import) -> None:
        """Publishes that all records of an import are on the bus."""
        ...


class BatchStore(Protocol):
    """Batches that were accepted, by request."""

    def batch_digest(self, request_id: str) -> str | None:
        """Digest of the batch of this request."""
        ...

    def remember_batch(self, request_id: str, digest: str, moment: datetime) -> None:
        """Stores the digest of an accepted batch, unless there is one."""
        ...

    def forget_batches(self, before: datetime) -> None:
        """Forgets batches that were accepted before a time."""
        ...


@dataclass(frozen=True, slots=True)
class KnownRequest:
    """A request to create an import that was answered before, and its answer."""

    spec_digest: str
    import_name: str
    reused: bool


@dataclass(frozen=True, slots=True)
class Pull:
    """One attempt to pull an import. A process that resumes it after another died begins a new generation."""

    import_name: str
    origin: str
    generation: str


class PulledStore(Protocol):
    """What was pulled from each origin; every method is one transaction."""

    def begin(self, pull: Pull) -> bool:
        """Makes this pull the current one of its import; False if the import has ended."""
        ...

    def note(self, pull: Pull, records: Sequence[RawRecord]) -> bool:
        """Stores that a pull has seen records; call it before they are published.

        Returns:
            False if the import has ended meanwhile, or another pull of it has begun.
        """
        ...

    def differences(self, pull: Pull) -> Differences:
        """The differences between what a pull has seen and the state that the origin's last import left."""
        ...

    def gone(self, pull: Pull, after: str, limit: int) -> Sequence[str]:
        """Ids of records that a pull has not seen, in order, starting after an id."""
        ...


class ImportStore(Protocol):
    """Imports; every method is one transaction."""

    def answer(self, request_id: str) -> KnownRequest | None:
        """The stored answer to this request."""
        ...

    def create_import(self, draft: Import, request_id: str) -> None:
        """Stores a new import as the answer to a request.

        Raises:
            AbortedError: the same request was answered at the same time.
        """
        ...

    def reuse_import(self, earlier: Import, request_id: str) -> None:
        """Stores an earlier import as the answer to a request.

        Raises:
            AbortedError: the same request was answered at the same time.
        """
        ...

    def newest_import(self, origin: str) -> Import | None:
        """The last import of an origin, in whatever state."""
        ...

    def last_success(self, origin: str) -> Import | None:
        """The last import of an origin that succeeded."""
        ...

    def note_loss(self, moment: datetime) -> None:
        """Keeps when a consumer found that the bus had deleted records unread; a repeat changes nothing."""
        ...

    def loss_time(self) -> datetime | None:
        """When that was last found; None where nothing was lost."""
        ...

    def import_named(self, name: str) -> Import | None:
        """The import of this name."""
        ...

    def imports(self, before: str, limit: int) -> Sequence[Import]:
        """Imports with names before the given one (all if empty), newest first."""
        ...

    def running_imports(self) -> Sequence[Import]:
        """Imports to pull, oldest first."""
        ...

    def update_import(self, changed: Import, generation: str = "") -> bool:
        """Replaces the import if it is still running, and pulled by this generation if one is given.

        Returns:
            False if it has ended meanwhile, or another pull has begun.
        """
        ...

    def succeed_import(self, done: Import, pull: Pull, position: Mapping[str, Any] | None = None) -> bool:
        """Like `update_import`; also makes what the pull has seen the state of its origin, and keeps its position."""
        ...

    def position(self, origin: str) -> Mapping[str, Any]:
        """Where the last successful import of an incremental origin ended; empty before the first."""
        ...

    def forget_position(self, origin: str) -> None:
        """Lets the next import of an origin begin at its beginning."""
        ...

    def unannounced_imports(self) -> Sequence[Import]:
        """Succeeded imports whose event is pending."""
        ...

    def mark_import_announced(self, name: str) -> None:
        """Marks its event as published."""
        ...


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source: its path in its file system and its size in bytes."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Survey:
    """Content of a source: files in order, number of pieces (0: unknown), digest (empty: unknown)."""

    files: Sequence[SourceFile]
    pieces: int
    digest: str


@dataclass(slots=True)
class Position:
    """How far a source was read: where to begin, and where the pieces that were taken so far end."""

    begin: Mapping[str, Any] = field(default_factory=dict)
    """JSON of the source's own; empty for the beginning."""
    reached: Callable[[], Mapping[str, Any]] = dict
    import_name: str = ""
    """Which import reads it; a process that continues an import finds what that import has kept."""
    cut: str = ""
    """Why the end of the source was not reached though reading ended, such as `max_pages`; empty if it was."""


class Sources(Protocol):
    """Sources by spec."""

    def survey(self, spec: SourceSpec, interrupt: Interrupt) -> Survey:
        """Checks a source without reading records from it.

        Raises:
            InvalidArgumentError: it does not exist, or is not what the spec says.
            PermissionDeniedError: it must not be read.
            FailedPreconditionError: it cannot be read.
            InterruptedReadError: the interrupt was set.
        """
        ...

    def read(
        self, spec: SourceSpec, survey: Survey, interrupt: Interrupt, position: Position | None = None
    ) -> Iterator[RawRecord | Refusal]:
        """Its pieces in order, as records with their identity or as refusals; keeps only a few in memory.

        An incremental source begins at the position, and keeps it up to date with the pieces that were taken.

        Raises:
            PermissionDeniedError: it must not be read.
            FailedPreconditionError: it cannot be read any further; names file and line.
            InterruptedReadError: the interrupt was set.
        """
        ...


class Ledger(Protocol):
    """The distinct records of one import; memory use does not grow with them."""

    @property
    def count(self) -> int:
        """Number of records."""
        ...

    def add(self, record: RawRecord) -> bool:
        """Whether the record is new or its content changed; the last content counts."""
        ...

    def digest(self) -> str:
        """sha256 over the sorted record ids and contents."""
        ...

    def close(self) -> None:
        """Frees its space."""
        ...
