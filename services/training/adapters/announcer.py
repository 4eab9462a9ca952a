"""Facts of training on the bus."""

from __future__ import annotations

from google.protobuf.message import Message
from opentelemetry import context, propagate
from opentelemetry.context import Context
from tidemill.common.v1 import failure_pb2
from tidemill.training.v1 import training_events_pb2 as events

from services.kit.bus.port import EventPublisher, OutgoingEvent
from services.kit.bus.topics import TRAINING_EVENTS
from services.kit.ids import sha256_hex
from services.training.domain.run import Run, RunState


class BusAnnouncer:
    """Implements `services.training.app.ports.Announcer`; an event continues the trace that created the run."""

    def __init__(self, publisher: EventPublisher) -> None:
        self._publisher = publisher

    def ended(self, run: Run) -> None:
        """See the port."""
        event = OutgoingEvent(run.name, _message(run), event_id=sha256_hex(run.name, run.state.value))
        token = context.attach(propagate.extract({"traceparent": run.traceparent}, Context()))
        try:
            self._publisher.publish(TRAINING_EVENTS, [event])
        finally:
            context.detach(token)


def _message(run: Run) -> Message:
    if run.state is RunState.SUCCEEDED:
        return events.RunSucceeded(run=run.name, model_version=run.model_version)
    if run.state is RunState.CANCELLED:
        return events.RunCancelled(run=run.name)
    failure = run.failure
    assert failure is not None
    return events.RunFailed(
        run=run.name,
        failure=failure_pb2.Failure(reason=failure.reason, message=failure.message, metadata=failure.metadata),
    )
