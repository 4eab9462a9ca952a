"""The versions of models as the store has them, and what is loaded of them: shared by all who change either.

One model changes at a time under its lock; the caller of a method that changes something holds it.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from services.inference.app.loading import Loader, ServingParts
from services.inference.app.restarts import RestartQueue
from services.inference.app.routes import Routes
from services.inference.domain.model import Model, ModelVersion, VersionState
from services.inference.domain.route import Cause, ModelRoute
from services.kit.errors import FailedPreconditionError, TidemillError, not_found
from services.kit.ids import NEWEST
from services.serving.domain.names import model_name

logger = logging.getLogger(__name__)


class Versions:
    """Loads versions and changes routes. Thread-safe where the locks are held."""

    def __init__(self, parts: ServingParts, restarts: RestartQueue, *, drain_s: float) -> None:
        """Args:
        parts: the ports.
        restarts: takes note of each load.
        drain_s: how long a version stays loaded after it left its route.
        """
        self.store, self.builds, self.repository = parts.store, parts.builds, parts.repository
        self.server, self.clock, self.restarts = parts.server, parts.clock, restarts
        self.routes = Routes(parts, drain_s=drain_s)
        self.loader = Loader(parts)
        self.locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        """Of each model."""
        self.put_off: dict[str, tuple[float, float]] = {}
        """Models that could not be brought to their state: when to retry (monotonic), and the last pause."""

    def get(self, model: str) -> Model:
        """The model of this name.

        Raises:
            NotFoundError: there is none.
        """
        found = self.store.model(model)
        if found is None:
            raise not_found("model", model_name(model))
        return found

    def take_over(
        self, version: ModelVersion, route: ModelRoute, cause: Cause, request_id: str = "", traceparent: str = ""
    ) -> ModelVersion:
        """Makes this the route of a version that has been loaded for it."""
        self.routes.change(route, cause, traceparent=traceparent, done_by=request_id)
        self.put_off.pop(version.model, None)
        entry = route.entry(version.number)
        role = "is in no route" if entry is None else entry.role
        logger.info("%s: %s (%s)", version.name, role, version.lineage.artifact_uri)
        found = self.store.version(version.model, version.number)
        assert found is not None
        return found

    def loaded(self, version: ModelVersion, build: Path | None = None) -> ModelVersion:
        """The version, loaded if it is not."""
        is_up = version.state is not VersionState.LOADING and self.is_up(version)
        return version if is_up else self.load(version, build)

    def unload_left(self, model: str, *, at_once: bool = False) -> None:
        """Unloads what left the route; what cannot be unloaded now, `reconcile` unloads later."""
        try:
            self.routes.unload_left(self.get(model).route, self.ready(model), at_once=at_once)
        except TidemillError as error:
            logger.warning("%s: what left the route stays loaded for now: %s", model_name(model), error.message)

    def load(self, version: ModelVersion, build: Path | None = None) -> ModelVersion:
        """Loads a version, again if it is loaded already; see `Loader.load`."""
        began = self.clock.monotonic()
        loaded = self.loader.load(version, build)
        self.routes.loaded(loaded, self.clock.monotonic() - began)
        self.restarts.loaded(loaded.model, loaded.number, loaded.generation)
        return loaded

    def check_answers(self, version: ModelVersion) -> None:
        """Compares what a loaded version answers with what its build answered when it was made; unloads it if it fails.

        Raises:
            FailedPreconditionError: most answers are others: what serves is not what was evaluated.
            UnavailableError: the server does not answer.
        """
        probes = self.repository.probes(version)
        if probes is None:
            return
        differences = probes.differences(self.server.answers(version, probes))
        count = len(probes.texts)
        same = count - len(differences)
        logger.info("%s answers %d of %d probes as when it was evaluated", version.name, same, count)
        # Another processor may round otherwise, and so write another word; a lost template or head changes them all.
        if same * 2 >= count:
            return
        text, now, wanted = differences[0]
        self.server.unload(version.model, version.number)
        raise FailedPreconditionError(
            f"{version.name} does not answer as when it was evaluated: {len(differences)} of {count} probes are "
            f"answered otherwise, {text!r} for example by {now!r} instead of {wanted!r}. Compare the releases of "
            "Tidemill and OpenVINO on the machines that trained it and that serve it, then train it again.",
            reason="ANSWERS_DIFFER",
            metadata={"version": version.name, "same": str(same), "probes": str(count)},
        )

    def fail(self, version: ModelVersion, message: str) -> None:
        """Records that a version cannot be served, and why."""
        now = self.clock.now()
        self.store.update_version(replace(version, state=VersionState.FAILED, message=message, update_time=now))

    def ready(self, model: str) -> frozenset[int]:
        """The versions of a model that are loaded."""
        return self.server.ready_versions().get(model, frozenset())

    def is_up(self, version: ModelVersion) -> bool:
        """Whether a version is loaded from unchanged files."""
        return version.number in self.ready(version.model) and self.loader.is_intact(version)

    def every_version(self, model: str, before: int = NEWEST) -> Iterator[ModelVersion]:
        """Versions below a number, newest first."""
        while page := self.store.versions(model, before, 200):
            yield from page
            before = page[-1].number

    def all_models(self) -> Iterator[Model]:
        """All models, by name."""
        after = ""
        while page := self.store.models(after, 200):
            yield from page
            after = page[-1].name
