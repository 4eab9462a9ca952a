"""Use cases on records: collect them, clean stale ones again, publish verdicts, answer queries."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from services.cleaning.app.ports import Announcer, Arrival, CollectedRecord, DatasetStore, RecordStore, Variant
from services.cleaning.app.recipe_cache import RecipeCache
from services.cleaning.domain.augmentation import AugmentSpec, variant_id
from services.cleaning.domain.dataset import Dataset, DatasetSpec
from services.cleaning.domain.originals import OriginalsPolicy
from services.cleaning.domain.recipe import OperatorSpec, RecipeError
from services.cleaning.domain.record import Keeping, RawRecord, RecordKey, Verdict, Withdrawal
from services.cleaning.engine.explain import Explanation
from services.cleaning.engine.rewriter import Rewriter
from services.kit.errors import FieldViolation, InvalidArgumentError, not_found
from services.kit.ids import record_name

logger = logging.getLogger(__name__)

NO_KEY: Final[RecordKey] = ("", "")
"""A key that sorts before the key of every record."""

_PAGE = 500
_SOURCES_NAMED = 10


class Records:
    """Raw records in, verdicts out.

    Verdicts are stored together with the raw records, then published, then marked as published; the offset of the bus
    moves last. After a crash between two of these steps, the remaining steps are repeated, so nothing is lost.

    Several processes may share a store. Each publishes the verdicts of its own batches.
    """

    def __init__(
        self,
        records: RecordStore,
        datasets: DatasetStore,
        recipes: RecipeCache,
        announcer: Announcer,
        originals: OriginalsPolicy,
    ) -> None:
        self._records = records
        self._originals = originals
        self._datasets = datasets
        self._recipes = recipes
        self._announcer = announcer
        # Two threads would publish the same announcements twice.
        self._announcing = threading.Lock()
        # Whether verdicts may be left that no batch will publish: by a process that ended, or by a failed attempt.
        self._left = True

    def collect(self, arrivals: Sequence[Arrival], withdrawals: Sequence[Withdrawal] = ()) -> None:
        """Cleans arrived records for every data set that takes them; returns when the verdicts are published."""
        arrivals = [self._kept(arrival) for arrival in arrivals]
        newest: dict[RecordKey, RawRecord] = {}
        for record in sorted((arrival.record for arrival in arrivals), key=lambda record: record.recency):
            newest[record.key] = record
        datasets = all_datasets(self._datasets)
        self._records.collect(arrivals, withdrawals, self._judge_all(datasets, newest.values()))
        # A data set that was stored or changed during this batch has not seen its records yet.
        changed = [dataset for dataset in all_datasets(self._datasets) if dataset not in datasets]
        self._records.save_verdicts(self._judge_all(changed, newest.values()))
        self._announce(newest)

    def clean_stale(self, dataset: Dataset, after: RecordKey) -> RecordKey:
        """Cleans the next records after a key whose verdict a changed recipe made stale.

        Returns:
            Key of the last cleaned record; `NO_KEY` if there was none.
        """
        verdicts = self._judge(dataset, self._records.stale(dataset, after, _PAGE))
        self._left = True
        self._records.save_verdicts(verdicts)
        return verdicts[-1].key if verdicts else NO_KEY

    def announce_left(self) -> None:
        """Publishes the verdicts of all records that an ended process or a changed recipe has left unpublished.

        What another process is publishing at the same time is published twice, with the same ids of events.
        """
        if self._left:
            self._announce(None)
            self._left = False

    def count(self, sources: Sequence[str], after: int, tenants: Sequence[str] = ()) -> tuple[int, int]:
        """Records of sources that arrived after a moment (microseconds), and when the newest of all of them did.

        Those of some tenants, or of all where none is named.
        """
        return self._records.count(sources, after, tenants)

    def clean_text(
        self,
        text: str,
        attributes: Mapping[str, str],
        dataset: str,
        operators: Sequence[OperatorSpec],
        *,
        explain: bool = False,
    ) -> Explanation:
        """Applies the single-record operators of a data set, or the given ones, to one text.

        Returns:
            The verdict, with the effects of the operators if `explain` is set.
        """
        if dataset:
            recipe = self._recipes.of(require_dataset(self._datasets, dataset).spec)
        else:
            recipe = self._recipes.of_operators(operators)
        if explain:
            return recipe.explain(text, attributes)
        return Explanation(recipe.clean(text, attributes), ())

    def variants(self, text: str, operators: Sequence[OperatorSpec], augment: AugmentSpec) -> Sequence[Variant]:
        """The variants that a training record of this cleaned text would get, before any is dropped.

        No model is asked: the text of a variant that one would write is empty.

        Raises:
            RecipeError: the augmentation cannot be applied.
        """
        augmentation = self._recipes.augmentation(DatasetSpec((), tuple(operators), augment=augment))
        assert augmentation is not None
        return [
            Variant(variant_id("", draft.number), draft.maker.name, draft.text)
            for draft in augmentation.drafts(("", ""), text)
            if draft.maker is not None and (draft.text or isinstance(draft.maker, Rewriter))
        ]

    def record(self, record_id: str, source: str = "") -> CollectedRecord:
        """A record and its verdicts.

        Raises:
            NotFoundError: the source, or any source if none is given, has no record with this id.
            InvalidArgumentError: no source is given, and several have a record with this id.
        """
        found = self._records.records(record_id, source, _SOURCES_NAMED)
        if not found:
            raise not_found("record", record_name(source, record_id) if source else record_id)
        if len(found) > 1:
            sources = ", ".join(item.record.source for item in found)
            more = " and more" if len(found) == _SOURCES_NAMED else ""
            message = f"Several sources have a record {record_id!r} ({sources}{more}); name the source."
            raise InvalidArgumentError(
                message, reason="AMBIGUOUS_RECORD_ID", violations=[FieldViolation("source", message)]
            )
        return found[0]

    def _kept(self, arrival: Arrival) -> Arrival:
        keeping = self._originals.of(arrival.record, arrival.originals)
        if keeping is Keeping.PLAIN:
            return arrival
        return replace(arrival, record=replace(arrival.record, keeping=keeping))

    def _announce(self, of: Collection[RecordKey] | None) -> None:
        with self._announcing:
            while pending := self._records.announcements(_PAGE, of):
                self._announcer.verdicts(pending)
                self._records.mark_announced(pending)

    def _judge_all(self, datasets: Iterable[Dataset], records: Collection[RawRecord]) -> list[Verdict]:
        return [
            verdict
            for dataset in datasets
            for verdict in self._judge(dataset, [r for r in records if dataset.spec.takes(r.source, r.tenant)])
        ]

    def _judge(self, dataset: Dataset, records: Sequence[RawRecord]) -> list[Verdict]:
        if not records:
            return []
        try:
            recipe = self._recipes.of(dataset.spec)
        except RecipeError as error:
            # The data set was stored by another release. Its records stay raw; the other data sets continue.
            logger.error("%s has a recipe that cannot be applied: %s", dataset.name, error.message)
            return []
        cleaned = recipe.clean_batch((record.text, record.attributes) for record in records)
        return [
            Verdict(
                record.record_id,
                record.source,
                dataset.name,
                dataset.recipe_digest,
                record.content_digest,
                result,
                record.keeping,
            )
            for record, result in zip(records, cleaned, strict=True)
        ]


def all_datasets(store: DatasetStore) -> list[Dataset]:
    """Every data set, by name."""
    found: list[Dataset] = []
    while page := store.datasets(found[-1].name if found else "", _PAGE):
        found += page
    return found


def require_dataset(store: DatasetStore, name: str) -> Dataset:
    """The data set of this name.

    Raises:
        NotFoundError: it does not exist.
    """
    found = store.dataset(name)
    if found is None:
        raise not_found("dataset", name, "PutDataset creates one.")
    return found
