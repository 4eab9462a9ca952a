"""Which versions answer, as the control plane reports them to every data plane."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from services.inference.domain.model import Model, ModelVersion
from services.kit.errors import TidemillError
from services.serving.domain.route import Route, RoutedVersion, Withdrawal

# Versions of a model whose answers may still be on their way, or come next.
_MOST_VERSIONS = 16


@dataclass(frozen=True, slots=True)
class Routes:
    """All routes as they were after a change."""

    revision: int
    """Grows with each change; begins again with each process."""
    by_model: Mapping[str, Route] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(eq=False, slots=True)
class Reader:
    """A data plane: what is called at a change, and the revision that it has."""

    changed: Callable[[], object]
    revision: int = -1


class RouteBook:
    """The routes now. Thread-safe; each change makes a new, immutable set of routes."""

    def __init__(self) -> None:
        self._known = threading.Condition()
        self._routes = Routes(0)
        self._readers: set[Reader] = set()

    def read(self) -> Routes:
        """The routes now."""
        return self._routes

    def add(self, reader: Reader) -> None:
        """Calls `reader.changed` after each change, in the thread that made it."""
        with self._known:
            self._readers.add(reader)

    def remove_reader(self, reader: Reader) -> None:
        """Ends that."""
        with self._known:
            self._readers.discard(reader)
            self._known.notify_all()

    def has(self, reader: Reader, revision: int) -> None:
        """Notes that a reader has been sent the routes of this revision."""
        with self._known:
            reader.revision = revision
            self._known.notify_all()

    def wait_until_known(self, timeout_s: float) -> bool:
        """Waits until every reader has been sent the routes as they are now; False if one of them takes longer."""
        revision = self._routes.revision
        with self._known:
            return self._known.wait_for(lambda: all(r.revision >= revision for r in self._readers), timeout_s)

    def expect(self, version: ModelVersion) -> None:
        """Adds a version before it is loaded: the server answers with it just before the load returns."""
        self._change(version.model, lambda route: _with(route or _new(version), version))

    def set(self, model: Model, version: ModelVersion) -> None:
        """Makes a version that is loaded the one of its model."""

        def change(route: Route | None) -> Route:
            known = _with(route or _new(version), version)
            return replace(
                known,
                create_time=model.create_time,
                serving=version.number,
                withdrawn=None,
                generation=model.generation,
            )

        self._change(version.model, change)

    def remove(self, model: str) -> None:
        """Leaves a model without a version that answers; answers of its versions may still be on their way."""
        self._change(model, lambda route: route and replace(route, serving=None, withdrawn=None))

    def withdraw(self, version: ModelVersion, why: TidemillError) -> None:
        """Takes a model whose version cannot be served out of service; its callers get the reason."""
        reason = Withdrawal(why.message, why.reason, dict(why.metadata))
        self._change(version.model, lambda route: replace(route or _new(version), serving=None, withdrawn=reason))

    def _change(self, model: str, change: Callable[[Route | None], Route | None]) -> None:
        with self._known:
            before = self._routes.by_model.get(model)
            after = change(before)
            if after == before:
                return
            routes = {name: route for name, route in self._routes.by_model.items() if name != model}
            if after is not None:
                routes[model] = after
            self._routes = Routes(self._routes.revision + 1, MappingProxyType(routes))
            readers = list(self._readers)
        for reader in readers:
            reader.changed()


def _new(version: ModelVersion) -> Route:
    return Route(version.model, version.create_time)


def _with(route: Route, version: ModelVersion) -> Route:
    """The route with a version as the newest of those that may answer."""
    build = version.build
    routed = RoutedVersion(version.number, build.task, build.precision, build.labels, build.prompt_template)
    others = tuple(each for each in route.versions if each.number != version.number)
    # The one that answers may be the oldest of them.
    kept = [each for each in others if each.number == route.serving]
    kept += [each for each in others if each.number != route.serving][-(_MOST_VERSIONS - 2) :]
    return replace(route, versions=(*kept, routed))
