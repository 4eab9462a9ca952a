"""What roll-outs need from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from services.pipeline.domain.audit import AuditEntry
from services.pipeline.domain.rollout import Rollout
from services.pipeline.engine.rollout_figures import RolloutFigures


class Outcome(Enum):
    """What became of a call to a version."""

    ANSWERED = "answered"
    FAILED = "failed"
    REFUSED = "refused"
    """Too many were waiting, or the answer was empty."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that one version answered, or failed to answer, by a route.

    `user_slot` is that of the user from 1 on, 0 for a call without a user; `shadow` whether it was a copy.
    """

    answer: str
    model_version: str
    latency_ms: float
    route_etag: str
    user_slot: int = 0
    label: str = ""
    shadow: bool = False
    outcome: Outcome = Outcome.ANSWERED

    @property
    def model(self) -> str:
        """`models/{model}`."""
        return self.model_version.partition("/versions/")[0]


class RolloutStore(Protocol):
    """Keeps roll-outs and the audit trail; each call is one transaction."""

    def create(self, rollout: Rollout, entry: AuditEntry) -> Rollout:
        """Stores a new roll-out with its audit entry, or answers with the one of this id that is there."""
        ...

    def get(self, name: str) -> Rollout | None:
        """The roll-out."""
        ...

    def page(self, model: str, before: str, limit: int) -> Sequence[Rollout]:
        """Roll-outs of a model (of all if empty) with ids before the given one, newest first."""
        ...

    def unfinished(self) -> Sequence[Rollout]:
        """Those that have not ended, or whose end has not been carried out; oldest first."""
        ...

    def update(self, rollout: Rollout, entry: AuditEntry | None = None) -> Rollout:
        """Replaces a roll-out that was made from the stored one, with the audit entry of what changed it.

        Returns:
            It, with its new revision.

        Raises:
            AbortedError: it was changed meanwhile, or another roll-out of the model is at work.
        """
        ...


class AuditStore(Protocol):
    """Keeps the audit trail; each call is one transaction. No entry is changed or deleted."""

    def append(self, entries: Sequence[AuditEntry]) -> None:
        """Adds entries; one whose id is there already is left as it is."""
        ...

    def page(self, resource: str, before: str, limit: int) -> Sequence[AuditEntry]:
        """Entries about a resource (about all if empty) with ids before the given one, newest first."""
        ...

    def unsent(self, limit: int) -> Sequence[AuditEntry]:
        """Entries that people are still to be notified of, oldest first."""
        ...

    def mark_sent(self, entry_ids: Sequence[str]) -> None:
        """Forgets that they are to be sent."""
        ...


class RolloutMetrics(Protocol):
    """Counts the calls of roll-outs; each call is one transaction."""

    def count(self, calls: Sequence[Call]) -> None:
        """Counts those that belong to the current step of a roll-out; a repeat changes nothing."""
        ...

    def figures(self, rollout: Rollout) -> RolloutFigures:
        """All that is known of both versions in the current step."""
        ...

    def calls(self, rollout: Rollout) -> RolloutFigures:
        """As `figures`, without users and metric: cheap at any number of calls."""
        ...

    def forget(self, rollout: Rollout) -> None:
        """Drops the single calls of a roll-out that has ended; its counts stay."""
        ...


@dataclass(frozen=True, slots=True)
class RoutedRole:
    """What a version does in a route."""

    role: str
    weight: int = 0


@dataclass(frozen=True, slots=True)
class ModelRoutes:
    """The route of a model as inference has it; `versions` by number."""

    versions: Mapping[int, RoutedRole]
    aliases: Mapping[str, int]
    etag: str

    @property
    def serving(self) -> int:
        """Number of the serving version; 0 if none does."""
        return next((number for number, each in self.versions.items() if each.role == "serving"), 0)


class Routing(Protocol):
    """The routes of inference. Every method raises the errors of `services.kit.errors`."""

    async def route(self, model: str) -> ModelRoutes:
        """The route now; NotFoundError if the model was never published."""
        ...

    async def set_route(
        self, model: str, versions: Mapping[int, RoutedRole], aliases: Mapping[str, int], etag: str, reason: str
    ) -> str:
        """Replaces the route that has this etag; returns the new one's.

        Raises:
            AbortedError: the route has another etag by now.
        """
        ...

    async def promote(self, model: str, number: int, reason: str) -> str:
        """Makes a version of the route the serving one; returns the route's etag."""
        ...


class Registry(Protocol):
    """The registry of training."""

    async def promote(self, run: str, request_id: str) -> None:
        """Makes the run's model the champion of the registry."""
        ...


class Notifier(Protocol):
    """Notifies people."""

    def send(self, entry: AuditEntry) -> None:
        """Sends an entry; UnavailableError if it cannot be sent now."""
        ...
