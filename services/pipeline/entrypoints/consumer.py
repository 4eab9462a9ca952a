"""Consumes events: ended work of peers, and served answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC

from tidemill.cleaning.v1.cleaning_events_pb2 import DatasetVersionBuilt
from tidemill.inference.v1.inference_events_pb2 import AnswerCaptured, PredictionServed
from tidemill.ingest.v1.ingest_events_pb2 import ImportCompleted
from tidemill.training.v1.training_events_pb2 import RunCancelled, RunFailed, RunSucceeded

from services.kit.bus.cloudevents import decode
from services.kit.bus.port import Delivery
from services.kit.bus.topics import (
    ANSWERS_CAPTURED,
    CLEANING_EVENTS,
    FEEDBACK_INBOUND,
    INGEST_EVENTS,
    PREDICTIONS,
    TRAINING_EVENTS,
)
from services.pipeline.app.capture import Captures
from services.pipeline.app.feedback import FeedbackService
from services.pipeline.domain.capture import CapturedAnswer
from services.pipeline.domain.feedback import Answer

TOPICS = (INGEST_EVENTS, CLEANING_EVENTS, TRAINING_EVENTS, PREDICTIONS, ANSWERS_CAPTURED, FEEDBACK_INBOUND)


class PeerEventHandler:
    """Handles deliveries of `TOPICS`; ignores unknown event types."""

    def __init__(self, feedback: FeedbackService, captures: Captures, ended: Callable[[str], None]) -> None:
        self._feedback, self._captures, self._ended = feedback, captures, ended
        self._resource: dict[str, Callable[[Delivery], str]] = {
            ImportCompleted.DESCRIPTOR.full_name: lambda d: decode(d, ImportCompleted).import_name,
            DatasetVersionBuilt.DESCRIPTOR.full_name: lambda d: decode(d, DatasetVersionBuilt).dataset_version,
            RunSucceeded.DESCRIPTOR.full_name: lambda d: decode(d, RunSucceeded).run,
            RunFailed.DESCRIPTOR.full_name: lambda d: decode(d, RunFailed).run,
            RunCancelled.DESCRIPTOR.full_name: lambda d: decode(d, RunCancelled).run,
        }

    def handle(self, batch: Sequence[Delivery]) -> None:
        """Keeps answers and wakes the cycles that wait; idempotent."""
        served = [decode(delivery, PredictionServed) for delivery in batch if delivery.topic == PREDICTIONS.name]
        # No caller has the answer to a copy, so none can judge it.
        self._feedback.remember([_answer(message) for message in served if not message.shadowed_answer])
        self._captures.keep([_captured(delivery) for delivery in batch if delivery.topic == ANSWERS_CAPTURED.name])
        for delivery in batch:
            name_of = self._resource.get(delivery.event_type)
            if name_of is not None:
                self._ended(name_of(delivery))


def _answer(message: PredictionServed) -> Answer:
    return Answer(message.answer, message.model_version, message.answer_time.ToDatetime(UTC))


def _captured(delivery: Delivery) -> CapturedAnswer:
    message = decode(delivery, AnswerCaptured)
    served = message.served
    return CapturedAnswer(
        name=served.answer,
        model_version=served.model_version,
        method=served.method,
        prompt=message.prompt,
        text=message.text,
        answer_time=served.answer_time.ToDatetime(UTC),
        conversation=message.conversation,
        label=served.label,
        score=served.score,
        tenant=message.tenant,
        role=served.role,
        prompt_tokens=served.prompt_tokens,
        completion_tokens=served.completion_tokens,
        latency_ms=served.latency_ms,
        asked_by=message.asked_by,
    )
