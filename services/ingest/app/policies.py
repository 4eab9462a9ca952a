"""The policies of declared sources, for the records that are pushed to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from services.ingest.app.ports import Accepted
from services.ingest.app.source_ports import SourceStore
from services.ingest.domain.source_import import SourcePolicy
from services.ingest.engine.handling import handling_of


class Policies:
    """Applies the policies, as they were when last read. Thread-safe.

    They are kept in memory, so that records are accepted, and masked, while the database is unavailable.
    """

    def __init__(self, store: SourceStore) -> None:
        self._store = store
        self._by_source: Mapping[str, SourcePolicy] = {}

    def refresh(self) -> None:
        """Reads them again: after a change, and now and then for changes that another process made.

        Raises:
            UnavailableError: the database is unavailable; those that were read before stay.
        """
        self._by_source = {source.spec.source: source.spec.policy for source in self._store.governed()}

    def tenant_of(self, source: str) -> str:
        """The tenant that the policy of a source names; empty if it names none."""
        policy = self._by_source.get(source)
        return policy.tenant if policy is not None else ""

    def apply(self, records: Sequence[Accepted]) -> list[Accepted]:
        """The records as they may be published, in order."""
        policies = self._by_source
        return [
            item
            if (policy := policies.get(item.record.source)) is None
            else replace(item, record=handling_of(policy).apply(item.record))
            for item in records
        ]
