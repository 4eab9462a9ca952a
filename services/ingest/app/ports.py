"""What the use cases need of the outside, by role."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from services.ingest.app.interrupt import Interrupt
from services.ingest.domain.record import RawRecord, Refusal
from services.ingest.domain.source_import import Differences, Import, SourceSpec


@dataclass(frozen=True, slots=True)
class Accepted:
    """A record with its final identity; `trace` are the W3C headers that it continues, the present trace if none."""

    record: RawRecord
    trace: Mapping[str, str] = field(default_factory=dict)


class RecordSink(Protocol):
    """Where records go; durable when a method returns. The same fact has the same event id each time."""

    def accept(self, records: Sequence[Accepted], import_name: str = "", origin: str = "") -> None:
        """Publishes accepted records: of an import and what it pulls from, or pushed.

        Raises:
            UnavailableError: not all of them are durable; give all of them again.
            ResourceExhaustedError: the disk is nearly full; give all of them again later.
        """
        ...

    def refuse(self, refusals: Sequence[Refusal], import_name: str) -> None:
        """Puts refused pieces of a source aside, each with its reason.

        Raises:
            UnavailableError: not all of them are durable; give all of them again.
            ResourceExhaustedError: the disk is nearly full; give all of them again later.
        """
        ...

    def withdraw(self, source: str, record_ids: Sequence[str], import_name: str, origin: str) -> None:
        """Publishes that an import found records gone from an origin.

        Raises:
            UnavailableError: not all of it is durable; give all of them again.
        """
        ...

    def complete(self, done: Import) -> None:
        """Publishes that an import has put all its records on the bus."""
        ...


class BatchStore(Protocol):
    """Batches that were accepted, by request."""

    def batch_digest(self, request_id: str) -> str | None:
        """Digest of the batch that this request brought."""
        ...

    def remember_batch(self, request_id: str, digest: str, moment: datetime) -> None:
        """Keeps the digest of an accepted batch; the first one stays."""
        ...

    def forget_batches(self, before: datetime) -> None:
        """Forgets batches that were accepted before a moment."""
        ...


@dataclass(frozen=True, slots=True)
class KnownRequest:
    """A request to create an import that was answered before, and its answer."""

    spec_digest: str
    import_name: str
    reused: bool


@dataclass(frozen=True, slots=True)
class Pull:
    """One try to pull an import: a process that goes on with it after another died begins a generation of its own."""

    import_name: str
    origin: str
    generation: str


class PulledStore(Protocol):
    """What was pulled from each origin; every method is one transaction."""

    def begin(self, pull: Pull) -> bool:
        """Makes this pull the one that goes on with its import; False where the import has ended."""
        ...

    def note(self, pull: Pull, records: Sequence[RawRecord]) -> bool:
        """Keeps that a pull has seen records; call it before they are published.

        Returns:
            False where the import has ended meanwhile, or another pull of it has begun.
        """
        ...

    def differences(self, pull: Pull) -> Differences:
        """How what a pull has seen differs from what the last import of its origin left."""
        ...

    def gone(self, pull: Pull, after: str, limit: int) -> Sequence[str]:
        """Ids of records that a pull has not seen, those after an id, in order."""
        ...


class ImportStore(Protocol):
    """Imports; every method is one transaction."""

    def answer(self, request_id: str) -> KnownRequest | None:
        """What this request was answered with."""
        ...

    def create_import(self, draft: Import, request_id: str) -> None:
        """Keeps a new import as the answer to a request.

        Raises:
            AbortedError: the same request was answered at the same time.
        """
        ...

    def reuse_import(self, earlier: Import, request_id: str) -> None:
        """Keeps an earlier import as the answer to a request.

        Raises:
            AbortedError: the same request was answered at the same time.
        """
        ...

    def newest_import(self, origin: str) -> Import | None:
        """The last import of an origin, in whatever state."""
        ...

    def import_named(self, name: str) -> Import | None:
        """The import of this name."""
        ...

    def imports(self, before: str, limit: int) -> Sequence[Import]:
        """Imports whose names stand before a name (all when empty), newest first."""
        ...

    def running_imports(self) -> Sequence[Import]:
        """Imports to pull, oldest first."""
        ...

    def update_import(self, changed: Import, generation: str = "") -> bool:
        """Replaces the import if it is still running, and pulled by this generation where one is given.

        Returns:
            False where it has ended meanwhile, or another pull has begun.
        """
        ...

    def succeed_import(self, done: Import, pull: Pull) -> bool:
        """As `update_import`, and takes over what the pull has seen as the state of its origin."""
        ...

    def unannounced_imports(self) -> Sequence[Import]:
        """Succeeded imports whose event is still to be published."""
        ...

    def mark_import_announced(self, name: str) -> None:
        """Forgets that it is to be published."""
        ...


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source: its path in its file system and its size in bytes."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Survey:
    """What a source holds: files in their order, pieces (0: unknown), digest of the content (empty: unknown)."""

    files: Sequence[SourceFile]
    pieces: int
    digest: str


class Sources(Protocol):
    """Sources by spec."""

    def survey(self, spec: SourceSpec, interrupt: Interrupt) -> Survey:
        """Looks at a source without reading records from it.

        Raises:
            InvalidArgumentError: it is not there, or not what the spec says.
            PermissionDeniedError: it must not be read.
            FailedPreconditionError: it cannot be read.
            InterruptedReadError: the interrupt was set.
        """
        ...

    def read(self, spec: SourceSpec, survey: Survey, interrupt: Interrupt) -> Iterator[RawRecord | Refusal]:
        """Its pieces in order, as records with their identity or as refusals; holds few of them at a time.

        Raises:
            PermissionDeniedError: it must not be read.
            FailedPreconditionError: it cannot be read any more; names file and line.
            InterruptedReadError: the interrupt was set.
        """
        ...


class Ledger(Protocol):
    """The distinct records of one import; its memory does not grow with them."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def add(self, record: RawRecord) -> bool:
        """Whether the record is new or has another content than before; the last content counts."""
        ...

    def digest(self) -> str:
        """sha256 over the sorted record ids and contents."""
        ...

    def close(self) -> None:
        """Gives its space back."""
        ...
