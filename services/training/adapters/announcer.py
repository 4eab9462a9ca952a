"""Publishes the service's events."""

from __future__ import annotations

from google.protobuf.message import Message
from tidemill.training.v1 import training_events_pb2 as events

from services.kit.bus.port import EventPublisher, OutgoingEvent
from services.kit.bus.topics import TRAINING_EVENTS
from services.kit.grpc.messages import failure_to
from services.kit.ids import sha256_hex
from services.kit.telemetry.context import continued_trace
from services.training.domain.run import Run, RunState


class BusAnnouncer:
    """Implements `services.training.app.ports.Announcer`; an event continues the trace that created the run."""

    def __init__(self, publisher: EventPublisher) -> None:
        self._publisher = publisher

    def ended(self, run: Run) -> None:
        """See the port."""
        event = OutgoingEvent(run.name, _message(run), event_id=sha256_hex(run.name, run.state.value))
        with continued_trace(run.traceparent):
            self._publisher.publish(TRAINING_EVENTS, [event])


def _message(run: Run) -> Message:
    if run.state is RunState.SUCCEEDED:
        return events.RunSucceeded(run=run.name, model_version=run.model_version)
    if run.state is RunState.CANCELLED:
        return events.RunCancelled(run=run.name)
    return events.RunFailed(run=run.name, failure=failure_to(run.failure))
