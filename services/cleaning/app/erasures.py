"""Erases what a person taught: the texts of records, and of the snapshots that took them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from services.cleaning.app.ports import DatasetStore, ErasedStore, SnapshotStore, VersionStore
from services.cleaning.app.records import all_datasets
from services.cleaning.domain.dataset import DatasetVersion, VersionState
from services.cleaning.domain.record import Erased
from services.kit.clock import Clock
from services.kit.errors import UnavailableError

logger = logging.getLogger(__name__)

_PAGE = 100
_ABOVE_ALL = 2**31 - 1
_RETRY_AFTER_S = 10.0


@dataclass(frozen=True, slots=True)
class Erasure:
    """What an erasure did: records whose texts are gone, and versions whose snapshots no longer hold theirs."""

    records: int
    versions: Sequence[str]


class Erasures:
    """Thread-safe. A repeat erases what has come since, and finds what an earlier one had begun."""

    def __init__(
        self,
        records: ErasedStore,
        datasets: DatasetStore,
        versions: VersionStore,
        snapshots: SnapshotStore,
        clock: Clock,
    ) -> None:
        self._records, self._datasets, self._versions = records, datasets, versions
        self._snapshots, self._clock = snapshots, clock

    def erase(self, person: str, answers: Collection[str]) -> Erasure:
        """Erases records of feedback: those of a person, and those of these answers.

        Args:
            person: pseudonym, as records carry it in `feedback_person`.
            answers: ids of records, whoever judged them.

        Raises:
            UnavailableError: a version that may take such records is being built; try again when it has ended.
        """
        gone = Erased(person, frozenset(answers))
        count = self._records.erase(gone)
        building = [version for version in self._versions.building() if version.spec.feedback_sources]
        if building:
            # It may have read the records before, and would write them into a snapshot afterwards.
            raise UnavailableError(
                f"{building[0].name} is being built and may take erased records; try again when it has ended.",
                reason="VERSION_BEING_BUILT",
                metadata={"dataset_version": building[0].name},
                retry_after_s=_RETRY_AFTER_S,
            )
        found: list[str] = []
        for version in self._with_feedback():
            assert version.snapshot is not None
            erased = self._snapshots.erase(version.snapshot.uri, gone, self._clock.now())
            if erased != version.snapshot.erased:
                self._versions.mark_erased(version, erased)
                found.append(version.name)
        logger.warning("erased %d records of %s, and from %d versions", count, person, len(found))
        return Erasure(count, found)

    def _with_feedback(self) -> Sequence[DatasetVersion]:
        found = []
        for dataset in all_datasets(self._datasets):
            before = _ABOVE_ALL
            while page := self._versions.versions(dataset.name, before, _PAGE):
                found += [
                    version
                    for version in page
                    if version.state is VersionState.READY and version.spec.feedback_sources and version.snapshot
                ]
                before = page[-1].number
        return found
