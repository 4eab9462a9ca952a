"""Facts of the pipeline on the bus."""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.pipeline.v1 import pipeline_events_pb2 as events

from services.kit.bus.port import EventPublisher, OutgoingEvent
from services.kit.bus.topics import FEEDBACK, PIPELINE_EVENTS
from services.kit.grpc.messages import timestamp
from services.kit.ids import sha256_hex
from services.kit.telemetry.context import continued_trace
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
        with continued_trace(cycle.traceparent):
            event = OutgoingEvent(cycle.name, message, event_id=sha256_hex(cycle.name, cycle.state.value))
            self._publisher.publish(PIPELINE_EVENTS, [event])

    def feedback(self, items: Sequence[Feedback]) -> None:
        """See the port."""
        for item in items:
            message = events.FeedbackRecorded(
                feedback=item.name,
                answer=item.answer,
                rating=item.rating,
                correction=item.correction,
                record_time=timestamp(item.create_time),
                label=item.label,
                episode=item.episode,
                signal=item.signal.value,
            )
            with continued_trace(item.traceparent):
                self._publisher.publish(FEEDBACK, [OutgoingEvent(item.answer, message, event_id=item.feedback_id)])
