"""Data sets and their versions: specs, states and their transitions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from services.cleaning.domain.recipe import OperatorSpec
from services.kit.failure import Failure
from services.kit.ids import content_digest, sha256_hex
from services.kit.progress import Progress

# Raised when the layout or the meaning of a snapshot changes: old digests then no longer answer.
SNAPSHOT_FORMAT = 1

_DATASET = re.compile(r"datasets/([a-z0-9][a-z0-9-]{0,63})")


@dataclass(frozen=True, slots=True)
class HoldoutSpec:
    """How a frozen hold-out is set aside: a share of the records, and their maximum number (0: no limit)."""

    fraction: float = 0.0
    max_records: int = 0


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """What a data set is made of; `required_attributes` become columns."""

    sources: tuple[str, ...]
    operators: tuple[OperatorSpec, ...] = ()
    holdout: HoldoutSpec = field(default_factory=HoldoutSpec)
    required_attributes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dataset:
    """A recipe over sources, of which versions are built; `name` is `datasets/{dataset}`."""

    name: str
    spec: DatasetSpec
    recipe_digest: str
    create_time: datetime
    update_time: datetime


class VersionState(Enum):
    """State of a build."""

    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether this is a final state."""
        return self is not VersionState.BUILDING


@dataclass(frozen=True, slots=True)
class ImportCount:
    """How many distinct records of an import have arrived, and how many that it withdrew."""

    records: int = 0
    withdrawn: int = 0


@dataclass(frozen=True, slots=True)
class AwaitedImport:
    """An import whose distinct records and withdrawals must have arrived in these numbers.

    `changed_count` is not awaited, only passed on to the version.
    """

    name: str
    record_count: int
    withdrawn_count: int = 0
    changed_count: int = 0

    @property
    def total(self) -> int:
        """Number of awaited records and withdrawals."""
        return self.record_count + self.withdrawn_count

    def arrived(self, count: ImportCount | None) -> int:
        """Number of those that have arrived."""
        if count is None:
            return 0
        return min(count.records, self.record_count) + min(count.withdrawn, self.withdrawn_count)


@dataclass(frozen=True, slots=True)
class SnapshotSummary:
    """What a snapshot holds: its address and its counts."""

    digest: str
    uri: str
    records_in: int
    train_count: int
    holdout_count: int
    rejected_by_reason: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """A content-addressed snapshot of a data set, or the work of building it."""

    dataset: str
    number: int
    spec: DatasetSpec
    recipe_digest: str
    state: VersionState
    create_time: datetime
    update_time: datetime
    awaited: tuple[AwaitedImport, ...] = ()
    progress: Progress | None = None
    snapshot: SnapshotSummary | None = None
    failure: Failure | None = None
    reused: bool = False
    traceparent: str = ""

    @property
    def name(self) -> str:
        """`datasets/{dataset}/versions/{number}`."""
        return version_name(self.dataset, self.number)


def version_name(dataset: str, number: int) -> str:
    """`datasets/{dataset}/versions/{number}` of `datasets/{dataset}`."""
    return f"{dataset}/versions/{number}"


def split_version_name(name: str) -> tuple[str, int]:
    """`datasets/{dataset}` and the number of a version's name, which the contract has validated."""
    dataset, _, number = name.partition("/versions/")
    return dataset, int(number)


def dataset_id(name: str) -> str:
    """The part of `datasets/{dataset}` that names the folder and salts the split."""
    match = _DATASET.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not a data-set name")
    return match.group(1)


def snapshot_digest(dataset: str, spec: DatasetSpec, recipe_digest: str, records: Iterable[tuple[str, str]]) -> str:
    """Address of the snapshot that this content gives, known before it is built.

    Args:
        dataset: `datasets/{dataset}`; it salts the split.
        spec: sources, hold-out and required attributes count; the recipe counts by its digest.
        recipe_digest: sha256 of the canonical recipe.
        records: id and content digest of every raw record that belongs to it; the latter covers the source.
    """
    frame = content_digest(
        {
            "format": SNAPSHOT_FORMAT,
            "dataset": dataset,
            "recipe": recipe_digest,
            "sources": sorted(spec.sources),
            "holdout": [spec.holdout.fraction, spec.holdout.max_records],
            "required_attributes": list(spec.required_attributes),
        }
    )
    flat = [part for pair in sorted(records) for part in pair]
    return sha256_hex(frame, *flat)
