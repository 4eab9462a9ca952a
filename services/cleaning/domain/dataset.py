"""Data sets and their versions: specs, states and their transitions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from services.cleaning.domain.augmentation import AugmentSpec
from services.cleaning.domain.recipe import OperatorSpec
from services.kit.failure import Failure
from services.kit.ids import content_digest, sha256_hex
from services.kit.progress import Progress

# Increase this when the layout or the meaning of snapshots changes: earlier snapshots are then no longer reused.
SNAPSHOT_FORMAT = 1

_DATASET = re.compile(r"datasets/([a-z0-9][a-z0-9-]{0,63})")


@dataclass(frozen=True, slots=True)
class HoldoutSpec:
    """How a frozen hold-out is set aside: a share of the records, and their maximum number (0: no limit)."""

    fraction: float = 0.0
    max_records: int = 0


@dataclass(frozen=True, slots=True)
class NewLabels:
    """How many records of feedback, by how many people, must have a label that no source has, to make it a class."""

    min_records: int
    min_people: int


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """Sources, recipe and hold-out of a data set; `required_attributes` become columns.

    `feedback_sources` and `pushed_sources` are some of the sources; `augment` is how the training part gets variants;
    `new_labels` is when a label that only feedback has becomes a class, which none does without it. Where `tenants` are
    named, records of others do not belong to it, but for feedback.
    """

    sources: tuple[str, ...]
    operators: tuple[OperatorSpec, ...] = ()
    holdout: HoldoutSpec = field(default_factory=HoldoutSpec)
    required_attributes: tuple[str, ...] = ()
    feedback_sources: tuple[str, ...] = ()
    pushed_sources: tuple[str, ...] = ()
    augment: AugmentSpec | None = None
    new_labels: NewLabels | None = None
    tenants: tuple[str, ...] = ()

    def takes(self, source: str, tenant: str) -> bool:
        """Whether records of a source and a tenant belong to it."""
        owned = not self.tenants or tenant in self.tenants or source in self.feedback_sources
        return source in self.sources and owned


@dataclass(frozen=True, slots=True)
class Dataset:
    """A recipe over sources, from which versions are built; `name` is `datasets/{dataset}`."""

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
    """Number of distinct records of an import that have arrived, and number of its withdrawals."""

    records: int = 0
    withdrawn: int = 0


@dataclass(frozen=True, slots=True)
class AwaitedImport:
    """An import that a version waits for, with its numbers of distinct records and of withdrawals.

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
    """Address and counts of a snapshot."""

    digest: str
    uri: str
    records_in: int
    train_count: int
    holdout_count: int
    rejected_by_reason: Mapping[str, int]
    feedback: Mapping[str, int] = field(default_factory=dict)
    """Records of feedback: `correction` and `accepted` for training, `people`, `held_back`, `rejected`."""
    erased: int = 0
    """Rows that were erased since it was built; the other counts stay as they were."""
    variants: Mapping[str, int] = field(default_factory=dict)
    """Variants for training, by the augmenter that made them; `train_count` includes them."""
    dropped_variants: Mapping[str, int] = field(default_factory=dict)
    """Variants that were not made or not kept, by reason."""


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """A content-addressed snapshot of a data set, or the build that creates it."""

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
    """`datasets/{dataset}` and number from a version's name, which was validated before."""
    dataset, _, number = name.partition("/versions/")
    return dataset, int(number)


def dataset_id(name: str) -> str:
    """The id in `datasets/{dataset}`, which names the folder and salts the split."""
    match = _DATASET.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not a data-set name")
    return match.group(1)


def snapshot_digest(
    dataset: str, spec: DatasetSpec, recipe_digest: str, records: Iterable[tuple[str, str]], augmentation: str = ""
) -> str:
    """Digest of the snapshot that this content gives, known before it is built.

    Args:
        dataset: `datasets/{dataset}`; it salts the split.
        spec: its sources, hold-out and required attributes enter; the recipe enters by its digest.
        recipe_digest: sha256 of the canonical recipe.
        records: id and content digest of every raw record of the data set; the content digest covers the source. Of one
            whose original is not kept and that the recipe has not cleaned, a reason in place of the digest.
        augmentation: digest of the spec's augmentation; empty without one.
    """
    feedback: dict[str, Any] = {"feedback_sources": sorted(spec.feedback_sources)} if spec.feedback_sources else {}
    if spec.new_labels is not None:
        feedback["new_labels"] = [spec.new_labels.min_records, spec.new_labels.min_people]
    frame = content_digest(
        {
            **feedback,
            **({"augmentation": augmentation} if augmentation else {}),
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
