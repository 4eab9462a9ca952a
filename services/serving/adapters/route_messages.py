"""Between the contract's messages of routes and the domain, for both planes."""

from __future__ import annotations

from datetime import UTC

from tidemill.inference.v1 import route_pb2

from services.kit.grpc.messages import timestamp
from services.serving.domain.answer import Task
from services.serving.domain.names import model_name, version_name
from services.serving.domain.route import Route, RoutedVersion, Withdrawal


def route_to(route: Route) -> route_pb2.Route:
    """The message of a route."""
    why = route.withdrawn
    return route_pb2.Route(
        model=model_name(route.model),
        create_time=timestamp(route.create_time),
        versions=[_version_to(route.model, version) for version in route.versions],
        serving=version_name(route.model, route.serving) if route.serving is not None else "",
        withdrawn=route_pb2.Route.Withdrawal(message=why.message, reason=why.reason, metadata=why.metadata)
        if why is not None
        else None,
        generation=route.generation,
    )


def route_from(message: route_pb2.Route) -> Route:
    """The route in a message.

    Raises:
        ValueError: it names a task that this release does not know, or a number that is none.
    """
    why = message.withdrawn
    return Route(
        model=message.model.removeprefix("models/"),
        create_time=message.create_time.ToDatetime(UTC),
        versions=tuple(_version_from(version) for version in message.versions),
        serving=_number(message.serving) if message.serving else None,
        withdrawn=Withdrawal(why.message, why.reason, dict(why.metadata)) if message.HasField("withdrawn") else None,
        generation=message.generation,
    )


def _version_to(model: str, version: RoutedVersion) -> route_pb2.RoutedVersion:
    return route_pb2.RoutedVersion(
        name=version_name(model, version.number),
        task=version.task.value,
        precision=version.precision,
        labels=version.labels,
        prompt_template=version.prompt_template,
    )


def _version_from(message: route_pb2.RoutedVersion) -> RoutedVersion:
    return RoutedVersion(
        number=_number(message.name),
        task=Task(message.task),
        precision=message.precision,
        labels=tuple(message.labels),
        prompt_template=message.prompt_template,
    )


def _number(version: str) -> int:
    return int(version.rpartition("/")[2])
