"""Facts of the pipeline on the bus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry import context, propagate
from opentelemetry.context import Context
from tidemill.pipeline.v1 import pipeline_events_pb2 as events

from services.kit.bus.port import EventPublisher, OutgoingEvent
from services.kit.bus.topics import FEEDBACK, PIPELINE_EVENTS
from services.kit.ids import sha256_hex
from services.pipeline.domain.cycle import Cycle
from services.pipeline.domain.feedback import Feedback


class BusAnnouncer:
    """Implements `services.pipeline.app.ports.Announcer`; an event continues the trace that caused it."""

    def __init__(self, publisher: EventPublisher) -> None:
        self._publisher = publisher

    def cycle_ended(self, cycle: Cycle) -> None:
        """See the port."""
        message = events.CycleEnded(
            cycle=cycle.name, state=f"STATE_{cycle.state.name}", model_version=cycle.model_version
        )
        with _trace(cycle.traceparent):
            event = OutgoingEvent(cycle.name, message, event_id=sha256_hex(cycle.name, cycle.state.value))
            self._publisher.publish(PIPELINE_EVENTS, [event])

    def feedback(self, items: Sequence[Feedback]) -> None:
        """See the port."""
        for item in items:
            time = Timestamp()
            time.FromDatetime(item.create_time)
            message = events.FeedbackRecorded(
                feedback=item.name,
                answer=item.answer,
                rating=item.rating,
                correction=item.correction,
                record_time=time,
            )
            with _trace(item.traceparent):
                self._publisher.publish(FEEDBACK, [OutgoingEvent(item.answer, message, event_id=item.feedback_id)])


@contextmanager
def _trace(traceparent: str) -> Iterator[None]:
    token = context.attach(propagate.extract({"traceparent": traceparent}, Context()))
    try:
        yield
    finally:
        context.detach(token)
