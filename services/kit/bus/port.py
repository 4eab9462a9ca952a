"""The bus as use cases see it: publish facts, handle deliveries.

Guarantees (docs/adr/0001): a fact is durable when `publish` returns. A delivery arrives at least once, and in order
within its key. It is committed only after its handler returned, so handlers must be idempotent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from google.protobuf.message import Message

from services.kit.bus.topics import Topic


@dataclass(frozen=True, slots=True)
class OutgoingEvent:
    """A fact to publish.

    `event_id` is the CloudEvents id. Derive it from the content if the same fact may be published again after a
    restart, so that it stays the same event. `trace` are the W3C trace headers (`traceparent`…) to continue, if the
    event does not belong to the publisher's current trace.
    """

    key: str
    message: Message
    event_id: str | None = None
    trace: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A refused item that did not come from a topic. `origin` says where it came from, and becomes `dlq_*` headers."""

    key: bytes
    value: bytes
    reason: str
    message: str
    origin: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as it arrived from a topic. `headers` are the message's own, with lower-case names.

    `log_time_ms` is when the bus took it, by the bus's clock, in milliseconds since 1970; None of a message that could
    not be read.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: Mapping[str, bytes]
    log_time_ms: int | None = None

    @property
    def event_type(self) -> str:
        """CloudEvents type; empty if the message is not a CloudEvent."""
        return self.headers.get("ce_type", b"").decode("utf-8", "replace")

    @property
    def event_id(self) -> str:
        """CloudEvents id; empty if the message is not a CloudEvent."""
        return self.headers.get("ce_id", b"").decode("utf-8", "replace")

    @property
    def content_type(self) -> str:
        """Content type of the value; empty if not given."""
        return self.headers.get("content-type", b"").decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class LostMessages:
    """Messages that the bus deleted before a group had read them: offsets `first_offset` to `next_offset` - 1."""

    topic: str
    partition: int
    first_offset: int
    next_offset: int

    @property
    def count(self) -> int:
        """Upper bound of their number: transaction markers take offsets, too."""
        return self.next_offset - self.first_offset


class EventPublisher(Protocol):
    """Publishes facts of one service."""

    def publish(self, topic: Topic, events: Sequence[OutgoingEvent]) -> None:
        """Makes the events durable, in order within each key; returns when all in-sync replicas have them.

        Raises:
            UnavailableError: not all of them are durable; publish all of them again.
            InvalidArgumentError: an event is larger than the bus accepts.
        """
        ...


class DeadLetterPublisher(EventPublisher, Protocol):
    """A publisher that puts aside what was refused before it became an event."""

    def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        """Makes dead letters durable.

        Raises:
            UnavailableError: not all of them are durable; set all of them aside again.
        """
        ...


class EventHandler(Protocol):
    """What a service does with deliveries.

    It gets a batch and either handles all of it or raises. After an error each delivery is tried alone: one that
    raises a permanent error goes to the dead letters with its reason; one that raises a retryable error is retried
    while its partition waits. Called from one thread at a time.
    """

    def handle(self, batch: Sequence[Delivery]) -> None:
        """Handles a batch, idempotently."""
        ...
