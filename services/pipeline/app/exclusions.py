"""Use cases on quarantines and erasures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from services.kit.clock import Clock
from services.kit.errors import FailedPreconditionError, TidemillError, is_retryable, not_found
from services.kit.ids import new_id
from services.pipeline.app.ports import CycleStore
from services.pipeline.domain.audit import INSIDE
from services.pipeline.domain.exclusion import Affected, Exclusion, ExclusionKind

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PendingErasure:
    """An erasure that is not complete: the ids of records that go with it, and how often cleaning carried it out."""

    exclusion: Exclusion
    records: tuple[str, ...]
    done: int


class TaughtRecords(Protocol):
    """The records and data sets of cleaning."""

    async def erase(self, person: str, records: Sequence[str], request_id: str) -> Sequence[str]:
        """Erases what a person taught, and these records of feedback; returns the data-set versions it rewrote.

        Raises:
            UnavailableError: cleaning does not answer, or is building a version; try again.
        """
        ...


class ExclusionStore(Protocol):
    """Keeps exclusions; each call is one transaction."""

    def person_of(self, author: str, tenant: str) -> str:
        """The pseudonym of an author."""
        ...

    def add(self, exclusion: Exclusion, actor: str) -> Exclusion:
        """Stores a quarantine with its audit entry; the one that holds already where there is one."""
        ...

    def lift(self, exclusion: Exclusion, actor: str) -> None:
        """Stores when a quarantine was lifted, with its audit entry; a repeat changes nothing."""
        ...

    def erase(self, exclusion: Exclusion, author: str, tenant: str, actor: str) -> Exclusion:
        """Deletes all that a person gave, stores that, and orders a cycle of each pipeline that learnt from it."""
        ...

    def pending(self) -> Sequence[PendingErasure]:
        """Erasures that are not complete, oldest first."""
        ...

    def carried_out(self, exclusion: Exclusion) -> None:
        """Stores what cleaning has rewritten; with a `complete_time` nothing is left, and an audit entry says so."""
        ...

    def get(self, exclusion_id: str) -> Exclusion | None:
        """An exclusion."""
        ...

    def page(self, before: str, limit: int) -> Sequence[Exclusion]:
        """Exclusions with ids before the given one, newest first."""
        ...

    def taught(self, api_key: str, person: str) -> Sequence[tuple[str, int]]:
        """Cycles that took records of an API key or a person, newest first, with how many."""
        ...


@dataclass(frozen=True, slots=True)
class ExclusionView:
    """An exclusion with the data sets and models that it affects, newest first."""

    exclusion: Exclusion
    affected: Sequence[Affected]


class Exclusions:
    """Thread-safe. `actor` is who does it, for the audit trail."""

    def __init__(self, store: ExclusionStore, cycles: CycleStore, clock: Clock) -> None:
        self._store, self._cycles, self._clock = store, cycles, clock

    def quarantine(
        self, api_key: str, person: str, author: str, tenant: str, reason: str, actor: str = INSIDE
    ) -> ExclusionView:
        """Learns nothing more from an API key, a pseudonym or an author; one of the three is given."""
        who = person or (self._store.person_of(author, tenant) if author else "")
        draft = Exclusion(new_id(), ExclusionKind.QUARANTINE, self._clock.now(), api_key, who, reason)
        found = self._store.add(draft, actor)
        logger.warning("nothing is learnt from %s any more: %s", api_key or who, reason or "no reason was given")
        return self._view(found)

    def lift(self, name: str, actor: str = INSIDE) -> ExclusionView:
        """Ends a quarantine.

        Raises:
            NotFoundError: it does not exist.
            FailedPreconditionError: it is an erasure.
        """
        found = self._store.get(name.removeprefix("exclusions/"))
        if found is None:
            raise not_found("exclusion", name)
        if found.kind is ExclusionKind.ERASURE:
            raise FailedPreconditionError(f"{name} is an erasure, which cannot be undone.", reason="EXCLUSION_FINAL")
        if found.lift_time is None:
            self._store.lift(replace(found, lift_time=self._clock.now()), actor)
        again = self._store.get(found.exclusion_id)
        assert again is not None
        return self._view(again)

    def erase(self, author: str, tenant: str, reason: str, actor: str = INSIDE) -> ExclusionView:
        """Deletes what a person gave; cycles without it are ordered."""
        person = self._store.person_of(author, tenant)
        draft = Exclusion(new_id(), ExclusionKind.ERASURE, self._clock.now(), "", person, reason)
        found = self._store.erase(draft, author, tenant, actor)
        logger.warning("%s was erased: %s", person, dict(found.removed))
        return self._view(found)

    async def carry_out(self, taught: TaughtRecords) -> None:
        """Has cleaning erase what is pending: at once, and again when the ordered cycles have their data sets.

        A record that was on its way at the time of the erasure has come by then.
        """
        for item in await asyncio.to_thread(self._store.pending):
            try:
                await self._carry_out(item, taught)
            except TidemillError as error:
                # One that fails must not hold up the others; all are tried again.
                level = logging.INFO if is_retryable(error) else logging.ERROR
                logger.log(level, "%s is not carried out yet: %s", item.exclusion.name, error.message)

    async def _carry_out(self, item: PendingErasure, taught: TaughtRecords) -> None:
        found, begun = item.exclusion, item.exclusion.create_time
        newest = [await asyncio.to_thread(self._cycles.learnt, name) for name in found.ordered]
        clean = all(cycle is not None and cycle.create_time > begun for cycle in newest)
        if item.done and not clean:
            return
        request_id = f"{found.exclusion_id}-{item.done}-{'last' if clean else 'first'}"
        rewritten = await taught.erase(found.person, item.records, request_id)
        versions = tuple(sorted({*found.rewritten, *rewritten}))
        now = self._clock.now() if clean else None
        await asyncio.to_thread(self._store.carried_out, replace(found, rewritten=versions, complete_time=now))

    def page(self, before: str, limit: int) -> Sequence[ExclusionView]:
        """Exclusions, newest first."""
        return [self._view(item) for item in self._store.page(before, limit)]

    def _view(self, exclusion: Exclusion) -> ExclusionView:
        affected = []
        for name, records in self._store.taught(exclusion.api_key, exclusion.person):
            cycle = self._cycles.get(name)
            version = {} if cycle is None or cycle.dataset_version is None else cycle.dataset_version
            run, model = ("", "") if cycle is None else (cycle.run, cycle.model_version)
            affected.append(Affected(name, str(version.get("name", "")), run, model, records))
        return ExclusionView(exclusion, affected)
