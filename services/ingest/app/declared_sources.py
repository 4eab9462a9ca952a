"""Use cases on declared sources: put, pause, delete them, and collect them by hand and by their timetables.

An order to collect is stored before its import is created, with the request id that creates it. After a crash in
between the order is carried out again, and the same request is the same import.
"""

from __future__ import annotations

import logging
from collections.abc import Collection as Some
from collections.abc import Sequence
from dataclasses import replace

from services.ingest.app.imports import Imports
from services.ingest.app.interrupt import Interrupt
from services.ingest.app.policies import Policies
from services.ingest.app.ports import ImportStore
from services.ingest.app.source_ports import SourceStore
from services.ingest.domain.declared_source import (
    BY_SCHEDULE,
    Collection,
    DeclaredSource,
    SourceView,
    Timetable,
    check_source,
    nothing_to_pull,
    source_paused,
)
from services.ingest.domain.source_import import Import, SourceSpec
from services.kit.clock import Clock
from services.kit.errors import TidemillError, is_retryable, not_found, request_id_reused
from services.kit.failure import Failure
from services.kit.ids import new_id, sha256_hex

logger = logging.getLogger(__name__)

_SHOWN = 10

Declaration = tuple[SourceSpec, Timetable | None]


class DeclaredSources:
    """Keeps sources and orders their collections. Thread-safe; every method blocks."""

    def __init__(
        self, store: SourceStore, imports: Imports, pulled: ImportStore, policies: Policies, clock: Clock
    ) -> None:
        self._store, self._imports, self._pulled, self._clock = store, imports, pulled, clock
        self._policies = policies

    def put(self, spec: SourceSpec, timetable: Timetable | None) -> SourceView:
        """Declares a source, or changes its spec and its timetable.

        Raises:
            InvalidArgumentError: the spec or the timetable is not valid; names the field.
            AbortedError: a source of this name is being deleted.
        """
        check_source(spec, timetable)
        now = self._clock.now()
        due = None if timetable is None else timetable.next_after(now) if timetable.schedule else now
        put = self._store.put(DeclaredSource(spec, now, now, timetable, due_time=due))
        self._policies.refresh()
        return self._view(put, _SHOWN)

    def declare(self, pipeline: str, declarations: Sequence[Declaration]) -> Sequence[SourceView]:
        """Declares the sources of a pipeline; those that it alone declared earlier and that are not among them end.

        Raises:
            InvalidArgumentError: one is not valid; names the field.
            FailedPreconditionError: another pipeline declares one of them in another way.
            AbortedError: a source of one of these names is being deleted.
        """
        now = self._clock.now()
        wanted = []
        for number, (spec, timetable) in enumerate(declarations):
            check_source(spec, timetable, f"specs[{number}]")
            # The cycle that declares them collects them now.
            due = None if timetable is None else timetable.next_after(now)
            wanted.append(DeclaredSource(spec, now, now, timetable, (pipeline,), due_time=due))
        declared = self._store.declare(pipeline, wanted)
        self._policies.refresh()
        return [self._view(source, _SHOWN) for source in declared]

    def get(self, name: str) -> SourceView:
        """The source `sources/{source}`.

        Raises:
            NotFoundError: it does not exist.
        """
        return self._view(self._found(name), _SHOWN)

    def page(self, after: str, limit: int) -> Sequence[SourceView]:
        """Sources by name, beginning after one, each with its last collection."""
        return [self._view(source, 1) for source in self._store.page(after, limit)]

    def pause(self, name: str, paused: bool, reason: str = "") -> SourceView:
        """Pauses or resumes a source.

        Raises:
            NotFoundError: it does not exist.
            FailedPreconditionError: others push its records.
        """
        self._store.pause(self._pulled_source(name).spec.source, paused, reason if paused else "", self._clock.now())
        logger.info("%s is %s", name, "paused" if paused else "resumed")
        return self.get(name)

    def delete(self, name: str) -> SourceView:
        """Deletes a source and cancels its collection; returns it as it was.

        Raises:
            NotFoundError: it does not exist.
        """
        view = self.get(name)
        self._store.delete(view.source.spec.source, self._clock.now())
        self._policies.refresh()
        logger.info("%s is deleted", name)
        return view

    def order(self, name: str, request_id: str, actor: str) -> Collection:
        """Orders a collection by hand; the same request is the same order.

        Raises:
            NotFoundError: the source does not exist.
            FailedPreconditionError: it is paused, or others push its records.
            InvalidArgumentError: the request id was used for another source.
        """
        source = self._pulled_source(name)
        order_id = f"collect-{sha256_hex(request_id)[:32]}" if request_id else f"collect-{new_id()}"
        order = self._store.order(Collection(order_id, source.spec, self._clock.now(), actor))
        if order is None:
            # Paused, unless it was deleted since it was found.
            raise source_paused(self._found(name))
        if order.spec.source != source.spec.source:
            raise request_id_reused(request_id, "source", source=f"sources/{order.spec.source}")
        return order

    def orders(self) -> Sequence[Collection]:
        """Orders what is due; returns all orders that are to be carried out, oldest first."""
        # Another process may have changed a source.
        self._policies.refresh()
        now = self._clock.now()
        for source in self._store.due(now):
            if source.timetable is not None and source.due_time is not None:
                order = Collection(f"collect-{new_id()}", source.spec, now, BY_SCHEDULE)
                self._store.fire(order, source.due_time, source.timetable.next_after(now))
        return self._store.pending()

    def carry_out(self, order: Collection, traceparent: str, interrupt: Interrupt) -> tuple[Import, bool]:
        """Creates the import of an order, or finds it; returns it, and whether an earlier one answers the order.

        Raises:
            TidemillError: as `Imports.create`. If it is retryable the order stays pending, otherwise it has failed.
            InterruptedReadError: the interrupt was set; the order stays pending.
        """
        if order.import_name:
            return self._imports.get(order.import_name), order.reused
        try:
            item, reused = self._imports.create(order.spec, order.order_id, traceparent, interrupt)
        except TidemillError as error:
            if not is_retryable(error):
                logger.error("sources/%s cannot be collected: %s", order.spec.source, error.message)
                self._store.close(replace(order, failure=Failure.of(error, "The collection")))
            raise
        self._store.close(replace(order, import_name=item.name, reused=reused))
        return item, reused

    def forget_deleted(self, busy: Some[str]) -> None:
        """Removes what is left of deleted sources, once nothing is read from their origins; `busy` are being read."""
        for source in self._store.deleted():
            if source.spec.origin not in busy:
                self._store.forget(source.spec.source)

    def _found(self, name: str) -> DeclaredSource:
        found = self._store.get(name.removeprefix("sources/"))
        if found is None:
            raise not_found("source", name, "`tidemill sources list` shows those that are declared.")
        return found

    def _pulled_source(self, name: str) -> DeclaredSource:
        found = self._found(name)
        if found.pushed:
            raise nothing_to_pull(found)
        return found

    def _view(self, source: DeclaredSource, shown: int) -> SourceView:
        collections = self._store.collections(source.spec.source, shown)
        newest = None if source.pushed else self._pulled.newest_import(source.spec.origin)
        return SourceView(source, newest, tuple(collections))
