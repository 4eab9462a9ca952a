"""Use case: the data card of a version."""

from __future__ import annotations

import json

from services.cleaning.app.datasets import Datasets
from services.cleaning.app.ports import Placement, SnapshotStore
from services.cleaning.domain.dataset import VersionState
from services.cleaning.engine.card.statistics import SAMPLED_TEXTS, CardFigures, PartFigures
from services.kit.errors import FailedPreconditionError

_PARTS = {"training": Placement.TRAIN, "hold-out": Placement.HOLDOUT, "held-back feedback": Placement.HELD_BACK}


class Cards:
    """Describes versions from their files, so that every version has a card, whichever release built it."""

    def __init__(self, datasets: Datasets, snapshots: SnapshotStore) -> None:
        self._datasets = datasets
        self._snapshots = snapshots

    def figures(self, name: str) -> CardFigures:
        """What the card of a version shows.

        Raises:
            NotFoundError: the version does not exist.
            FailedPreconditionError: it is not ready, or a file of it is missing.
        """
        version = self._datasets.version(name)
        snapshot = version.snapshot
        if version.state is not VersionState.READY or snapshot is None:
            raise FailedPreconditionError(
                f"{name} is {version.state.value}; only a version that is ready has a card.",
                reason="VERSION_NOT_READY",
                metadata={"dataset_version": name},
            )
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
        )
