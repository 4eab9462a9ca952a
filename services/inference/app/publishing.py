"""Publishes, rolls back and unpublishes; sets routes; keeps the server consistent with the store.

One model changes at a time under its lock. The order of a publication: number (LOADING) → folder → configuration →
load → route. A crash in between leaves a LOADING version that no one serves; the same publication takes it up again.

A serving version whose files do not verify and cannot be repaired fails, and the one before it serves. Where none
verifies, the model answers nothing and says why, and it is tried again: nothing that is not verified serves.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from services.inference.app.loading import Loader, ServingParts, is_integrity_error, is_lost
from services.inference.app.ports import Announcer
from services.inference.app.restarts import RestartQueue
from services.inference.app.routes import Routes
from services.inference.domain.model import Lineage, Model, ModelVersion, VersionState
from services.inference.domain.route import ModelRoute, RouteEntry
from services.kit.errors import (
    AbortedError,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    TidemillError,
    is_retryable,
    not_found,
)
from services.kit.ids import NEWEST
from services.serving.domain.names import model_name, version_name
from services.serving.domain.route import Role, Route

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0
ANY_ETAG = "*"
_LOADABLE = (VersionState.RETIRED, VersionState.SERVING)


class Publishing:
    """Use cases on models and versions. Thread-safe."""

    def __init__(
        self,
        parts: ServingParts,
        announcer: Announcer,
        restarts: RestartQueue,
        *,
        keep_versions: int,
        drain_s: float,
    ) -> None:
        self._store, self._builds, self._repository = parts.store, parts.builds, parts.repository
        self._server, self._clock = parts.server, parts.clock
        self._routes = Routes(parts, drain_s=drain_s)
        self._announcer, self._restarts, self._keep = announcer, restarts, keep_versions
        self._loader = Loader(parts)
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._put_off: dict[str, tuple[float, float]] = {}
        """Models that could not be brought to their state: not before when (monotonic), and the pause until then."""

    def publish(
        self,
        model: str,
        lineage: Lineage,
        request_id: str = "",
        traceparent: str = "",
        *,
        role: Role = Role.SERVING,
        weight: int = 0,
    ) -> tuple[ModelVersion, bool]:
        """Publishes a build and returns when it is in its model's route. A repeat of a request that was done changes
        nothing.

        Args:
            model: its name.
            lineage: the build.
            request_id: of the request.
            traceparent: of the request.
            role: what it does in the route; a serving version takes the place of the one before.
            weight: of a canary.

        Returns:
            The version, and whether this build had that role already.

        Raises:
            InvalidArgumentError, PermissionDeniedError: the build does not lie in the artefact store.
            FailedPreconditionError: it is damaged, not signed by a trusted key or another one than was meant, or the
                server refused it; the previous version keeps serving. Or a further version is published into a route
                without a serving one.
        """
        with self._locks[model]:
            known = self._store.model(model)
            route = known.route if known else ModelRoute(model)
            done = self._store.done_by(model, request_id) if request_id else None
            if done is not None:
                return done, False
            version = self._reusable(model, lineage.digest)
            entry = route.entry(version.number) if version is not None else None
            if (
                version is not None
                and entry is not None
                and entry.role in (role, Role.SERVING)
                and self._is_up(version)
            ):
                return version, True
            joined = _joining(role, weight, route)
            if version is not None and self._repository.holds(version):
                return self._bring_up(version, joined, request_id, traceparent), False
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
                return self._bring_up(version, joined, request_id, traceparent, folder), False
            finally:
                self._builds.release(folder)

    def _fetch(self, model: str, lineage: Lineage) -> Path:
        try:
            return self._builds.fetch(lineage.artifact_uri, lineage.digest)
        except TidemillError as error:
            logger.error("refused a build for %s: %s: %s", model_name(model), error.reason, error.message)
            raise

    def roll_back(self, model: str, number: int = 0, request_id: str = "", traceparent: str = "") -> ModelVersion:
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
            if serving is not None and target.number == serving.number and self._is_up(serving):
                return serving
            return self._bring_up(target, _joining(Role.SERVING, 0, self.get(model).route), request_id, traceparent)

    def unpublish(self, model: str, traceparent: str = "") -> Model:
        """Takes a model out of service; its versions stay on disk."""
        with self._locks[model]:
            known = self.get(model)
            if known.route.entries:
                # First the store and the routes: no new request is sent, and a crash in between is reconciled.
                self._routes.change(known.route.having((), {}), traceparent=traceparent)
                self._unload_left(model, at_once=True)
            return self.get(model)

    def set_route(
        self, model: str, entries: Sequence[RouteEntry], aliases: Mapping[str, int], etag: str, traceparent: str = ""
    ) -> Route:
        """Replaces a model's route and returns when all its versions are loaded; else nothing changes.

        Args:
            model: its name.
            entries: the versions.
            aliases: further names of these versions.
            etag: of the route that it replaces; `*` for any.
            traceparent: of the request.

        Raises:
            NotFoundError: there is no such model, or no such version; or the files of one are nowhere any more.
            AbortedError: the route has another etag: it was changed meanwhile.
            InvalidArgumentError: they make no route.
            FailedPreconditionError: a version failed, is damaged, or does something else than the others.
        """
        with self._locks[model]:
            before = self.get(model).route
            if etag not in (before.etag, ANY_ETAG):
                raise AbortedError(
                    f"The route of {model_name(model)} was changed meanwhile: its etag is {before.etag}, not {etag}. "
                    "Read it with GetRoute and set it again.",
                    reason="ROUTE_CHANGED",
                    metadata={"model": model_name(model), "etag": before.etag},
                )
            after = before.set_to(entries, aliases)
            versions = [self._usable(model, entry.number, at) for at, entry in enumerate(entries)]
            _check_tasks(versions)
            for at, version in enumerate(versions):
                try:
                    self._loaded(version)
                except TidemillError as error:
                    logger.error("the route of %s stays as it is: %s", model_name(model), error.message)
                    raise _at_field(error, f"entries[{at}].version") from error
            if not _is_same(before, after):
                self._routes.change(after, traceparent=traceparent)
                logger.info("the route of %s is %s", model_name(model), _described(after))
            self._put_off.pop(model, None)
            self._unload_left(model)
            return self.route(model)

    def route(self, model: str) -> Route:
        """The route of a model, without versions if it is not published.

        Raises:
            NotFoundError: there is no such model.
        """
        return self._routes.view(self.get(model))

    def routes(self, after: str, limit: int) -> Sequence[Route]:
        """Routes by model, those after a name."""
        return [self._routes.view(model) for model in self._store.models(after, limit)]

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
            for version in self._store.routed(model.route):
                self._restarts.loaded(version.model, version.number, version.generation)
            self._routes.show(model.name)

    def reconcile(self) -> None:
        """Makes the server match the store, after a restart of either, and publishes pending events.

        Raises:
            UnavailableError: the server or the bus is unavailable; call it again later.
        """
        ready = self._server.ready_versions()
        dead: dict[str, set[int]] = defaultdict(set)
        for name, number in self._restarts.take():
            dead[name].add(number)
        for model in self._all_models():
            if self._clock.monotonic() < self._put_off.get(model.name, (0.0, 0.0))[0]:
                self._restarts.put_back(model.name, dead[model.name])
                continue
            changed = any(not self._loader.looks_unchanged(v) for v in self._store.routed(model.route))
            if ready.get(model.name, frozenset()) != model.route.numbers or dead[model.name] or changed:
                self._settle(model.name, frozenset(dead[model.name]))
        for version in self._store.unannounced():
            self._announcer.published(version)
            self._store.mark_announced(version)
        for route, traceparent in self._store.unannounced_routes():
            self._announcer.route_changed(route, traceparent)
            self._store.mark_route_announced(route)

    def _settle(self, model: str, dead: frozenset[int]) -> None:
        lock = self._locks[model]
        # A publication in progress changes the server by itself.
        if not lock.acquire(blocking=False):
            self._restarts.put_back(model, dead)
            return
        try:
            found = self.get(model)
            serving, ready = found.serving, self._ready(model)
            failed: TidemillError | None = None
            for version in self._store.routed(found.route):
                if version.number in ready - dead and self._loader.is_intact(version):
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
            self._unload_left(model)
            if failed is not None:
                raise failed
            self._put_off.pop(model, None)
        except TidemillError as error:
            if is_retryable(error):
                self._restarts.put_back(model, dead)
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
            self._routes.restored(self._load(serving))
            return
        except TidemillError as error:
            if is_retryable(error) or not is_lost(error):
                raise
            why = error
        refused = self._loader.refuse(serving, why)
        route = self.get(serving.model).route
        for earlier in list(self._every_version(serving.model, serving.number)):
            if earlier.state not in _LOADABLE or earlier.serve_time is None:
                continue
            try:
                loaded = self._load(earlier)
            except TidemillError as error:
                if is_retryable(error):
                    raise
                logger.error("%s cannot replace %s: %s", earlier.name, serving.name, error.message)
                continue
            message = f"{why.message} {earlier.name} serves in its place."
            self._take_over(loaded, route.served_by(earlier.number).without(serving.number))
            self._fail(refused, message)
            logger.error("%s is out of service: %s", serving.name, message)
            return
        self._routes.withdraw(serving, why)
        if loaded_now:
            self._server.unload(serving.model, serving.number)
        raise why

    def _load_or_leave(self, version: ModelVersion) -> None:
        """Loads a version beside the serving one; one whose files are lost leaves the route, its users with it."""
        try:
            self._routes.restored(self._load(version))
            return
        except TidemillError as error:
            if is_retryable(error) or not is_lost(error):
                raise
            why = error
        refused = self._loader.refuse(version, why)
        self._routes.change(self.get(version.model).route.without(version.number))
        self._fail(refused, f"{why.message} It left its route.")
        logger.error("%s left its route: %s", version.name, why.message)

    def _fail(self, version: ModelVersion, message: str) -> None:
        now = self._clock.now()
        self._store.update_version(replace(version, state=VersionState.FAILED, message=message, update_time=now))

    def _bring_up(
        self,
        version: ModelVersion,
        joined: Callable[[int], ModelRoute],
        request_id: str,
        traceparent: str,
        build: Path | None = None,
    ) -> ModelVersion:
        """Loads a version, and makes `joined` of it the route."""
        try:
            loaded = self._loaded(version, build)
        except TidemillError as error:
            self._give_up(version, error)
            raise
        version = self._take_over(loaded, joined(version.number), request_id, traceparent)
        self._unload_left(version.model)
        self._prune(version)
        return version

    def _take_over(
        self, version: ModelVersion, route: ModelRoute, request_id: str = "", traceparent: str = ""
    ) -> ModelVersion:
        """Makes this the route of a version that has been loaded for it."""
        self._routes.change(route, traceparent=traceparent, done_by=request_id)
        self._put_off.pop(version.model, None)
        entry = route.entry(version.number)
        role = "is in no route" if entry is None else entry.role
        logger.info("%s: %s (%s)", version.name, role, version.lineage.artifact_uri)
        found = self._store.version(version.model, version.number)
        assert found is not None
        return found

    def _loaded(self, version: ModelVersion, build: Path | None = None) -> ModelVersion:
        """The version, loaded if it is not."""
        is_up = version.state is not VersionState.LOADING and self._is_up(version)
        return version if is_up else self._load(version, build)

    def _unload_left(self, model: str, *, at_once: bool = False) -> None:
        """What cannot be unloaded now is unloaded by `reconcile`: the change that it follows from is complete."""
        try:
            self._routes.unload_left(self.get(model).route, self._ready(model), at_once=at_once)
        except TidemillError as error:
            logger.warning("%s: what left the route stays loaded for now: %s", model_name(model), error.message)

    def _load(self, version: ModelVersion, build: Path | None = None) -> ModelVersion:
        loaded = self._loader.load(version, build)
        self._restarts.loaded(loaded.model, loaded.number, loaded.generation)
        return loaded

    def report_failure(self, model: str, generation: int, number: int = 0) -> bool:
        """Takes a report that a process in the server seems dead; returns whether it is loaded again.

        Args:
            model: the model's name.
            generation: of the version in the routes by which the request was sent that showed it.
            number: of the version; the serving one when zero.

        Raises:
            NotFoundError: there is no such model.
        """
        serving = self.get(model).serving
        number = number or (serving.number if serving is not None else 0)
        accepted = bool(number) and self._restarts.add(model, number, generation)
        if accepted:
            name = version_name(model, number)
            logger.warning("the process of %s in its load %d is reported dead", name, generation)
        return accepted

    def _give_up(self, version: ModelVersion, error: TidemillError) -> None:
        """A refused version that never served becomes FAILED, with the reason."""
        if is_retryable(error):
            return
        if is_integrity_error(error):
            version = self._loader.refuse(version, error)
        if version.state is VersionState.LOADING:
            self._fail(version, error.message)
            self._repository.remove(version.model, version.number)

    def _usable(self, model: str, number: int, at: int) -> ModelVersion:
        """A version that may be in a route; `at` is its place among the entries."""
        version = self._store.version(model, number)
        if version is None:
            violations = [FieldViolation(f"entries[{at}].version", f"there is no version {number}")]
            error = not_found("model_version", version_name(model, number), "`tidemill models` lists them.")
            raise NotFoundError(error.message, reason=error.reason, metadata=error.metadata, violations=violations)
        if version.state not in _LOADABLE:
            violations = [FieldViolation(f"entries[{at}].version", f"it is {version.state}")]
            raise FailedPreconditionError(
                f"{version.name} cannot be in a route ({version.state}): {version.message or 'it was never loaded'}.",
                reason="VERSION_NEVER_SERVED",
                violations=violations,
            )
        return version

    def _reusable(self, model: str, digest: str) -> ModelVersion | None:
        """A version of the same build whose number can be reused: it served before, or publishing it was cut off."""
        fits = (VersionState.LOADING, VersionState.RETIRED, VersionState.SERVING)
        return next((v for v in self._every_version(model) if v.lineage.digest == digest and v.state in fits), None)

    def _rollback_target(self, model: str, number: int, serving: ModelVersion | None) -> ModelVersion:
        if number:
            target = self._store.version(model, number)
            if target is None:
                raise not_found("model_version", version_name(model, number))
            if target.state not in _LOADABLE or target.serve_time is None:
                raise FailedPreconditionError(
                    f"{target.name} never served ({target.state.value}).", reason="VERSION_NEVER_SERVED"
                )
            return target
        before = serving.number if serving else NEWEST
        served = (v for v in self._every_version(model, before) if v.state in _LOADABLE and v.serve_time is not None)
        found = next(served, None)
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

    def _ready(self, model: str) -> frozenset[int]:
        return self._server.ready_versions().get(model, frozenset())

    def _is_up(self, version: ModelVersion) -> bool:
        """Whether a version is loaded from unchanged files."""
        return version.number in self._ready(version.model) and self._loader.is_intact(version)

    def _every_version(self, model: str, before: int = NEWEST) -> Iterator[ModelVersion]:
        while page := self._store.versions(model, before, 200):
            yield from page
            before = page[-1].number

    def _all_models(self) -> Iterator[Model]:
        after = ""
        while page := self._store.models(after, 200):
            yield from page
            after = page[-1].name


def _joining(role: Role, weight: int, route: ModelRoute) -> Callable[[int], ModelRoute]:
    """What the route becomes with a version in this role.

    Raises:
        InvalidArgumentError: the weight does not fit the role.
        FailedPreconditionError: no version serves beside which another one could be.
    """
    if role.shares is not (weight > 0) and role is not Role.SERVING:
        why = "a canary needs a weight of at least 1" if role.shares else f"a {role} has no weight"
        raise InvalidArgumentError(why, reason="INVALID_ROUTE", violations=[FieldViolation("weight", why)])
    if role is not Role.SERVING and route.serving is None:
        raise FailedPreconditionError(
            f"{model_name(route.model)} has no serving version: publish one before a {role}.", reason="NOTHING_SERVES"
        )
    return lambda number: route.joined_by(number, role, weight)


def _at_field(error: TidemillError, field: str) -> TidemillError:
    """The error, which names the field that it comes from."""
    return type(error)(
        error.message,
        reason=error.reason,
        metadata=error.metadata,
        violations=[FieldViolation(field, error.message)],
        retry_after_s=error.retry_after_s,
    )


def _check_tasks(versions: Sequence[ModelVersion]) -> None:
    for at, version in enumerate(versions):
        if version.build.task is not versions[0].build.task:
            why = f"version {version.number} is for {version.build.task.value}"
            raise FailedPreconditionError(
                f"The versions of a route must do the same: {why}, not for {versions[0].build.task.value}.",
                reason="WRONG_TASK",
                violations=[FieldViolation(f"entries[{at}].version", why)],
            )


def _is_same(one: ModelRoute, other: ModelRoute) -> bool:
    return one.entries == other.entries and one.aliases == other.aliases


def _described(route: ModelRoute) -> str:
    shown = (f"{e.number}={e.weight}:{e.role}" if e.weight else f"{e.number}:{e.role}" for e in route.entries)
    return " ".join(shown)
