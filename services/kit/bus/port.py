"""The bus as use cases see it: publish facts, handle deliveries.

Guarantees (docs/adr/0001): a fact is durable when `publish` returns; a delivery comes at least once and in order
within its key; it is marked done only after its handler returned, so handlers are idempotent.
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

    `event_id` is the CloudEvents id: give a derived one where the same fact may be published again after a
    restart, so that it is the same event. `trace` are the W3C trace headers (`traceparent`…) that the event continues
    where it is not the trace of whoever publishes it.
    """

    key: str
    message: Message
    event_id: str | None = None
    trace: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Something refused that came by no topic; `origin` says where it stood, and becomes `dlq_*` headers."""

    key: bytes
    value: bytes
    reason: str
    message: str
    origin: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as it came from a topic. `headers` are the message's own, names in lower case."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: Mapping[str, bytes]
    timestamp_ms: int

    @property
    def event_type(self) -> str:
        """CloudEvents type; empty for a message that is no CloudEvent."""
        return self.headers.get("ce_type", b"").decode("utf-8", "replace")

    @property
    def event_id(self) -> str:
        """CloudEvents id; empty for a message that is no CloudEvent."""
        return self.headers.get("ce_id", b"").decode("utf-8", "replace")

    @property
    def event_source(self) -> str:
        """CloudEvents source; empty for a message that is no CloudEvent."""
        return self.headers.get("ce_source", b"").decode("utf-8", "replace")

    @property
    def content_type(self) -> str:
        """Content type of the value; empty when none is given."""
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
        """So many, at most: a transaction takes an offset, too."""
        return self.next_offset - self.first_offset


class EventPublisher(Protocol):
    """Publishes facts of one service."""

    def publish(self, topic: Topic, events: Sequence[OutgoingEvent]) -> None:
        """Makes the events durable, in order for each key; returns when every replica in sync has them.

        Raises:
            UnavailableError: not all of them are durable; publish all of them again.
            InvalidArgumentError: one is larger than the bus takes.
        """
        ...


class EventHandler(Protocol):
    """What a service does with deliveries.

    It gets a batch and either does all of it or raises. Then each delivery is tried alone: one that raises an
    error that no retry mends goes to the dead letters with its reason; one that raises a retryable error is
    tried again, and its partition waits. It runs in one thread at a time.
    """

    def handle(self, batch: Sequence[Delivery]) -> None:
        """Does the work of a batch, idempotently."""
        ...
