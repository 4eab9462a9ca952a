"""Use case: the data card of a version."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from services.cleaning.app.datasets import Datasets
from services.cleaning.app.ports import Placement, RejectedRow, SnapshotStore
from services.cleaning.domain.dataset import DatasetVersion, SnapshotSummary, VersionState
from services.cleaning.engine.card.statistics import SAMPLED_TEXTS, CardFigures, PartFigures
from services.kit.errors import FailedPreconditionError

_PARTS = {"training": Placement.TRAIN, "hold-out": Placement.HOLDOUT, "held-back feedback": Placement.HELD_BACK}


class Cards:
    """Describes versions from their files, so that every version has a card, whichever release built it."""

    def __init__(self, datasets: Datasets, snapshots: SnapshotStore) -> None:
        self._datasets = datasets
        self._snapshots = snapshots

    def rejections(self, name: str, per_reason: int) -> Mapping[str, Sequence[RejectedRow]]:
        """Some of the records that a version rejected, by reason, the most frequent first.

        Args:
            name: of the version.
            per_reason: most records of a reason.

        Raises:
            NotFoundError, FailedPreconditionError, DataLossError: see `figures`.
        """
        snapshot = self._snapshot(self._datasets.version(name))
        counts = snapshot.rejected_by_reason
        order = sorted(counts, key=lambda reason: (-counts[reason], reason))
        found: dict[str, list[RejectedRow]] = {reason: [] for reason in order}
        missing = sum(min(count, per_reason) for count in counts.values())
        _, batches = self._snapshots.rows(snapshot, Placement.REJECTED)
        for batch in batches:
            # Snapshots of earlier releases have no column for the operator.
            nothing = [None] * len(batch["reason"])
            columns = [batch.get(each, nothing) for each in ("record_id", "source", "reason", "detail", "operator")]
            for row in zip(*columns, strict=True):
                rejected = RejectedRow(*(value or "" for value in row))
                kept = found.setdefault(rejected.reason, [])
                if len(kept) < per_reason:
                    kept.append(rejected)
                    missing -= 1
            if missing <= 0:
                break
        return found

    def _snapshot(self, version: DatasetVersion) -> SnapshotSummary:
        if version.state is not VersionState.READY or version.snapshot is None:
            raise FailedPreconditionError(
                f"{version.name} is {version.state.value}; only a version that is ready has a card and examples.",
                reason="VERSION_NOT_READY",
                metadata={"dataset_version": version.name},
            )
        return version.snapshot

    def figures(self, name: str) -> CardFigures:
        """What the card of a version shows.

        Raises:
            NotFoundError: the version does not exist.
            FailedPreconditionError: it is not ready.
            DataLossError: a file of it is missing.
        """
        version = self._datasets.version(name)
        snapshot = self._snapshot(version)
        parts = {}
        for title, placement in _PARTS.items():
            if placement is Placement.HELD_BACK and not snapshot.feedback:
                continue
            total, batches = self._snapshots.rows(snapshot, placement)
            figures, every = PartFigures(), max(1, -(-total // SAMPLED_TEXTS))
            for batch in batches:
                figures.add(batch, every)
            parts[title] = figures
        return CardFigures(
            name,
            version.create_time.isoformat(" ", "minutes"),
            snapshot.digest,
            snapshot.records_in,
            snapshot.rejected_by_reason,
            [
                (each.name, json.dumps(each.params, ensure_ascii=False, sort_keys=True) if each.params else "")
                for each in version.spec.operators
            ],
            version.spec.holdout.fraction,
            parts,
            near_overlap=self._snapshots.near_overlap(snapshot),
            feedback=snapshot.feedback,
            erased=snapshot.erased,
            variants=snapshot.variants,
            dropped_variants=snapshot.dropped_variants,
        )
