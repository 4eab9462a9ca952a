"""What is put into the headers of Kafka messages."""

from __future__ import annotations

import pytest
from cloudevents.http import CloudEvent
from cloudevents.kafka import to_binary
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry import context, propagate
from opentelemetry.context import Context

from services.kit.bus.cloudevents import PROTOBUF, dead_letter, encode, refusal_headers, trace_context
from services.kit.bus.port import Delivery, OutgoingEvent
from services.kit.bus.topics import MAX_MESSAGE_BYTES
from services.kit.errors import InvalidArgumentError

OWN = "00-11111111111111111111111111111111-2222222222222222-01"
CURRENT = "00-33333333333333333333333333333333-4444444444444444-01"


def headers_of(event: OutgoingEvent) -> dict[str, bytes]:
    token = context.attach(propagate.extract({"traceparent": CURRENT}, Context()))
    try:
        return dict(encode([event], "ingest")[0].headers)
    finally:
        context.detach(token)


def test_an_event_continues_its_own_trace_else_the_current_one() -> None:
    own = OutgoingEvent("k", StringValue(value="x"), trace={"traceparent": OWN, "tracestate": "a=b"})
    headers = headers_of(own)
    assert (headers["traceparent"], headers["tracestate"]) == (OWN.encode(), b"a=b")
    headers = headers_of(OutgoingEvent("k", StringValue(value="x")))
    assert headers["traceparent"].startswith(CURRENT[:36].encode())
    assert headers["ce_subject"] == b"k"


def test_an_event_is_what_the_cloudevents_library_makes_of_it() -> None:
    event = OutgoingEvent("键", StringValue(value="x"), event_id="e-1")
    [message] = encode([event], "ingest")
    headers = dict(message.headers)
    attributes = {
        "id": "e-1",
        "source": "/tidemill/ingest",
        "type": "google.protobuf.StringValue",
        "subject": "键",
        "time": headers["ce_time"].decode(),
        "datacontenttype": PROTOBUF,
    }
    found = to_binary(
        CloudEvent(attributes, event.message.SerializeToString()), lambda data: data, lambda _: event.key.encode()
    )
    assert (message.key, message.value, headers) == (found.key, found.value, found.headers)


def test_a_dead_letter_keeps_its_headers_and_says_where_it_was() -> None:
    delivery = Delivery("topic", 3, 17, b"k", b"v", {"ce_id": b"1", "traceparent": OWN.encode()})
    letter = dead_letter(delivery, InvalidArgumentError("why", reason="REASON"), "ingest")
    assert (letter.key, letter.value) == (b"k", b"v")
    headers = dict(letter.headers)
    assert headers.pop("dlq_time")
    assert headers == {
        "ce_id": b"1",
        "traceparent": OWN.encode(),
        "dlq_reason": b"REASON",
        "dlq_message": b"why",
        "dlq_service": b"ingest",
        "dlq_topic": b"topic",
        "dlq_partition": b"3",
        "dlq_offset": b"17",
    }
    assert trace_context(delivery)


def test_a_reason_that_is_not_unicode_is_reported_all_the_same() -> None:
    headers = dict(refusal_headers("R", "name \udcff", "ingest", {"location": "file:///\udcff"}))
    assert (headers["dlq_message"], headers["dlq_location"]) == (b"name ?", b"file:///?")


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (b"k", b"v" * (MAX_MESSAGE_BYTES - 100), {"ce_id": b"1"}),
        (None, b"v" * 40_000_000, {"ce_id": b"1"}),
        (b"k" * 5_000_000, b"v", {"ce_id": b"1"}),
        (b"k", b"v", {"ce_id": b"1", "own": b"h" * 5_000_000}),
        (b"k", b"v", {"ce_id": b"1"} | {f"h{number}": b"" for number in range(400_000)}),
    ],
)
def test_a_dead_letter_of_a_message_too_large_is_cut_to_what_a_topic_takes(
    key: bytes | None, value: bytes, headers: dict[str, bytes]
) -> None:
    letter = dead_letter(Delivery("t", 0, 1, key, value, headers), ValueError("x" * 5_000_000), "ingest")
    size = len(letter.key or b"") + len(letter.value) + sum(len(n) + len(v) + 10 for n, v in letter.headers)
    assert size < MAX_MESSAGE_BYTES
    named = dict(letter.headers)
    assert named["ce_id"] == b"1"
    assert (named["dlq_topic"], named["dlq_offset"]) == (b"t", b"1")
    assert int(named["dlq_original_bytes"]) > MAX_MESSAGE_BYTES - 1000
    assert letter.value
    assert value.startswith(letter.value)
