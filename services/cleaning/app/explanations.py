"""Use case: explain what the recipe of each data set does to one record, operator by operator."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.cleaning.app.ports import CollectedRecord, DatasetStore, Fate, SnapshotStore, VersionStore
from services.cleaning.app.recipe_cache import RecipeCache
from services.cleaning.app.records import Records, all_datasets
from services.cleaning.domain.augmentation import parent_id
from services.cleaning.domain.dataset import DatasetVersion, VersionState
from services.cleaning.domain.originals import NOT_KEPT
from services.cleaning.domain.recipe import RecipeError
from services.cleaning.domain.record import Cleaned, Keeping
from services.cleaning.engine.explain import Effect, Explanation
from services.kit.errors import NotFoundError
from services.kit.ids import NEWEST

logger = logging.getLogger(__name__)

_PAGE: Final = 20


@dataclass(frozen=True, slots=True)
class DatasetExplanation:
    """What a data set's current recipe does to a record, and where its newest ready version has the record."""

    dataset: str
    recipe_digest: str
    explanation: Explanation
    version: DatasetVersion | None = None
    fate: Fate | None = None


class Explanations:
    """Explains records by cleaning their original text again; where it is not kept, by what was made of it."""

    def __init__(
        self,
        records: Records,
        datasets: DatasetStore,
        versions: VersionStore,
        snapshots: SnapshotStore,
        recipes: RecipeCache,
    ) -> None:
        self._records = records
        self._datasets = datasets
        self._versions = versions
        self._snapshots = snapshots
        self._recipes = recipes

    def explain(self, record_id: str, source: str) -> tuple[CollectedRecord, Sequence[DatasetExplanation]]:
        """The record, and an explanation for each data set that takes its source, by name.

        Of the id of a variant: its parent, and the data sets whose newest version has the variant, with no other one.

        Raises:
            NotFoundError, InvalidArgumentError: see `Records.record`.
            DataLossError: a snapshot is damaged.
        """
        try:
            return self._explain(record_id, source)
        except NotFoundError:
            parent = parent_id(record_id)
            if parent is None:
                raise
            collected, found = self._explain(parent, source)
            fates = [(each, each.fate) for each in found if each.fate is not None]
            named = [(each, fate, [v for v in fate.variants if v.record_id == record_id]) for each, fate in fates]
            if not any(variants for _, _, variants in named):
                raise
            return collected, [
                replace(each, fate=replace(fate, variants=variants)) for each, fate, variants in named if variants
            ]

    def _explain(self, record_id: str, source: str) -> tuple[CollectedRecord, Sequence[DatasetExplanation]]:
        collected = self._records.record(record_id, source)
        record = collected.record
        found: list[DatasetExplanation] = []
        for dataset in all_datasets(self._datasets):
            if not dataset.spec.takes(record.source, record.tenant):
                continue
            try:
                recipe = self._recipes.of(dataset.spec)
            except RecipeError as error:
                # The data set was stored by another release; the other data sets are still explained.
                logger.error("%s has a recipe that cannot be applied: %s", dataset.name, error.message)
                continue
            explanation = (
                _stored(collected, dataset.name, recipe.digest)
                if record.keeping is Keeping.NONE
                else recipe.explain(record.text, record.attributes)
            )
            version = self._newest(dataset.name)
            fate = None
            if version is not None and version.snapshot is not None:
                fate = self._snapshots.fate(version.snapshot, record.key)
            found.append(DatasetExplanation(dataset.name, recipe.digest, explanation, version, fate))
        return collected, found

    def _newest(self, dataset: str) -> DatasetVersion | None:
        before = NEWEST
        while page := self._versions.versions(dataset, before, _PAGE):
            for version in page:
                if version.state is VersionState.READY:
                    return version
            before = page[-1].number
        return None


def _stored(collected: CollectedRecord, dataset: str, recipe_digest: str) -> Explanation:
    """What the recipe made of a record when it arrived, without what each operator did."""
    cleaned = Cleaned("", {}, NOT_KEPT)
    for verdict in collected.verdicts:
        known = (verdict.dataset, verdict.recipe_digest, verdict.content_digest)
        if known == (dataset, recipe_digest, collected.record.content_digest):
            cleaned = verdict.cleaned
    dropped = cleaned.rejection
    return Explanation(cleaned, () if dropped is None else (Effect(0, dropped.operator, rejection=dropped),))
