"""Keeps the server consistent with the store, after a restart of either, and publishes pending events.

A serving version whose files do not verify and cannot be repaired fails, and the one before it serves. Where none
verifies, the model answers nothing and says why, and it is tried again: nothing that is not verified serves. A version
beside the serving one leaves the route instead, and its users go to the others.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Generator
from contextlib import closing

from services.inference.app.loading import is_lost
from services.inference.app.ports import Announcer
from services.inference.app.versions import Versions
from services.inference.domain.model import Model, ModelVersion
from services.inference.domain.route import Cause
from services.kit.errors import TidemillError, is_retryable
from services.serving.domain.names import model_name, version_name

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0


class Reconciler:
    """Brings each model to its state. Thread-safe."""

    def __init__(self, versions: Versions, announcer: Announcer) -> None:
        self._versions, self._announcer = versions, announcer

    def fill_book(self) -> None:
        """Restores the routes from the store; call it once, at start."""
        for model in self._versions.all_models():
            for version in self._versions.store.routed(model.route):
                self._versions.restarts.loaded(version.model, version.number, version.generation)
            self._versions.routes.show(model.name)

    def reconcile(self) -> None:
        """Makes the server match the store, after a restart of either, and publishes pending events.

        Raises:
            UnavailableError: the server or the bus is unavailable; call it again later.
        """
        ready = self._versions.server.ready_versions()
        with closing(self._in_order()) as models:
            for model, dead in models:
                changed = any(
                    not self._versions.loader.looks_unchanged(v) for v in self._versions.store.routed(model.route)
                )
                if ready.get(model.name, frozenset()) != model.route.numbers or dead or changed:
                    self._settle(model.name, dead)
        for version in self._versions.store.unannounced():
            self._announcer.published(version)
            self._versions.store.mark_announced(version)
        for route, traceparent in self._versions.store.unannounced_routes():
            self._announcer.route_changed(route, traceparent)
            self._versions.store.mark_route_announced(route)

    def _in_order(self) -> Generator[tuple[Model, frozenset[int]]]:
        """The models, each with those of its versions that callers reported; reported models come first, in that order.

        A load takes seconds to minutes, and all models need one when the server was started again. What is reported
        meanwhile is next, and what is not reached stays reported.
        """
        left = {model.name: model for model in self._versions.all_models()}
        known, reported = frozenset(left), defaultdict[str, set[int]](set)
        try:
            while left:
                for name, number in self._versions.restarts.take():
                    reported[name].add(number)
                name = next((each for each in reported if each in left), next(iter(left)))
                model = left.pop(name)
                if self._versions.clock.monotonic() >= self._versions.put_off.get(name, (0.0, 0.0))[0]:
                    yield model, frozenset(reported.pop(name, ()))
        finally:
            for name in reported.keys() & known:
                self._versions.restarts.put_back(name, reported[name])

    def _settle(self, model: str, dead: frozenset[int]) -> None:
        lock = self._versions.locks[model]
        # A publication in progress changes the server by itself.
        if not lock.acquire(blocking=False):
            self._versions.restarts.put_back(model, dead)
            return
        try:
            found = self._versions.get(model)
            serving, ready = found.serving, self._versions.ready(model)
            failed: TidemillError | None = None
            for version in self._versions.store.routed(found.route):
                if version.number in ready - dead and self._versions.loader.is_intact(version):
                    continue
                logger.info("loading %s: ready are %s", version.name, sorted(ready) or "none")
                try:
                    if serving is not None and version.number == serving.number:
                        self._load_or_fall_back(version, loaded_now=version.number in ready)
                    else:
                        self._load_or_leave(version)
                except TidemillError as error:
                    if is_retryable(error):
                        raise
                    failed = error
            self._versions.unload_left(model)
            if failed is not None:
                raise failed
            self._versions.put_off.pop(model, None)
        except TidemillError as error:
            if is_retryable(error):
                self._versions.restarts.put_back(model, dead)
                raise
            # Someone must repair it; retrying without a pause would load and log for nothing.
            pause = min(max(_FIRST_PAUSE_S, 2 * self._versions.put_off.get(model, (0.0, 0.0))[1]), _LONGEST_PAUSE_S)
            self._versions.put_off[model] = (self._versions.clock.monotonic() + pause, pause)
            logger.error(
                "%s cannot be brought to its state, tried again in %.0f s: %s", model_name(model), pause, error.message
            )
        finally:
            lock.release()

    def _load_or_fall_back(self, serving: ModelVersion, *, loaded_now: bool) -> None:
        """Loads the serving version, or the newest earlier one whose files verify.

        Raises:
            FailedPreconditionError, NotFoundError: none can be loaded; the model is out of service until one can.
        """
        try:
            self._versions.routes.restored(self._versions.load(serving))
            return
        except TidemillError as error:
            if is_retryable(error) or not is_lost(error):
                raise
            why = error
        refused = self._versions.loader.refuse(serving, why)
        route = self._versions.get(serving.model).route
        for earlier in list(self._versions.every_version(serving.model, serving.number)):
            if not earlier.has_served:
                continue
            try:
                loaded = self._versions.load(earlier)
            except TidemillError as error:
                if is_retryable(error):
                    raise
                logger.error("%s cannot replace %s: %s", earlier.name, serving.name, error.message)
                continue
            message = f"{why.message} {earlier.name} serves in its place."
            changed = route.served_by(earlier.number).without(serving.number)
            self._versions.take_over(loaded, changed, Cause(reason=message))
            self._versions.fail(refused, message)
            logger.error("%s is out of service: %s", serving.name, message)
            return
        self._versions.routes.withdraw(serving, why)
        if loaded_now:
            self._versions.server.unload(serving.model, serving.number)
        raise why

    def _load_or_leave(self, version: ModelVersion) -> None:
        """Loads a version beside the serving one; one whose files are lost leaves the route, its users with it."""
        try:
            self._versions.routes.restored(self._versions.load(version))
            return
        except TidemillError as error:
            if is_retryable(error) or not is_lost(error):
                raise
            why = error
        refused = self._versions.loader.refuse(version, why)
        changed = self._versions.get(version.model).route.without(version.number)
        self._versions.routes.change(changed, Cause(reason=f"{version.name} left its route: {why.message}"))
        self._versions.fail(refused, f"{why.message} It left its route.")
        logger.error("%s left its route: %s", version.name, why.message)

    def report_failure(self, model: str, generation: int, number: int = 0) -> bool:
        """Takes a report that a version's process seems dead, or is missing; returns whether it is loaded again.

        Args:
            model: the model's name.
            generation: of the version in the routes by which the request was sent that showed it.
            number: of the version; the serving one when zero.

        Raises:
            NotFoundError: there is no such model.
        """
        serving = self._versions.get(model).serving
        number = number or (serving.number if serving is not None else 0)
        accepted = bool(number) and self._versions.restarts.add(model, number, generation)
        if accepted:
            name = version_name(model, number)
            logger.warning("the process of %s in its load %d is reported dead or missing", name, generation)
        return accepted
