"""CloudEvents 1.0 in Kafka's binary mode: protobuf value, `ce_*` headers, W3C trace context in headers.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from opentelemetry import propagate
from opentelemetry.context import Context

from services.kit.bus.port import Delivery, OutgoingEvent
from services.kit.bus.topics import MAX_MESSAGE_BYTES, MAX_VALUE_BYTES
from services.kit.errors import InvalidArgumentError, TidemillError
from services.kit.ids import new_id

PROTOBUF = "application/protobuf"

M = TypeVar("M", bound=Message)


# A refused message that is too large for a dead letter keeps this much of its key and of its headers.
_KEPT_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class EncodedEvent:
    """An event as a Kafka message."""

    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]


def encode(events: Sequence[OutgoingEvent], source: str) -> list[EncodedEvent]:
    """The Kafka messages of events. Their headers carry an event's own trace context, or else the current one.

    Args:
        events: what happened.
        source: the producing service; the CloudEvents source is `/tidemill/<source>`.
    """
    current: dict[str, str] = {}
    propagate.inject(current)
    shared = [
        ("content-type", PROTOBUF.encode()),
        ("ce_specversion", b"1.0"),
        ("ce_source", f"/tidemill/{source}".encode()),
        ("ce_time", datetime.now(UTC).isoformat().encode()),
    ]
    return [
        EncodedEvent(
            event.key.encode(),
            event.message.SerializeToString(deterministic=True),
            [
                *shared,
                ("ce_id", (event.event_id or new_id()).encode()),
                ("ce_type", event.message.DESCRIPTOR.full_name.encode()),
                ("ce_subject", event.key.encode()),
                *((name, text.encode()) for name, text in (event.trace or current).items()),
            ],
        )
        for event in events
    ]


def decode(delivery: Delivery, kind: type[M]) -> M:
    """The message that a delivery carries.

    Raises:
        InvalidArgumentError: the event has another type or encoding, or is damaged.
    """
    expected = kind.DESCRIPTOR.full_name
    if delivery.event_type != expected:
        raise InvalidArgumentError(
            f"Expected an event of type {expected}, got {delivery.event_type or 'none'}.",
            reason="UNEXPECTED_EVENT_TYPE",
            metadata={"type": delivery.event_type},
        )
    if delivery.content_type != PROTOBUF:
        raise InvalidArgumentError(
            f"Expected content-type {PROTOBUF}, got {delivery.content_type or 'none'}.",
            reason="UNEXPECTED_CONTENT_TYPE",
            metadata={"content_type": delivery.content_type},
        )
    message = kind()
    try:
        message.ParseFromString(delivery.value)
    except DecodeError as error:
        raise InvalidArgumentError(
            f"The value is not a valid {expected}: {error}.", reason="UNDECODABLE_EVENT"
        ) from error
    return message


def traceparent_of(delivery: Delivery) -> str:
    """The producer's `traceparent` in at most 64 characters; empty if it sent none."""
    return delivery.headers.get("traceparent", b"").decode("ascii", "replace")[:64]


def trace_context(delivery: Delivery) -> Context:
    """The trace context of the delivery's producer; empty if it sent none."""
    carrier = {
        name: delivery.headers[name].decode("ascii", "replace")
        for name in ("traceparent", "tracestate", "baggage")
        if name in delivery.headers
    }
    return propagate.extract(carrier, Context())


def dead_letter(delivery: Delivery, error: Exception, service: str) -> EncodedEvent:
    """A refused message as it arrived, with headers that give the reason and its original position.

    The broker measures messages compressed, so a foreign message may be larger than a topic accepts from us. Then only
    its beginning is kept, and `dlq_original_bytes` has the full size. The original stays in its topic until it expires.
    """
    reason = error.reason if isinstance(error, TidemillError) else "UNEXPECTED"
    origin = {"topic": delivery.topic, "partition": str(delivery.partition), "offset": str(delivery.offset)}
    why = refusal_headers(reason, str(error) or type(error).__name__, service, origin)
    key, value, own = delivery.key, delivery.value, list(delivery.headers.items())
    size = len(key or b"") + len(value) + _size(own)
    if size + _size(why) > MAX_MESSAGE_BYTES - 1024:
        key, own = key and key[:_KEPT_BYTES], _first(own, _KEPT_BYTES)
        value = value[: MAX_VALUE_BYTES - 2 * _KEPT_BYTES]
        why.append(("dlq_original_bytes", str(size).encode()))
    return EncodedEvent(key, value, [*own, *why])


def _size(headers: Sequence[tuple[str, bytes]]) -> int:
    # Kafka adds a few bytes for each length.
    return sum(len(name.encode()) + len(text) + 10 for name, text in headers)


def _first(headers: Sequence[tuple[str, bytes]], limit: int) -> list[tuple[str, bytes]]:
    kept: list[tuple[str, bytes]] = []
    for header in headers:
        limit -= _size([header])
        if limit >= 0:
            kept.append(header)
    return kept


def refusal_headers(reason: str, message: str, service: str, origin: Mapping[str, str]) -> list[tuple[str, bytes]]:
    """Headers with the reason for a refusal, the refusing service and the original position (`dlq_<name>` each)."""
    return [
        ("dlq_reason", reason.encode()),
        ("dlq_message", message.encode("utf-8", "replace")[:4096]),
        ("dlq_service", service.encode()),
        *((f"dlq_{name}", text.encode("utf-8", "replace")) for name, text in origin.items()),
        ("dlq_time", datetime.now(UTC).isoformat().encode()),
    ]
