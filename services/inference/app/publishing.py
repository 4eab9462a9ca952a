"""Publishes, rolls back and unpublishes; sets routes.

One model changes at a time under its lock. The order of a publication: number (LOADING) → folder → configuration →
load → route. A crash in between leaves a LOADING version that no route has; the same publication continues with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from services.inference.app.loading import is_integrity_error
from services.inference.app.versions import Versions
from services.inference.domain.model import Lineage, Model, ModelVersion, VersionState
from services.inference.domain.route import MAX_ENTRIES, UNKNOWN, Cause, ModelRoute, RouteEntry
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
from services.serving.domain.answer import Task
from services.serving.domain.cascade import Cascade
from services.serving.domain.names import model_name, version_name
from services.serving.domain.route import Role, Route

logger = logging.getLogger(__name__)

ANY_ETAG = "*"


class Publishing:
    """Use cases on models and versions. Thread-safe."""

    def __init__(self, versions: Versions, *, keep_versions: int) -> None:
        """Args:
        versions: shared with the reconciler.
        keep_versions: versions of a model whose files stay in the repository.
        """
        self._versions, self._keep = versions, keep_versions

    def get(self, model: str) -> Model:
        """See `Versions.get`."""
        return self._versions.get(model)

    def publish(
        self,
        model: str,
        lineage: Lineage,
        request_id: str = "",
        traceparent: str = "",
        *,
        role: Role = Role.SERVING,
        weight: int = 0,
        cause: Cause = UNKNOWN,
    ) -> tuple[ModelVersion, bool]:
        """Publishes a build and returns when it is in its model's route. A repeat of a request that was done changes
        nothing.

        Args:
            model: its name.
            lineage: the build.
            request_id: of the request.
            traceparent: of the request.
            role: what it does in the route; a serving version takes the place of the one before. A version that
                is in the route already does not become a candidate.
            weight: of a canary.
            cause: of the change of its route.

        Returns:
            The version, and whether this build had that role already.

        Raises:
            InvalidArgumentError, PermissionDeniedError: the build is not in the artefact store.
            FailedPreconditionError: it is damaged, not signed by a trusted key, not the one with this digest, or the
                server refused it; the previous version keeps serving. Or the route has no serving version beside which
                this one could stand, or it is full.
        """
        with self._versions.locks[model]:
            known = self._versions.store.model(model)
            route = known.route if known else ModelRoute(model)
            done = self._versions.store.done_by(model, request_id) if request_id else None
            if done is not None:
                return done, False
            version = self._reusable(model, lineage.digest)
            entry = route.entry(version.number) if version is not None else None
            if (
                version is not None
                and entry is not None
                and (entry.role in (role, Role.SERVING) or role is Role.CANDIDATE)
                and self._versions.is_up(version)
            ):
                return version, True
            joined = _joining(role, weight, route)
            if version is not None and self._versions.repository.holds(version):
                return self._bring_up(version, joined, cause, request_id, traceparent), False
            folder = self._fetch(model, lineage)
            try:
                if version is None:
                    now = self._versions.clock.now()
                    version = self._versions.store.create_version(
                        ModelVersion(
                            model=model,
                            number=0,
                            lineage=lineage,
                            build=self._versions.builds.read(folder),
                            state=VersionState.LOADING,
                            create_time=now,
                            update_time=now,
                            request_id=request_id,
                            traceparent=traceparent,
                        )
                    )
                return self._bring_up(version, joined, cause, request_id, traceparent, folder), False
            finally:
                self._versions.builds.release(folder)

    def _fetch(self, model: str, lineage: Lineage) -> Path:
        try:
            return self._versions.builds.fetch(lineage.artifact_uri, lineage.digest)
        except TidemillError as error:
            logger.error("refused a build for %s: %s: %s", model_name(model), error.reason, error.message)
            raise

    def roll_back(
        self, model: str, number: int = 0, request_id: str = "", traceparent: str = "", cause: Cause = UNKNOWN
    ) -> ModelVersion:
        """Lets an earlier version answer again; the one before the serving one when `number` is zero.

        A repeat of a request that was done changes nothing and answers with the version it went back to.

        Raises:
            NotFoundError: the version does not exist.
            FailedPreconditionError: it never served, or there is no previous version.
        """
        with self._versions.locks[model]:
            serving = self._versions.get(model).serving
            done = self._versions.store.done_by(model, request_id) if request_id else None
            if done is not None:
                return done
            target = self._rollback_target(model, number, serving)
            if serving is not None and target.number == serving.number and self._versions.is_up(serving):
                return serving
            joined = _joining(Role.SERVING, 0, self._versions.get(model).route)
            return self._bring_up(target, joined, cause, request_id, traceparent)

    def unpublish(self, model: str, traceparent: str = "", cause: Cause = UNKNOWN) -> Model:
        """Takes a model out of service; its versions stay on disk."""
        with self._versions.locks[model]:
            known = self._versions.get(model)
            if known.route.entries:
                # First the store and the routes: no new request is sent, and a crash in between is reconciled.
                self._versions.routes.change(known.route.having((), {}), cause, traceparent=traceparent)
                self._versions.unload_left(model, at_once=True)
            return self._versions.get(model)

    def set_route(
        self,
        model: str,
        entries: Sequence[RouteEntry],
        aliases: Mapping[str, int],
        etag: str,
        traceparent: str = "",
        cause: Cause = UNKNOWN,
    ) -> Route:
        """Replaces a model's route and returns when all its versions are loaded; else nothing changes.

        Args:
            model: its name.
            entries: the versions.
            aliases: further names of these versions.
            etag: of the route that it replaces; `*` for any.
            traceparent: of the request.
            cause: of the change.

        Raises:
            NotFoundError: there is no such model, or no such version; or the files of one no longer exist.
            AbortedError: the route has another etag: it was changed meanwhile.
            InvalidArgumentError: they are not a valid route.
            FailedPreconditionError: a version failed, is damaged, or does something else than the others.
        """
        with self._versions.locks[model]:
            before = self._versions.get(model).route
            _check_etag(before, etag)
            after = before.set_to(entries, aliases)
            versions = [self._usable(model, each.number, f"entries[{at}].version") for at, each in enumerate(entries)]
            _check_tasks(versions)
            for at, version in enumerate(versions):
                try:
                    self._versions.loaded(version)
                except TidemillError as error:
                    logger.error("the route of %s stays as it is: %s", model_name(model), error.message)
                    raise _at_field(error, f"entries[{at}].version") from error
            if not _is_same(before, after):
                self._versions.routes.change(after, cause, traceparent=traceparent)
                logger.info("the route of %s is %s", model_name(model), _described(after))
            self._versions.put_off.pop(model, None)
            self._versions.unload_left(model)
            return self.route(model)

    def promote(
        self,
        model: str,
        number: int,
        etag: str = "",
        request_id: str = "",
        traceparent: str = "",
        cause: Cause = UNKNOWN,
    ) -> Route:
        """Makes a version of a model's route the serving one; see `ModelRoute.served_by`. A repeat changes nothing.

        Args:
            model: its name.
            number: of the version.
            etag: of the route in which it is promoted; any when empty.
            request_id: of the request.
            traceparent: of the request.
            cause: of the change.

        Raises:
            NotFoundError: there is no such model.
            AbortedError: the route has another etag: it was changed meanwhile.
            FailedPreconditionError: the version is not in the route, or it cannot be loaded.
        """
        with self._versions.locks[model]:
            before = self._versions.get(model).route
            entry = before.entry(number)
            repeated = request_id and self._versions.store.done_by(model, request_id) is not None
            if repeated or (entry is not None and entry.role is Role.SERVING):
                return self.route(model)
            _check_etag(before, etag or ANY_ETAG)
            if entry is None:
                numbers = ", ".join(str(each) for each in sorted(before.numbers)) or "no version"
                why = f"version {number} is not in the route of {model_name(model)}, which has {numbers}"
                raise FailedPreconditionError(
                    f"{why[0].upper()}{why[1:]}. `tidemill route set` puts it there; `tidemill route rollback` goes "
                    "back to one that served.",
                    reason="NOT_IN_ROUTE",
                    metadata={"model": model_name(model), "version": str(number)},
                    violations=[FieldViolation("version", why)],
                )
            version = self._usable(model, number, "version")
            self._bring_up(version, before.served_by, cause, request_id, traceparent)
            return self.route(model)

    def set_cascade(
        self, model: str, cascade: Cascade | None, etag: str = "", traceparent: str = "", cause: Cause = UNKNOWN
    ) -> Route:
        """Sets which larger model is asked when a classifier is not sure; None: it answers alone.

        Args:
            model: the classifier's name.
            cascade: the larger model, and when it is asked.
            etag: of the route that is changed; any when empty.
            traceparent: of the request.
            cause: of the change.

        Raises:
            NotFoundError: there is no such model, or no such larger one.
            AbortedError: the route has another etag: it was changed meanwhile.
            FailedPreconditionError: one of them does not serve, does not classify, or they have other labels.
        """
        with self._versions.locks[model]:
            small = self._versions.get(model)
            _check_etag(small.route, etag or ANY_ETAG)
            if cascade is not None:
                _check_cascade(small, self._larger(cascade.larger))
            if small.route.cascade != cascade:
                self._versions.routes.change(replace(small.route, cascade=cascade), cause, traceparent=traceparent)
                what = "answers alone" if cascade is None else f"asks {model_name(cascade.larger)} when it is not sure"
                logger.info("%s %s", model_name(model), what)
            return self.route(model)

    def _larger(self, name: str) -> Model:
        found = self._versions.store.model(name)
        if found is None:
            error = not_found("model", model_name(name), "`tidemill models` lists them.")
            violations = [FieldViolation("cascade.model", "there is no such model")]
            raise NotFoundError(error.message, reason=error.reason, metadata=error.metadata, violations=violations)
        return found

    def route(self, model: str) -> Route:
        """The route of a model, without versions if it is not published.

        Raises:
            NotFoundError: there is no such model.
        """
        return self._versions.routes.view(self._versions.get(model))

    def routes(self, after: str, limit: int) -> Sequence[Route]:
        """Routes by model, those after a name."""
        return [self._versions.routes.view(model) for model in self._versions.store.models(after, limit)]

    def list(self, after: str, limit: int) -> Sequence[Model]:
        """Models by name, those after a name."""
        return self._versions.store.models(after, limit)

    def versions(self, model: str, before: int, limit: int) -> Sequence[ModelVersion]:
        """Versions below a number, newest first."""
        self._versions.get(model)
        return self._versions.store.versions(model, before, limit)

    def _bring_up(
        self,
        version: ModelVersion,
        joined: Callable[[int], ModelRoute],
        cause: Cause,
        request_id: str,
        traceparent: str,
        build: Path | None = None,
    ) -> ModelVersion:
        """Loads a version, and sets the route that `joined` returns for its number."""
        try:
            route = _within_limit(joined(version.number))
            loaded = self._versions.loaded(version, build)
            if version.state is VersionState.LOADING:
                self._versions.check_answers(loaded)
        except TidemillError as error:
            self._give_up(version, error)
            raise
        version = self._versions.take_over(loaded, route, cause, request_id, traceparent)
        self._versions.unload_left(version.model)
        self._prune(version)
        return version

    def _give_up(self, version: ModelVersion, error: TidemillError) -> None:
        """A refused version that never served becomes FAILED, with the reason."""
        if is_retryable(error):
            return
        if is_integrity_error(error):
            version = self._versions.loader.refuse(version, error)
        if version.state is VersionState.LOADING:
            self._versions.fail(version, error.message)
            self._versions.repository.remove(version.model, version.number)

    def _usable(self, model: str, number: int, field: str) -> ModelVersion:
        """A version that may be in a route; `field` of the request names it."""
        version = self._versions.store.version(model, number)
        if version is None:
            violations = [FieldViolation(field, f"there is no version {number}")]
            error = not_found("model_version", version_name(model, number), "`tidemill models` lists them.")
            raise NotFoundError(error.message, reason=error.reason, metadata=error.metadata, violations=violations)
        if not version.is_loadable:
            violations = [FieldViolation(field, f"it is {version.state}")]
            raise FailedPreconditionError(
                f"{version.name} cannot be in a route ({version.state}): {version.message or 'it was never loaded'}.",
                reason="VERSION_NEVER_SERVED",
                violations=violations,
            )
        return version

    def _reusable(self, model: str, digest: str) -> ModelVersion | None:
        """A version of the same build whose number can be reused: it served before, or publishing it was cut off."""
        fits = (VersionState.LOADING, VersionState.RETIRED, VersionState.SERVING)
        return next(
            (v for v in self._versions.every_version(model) if v.lineage.digest == digest and v.state in fits), None
        )

    def _rollback_target(self, model: str, number: int, serving: ModelVersion | None) -> ModelVersion:
        if number:
            target = self._versions.store.version(model, number)
            if target is None:
                raise not_found("model_version", version_name(model, number))
            if not target.has_served:
                raise FailedPreconditionError(
                    f"{target.name} never served ({target.state.value}).", reason="VERSION_NEVER_SERVED"
                )
            return target
        before = serving.number if serving else NEWEST
        served = (v for v in self._versions.every_version(model, before) if v.has_served)
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
        for version in list(self._versions.every_version(serving.model)):
            if version.state is VersionState.RETIRED:
                retired.append(version)
            elif version.state is VersionState.LOADING:
                why = f"Its publication was cut off, and {serving.name} took its place."
                self._versions.store.update_version(
                    replace(version, state=VersionState.FAILED, message=why, update_time=self._versions.clock.now())
                )
                self._versions.repository.remove(version.model, version.number)
        for version in retired[max(0, self._keep - 1) :]:
            if self._versions.repository.holds(version):
                logger.info("removing the folder of %s", version.name)
                self._versions.repository.remove(version.model, version.number)


def _check_etag(route: ModelRoute, etag: str) -> None:
    if etag in (route.etag, ANY_ETAG):
        return
    raise AbortedError(
        f"The route of {model_name(route.model)} was changed meanwhile: its etag is {route.etag}, not {etag}. "
        "Read it with GetRoute and set it again.",
        reason="ROUTE_CHANGED",
        metadata={"model": model_name(route.model), "etag": route.etag},
    )


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


def _within_limit(route: ModelRoute) -> ModelRoute:
    if len(route.entries) > MAX_ENTRIES:
        model = model_name(route.model)
        raise FailedPreconditionError(
            f"The route of {model} is full: it can have {MAX_ENTRIES} versions. Take one out of it by "
            "`tidemill route set`, then publish again.",
            reason="ROUTE_FULL",
            metadata={"model": model},
        )
    return route


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


def _check_cascade(small: Model, larger: Model) -> None:
    """Refuses a pair of models if the larger one cannot answer in place of the small one."""
    serving, behind = small.serving, larger.serving
    if larger.name == small.name:
        field, why = "cascade.model", "it is the same model"
    elif serving is None or serving.build.task is not Task.TEXT_CLASSIFICATION:
        field, why = "model", "it must be a classifier of texts that serves"
    elif behind is None or behind.build.task is not Task.TEXT_CLASSIFICATION:
        field, why = "cascade.model", "it must be a classifier of texts that serves"
    elif set(serving.build.labels) != set(behind.build.labels):
        labels = ", ".join(behind.build.labels)
        field, why = "cascade.model", f"its labels are {labels}, and not {', '.join(serving.build.labels)}"
    else:
        return
    raise FailedPreconditionError(
        f"{model_name(larger.name)} cannot be asked when {model_name(small.name)} is not sure: `{field}`: {why}.",
        reason="NO_CASCADE",
        violations=[FieldViolation(field, why)],
    )


def _is_same(one: ModelRoute, other: ModelRoute) -> bool:
    return one.entries == other.entries and one.aliases == other.aliases


def _described(route: ModelRoute) -> str:
    shown = (f"{e.number}={e.weight}:{e.role}" if e.weight else f"{e.number}:{e.role}" for e in route.entries)
    return " ".join(shown)
