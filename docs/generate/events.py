"""`docs/events.md`: the topics, from the bus's table, and the events on them, from the protos."""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from tidemill.cleaning.v1 import cleaning_events_pb2
from tidemill.inference.v1 import inference_events_pb2
from tidemill.ingest.v1 import ingest_events_pb2
from tidemill.pipeline.v1 import pipeline_events_pb2
from tidemill.training.v1 import training_events_pb2

from docs.generate.protos import comments
from docs.generate.tables import table
from services.kit.bus.topics import MAX_MESSAGE_BYTES, TOPICS

FILES = (ingest_events_pb2, cleaning_events_pb2, training_events_pb2, inference_events_pb2, pipeline_events_pb2)
DAY_MS = 24 * 3600 * 1000

HEAD = f"""# Events

Events are facts of the past, sent as CloudEvents 1.0 in Kafka's binary mode. The value is the protobuf message; the
headers are `content-type: application/protobuf`, `ce_type` (the message's full name), `ce_source`
(`/tidemill/<service>`), `ce_id`, `ce_subject` (the key), `ce_time`, and W3C's `traceparent`. Delivery is at least once
and in order within a key: a consumer recognises a repetition by `ce_id`. A message holds at most
{MAX_MESSAGE_BYTES // 1024**2} MiB. [adr/0001](adr/0001-bus-guarantees.md) has the guarantees,
[extending.md](extending.md) shows a consumer.
"""
_KINDS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_BOOL: "bool",
}


def events() -> dict[str, Descriptor]:
    """Every event, by the message's short name."""
    return {name: message for file in FILES for name, message in file.DESCRIPTOR.message_types_by_name.items()}


def events_page() -> str:
    """The page."""
    known = events()
    lines = [HEAD, "## Topics", ""]
    lines += table(
        ("topic", "carries", "key", "partitions", "kept for"),
        (
            (
                f"`{topic.name}`",
                ", ".join(
                    f"[{name}](#{name.lower()})" if name in known else name for name in topic.carries.split(", ")
                ),
                topic.key,
                str(topic.partitions),
                f"{topic.retention_ms // DAY_MS} days",
            )
            for topic in TOPICS
        ),
    )
    for name, message in known.items():
        lines += ["", f"## {name}", "", f"`{message.full_name}`. {comments()[message.full_name]}", ""]
        lines += table(
            ("field", "type", "meaning"),
            ((f"`{field.name}`", _kind(field), comments()[field.full_name]) for field in message.fields),
        )
    return "\n".join(lines) + "\n"


def _kind(field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        return str(field.enum_type.full_name)
    if field.message_type is None:
        return _KINDS[field.type]
    if field.message_type.GetOptions().map_entry:
        return "map of " + ", ".join(_kind(part) for part in field.message_type.fields)
    return field.message_type.full_name.removeprefix("google.protobuf.")
