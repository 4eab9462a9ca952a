"""Between the contract's messages of routes and the domain, for both planes."""

from __future__ import annotations

from datetime import UTC

from tidemill.inference.v1 import route_pb2

from services.kit.grpc.messages import timestamp
from services.serving.domain.answer import Task
from services.serving.domain.cascade import Cascade
from services.serving.domain.names import model_name, model_of
from services.serving.domain.route import SLOTS, Role, Route, RoutedVersion, Withdrawal

ROLES = {
    Role.SERVING: route_pb2.VERSION_ROLE_SERVING,
    Role.CANARY: route_pb2.VERSION_ROLE_CANARY,
    Role.SHADOW: route_pb2.VERSION_ROLE_SHADOW,
    Role.CANDIDATE: route_pb2.VERSION_ROLE_CANDIDATE,
}
_FROM: dict[int, Role] = {message: role for role, message in ROLES.items()}


def route_to(route: Route) -> route_pb2.Route:
    """The message of a route."""
    why, serving = route.withdrawn, route.serving
    return route_pb2.Route(
        model=model_name(route.model),
        create_time=timestamp(route.create_time),
        versions=[_version_to(version) for version in route.versions],
        serving=serving.name if serving is not None else "",
        withdrawn=route_pb2.Route.Withdrawal(message=why.message, reason=why.reason, metadata=why.metadata)
        if why is not None
        else None,
        generation=serving.generation if serving is not None else 0,
        aliases=route.aliases,
        etag=route.etag,
        update_time=timestamp(route.update_time) if route.update_time is not None else None,
        cascade=cascade_to(route.cascade) if route.cascade is not None else None,
    )


def route_from(message: route_pb2.Route) -> Route:
    """The route in a message, also in one of a release whose routes had one version.

    Raises:
        ValueError: it names a task that this release does not know, or a number of a version that is not valid.
    """
    why, model = message.withdrawn, message.model.removeprefix("models/")
    return Route(
        model=model,
        create_time=message.create_time.ToDatetime(UTC),
        versions=tuple(
            _version_from(model, version, message)
            for version in message.versions
            if version.role or version.name == message.serving
        ),
        aliases=dict(message.aliases),
        withdrawn=Withdrawal(why.message, why.reason, dict(why.metadata)) if message.HasField("withdrawn") else None,
        etag=message.etag,
        update_time=message.update_time.ToDatetime(UTC) if message.HasField("update_time") else None,
        cascade=cascade_from(message.cascade) if message.HasField("cascade") else None,
    )


def cascade_to(cascade: Cascade) -> route_pb2.Cascade:
    """The message of a cascade."""
    return route_pb2.Cascade(
        model=model_name(cascade.larger), min_confidence=cascade.min_confidence, temperature=cascade.temperature
    )


def cascade_from(message: route_pb2.Cascade) -> Cascade:
    """The cascade in a message."""
    return Cascade(model_of(message.model), message.min_confidence, message.temperature or 1.0)


def role_from(message: int) -> Role:
    """The role; serving where none is set."""
    return _FROM.get(message, Role.SERVING)


def _version_to(version: RoutedVersion) -> route_pb2.RoutedVersion:
    return route_pb2.RoutedVersion(
        name=version.name,
        task=version.task.value,
        precision=version.precision,
        labels=version.labels,
        prompt_template=version.prompt_template,
        embedding_size=version.embedding_size,
        digest=version.digest,
        role=ROLES[version.role],
        weight=version.weight,
        users=[route_pb2.HashRange(begin=begin, end=end) for begin, end in version.users],
        generation=version.generation,
        load_seconds=version.load_s,
    )


def _version_from(model: str, message: route_pb2.RoutedVersion, route: route_pb2.Route) -> RoutedVersion:
    earlier = not message.role
    return RoutedVersion(
        model=model,
        number=int(message.name.rpartition("/")[2]),
        task=Task(message.task),
        precision=message.precision,
        labels=tuple(message.labels),
        prompt_template=message.prompt_template,
        embedding_size=message.embedding_size,
        digest=message.digest,
        role=role_from(message.role),
        weight=message.weight,
        users=((0, SLOTS),) if earlier else tuple((each.begin, each.end) for each in message.users),
        generation=route.generation if earlier else message.generation,
        load_s=message.load_seconds,
    )
