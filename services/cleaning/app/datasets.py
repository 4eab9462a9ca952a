"""Use cases on data sets and their versions; `services.cleaning.app.builder` builds them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from services.cleaning.app.ports import DatasetStore, PushedRecords, RecordStore, SnapshotStore, VersionStore
from services.cleaning.app.recipe_cache import RecipeCache
from services.cleaning.app.records import require_dataset
from services.cleaning.domain.dataset import (
    AwaitedImport,
    Dataset,
    DatasetSpec,
    DatasetVersion,
    VersionState,
    snapshot_digest,
    split_version_name,
)
from services.cleaning.domain.recipe import RecipeError
from services.kit.clock import Clock
from services.kit.errors import TidemillError, UnavailableError, not_found
from services.kit.ids import new_id

logger = logging.getLogger(__name__)


class Datasets:
    """Creates, reads and lists data sets and versions."""

    def __init__(
        self,
        datasets: DatasetStore,
        versions: VersionStore,
        records: RecordStore,
        snapshots: SnapshotStore,
        recipes: RecipeCache,
        pushed: PushedRecords,
        clock: Clock,
    ) -> None:
        self._datasets = datasets
        self._records = records
        self._snapshots = snapshots
        self._versions = versions
        self._recipes = recipes
        self._pushed = pushed
        self._clock = clock

    def put(self, name: str, spec: DatasetSpec) -> Dataset:
        """Creates a data set or replaces its spec.

        Raises:
            RecipeError: the recipe cannot be applied.
        """
        digest = self._recipes.of(spec).digest
        self._recipes.augmentation(spec)
        now = self._clock.now()
        known = self._datasets.dataset(name)
        if known is not None and known.spec == spec and known.recipe_digest == digest:
            return known
        return self._datasets.put_dataset(Dataset(name, spec, digest, now, now))

    def refresh_digests(self) -> None:
        """Updates the digests of recipes whose operators this release changed; call it once, at the start."""
        after = ""
        while page := self._datasets.datasets(after, 500):
            for dataset in page:
                try:
                    self.put(dataset.name, dataset.spec)
                except RecipeError as error:
                    logger.error("%s has a recipe that can no longer be applied: %s", dataset.name, error.message)
            after = page[-1].name

    def get(self, name: str) -> Dataset:
        """The data set of this name."""
        return require_dataset(self._datasets, name)

    def list(self, after: str, limit: int) -> Sequence[Dataset]:
        """Data sets sorted by name, beginning after a name."""
        return self._datasets.datasets(after, limit)

    def build_version(
        self, dataset: str, awaited: Sequence[AwaitedImport], request_id: str, traceparent: str
    ) -> tuple[DatasetVersion, bool]:
        """Creates a version; the builder does the work.

        Returns:
            The version, and whether it already existed: equal content gives the existing version.
        """
        known = require_dataset(self._datasets, dataset)
        now = self._clock.now()
        draft = DatasetVersion(
            dataset,
            0,
            known.spec,
            known.recipe_digest,
            VersionState.BUILDING,
            now,
            now,
            awaited=tuple(awaited),
            traceparent=traceparent,
        )
        return self._versions.create_version(draft, request_id, self._content(draft))

    def _all_read(self) -> bool:
        question = new_id()
        try:
            return self._pushed.unread(question) == 0
        except UnavailableError:  # then the build waits for the bus, and says so
            return False
        finally:
            self._pushed.forget(question)

    def _content(self, draft: DatasetVersion) -> str:
        """Digest of the snapshot that a build would give now, if that snapshot already exists; else empty."""
        if draft.awaited:
            counts = self._records.import_counts([item.name for item in draft.awaited])
            if any(item.arrived(counts.get(item.name)) < item.total for item in draft.awaited):
                return ""
        if draft.spec.pushed_sources and not self._all_read():
            return ""
        try:
            recipe = self._recipes.of(draft.spec)
            records = self._records.content_digests(draft.dataset, draft.spec, recipe.digest)
            augmentation = self._recipes.augmentation(draft.spec)
            variants = augmentation.digest if augmentation else ""
            digest = snapshot_digest(draft.dataset, draft.spec, recipe.digest, records, variants)
            return digest if self._snapshots.find(draft.dataset, digest) is not None else ""
        except (TidemillError, OSError) as error:
            # The build meets the same error and reports it.
            logger.warning("%s: cannot look for an earlier version: %s", draft.dataset, error)
            return ""

    def version(self, name: str) -> DatasetVersion:
        """The version of this name.

        Raises:
            NotFoundError: it does not exist.
        """
        found = self._versions.version(*split_version_name(name))
        if found is None:
            raise not_found("dataset_version", name)
        return found

    def versions(self, dataset: str, before: int, limit: int) -> Sequence[DatasetVersion]:
        """Versions below a number, newest first."""
        require_dataset(self._datasets, dataset)
        return self._versions.versions(dataset, before, limit)

    def cancel(self, name: str) -> DatasetVersion:
        """Cancels a build; one that has ended stays unchanged."""
        version = self.version(name)
        cancelled = replace(version, state=VersionState.CANCELLED, update_time=self._clock.now())
        if not version.state.final and self._versions.update_version(cancelled):
            return cancelled
        return self.version(name)
