"""What the use cases need from outside, by role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Protocol

from services.cleaning.domain.dataset import Dataset, DatasetVersion, ImportCount, SnapshotSummary
from services.cleaning.domain.record import RawRecord, RecordKey, Rejection, Verdict, Withdrawal
from services.kit.bus.port import LostMessages


@dataclass(frozen=True, slots=True)
class Arrival:
    """A raw record as it came from the bus; `traceparent` is the W3C trace that brought it, or empty."""

    record: RawRecord
    traceparent: str = ""


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
    """Raw records and verdicts; every method is one transaction, and repeating it changes nothing.

    Whatever the order in which arrivals and withdrawals come, the end is the same; see `domain.record`.
    """

    def collect(
        self, arrivals: Sequence[Arrival], withdrawals: Sequence[Withdrawal], verdicts: Sequence[Verdict]
    ) -> None:
        """Keeps raw records, withdrawals, the imports they came by, and verdicts, see `save_verdicts`."""
        ...

    def save_verdicts(self, verdicts: Sequence[Verdict]) -> None:
        """Stores verdicts on current contents, to be announced if new; discards the rest."""
        ...

    def stale(self, dataset: Dataset, after: RecordKey, limit: int) -> Sequence[RawRecord]:
        """Records of the data set's sources whose verdict is missing or of another recipe or content, by key, those
        after a key.
        """
        ...

    def announcements(self, limit: int) -> Sequence[Announcement]:
        """Verdicts whose event is pending."""
        ...

    def mark_announced(self, announcements: Sequence[Announcement]) -> None:
        """Marks them as published, unless they changed meanwhile."""
        ...

    def import_counts(self, imports: Sequence[str]) -> Mapping[str, ImportCount]:
        """What has arrived, by import; those of which nothing has are missing."""
        ...

    def content_digests(self, sources: Sequence[str]) -> Sequence[tuple[str, str]]:
        """Id and content digest of every raw record of the sources that is not withdrawn."""
        ...

    def with_verdicts(self, dataset: str, sources: Sequence[str]) -> Sequence[tuple[RawRecord, Verdict | None]]:
        """Every raw record of the sources that is not withdrawn, with the data set's present verdict if it has one,
        by key.
        """
        ...

    def records(self, record_id: str, source: str, limit: int) -> Sequence[CollectedRecord]:
        """Records with this id, of one source or of any (empty), by source."""
        ...


@dataclass(frozen=True, slots=True)
class Losses:
    """Messages of the bus that were deleted before they were read: how many at most, and when that was last found."""

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


class DatasetStore(Protocol):
    """Data sets."""

    def put_dataset(self, dataset: Dataset) -> Dataset:
        """Creates it, or replaces spec, digest and update time of the one with this name; returns what is kept."""
        ...

    def dataset(self, name: str) -> Dataset | None:
        """The data set of this name."""
        ...

    def datasets(self, after: str, limit: int) -> Sequence[Dataset]:
        """Data sets by name, those after a name."""
        ...


class VersionStore(Protocol):
    """Versions of data sets."""

    def create_version(self, draft: DatasetVersion, request_id: str, content: str = "") -> tuple[DatasetVersion, bool]:
        """Gives the draft the next number and keeps it, unless there is a version that answers the same.

        Args:
            draft: the version to build.
            request_id: a repeat is answered as the first was; empty if the caller gave none.
            content: digest of the snapshot that it would be built to, where that is known.

        Returns:
            The version, and whether it was there before: that of a repeat; the newest ready one with this content and
            the draft's spec and recipe; or, where there is no request id, one that is being built of the same and
            awaits the same imports.
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
        """Replaces the version if it is still being built; False if it has ended meanwhile."""
        ...

    def unannounced_versions(self) -> Sequence[DatasetVersion]:
        """Ready versions whose event is pending."""
        ...

    def mark_version_announced(self, version: DatasetVersion) -> None:
        """Marks its event as published."""
        ...


class Announcer(Protocol):
    """Publishes facts to the other services; durable when a method returns. Equal facts get equal event ids."""

    def verdicts(self, announcements: Sequence[Announcement]) -> None:
        """Publishes verdicts on records."""
        ...

    def version_built(self, version: DatasetVersion) -> None:
        """Publishes that a version is ready."""
        ...

    def records_lost(self, lost: LostMessages, moment: datetime) -> None:
        """Publishes that the bus deleted raw records unread, found at a moment."""
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
    """The content of a snapshot; rows are in order of their ids. The store adds the files' digests to the manifest."""

    dataset: str
    digest: str
    columns: Sequence[str]
    train: Sequence[SnapshotRow]
    holdout: Sequence[SnapshotRow]
    rejected: Sequence[RejectedRow]
    manifest: Mapping[str, Any]


class Placement(Enum):
    """Where a snapshot has a record."""

    TRAIN = "train"
    HOLDOUT = "holdout"
    REJECTED = "rejected"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Fate:
    """Which part of a snapshot has a record, and why it was rejected, if it was."""

    placement: Placement
    rejection: Rejection | None = None


class SnapshotStore(Protocol):
    """The store of snapshots, by data set and digest."""

    def find(self, dataset: str, digest: str) -> SnapshotSummary | None:
        """The snapshot with this digest, if it is there whole; a damaged one is deleted."""
        ...

    def write(self, content: SnapshotContent) -> SnapshotSummary:
        """Writes a snapshot, whole or not at all; one that is there stays."""
        ...

    def fate(self, snapshot: SnapshotSummary, record: RecordKey) -> Fate:
        """Where a snapshot has a record.

        Raises:
            FailedPreconditionError: a file of the snapshot is missing.
        """
        ...
