"""What the tests put on the bus and read from it."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message
from kafka import KafkaConsumer, TopicPartition
from tidemill.ingest.v1 import ingest_events_pb2, record_pb2

from services.kit.bus.port import OutgoingEvent
from services.kit.bus.topics import Topic

M = TypeVar("M", bound=Message)


def raw_event(record_id: str, source: str, text: str, import_name: str = "", **attributes: str) -> OutgoingEvent:
    """A raw record as ingest publishes it."""
    record = record_pb2.Record(record_id=record_id, source=source, text=text, attributes=attributes)
    message = ingest_events_pb2.RecordIngested(record=record, import_name=import_name)
    message.ingest_time.GetCurrentTime()
    return OutgoingEvent(record_id, message)


def read_all(bootstrap: str, topic: Topic) -> list[tuple[dict[str, bytes], bytes]]:
    """Headers and values of all messages that a topic holds now."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, isolation_level="read_committed")
    try:
        partitions = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        consumer.seek_to_beginning(*partitions)
        found: list[tuple[dict[str, bytes], bytes]] = []
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for records in consumer.poll(timeout_ms=500).values():
                found += [(dict(record.headers), record.value) for record in records]
        return found
    finally:
        consumer.close()


def events_of(bootstrap: str, topic: Topic, kind: type[M], **fields: str) -> list[tuple[dict[str, bytes], M]]:
    """Headers and messages of a topic whose fields have these values."""
    found = [(headers, kind.FromString(value)) for headers, value in read_all(bootstrap, topic)]
    return [(h, m) for h, m in found if all(getattr(m, name) == value for name, value in fields.items())]
