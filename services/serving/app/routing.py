"""The table of routes of a data plane: in memory, so that a request asks no database and no other service."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence

from services.kit.errors import FailedPreconditionError, NotFoundError, UnavailableError, not_found
from services.serving.domain.answer import Task
from services.serving.domain.names import ModelReference, model_name, parse_server_model
from services.serving.domain.route import SLOTS, Route, RoutedVersion, slot_of

# How long a request whose version is gone waits for the route that says which one is there now.
_CHANGE_S = 1.0


class RoutingTable:
    """Routes by model. Changes replace whole routes, so a reader needs no lock. It lives in one event loop."""

    def __init__(self) -> None:
        self._routes: Mapping[str, Route] | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def known(self) -> bool:
        """Whether routes have been received at all."""
        return self._routes is not None

    def replace(self, routes: Iterable[Route]) -> None:
        """Takes a full snapshot in place of what was known."""
        self._routes = {route.model: route for route in routes}
        self._wake()

    def change(self, routes: Iterable[Route]) -> None:
        """Takes changed routes."""
        self._routes = {**(self._routes or {}), **{route.model: route for route in routes}}
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def routes(self) -> Sequence[Route]:
        """All routes, by model.

        Raises:
            UnavailableError: none have been received yet.
        """
        return [route for _, route in sorted(self._all().items())]

    def route(self, model: str) -> Route | None:
        """The route of a model, if it is known."""
        return (self._routes or {}).get(model)

    def generation(self, server_model: str) -> int:
        """The generation of a version's process in Triton, by the name it has there; 0 if it is in no route."""
        version = self.routed(server_model)
        return version.generation if version is not None else 0

    def routed(self, server_model: str) -> RoutedVersion | None:
        """The version that Triton knows by this name, if it is in a route."""
        found = parse_server_model(server_model)
        route = self.route(found[0]) if found is not None else None
        return route.version(found[1]) if found is not None and route is not None else None

    def prompt_template(self, asked: ModelReference) -> str:
        """The prompt that the version was trained on; empty if it has none, or no version answers.

        Versions of one model may have been trained on different prompts. Where the route chooses, this is the serving
        version's; whether a text is wrapped depends on it, and the version that answers wraps it into its own.
        """
        route = self.route(asked.model)
        if route is None:
            return ""
        version = route.named(asked.version) if asked.version else route.serving
        return version.prompt_template if version is not None else ""

    def choose(self, asked: ModelReference, user: str = "", *tasks: Task) -> RoutedVersion:
        """The version that answers a call.

        Args:
            asked: the model, or one of its versions by number or alias.
            user: for whom it is; one user gets the same version until the weights change. Random by weight when empty.
            tasks: what it is to do, one of them; anything when there are none.

        Raises:
            NotFoundError: no version of such a model is published, or the one that was named is not loaded.
            FailedPreconditionError: the model does something else, or its version was withdrawn.
            UnavailableError: no routes have been received yet.
        """
        route = self._all().get(asked.model)
        if route is not None and asked.version:
            version = route.named(asked.version)
        elif route is not None:
            # Without a user by weight; the choice keeps no secret.
            slot = slot_of(asked.model, user) if user else random.randrange(SLOTS)  # noqa: S311
            version = route.at(slot)
        else:
            version = None
        if version is None:
            raise _no_version(asked, route)
        if tasks and version.task not in tasks:
            wanted = " or ".join(task.value for task in tasks)
            raise FailedPreconditionError(
                f"{model_name(asked.model)} is a model for {version.task.value}, not for {wanted}.",
                reason="WRONG_TASK",
                metadata={"model": model_name(asked.model), "task": version.task.value},
            )
        return version

    async def choose_again(
        self, asked: ModelReference, before: RoutedVersion, user: str = "", *tasks: Task
    ) -> RoutedVersion | None:
        """The version that answers a call whose version is gone: by the route as it is now, or within a second.

        Args:
            asked: as for `choose`, whose errors it has.
            before: the version that is gone.
            user: as for `choose`.
            tasks: as for `choose`.

        Returns:
            None if the route says the same as before.
        """
        again = self.choose(asked, user, *tasks)
        if _is_same_load(again, before):
            await self.changed(asked.model, _CHANGE_S)
            again = self.choose(asked, user, *tasks)
        return None if _is_same_load(again, before) else again

    def find(self, asked: ModelReference) -> RoutedVersion:
        """The version that is asked about: the one that was named, else the serving one. Errors as `choose`."""
        route = self._all().get(asked.model)
        version = None
        if route is not None:
            version = route.named(asked.version) if asked.version else route.serving
        if version is None:
            raise _no_version(asked, route)
        return version

    async def changed(self, model: str, timeout_s: float) -> bool:
        """Waits until the route of a model is another one; False if that takes longer."""
        before = self.route(model)
        try:
            async with asyncio.timeout(timeout_s):
                while self.route(model) is before or self.route(model) == before:
                    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiters.add(waiter)
                    try:
                        await waiter
                    finally:
                        self._waiters.discard(waiter)
        except TimeoutError:
            return False
        return True

    def _all(self) -> Mapping[str, Route]:
        if self._routes is None:
            raise UnavailableError(
                "It is not known yet which models serve: the inference service has sent no routes. Retry later.",
                reason="ROUTES_UNKNOWN",
                retry_after_s=1.0,
            )
        return self._routes


def _no_version(asked: ModelReference, route: Route | None) -> NotFoundError | FailedPreconditionError:
    name = model_name(asked.model)
    if route is not None and (why := route.withdrawn) is not None:
        return FailedPreconditionError(
            f"{name} is out of service: {why.message}", reason=why.reason, metadata={**why.metadata, "model": name}
        )
    if route is not None and asked.version and route.versions:
        loaded = ", ".join([*(str(each.number) for each in route.versions), "champion", *sorted(route.aliases)])
        hint = f"The route of {name} has {loaded}; `tidemill route set` adds others."
        return not_found("model_version", str(asked), hint)
    return NotFoundError(f"No version of {name} is published.", reason="MODEL_NOT_FOUND", metadata={"model": name})


def _is_same_load(one: RoutedVersion, other: RoutedVersion) -> bool:
    return (one.number, one.generation) == (other.number, other.generation)
