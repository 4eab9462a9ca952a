"""What the tests put on the bus and read from it."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message
from tidemill.ingest.v1 import ingest_events_pb2, record_pb2

from services.kit.bus.port import OutgoingEvent
from services.kit.bus.topics import Topic
from tests.topics import read_all

M = TypeVar("M", bound=Message)


def raw_event(record_id: str, source: str, text: str, import_name: str = "", **attributes: str) -> OutgoingEvent:
    """A raw record as ingest publishes it."""
    record = record_pb2.Record(record_id=record_id, source=source, text=text, attributes=attributes)
    message = ingest_events_pb2.RecordIngested(record=record, import_name=import_name)
    message.ingest_time.GetCurrentTime()
    return OutgoingEvent(record_id, message)


def events_of(bootstrap: str, topic: Topic, kind: type[M], **fields: str) -> list[tuple[dict[str, bytes], M]]:
    """Headers and messages of a topic whose fields have these values."""
    found = [(headers, kind.FromString(value)) for headers, value in read_all(bootstrap, topic)]
    return [(h, m) for h, m in found if all(getattr(m, name) == value for name, value in fields.items())]
