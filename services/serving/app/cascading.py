"""Asks a larger classifier of the texts of which a small one is not sure.

The small model's answer stands where the larger one cannot be asked: a caller gets an answer either way, and each says
which model gave it. That is counted and logged.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from services.kit.clock import Clock
from services.kit.errors import FailedPreconditionError, TidemillError
from services.serving.app.ports import CascadeCounts, InferenceServer, NotLoadedError
from services.serving.app.predicting import predicted
from services.serving.app.routing import RoutingTable
from services.serving.domain.answer import Classified, Task
from services.serving.domain.names import ModelReference, model_name
from services.serving.domain.route import RoutedVersion

logger = logging.getLogger(__name__)
# A larger model that is unavailable is unavailable for every call.
_LOG_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Made:
    """A result, and which version made it by which route."""

    result: Classified
    version: RoutedVersion
    route_etag: str


class Cascades:
    """The second step of predictions."""

    def __init__(self, table: RoutingTable, server: InferenceServer, counts: CascadeCounts, clock: Clock) -> None:
        self._table, self._server, self._counts, self._clock = table, server, counts, clock
        self._logged: dict[str, float] = {}

    async def improved(
        self, asked: ModelReference, user: str, texts: Sequence[str], first: Sequence[Made]
    ) -> Sequence[Made]:
        """The results with those of the larger model where the small one was not sure.

        Args:
            asked: what the caller named. A version that is named answers alone.
            user: for whom the answers are; chooses the larger model's version, too.
            texts: what is classified.
            first: the small model's results, one for each text.
        """
        route = self._table.route(asked.model)
        if asked.version or route is None or (cascade := route.cascade) is None:
            return first
        unsure = [at for at, made in enumerate(first) if not cascade.is_sure(made.result.scores.values())]
        self._counts.count(asked.model, "kept", len(first) - len(unsure))
        if not unsure:
            return first
        try:
            again = await self._asked(cascade.larger, user, [texts[at] for at in unsure], first[0].version.labels)
        except TidemillError as error:
            self._counts.count(asked.model, "failed", len(unsure))
            self._log(asked.model, cascade.larger, error)
            return first
        self._counts.count(asked.model, "asked", len(unsure))
        found = list(first)
        for at, made in zip(unsure, again, strict=True):
            found[at] = made
        return found

    async def _asked(self, larger: str, user: str, texts: Sequence[str], labels: Sequence[str]) -> Sequence[Made]:
        asked = ModelReference(larger)
        version = self._table.choose(asked, user, Task.TEXT_CLASSIFICATION)
        try:
            results = await self._predicted(version, labels, texts)
        except NotLoadedError:
            again = await self._table.choose_again(asked, version, user, Task.TEXT_CLASSIFICATION)
            if again is None:
                raise
            version = again
            results = await self._predicted(version, labels, texts)
        route = self._table.route(larger)
        return [Made(result, version, route.etag if route is not None else "") for result in results]

    async def _predicted(
        self, version: RoutedVersion, labels: Sequence[str], texts: Sequence[str]
    ) -> Sequence[Classified]:
        _check_labels(version, labels)
        return await predicted(self._server, version, texts)

    def _log(self, model: str, larger: str, error: TidemillError) -> None:
        now = self._clock.monotonic()
        if now - self._logged.get(model, -_LOG_EVERY_S) >= _LOG_EVERY_S:
            self._logged[model] = now
            logger.warning(
                "%s answers alone, for %s cannot be asked: %s", model_name(model), model_name(larger), error.message
            )


def _check_labels(version: RoutedVersion, labels: Sequence[str]) -> None:
    """The larger model may have been trained again with others since the cascade was set."""
    if set(version.labels) != set(labels):
        raise FailedPreconditionError(
            f"{version.name} has the labels {', '.join(version.labels)}, not {', '.join(labels)}.",
            reason="OTHER_LABELS",
        )
