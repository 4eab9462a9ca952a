"""The table of routes of a data plane: in memory, so that a request asks no database and no other service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from services.kit.errors import FailedPreconditionError, InternalError, NotFoundError, UnavailableError
from services.serving.domain.answer import Task
from services.serving.domain.names import model_name, version_name
from services.serving.domain.route import Route, RoutedVersion


class RoutingTable:
    """Routes by model. Changes replace whole routes, so a reader needs no lock."""

    def __init__(self) -> None:
        self._routes: Mapping[str, Route] | None = None

    @property
    def known(self) -> bool:
        """Whether routes have been received at all."""
        return self._routes is not None

    def replace(self, routes: Iterable[Route]) -> None:
        """Takes a full snapshot in place of what was known."""
        self._routes = {route.model: route for route in routes}

    def change(self, routes: Iterable[Route]) -> None:
        """Takes changed routes."""
        self._routes = {**(self._routes or {}), **{route.model: route for route in routes}}

    def routes(self) -> Sequence[Route]:
        """All routes, by model.

        Raises:
            UnavailableError: none have been received yet.
        """
        return [route for _, route in sorted(self._all().items())]

    def generation(self, model: str) -> int:
        """The generation of the model's process in Triton; 0 if the model has no route."""
        route = (self._routes or {}).get(model)
        return route.generation if route is not None else 0

    def serves(self, model: str, version: str = "") -> bool:
        """Whether a version of the model answers, and if one is named, whether it is that one."""
        route = (self._routes or {}).get(model)
        answering = route.answering if route is not None else None
        return answering is not None and version in ("", str(answering.number))

    def prompt_template(self, model: str) -> str:
        """The prompt that the version which answers was trained on; empty if it has none, or no version answers."""
        route = (self._routes or {}).get(model)
        answering = route.answering if route is not None else None
        return answering.prompt_template if answering is not None else ""

    def labels(self, model: str, number: int) -> Sequence[str]:
        """Labels of a version that answers or is about to, in the order of its scores.

        Raises:
            InternalError: the version is unknown.
        """
        route = self._all().get(model)
        for version in route.versions if route is not None else ():
            if version.number == number:
                return version.labels
        raise InternalError(f"{version_name(model, number)} answered, but was never published.", reason="NO_ROUTE")

    def require(self, model: str, task: Task) -> RoutedVersion:
        """The version that answers.

        Raises:
            NotFoundError: no version of such a model is published.
            FailedPreconditionError: the model does something else, or its version was withdrawn.
            UnavailableError: no routes have been received yet.
        """
        route = self._all().get(model)
        version = route.answering if route is not None else None
        if version is None and route is not None and (why := route.withdrawn) is not None:
            raise FailedPreconditionError(
                f"{model_name(model)} is out of service: {why.message}",
                reason=why.reason,
                metadata={**why.metadata, "model": model_name(model)},
            )
        if version is None:
            raise NotFoundError(
                f"No version of {model_name(model)} is published.",
                reason="MODEL_NOT_FOUND",
                metadata={"model": model_name(model)},
            )
        if version.task is not task:
            raise FailedPreconditionError(
                f"{model_name(model)} is a model for {version.task.value}, not for {task.value}.",
                reason="WRONG_TASK",
                metadata={"model": model_name(model), "task": version.task.value},
            )
        return version

    def _all(self) -> Mapping[str, Route]:
        if self._routes is None:
            raise UnavailableError(
                "It is not known yet which models serve: the inference service has sent no routes. Retry later.",
                reason="ROUTES_UNKNOWN",
                retry_after_s=1.0,
            )
        return self._routes
