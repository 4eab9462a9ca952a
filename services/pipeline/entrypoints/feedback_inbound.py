"""Records the feedback that other producers publish to `tidemill.feedback.inbound` as CloudEvents of any type.

The data is a JSON object with the fields of `POST /v1/feedback`: `answer`, and what is said of it. The event's source
and id stand for the request id, so that an event that arrives twice is one judgement. Whoever may write to the topic
is trusted to name the `tenant` whose answer it is. An event that is not valid becomes a dead letter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format
from tidemill.pipeline.v1.pipeline_service_pb2 import Judgement

from services.kit.bus.cloudevents import traceparent_of
from services.kit.bus.foreign_event import ForeignEvent, read_event
from services.kit.bus.port import Delivery
from services.kit.bus.topics import FEEDBACK_INBOUND
from services.kit.errors import InvalidArgumentError
from services.kit.grpc.validation import validate
from services.kit.ids import sha256_hex
from services.pipeline.app.feedback import FeedbackService
from services.pipeline.domain.feedback import Feedback
from services.pipeline.entrypoints.mapping import Caller, judgement_from

_SAID = ("rating", "correction", "label", "comment", "signal")
_FIELDS = frozenset({"answer", "author", "episode", "tenant", *_SAID})
_MAX_TENANT = 64


class FeedbackInbound:
    """Handles deliveries of `FEEDBACK_INBOUND`, and passes all others on."""

    def __init__(self, feedback: FeedbackService, others: Callable[[Sequence[Delivery]], None]) -> None:
        self._feedback, self._others = feedback, others

    def handle(self, batch: Sequence[Delivery]) -> None:
        """Records a batch, idempotently; refuses all of it before anything is recorded."""
        inbound = [delivery for delivery in batch if delivery.topic == FEEDBACK_INBOUND.name]
        if inbound:
            drafts = [draft_of(delivery) for delivery in inbound]
            self._feedback.record(drafts, sent=[_sent(delivery) for delivery in inbound])
        if others := [delivery for delivery in batch if delivery.topic != FEEDBACK_INBOUND.name]:
            self._others(others)


def _sent(delivery: Delivery) -> datetime:
    """When it was sent, by the broker's clock; now if that is not a time."""
    if delivery.log_time_ms is not None and delivery.log_time_ms >= 0:
        with suppress(OverflowError, ValueError, OSError):
            return datetime.fromtimestamp(delivery.log_time_ms / 1000, UTC)
    return datetime.now(UTC)


def draft_of(delivery: Delivery) -> Feedback:
    """The judgement of a delivery.

    Raises:
        InvalidArgumentError: it is not a valid judgement; see the reason.
    """
    event = read_event(delivery)
    data = _data_of(event)
    signal = data.get("signal") or "unspecified"
    name = str(data.get("answer") or "")
    fields = {key: data[key] for key in data if key not in ("tenant", "signal", "answer")}
    fields |= {"signal": f"FEEDBACK_SIGNAL_{str(signal).upper()}", "answer": f"answers/{name.removeprefix('answers/')}"}
    try:
        message = json_format.ParseDict(fields, Judgement())
    except json_format.ParseError as error:
        raise InvalidArgumentError(f"The feedback cannot be read: {error}.", reason="INVALID_FIELD") from error
    message.request_id = "evt-" + sha256_hex(event.source, event.event_id)
    validate(message)
    tenant = data.get("tenant", "")
    if not isinstance(tenant, str) or len(tenant) > _MAX_TENANT:
        raise InvalidArgumentError(f"`tenant` must be a text of at most {_MAX_TENANT} characters.")
    trace = traceparent_of(delivery)
    return judgement_from(message, Caller(tenant, f"event:{event.source}"[:128]), trace)


def _data_of(event: ForeignEvent) -> Mapping[str, Any]:
    if not event.is_json or not isinstance(event.data, dict):
        raise InvalidArgumentError(
            'The data must be a JSON object, such as {"answer": "a", "rating": 1}.',
            reason="NOT_AN_OBJECT",
        )
    data = {key: value for key, value in event.data.items() if value is not None}
    if unknown := sorted(set(data) - _FIELDS):
        raise InvalidArgumentError(
            f"{unknown[0][:80]!a} is not a field of feedback; it has {', '.join(sorted(_FIELDS))}.",
            reason="UNKNOWN_FIELD",
        )
    if not any(data.get(name) not in (None, "") for name in _SAID):
        raise InvalidArgumentError(
            f"The event does not judge the answer; give one of {', '.join(_SAID)}.", reason="NO_FEEDBACK"
        )
    return data
