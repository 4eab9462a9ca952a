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
    """Grows by one with each change; begins again with each process."""
    by_model: Mapping[str, Route] = field(default_factory=lambda: MappingProxyType({}))


class RouteBook:
    """The routes now. Thread-safe; each change makes a new, immutable set of routes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._routes = Routes(0)
        self._listeners: set[Callable[[], object]] = set()

    def read(self) -> Routes:
        """The routes now."""
        return self._routes

    def subscribe(self, changed: Callable[[], object]) -> Callable[[], None]:
        """Calls `changed` after each change, in the thread that made it; returns what ends that."""
        with self._lock:
            self._listeners.add(changed)

        def end() -> None:
            with self._lock:
                self._listeners.discard(changed)

        return end

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
        with self._lock:
            before = self._routes.by_model.get(model)
            after = change(before)
            if after == before:
                return
            routes = {name: route for name, route in self._routes.by_model.items() if name != model}
            if after is not None:
                routes[model] = after
            self._routes = Routes(self._routes.revision + 1, MappingProxyType(routes))
            listeners = list(self._listeners)
        for changed in listeners:
            changed()


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
