"""Publishes, rolls back and unpublishes; keeps the server consistent with the store.

One model changes at a time under its lock. The order of a publication: number (LOADING) → folder → configuration →
load → SERVING. A crash in between leaves a LOADING version that no one serves; the same publication takes it up again.

A serving version whose files do not verify and cannot be repaired fails, and the one before it serves. Where none
verifies, the model answers nothing and says why, and it is tried again: nothing that is not verified serves.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from services.inference.app.loading import Loader, ServingParts, is_integrity_error, is_lost
from services.inference.app.ports import Announcer
from services.inference.app.restarts import RestartQueue
from services.inference.domain.model import Lineage, Model, ModelVersion, VersionState
from services.kit.errors import FailedPreconditionError, TidemillError, is_retryable, not_found
from services.kit.ids import NEWEST
from services.serving.domain.names import model_name, version_name

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0
# How long a change waits until every data plane has been sent its route. One that is slower answers by the route
# before for a moment longer.
_KNOWN_S = 2.0


class Publishing:
    """Use cases on models and versions. Thread-safe."""

    def __init__(
        self, parts: ServingParts, announcer: Announcer, restarts: RestartQueue, *, keep_versions: int
    ) -> None:
        self._store, self._builds, self._repository = parts.store, parts.builds, parts.repository
        self._server, self._book, self._clock = parts.server, parts.book, parts.clock
        self._announcer, self._restarts, self._keep = announcer, restarts, keep_versions
        self._loader = Loader(parts)
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._put_off: dict[str, tuple[float, float]] = {}
        """Models that could not be brought to their state: not before when (monotonic), and the pause until then."""

    def publish(
        self, model: str, lineage: Lineage, request_id: str = "", traceparent: str = ""
    ) -> tuple[ModelVersion, bool]:
        """Publishes a build and returns when it answers. A repeat of a request that was done changes nothing.

        Returns:
            The version, and whether this build was serving already.

        Raises:
            InvalidArgumentError, PermissionDeniedError: the build does not lie in the artefact store.
            FailedPreconditionError: it is damaged, not signed by a trusted key or another one than was meant, or the
                server refused it; the previous version keeps serving.
        """
        with self._locks[model]:
            known = self._store.model(model)
            serving = known.serving if known else None
            done = self._store.done_by(model, request_id) if request_id else None
            if done is not None:
                return done, False
            if serving is not None and serving.lineage.digest == lineage.digest and self._serves(serving):
                return serving, True
            version = self._reusable(model, lineage.digest)
            if version is not None and self._repository.holds(version):
                return self._bring_up(version, serving, request_id), False
            folder = self._fetch(model, lineage)
            try:
                if version is None:
                    now = self._clock.now()
                    version = self._store.create_version(
                        ModelVersion(
                            model=model,
                            number=0,
                            lineage=lineage,
                            build=self._builds.read(folder),
                            state=VersionState.LOADING,
                            create_time=now,
                            update_time=now,
                            request_id=request_id,
                            traceparent=traceparent,
                        )
                    )
                return self._bring_up(version, serving, request_id, folder), False
            finally:
                self._builds.release(folder)

    def _fetch(self, model: str, lineage: Lineage) -> Path:
        try:
            return self._builds.fetch(lineage.artifact_uri, lineage.digest)
        except TidemillError as error:
            logger.error("refused a build for %s: %s: %s", model_name(model), error.reason, error.message)
            raise

    def roll_back(self, model: str, number: int = 0, request_id: str = "") -> ModelVersion:
        """Lets an earlier version answer again; the one before the serving one when `number` is zero.

        A repeat of a request that was done changes nothing and answers with the version it went back to.

        Raises:
            NotFoundError: the version does not exist.
            FailedPreconditionError: it never served, or there is no previous version.
        """
        with self._locks[model]:
            serving = self.get(model).serving
            done = self._store.done_by(model, request_id) if request_id else None
            if done is not None:
                return done
            target = self._rollback_target(model, number, serving)
            if serving is not None and target.number == serving.number and self._serves(serving):
                return serving
            return self._bring_up(target, serving, request_id)

    def unpublish(self, model: str) -> Model:
        """Takes a model out of service; its versions stay on disk."""
        with self._locks[model]:
            known = self.get(model)
            if known.serving is not None:
                # First the routes and the store: no new request is sent, and a crash in between is reconciled.
                self._book.remove(model)
                self._store.stop_serving(model, self._clock.now())
                self._tell(model)
                self._server.unload(model)
            return self.get(model)

    def get(self, model: str) -> Model:
        """The model of this name.

        Raises:
            NotFoundError: there is none.
        """
        found = self._store.model(model)
        if found is None:
            raise not_found("model", model_name(model))
        return found

    def list(self, after: str, limit: int) -> Sequence[Model]:
        """Models by name, those after a name."""
        return self._store.models(after, limit)

    def versions(self, model: str, before: int, limit: int) -> Sequence[ModelVersion]:
        """Versions below a number, newest first."""
        self.get(model)
        return self._store.versions(model, before, limit)

    def fill_book(self) -> None:
        """Restores the routes from the store; call it once, at start."""
        for model in self._all_models():
            # Killed between a load and its note in the store, the service finds Triton answering with another version
            # than it knows to be serving, until `reconcile` has loaded that one.
            self._restarts.loaded(model.name, model.generation)
            for version in reversed(list(self._every_version(model.name))):
                if version.state is not VersionState.FAILED:
                    self._book.expect(version)
            if model.serving is not None:
                self._book.set(model, model.serving)

    def reconcile(self) -> None:
        """Makes the server match the store, after a restart of either, and publishes pending events.

        Raises:
            UnavailableError: the server or the bus is unavailable; call it again later.
        """
        ready = self._server.ready_versions()
        dead = self._restarts.take()
        for model in self._all_models():
            wanted = frozenset([model.serving.number]) if model.serving else frozenset()
            if self._clock.monotonic() < self._put_off.get(model.name, (0.0, 0.0))[0]:
                continue
            changed = model.serving is not None and not self._loader.looks_unchanged(model.serving)
            if ready.get(model.name, frozenset()) != wanted or model.name in dead or changed:
                self._settle(model.name, reload=model.name in dead)
        for version in self._store.unannounced():
            self._announcer.published(version)
            self._store.mark_announced(version)

    def _settle(self, model: str, *, reload: bool) -> None:
        lock = self._locks[model]
        # A publication in progress changes the server by itself.
        if not lock.acquire(blocking=False):
            return
        try:
            serving = self.get(model).serving
            ready = self._server.ready_versions().get(model, frozenset())
            if serving is None:
                if ready:
                    logger.info("unloading %s: it should not serve", model_name(model))
                    self._server.unload(model)
                return
            if ready == {serving.number} and self._loader.is_intact(serving) and not reload:
                return
            logger.info("loading %s: ready are %s", serving.name, sorted(ready) or "none")
            self._load_or_fall_back(serving, loaded_now=bool(ready))
            self._put_off.pop(model, None)
        except TidemillError as error:
            if is_retryable(error):
                if reload:
                    self._restarts.add(model)
                raise
            # Someone must repair it; retrying without a pause would load and log for nothing.
            pause = min(max(_FIRST_PAUSE_S, 2 * self._put_off.get(model, (0.0, 0.0))[1]), _LONGEST_PAUSE_S)
            self._put_off[model] = (self._clock.monotonic() + pause, pause)
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
            self._answers(self._loader.load(serving))
            return
        except TidemillError as error:
            if is_retryable(error) or not is_lost(error):
                raise
            why = error
        refused = self._loader.refuse(serving, why)
        for earlier in list(self._every_version(serving.model, serving.number)):
            if earlier.state is not VersionState.RETIRED:
                continue
            try:
                loaded = self._loader.load(earlier)
            except TidemillError as error:
                if is_retryable(error):
                    raise
                logger.error("%s cannot replace %s: %s", earlier.name, serving.name, error.message)
                continue
            now = self._clock.now()
            message = f"{why.message} {earlier.name} serves in its place."
            self._store.update_version(replace(refused, state=VersionState.FAILED, message=message, update_time=now))
            self._take_over(loaded)
            logger.error("%s is out of service: %s", serving.name, message)
            return
        self._book.withdraw(serving, why)
        if loaded_now:
            self._server.unload(serving.model)
        raise why

    def _bring_up(
        self, version: ModelVersion, serving: ModelVersion | None, request_id: str, build: Path | None = None
    ) -> ModelVersion:
        try:
            loaded = self._loader.load(version, build)
        except TidemillError as error:
            self._give_up(version, serving, error)
            raise
        version = self._take_over(loaded, request_id)
        self._prune(version)
        return version

    def _take_over(self, version: ModelVersion, request_id: str = "") -> ModelVersion:
        """Makes a version that has been loaded the one that serves."""
        now = self._clock.now()
        version = replace(version, state=VersionState.SERVING, update_time=now, serve_time=now, message="")
        self._store.serve(version, done_by=request_id)
        self._answers(version)
        self._put_off.pop(version.model, None)
        logger.info("%s serves (%s)", version.name, version.lineage.artifact_uri)
        return version

    def report_failure(self, model: str, generation: int) -> bool:
        """Takes a report that the process of a model in the server seems dead; returns whether it is loaded again.

        Args:
            model: its name.
            generation: of the model in the routes by which the request was sent that showed it.

        Raises:
            NotFoundError: there is no such model.
        """
        self.get(model)
        accepted = self._restarts.add(model, generation)
        if accepted:
            logger.warning("the process of %s in its load %d is reported dead", model_name(model), generation)
        return accepted

    def _answers(self, version: ModelVersion) -> None:
        """A load of this version is complete."""
        model = self._store.count_load(version.model)
        self._restarts.loaded(model.name, model.generation)
        self._book.set(model, version)
        self._tell(version.model)

    def _tell(self, model: str) -> None:
        """Waits a moment until data planes know what has changed."""
        if not self._book.wait_until_known(_KNOWN_S):
            logger.warning("a data plane has not taken the new route of %s after %.0f s", model_name(model), _KNOWN_S)

    def _give_up(self, version: ModelVersion, serving: ModelVersion | None, error: TidemillError) -> None:
        """Restores the configuration of the version that serves; a refused version becomes FAILED, with the reason."""
        if serving is not None:
            self._repository.configure(serving)
        if is_retryable(error):
            return
        if is_integrity_error(error):
            version = self._loader.refuse(version, error)
        if version.state is VersionState.LOADING:
            self._store.update_version(
                replace(version, state=VersionState.FAILED, message=error.message, update_time=self._clock.now())
            )
            self._repository.remove(version.model, version.number)

    def _reusable(self, model: str, digest: str) -> ModelVersion | None:
        """A version of the same build whose number can be reused: it served before, or publishing it was cut off."""
        fits = (VersionState.LOADING, VersionState.RETIRED, VersionState.SERVING)
        return next((v for v in self._every_version(model) if v.lineage.digest == digest and v.state in fits), None)

    def _rollback_target(self, model: str, number: int, serving: ModelVersion | None) -> ModelVersion:
        if number:
            target = self._store.version(model, number)
            if target is None:
                raise not_found("model_version", version_name(model, number))
            if target.state not in (VersionState.RETIRED, VersionState.SERVING):
                raise FailedPreconditionError(
                    f"{target.name} never served ({target.state.value}).", reason="VERSION_NEVER_SERVED"
                )
            return target
        before = serving.number if serving else NEWEST
        earlier = (v for v in self._every_version(model, before) if v.state is VersionState.RETIRED)
        found = next(earlier, None)
        if found is None:
            raise FailedPreconditionError(
                f"{model_name(model)} has no earlier version to return to.", reason="NO_EARLIER_VERSION"
            )
        return found

    def _prune(self, serving: ModelVersion) -> None:
        """Removes folders of versions beyond those kept; the store remembers them, and a roll-back places them again.

        What is still LOADING was cut off, since one model changes at a time: no one would ever come back to it.
        """
        retired: list[ModelVersion] = []
        for version in list(self._every_version(serving.model)):
            if version.state is VersionState.RETIRED:
                retired.append(version)
            elif version.state is VersionState.LOADING:
                why = f"Its publication was cut off, and {serving.name} took its place."
                self._store.update_version(
                    replace(version, state=VersionState.FAILED, message=why, update_time=self._clock.now())
                )
                self._repository.remove(version.model, version.number)
        for version in retired[max(0, self._keep - 1) :]:
            if self._repository.holds(version):
                logger.info("removing the folder of %s", version.name)
                self._repository.remove(version.model, version.number)

    def _serves(self, version: ModelVersion) -> bool:
        """Whether a version serves from unchanged files."""
        ready = self._server.ready_versions().get(version.model, frozenset())
        return ready == {version.number} and self._loader.is_intact(version)

    def _every_version(self, model: str, before: int = NEWEST) -> Iterator[ModelVersion]:
        while page := self._store.versions(model, before, 200):
            yield from page
            before = page[-1].number

    def _all_models(self) -> Iterator[Model]:
        after = ""
        while page := self._store.models(after, 200):
            yield from page
            after = page[-1].name
