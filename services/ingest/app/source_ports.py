"""What declared sources need from outside."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from services.ingest.domain.declared_source import Collection, DeclaredSource


class SourceStore(Protocol):
    """Declared sources and their collections; every method is one transaction."""

    def put(self, source: DeclaredSource) -> DeclaredSource:
        """Declares a source, or changes its spec and timetable; returns it as it is now.

        What exists keeps its creation time, its pause and its pipelines; with the same timetable also when it is due.

        Raises:
            AbortedError: a source of this name is being deleted.
        """
        ...

    def declare(self, pipeline: str, sources: Sequence[DeclaredSource]) -> Sequence[DeclaredSource]:
        """Declares a pipeline's sources as `put` does, and ends those that it alone declared earlier and that are not
        among them.

        Raises:
            FailedPreconditionError: another pipeline declares one of them in another way; nothing is changed.
            AbortedError: a source of one of these names is being deleted.
        """
        ...

    def get(self, source: str) -> DeclaredSource | None:
        """The source of this name."""
        ...

    def paused(self, origin: str) -> DeclaredSource | None:
        """The paused source of this origin."""
        ...

    def page(self, after: str, limit: int) -> Sequence[DeclaredSource]:
        """Sources by name, beginning after one."""
        ...

    def governed(self) -> Sequence[DeclaredSource]:
        """All sources that have a policy."""
        ...

    def first_tenant(self, source: str, tenant: str) -> str:
        """The tenant that was the first to push to a source; this one, and noted, if none was.

        Raises:
            UnavailableError: the database is unavailable.
        """
        ...

    def pause(self, source: str, paused: bool, reason: str, now: datetime) -> None:
        """Pauses or resumes; changes nothing in that state."""
        ...

    def delete(self, source: str, now: datetime) -> None:
        """Marks a source as deleted and cancels the running imports of its origin; no one sees it any more."""
        ...

    def deleted(self) -> Sequence[DeclaredSource]:
        """Deleted sources whose state is not forgotten yet."""
        ...

    def forget(self, source: str) -> bool:
        """Removes a deleted source with its collections, its position and its crawl's frontier.

        Returns:
            False while an import of its origin runs.
        """
        ...

    def due(self, now: datetime) -> Sequence[DeclaredSource]:
        """Sources that are due, not paused and not being collected."""
        ...

    def fire(self, order: Collection, due: datetime, following: datetime | None) -> bool:
        """Stores the order of what was due at a time, and when it is due next.

        Returns:
            False if the source was paused, deleted, changed or ordered meanwhile.
        """
        ...

    def order(self, order: Collection) -> Collection | None:
        """Stores an order by hand, or returns the one of this id; one that failed becomes pending again.

        Returns:
            None if the source was paused or deleted meanwhile.
        """
        ...

    def pending(self) -> Sequence[Collection]:
        """Orders to carry out, oldest first, without those of paused and deleted sources."""
        ...

    def close(self, ended: Collection) -> None:
        """Stores what became of a pending order, and forgets old collections of its source."""
        ...

    def collections(self, source: str, limit: int) -> Sequence[Collection]:
        """Collections of a source, newest first."""
        ...
