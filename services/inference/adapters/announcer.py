"""Facts of inference on the bus, durably."""

from __future__ import annotations

from tidemill.inference.v1 import inference_events_pb2 as events
from tidemill.inference.v1 import route_pb2

from services.inference.domain.model import ModelVersion
from services.inference.domain.route import ModelRoute
from services.kit.bus.port import EventPublisher, OutgoingEvent
from services.kit.bus.topics import INFERENCE_EVENTS
from services.kit.grpc.messages import timestamp
from services.kit.ids import sha256_hex
from services.kit.telemetry.context import continued_trace
from services.serving.adapters.route_messages import ROLES
from services.serving.domain.names import model_name


class BusAnnouncer:
    """Implements `services.inference.app.ports.Announcer`; the event continues the trace that published."""

    def __init__(self, publisher: EventPublisher) -> None:
        self._publisher = publisher

    def published(self, version: ModelVersion) -> None:
        """See the port. Repeating a publication publishes the same event."""
        message = events.ModelPublished(
            model_version=version.name, digest=version.lineage.digest, run=version.lineage.run
        )
        event_id = sha256_hex(version.name, version.lineage.digest, str(version.serve_time))
        with continued_trace(version.traceparent):
            self._publisher.publish(INFERENCE_EVENTS, [OutgoingEvent(version.model, message, event_id=event_id)])

    def route_changed(self, route: ModelRoute, traceparent: str) -> None:
        """See the port. Repeating it publishes the same event."""
        message = events.RouteChanged(
            model=model_name(route.model),
            entries=[
                route_pb2.RouteEntry(version=entry.number, role=ROLES[entry.role], weight=entry.weight)
                for entry in route.entries
            ],
            aliases=route.aliases,
            etag=route.etag,
            change_time=timestamp(route.update_time) if route.update_time is not None else None,
            method=route.cause.method,
            api_key=route.cause.api_key,
            reason=route.cause.reason,
        )
        event_id = sha256_hex("RouteChanged", route.model, route.etag)
        with continued_trace(traceparent):
            self._publisher.publish(INFERENCE_EVENTS, [OutgoingEvent(route.model, message, event_id=event_id)])
