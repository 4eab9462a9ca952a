"""The route of each model: kept in the store, published to the data planes, and what left it unloaded.

A change is one transaction in the store and one message to each data plane, made when all of the route's versions are
loaded. A version that left a route stays loaded for a while: data planes have the new route by then, and requests that
were on their way to it have been sent. Those that it is answering are answered before the server unloads it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from services.inference.app.loading import ServingParts
from services.inference.domain.model import Model, ModelVersion
from services.inference.domain.route import Cause, ModelRoute
from services.kit.errors import TidemillError
from services.serving.domain.names import model_name, version_name
from services.serving.domain.route import Route, RoutedVersion, Withdrawal

logger = logging.getLogger(__name__)

# How long a change waits until every data plane has been sent its route. One that is slower answers by the route
# before for a moment longer.
_KNOWN_S = 2.0


class Routes:
    """Changes and shows routes. One thread per model at a time; the caller holds its lock."""

    def __init__(self, parts: ServingParts, *, drain_s: float) -> None:
        """Args:
        parts: the ports.
        drain_s: how long a version stays loaded after it left its route.
        """
        self._store, self._server = parts.store, parts.server
        self._book, self._clock = parts.book, parts.clock
        self._drain_s = drain_s
        self._left: dict[tuple[str, int], float] = {}
        """Loaded versions that are in no route, and since when that is known (monotonic)."""
        self._withdrawn: dict[str, TidemillError] = {}
        """Models whose serving version cannot be loaded, and why."""
        self._took_s: dict[tuple[str, int], float] = {}
        """How long the last load of each version took."""

    def change(self, route: ModelRoute, cause: Cause, *, traceparent: str = "", done_by: str = "") -> ModelRoute:
        """Makes this the route of its model: all its versions are loaded.

        Args:
            route: made from the stored one.
            cause: of the change.
            traceparent: of the request that causes it.
            done_by: id of that request.

        Returns:
            The route with its new revision, when the data planes have been sent it, or after two seconds.
        """
        changed = replace(route, cause=cause)
        route = self._store.set_route(changed, self._clock.now(), traceparent=traceparent, done_by=done_by)
        self._withdrawn.pop(route.model, None)
        self.show(route.model)
        self.wait_until_known(route.model)
        return route

    def show(self, model: str) -> None:
        """Puts the stored route into the book, for the data planes."""
        found = self._store.model(model)
        if found is not None:
            self._book.set(self.view(found))

    def view(self, model: Model) -> Route:
        """A model's route as the data planes get it."""
        return routed(model, self._store.routed(model.route), self._took_s, self._withdrawn.get(model.name))

    def loaded(self, version: ModelVersion, took_s: float) -> None:
        """Notes how long the load of a version took."""
        self._took_s[version.model, version.number] = took_s

    def withdraw(self, serving: ModelVersion, why: TidemillError) -> None:
        """Takes a model whose serving version cannot be loaded out of service; its callers get the reason."""
        self._withdrawn[serving.model] = why
        self.show(serving.model)

    def restored(self, version: ModelVersion) -> None:
        """A version of the route has been loaded again."""
        found = self._store.model(version.model)
        if found is not None and found.serving is not None and found.serving.number == version.number:
            self._withdrawn.pop(version.model, None)
        self.show(version.model)
        self.wait_until_known(version.model)

    def wait_until_known(self, model: str) -> None:
        """Waits a moment until data planes know what has changed."""
        if not self._book.wait_until_known(_KNOWN_S):
            logger.warning("a data plane has not taken the new route of %s after %.0f s", model_name(model), _KNOWN_S)

    def unload_left(self, route: ModelRoute, ready: frozenset[int], *, at_once: bool = False) -> None:
        """Unloads what is loaded and in no route, after `drain_s`.

        Args:
            route: the model's.
            ready: versions that are loaded.
            at_once: do not wait, for no version serves and no data plane sends anything.
        """
        now = self._clock.monotonic()
        for number in sorted(ready - route.numbers):
            since = self._left.setdefault((route.model, number), now)
            if at_once or now - since >= self._drain_s:
                logger.info("unloading %s: it is in no route", version_name(route.model, number))
                self._server.unload(route.model, number)
                del self._left[route.model, number]
        for key in [key for key in self._left if key[0] == route.model and key[1] not in ready - route.numbers]:
            del self._left[key]


def routed(
    model: Model,
    versions: Sequence[ModelVersion],
    took_s: Mapping[tuple[str, int], float],
    withdrawn: TidemillError | None = None,
) -> Route:
    """A model's route with what data planes need to know of its versions."""
    found: list[RoutedVersion] = []
    by_number = {version.number: version for version in versions}
    serving = model.route.serving
    for entry in model.route.entries:
        if withdrawn is not None and entry is serving:
            continue
        version = by_number[entry.number]
        found.append(
            RoutedVersion(
                model=model.name,
                number=entry.number,
                task=version.build.task,
                precision=version.build.precision,
                labels=version.build.labels,
                prompt_template=version.build.prompt_template,
                embedding_size=version.build.embedding_size,
                digest=version.lineage.digest,
                role=entry.role,
                weight=entry.weight,
                users=entry.users,
                generation=version.generation,
                load_s=took_s.get((version.model, version.number), 0.0),
            )
        )
    return Route(
        model=model.name,
        create_time=model.create_time,
        versions=tuple(found),
        aliases=model.route.aliases,
        withdrawn=None if withdrawn is None else Withdrawal(withdrawn.message, withdrawn.reason, withdrawn.metadata),
        etag=model.route.etag,
        update_time=model.route.update_time,
        cascade=model.route.cascade,
    )
