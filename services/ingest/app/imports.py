"""Use cases on imports; `services.ingest.app.runner` does the pulling."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from services.ingest.app.interrupt import Interrupt
from services.ingest.app.ports import ImportStore, Sources
from services.ingest.app.source_ports import SourceStore
from services.ingest.domain.declared_source import DeclaredSource, governed, source_paused
from services.ingest.domain.source_import import (
    Import,
    ImportState,
    PushedSource,
    SourceSpec,
    check_spec,
    pushed_source,
)
from services.kit.clock import Clock
from services.kit.errors import not_found, request_id_reused
from services.kit.ids import new_id

logger = logging.getLogger(__name__)


class Imports:
    """Creates, reads, lists and cancels imports."""

    def __init__(self, store: ImportStore, sources: Sources, declared: SourceStore, clock: Clock) -> None:
        self._store = store
        self._declared = declared
        self._sources = sources
        self._clock = clock

    def create(
        self, spec: SourceSpec, request_id: str, traceparent: str, interrupt: Interrupt, *, resend: bool = False
    ) -> tuple[Import, bool]:
        """Creates an import, or returns the last one of its origin if that pulled the same content by the same spec.

        Args:
            spec: what to pull.
            request_id: the caller's; empty if not given.
            traceparent: W3C trace that the import continues.
            interrupt: ends the check of the source.
            resend: pull in any case, because a consumer has lost what an earlier import brought.

        Returns:
            The import, and whether it is an earlier one. Its records are on the bus and consumers keep copies,
            so an earlier import is as good as a new one, however old it is, unless records were lost since.

        Raises:
            InvalidArgumentError: the spec does not name a source, or the request id was used for another spec.
            PermissionDeniedError: the source must not be read.
            FailedPreconditionError: the source cannot be read, is paused and was not collected before, or is declared
                with another policy.
            InterruptedReadError: the interrupt was set before the source had been checked.
            AbortedError: the same request is being handled.
        """
        if isinstance(spec.kind, PushedSource):
            raise pushed_source("others push the records of this source, so that there is nothing to pull")
        check_spec(spec)
        spec = governed(spec, self._declared.get(spec.source))
        given = self._store.answer(request_id) if request_id else None
        if given is not None:
            if given.spec_digest != spec.digest:
                raise request_id_reused(request_id, "import", **{"import": given.import_name})
            return self.get(given.import_name), given.reused
        if (paused := self._declared.paused(spec.origin)) is not None:
            return self._of_paused(paused, spec, request_id, resend=resend), True
        survey = self._sources.survey(spec, interrupt)
        earlier = self._store.newest_import(spec.origin)
        # A later import, even one that did not finish, may have changed or withdrawn what an earlier one brought.
        if earlier is not None and not resend and earlier.holds(spec, survey.digest):
            if not self._may_be_lost(earlier):
                self._store.reuse_import(earlier, request_id)
                return earlier, True
            logger.warning("%s may be lost: its source is pulled again", earlier.name)
        if resend and spec.kind.incremental:
            self._store.forget_position(spec.origin)
        now = self._clock.now()
        draft = Import(f"imports/{new_id()}", spec, ImportState.RUNNING, now, now, traceparent=traceparent)
        self._store.create_import(draft, request_id)
        return draft, False

    def _of_paused(self, paused: DeclaredSource, spec: SourceSpec, request_id: str, *, resend: bool) -> Import:
        """The last import of a paused source: nothing is pulled from it."""
        earlier = self._store.last_success(spec.origin)
        if earlier is None or resend or earlier.spec.digest != spec.digest or self._may_be_lost(earlier):
            raise source_paused(paused)
        self._store.reuse_import(earlier, request_id)
        return earlier

    def _may_be_lost(self, earlier: Import) -> bool:
        """Whether a loss was found since it began: its records may be among those that no consumer has."""
        lost = self._store.loss_time()
        return lost is not None and earlier.create_time <= lost

    def get(self, name: str) -> Import:
        """The import of this name.

        Raises:
            NotFoundError: it does not exist.
        """
        found = self._store.import_named(name)
        if found is None:
            raise not_found("import", name)
        return found

    def list(self, before: str, limit: int) -> Sequence[Import]:
        """Imports, newest first, starting after a name."""
        return self._store.imports(before, limit)

    def cancel(self, name: str) -> Import:
        """Cancels an import; one that has ended stays unchanged."""
        found = self.get(name)
        cancelled = replace(found, state=ImportState.CANCELLED, update_time=self._clock.now())
        if not found.state.final and self._store.update_import(cancelled):
            return cancelled
        return self.get(name)
