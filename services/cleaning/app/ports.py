"""What the use cases need from outside, by role."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Protocol

from services.cleaning.domain.dataset import Dataset, DatasetSpec, DatasetVersion, ImportCount, SnapshotSummary
from services.cleaning.domain.record import Erased, Keeping, RawRecord, RecordKey, Rejection, Verdict, Withdrawal
from services.cleaning.engine.rewriter import Answer, Query
from services.kit.bus.port import LostMessages


@dataclass(frozen=True, slots=True)
class Arrival:
    """A raw record as it came from the bus; `traceparent` is the W3C trace that brought it, or empty.

    `originals` is how its source says that its original is kept; None if it says nothing.
    """

    record: RawRecord
    traceparent: str = ""
    originals: Keeping | None = None


@dataclass(frozen=True, slots=True)
class Announcement:
    """A verdict that has not been published yet, and the trace that it belongs to."""

    verdict: Verdict
    traceparent: str


@dataclass(frozen=True, slots=True)
class CollectedRecord:
    """A raw record, whether it was withdrawn, and its verdicts by data set."""

    record: RawRecord
    withdrawn: bool
    verdicts: Sequence[Verdict]


class RecordStore(Protocol):
    """Raw records and verdicts. Every method is one transaction and idempotent.

    The result does not depend on the order in which arrivals and withdrawals come; see `domain.record`.
    """

    def collect(
        self, arrivals: Sequence[Arrival], withdrawals: Sequence[Withdrawal], verdicts: Sequence[Verdict]
    ) -> None:
        """Stores raw records and withdrawals with the imports they came by, and verdicts, see `save_verdicts`.

        Of a record it keeps what its `keeping` says.

        Raises:
            FailedPreconditionError: there is no key to encrypt one with.
        """
        ...

    def save_verdicts(self, verdicts: Sequence[Verdict]) -> None:
        """Stores verdicts on current contents, with an announcement due if they are new; discards the others."""
        ...

    def stale(self, dataset: Dataset, after: RecordKey, limit: int) -> Sequence[RawRecord]:
        """Records of the data set whose verdict is missing or belongs to another recipe or content.

        Sorted by key, beginning after a key; without those whose original is not kept, or cannot be decrypted.
        """
        ...

    def announcements(self, limit: int, of: Collection[RecordKey] | None = None) -> Sequence[Announcement]:
        """Verdicts whose event was not published yet: those of these records, or of all when None."""
        ...

    def mark_announced(self, announcements: Sequence[Announcement]) -> None:
        """Marks them as published, unless they have changed since."""
        ...

    def import_counts(self, imports: Sequence[str]) -> Mapping[str, ImportCount]:
        """What has arrived, by import; imports of which nothing has arrived are left out."""
        ...

    def count(self, sources: Sequence[str], after: int, tenants: Sequence[str] = ()) -> tuple[int, int]:
        """Records of the sources that are not withdrawn and arrived after a moment, and when the newest of all did.

        Those of some tenants, or of all where none is named.
        """
        ...

    def content_digests(self, dataset: str, spec: DatasetSpec, recipe_digest: str) -> Sequence[tuple[str, str]]:
        """Id and content digest of every raw record of the data set that is not withdrawn, see `snapshot_digest`."""
        ...

    def with_verdicts(self, dataset: str, spec: DatasetSpec) -> Sequence[tuple[RawRecord, Verdict | None]]:
        """Every raw record of the data set that is not withdrawn, with the data set's current verdict, if any.

        Sorted by key.

        Raises:
            FailedPreconditionError: the key that one was encrypted with is missing.
            DataLossError: one that was encrypted was changed.
        """
        ...

    def records(self, record_id: str, source: str, limit: int) -> Sequence[CollectedRecord]:
        """Records with this id, of one source or (if empty) of any source, sorted by source.

        Raises:
            FailedPreconditionError, DataLossError: see `with_verdicts`.
        """
        ...


class ErasedStore(Protocol):
    """Erases records."""

    def erase(self, gone: Erased) -> int:
        """Deletes texts, attributes and verdicts of records of feedback; returns how many had any.

        A record's key stays, withdrawn, so that no late repeat of its message brings the content back. Content that
        arrives later is new.
        """
        ...


@dataclass(frozen=True, slots=True)
class Losses:
    """Messages that the bus deleted unread: their maximum number, and when the last of them was found."""

    messages: int
    found_time: datetime


class LossStore(Protocol):
    """Messages that the bus deleted before this service had read them."""

    def note_lost(self, lost: LostMessages, moment: datetime) -> None:
        """Stores a loss; a repeat changes nothing."""
        ...

    def losses(self) -> Losses | None:
        """The sum of all losses; None if there were none."""
        ...


class PushedRecords(Protocol):
    """What others have pushed to the mesh and this service has not read yet."""

    def unread(self, build: str) -> int:
        """How many messages are still to be read of those that lay on the bus when this was first asked for a build.

        Raises:
            UnavailableError: the bus does not answer.
        """
        ...

    def forget(self, build: str) -> None:
        """Ends the questions about a build."""
        ...


class DatasetStore(Protocol):
    """Data sets."""

    def put_dataset(self, dataset: Dataset) -> Dataset:
        """Creates the data set, or replaces spec, digest and update time of the existing one. Returns it as stored."""
        ...

    def dataset(self, name: str) -> Dataset | None:
        """The data set of this name."""
        ...

    def datasets(self, after: str, limit: int) -> Sequence[Dataset]:
        """Data sets sorted by name, beginning after a name."""
        ...


class VersionStore(Protocol):
    """Versions of data sets."""

    def create_version(self, draft: DatasetVersion, request_id: str, content: str = "") -> tuple[DatasetVersion, bool]:
        """Stores the draft under the next number, unless an existing version can be returned instead.

        Args:
            draft: the version to build.
            request_id: a repeat gets the version of the first request; empty if the caller gave none.
            content: digest of the snapshot that the build would give, if known.

        Returns:
            The version, and whether it already existed. An existing version is returned if it was the answer to the
            same request id; if it is the newest ready one with this content and the draft's spec and recipe; or,
            without a request id, if it is being built from the same spec and recipe and awaits the same imports.
        """
        ...

    def version(self, dataset: str, number: int) -> DatasetVersion | None:
        """The version of this number."""
        ...

    def versions(self, dataset: str, before: int, limit: int) -> Sequence[DatasetVersion]:
        """Versions below a number, newest first."""
        ...

    def building(self) -> Sequence[DatasetVersion]:
        """Versions that are being built, oldest first."""
        ...

    def update_version(self, version: DatasetVersion) -> bool:
        """Replaces the version if it is still being built; False if it has ended in the meantime."""
        ...

    def mark_erased(self, version: DatasetVersion, erased: int) -> None:
        """Stores how many rows of a ready version's snapshot were erased in all."""
        ...

    def unannounced_versions(self) -> Sequence[DatasetVersion]:
        """Ready versions whose event was not published yet."""
        ...

    def mark_version_announced(self, version: DatasetVersion) -> None:
        """Marks its event as published."""
        ...


class AnswerStore(Protocol):
    """What models wrote for the variants of a data set's records, by the key of the question."""

    def answers(self, dataset: str) -> Mapping[str, Answer]:
        """All of a data set."""
        ...

    def keep(self, dataset: str, question: Query, answer: Answer) -> None:
        """Stores an answer, durably; a repeat changes nothing.

        Nothing is stored about a record that was erased or withdrawn in the meantime.
        """
        ...

    def forget(self, dataset: str, keys: Collection[str]) -> None:
        """Deletes answers of a data set."""
        ...


class Models(Protocol):
    """The models that write variants."""

    async def ask(self, question: Query) -> Answer:
        """The answer to a question, or why it cannot be used.

        Raises:
            UnavailableError: the model is unavailable or slow; ask again later.
            FailedPreconditionError: an operator has to change something first.
        """
        ...


class Announcer(Protocol):
    """Publishes events to the other services, durable when a method returns. A repeat has the same event id."""

    def verdicts(self, announcements: Sequence[Announcement]) -> None:
        """Publishes verdicts on records."""
        ...

    def version_built(self, version: DatasetVersion) -> None:
        """Publishes that a version is ready."""
        ...

    def records_lost(self, lost: LostMessages, moment: datetime) -> None:
        """Publishes that the bus deleted raw records unread; `moment` is when that was found."""
        ...


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A record of a snapshot."""

    record_id: str
    source: str
    text: str
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A record that is not in a snapshot, and why."""

    record_id: str
    source: str
    reason: str
    detail: str
    operator: str


@dataclass(frozen=True, slots=True)
class SnapshotContent:
    """The content of a snapshot, with rows sorted by id. The store adds the files' digests to the manifest."""

    dataset: str
    digest: str
    columns: Sequence[str]
    train: Sequence[SnapshotRow]
    holdout: Sequence[SnapshotRow]
    rejected: Sequence[RejectedRow]
    manifest: Mapping[str, Any]
    corrections: Sequence[SnapshotRow] | None = None
    """Feedback that is measured on, never learnt; None of a data set without feedback."""


class Placement(Enum):
    """Where a snapshot has a record."""

    TRAIN = "train"
    HOLDOUT = "holdout"
    REJECTED = "rejected"
    HELD_BACK = "corrections"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant of a record in a snapshot, and the augmenter that made it."""

    record_id: str
    augmenter: str
    text: str


@dataclass(frozen=True, slots=True)
class Fate:
    """Which part of a snapshot has a record, why it was rejected, if it was, and its variants."""

    placement: Placement
    rejection: Rejection | None = None
    variants: Sequence[Variant] = ()


class SnapshotStore(Protocol):
    """The store of snapshots, by data set and digest."""

    def find(self, dataset: str, digest: str) -> SnapshotSummary | None:
        """The snapshot with this digest, if it exists and is complete; a damaged one is deleted."""
        ...

    def write(self, content: SnapshotContent) -> SnapshotSummary:
        """Writes a snapshot completely or not at all; an existing one stays."""
        ...

    def erase(self, uri: str, gone: Erased, moment: datetime) -> int:
        """Rewrites a snapshot without erased records, and says so in its manifest; repeats what a crash left.

        Returns:
            How many rows were erased from it in all, since it was built; 0 of one that does not exist.

        Raises:
            UnavailableError: the artefact store does not respond.
        """
        ...

    def rows(
        self, snapshot: SnapshotSummary, part: Placement
    ) -> tuple[int, Iterator[Mapping[str, Sequence[str | None]]]]:
        """The records of a part: their number, and batches of equally long columns.

        Raises:
            DataLossError: the file is missing.
        """
        ...

    def near_overlap(self, snapshot: SnapshotSummary) -> int:
        """Texts of the hold-out that are near duplicates of training texts, as counted when it was built."""
        ...

    def fate(self, snapshot: SnapshotSummary, record: RecordKey) -> Fate:
        """Where a snapshot has a record.

        Raises:
            DataLossError: a file of the snapshot is missing.
        """
        ...
