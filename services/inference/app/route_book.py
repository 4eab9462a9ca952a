"""Which versions answer, as the control plane reports them to every data plane."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from services.serving.domain.route import Route


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
        """Stops calling a reader."""
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

    def set(self, route: Route) -> None:
        """Replaces the route of a model."""
        with self._known:
            if self._routes.by_model.get(route.model) == route:
                return
            routes = {**self._routes.by_model, route.model: route}
            self._routes = Routes(self._routes.revision + 1, MappingProxyType(routes))
            readers = list(self._readers)
        for reader in readers:
            reader.changed()
