"""CloudEvents of foreign producers."""

from __future__ import annotations

import base64
import json
import string
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.http import CloudEvent
from cloudevents.kafka import to_binary, to_structured
from hypothesis import given
from hypothesis import strategies as st
from tidemill.ingest.v1.record_pb2 import Record

from services.ingest.domain.record import RawRecord, RecordRefusedError, check_record
from services.ingest.engine.attributes import NOTES_ATTRIBUTE
from services.ingest.entrypoints.inbound import accepted_from, source_name
from services.kit.bus.port import Delivery
from services.kit.errors import InvalidArgumentError

CE = {"id": "e-1", "source": "/Shop/Tickets", "type": "com.example.ticket", "specversion": "1.0"}
NAME_CHARACTERS = string.ascii_lowercase + string.digits
TRACE = "00-11111111111111111111111111111111-2222222222222222-01"


def delivery(value: bytes, **headers: str) -> Delivery:
    named = {name.replace("content_type", "content-type"): text.encode() for name, text in headers.items()}
    return Delivery("tidemill.inbound", 0, 0, None, value, named)


def binary(value: bytes, content_type: str = "", **attributes: str) -> Delivery:
    headers = {f"ce_{name}": text for name, text in {**CE, **attributes}.items() if text}
    return delivery(value, **headers, **({"content_type": content_type} if content_type else {}))


def structured(**members: Any) -> Delivery:
    return delivery(json.dumps({**CE, **members}).encode(), content_type="application/cloudevents+json; charset=utf-8")


def record(given: Delivery) -> RawRecord:
    return accepted_from(given).record


def test_json_in_binary_mode() -> None:
    data = {
        "source": "support-tickets",
        "text": "It is broken",
        "attributes": {"label": "bug", "stars": 2, "none": None},
        "channel": "mail",
        "urgent": True,
        "orderID": 7,
        "nested": {"homeTown": "X"},
        "event_time": "2026-01-02T03:04:05.678901234+01:00",
    }
    found = record(binary(json.dumps(data).encode(), "application/json; charset=utf-8"))
    assert (found.source, found.text) == ("support-tickets", "It is broken")
    assert found.attributes == {
        "label": "bug",
        "stars": "2",
        "channel": "mail",
        "urgent": "true",
        "order_id": "7",
        "nested_home_town": "X",
        "ce_type": CE["type"],
    }
    assert found.event_time == datetime(2026, 1, 2, 2, 4, 5, 678901, tzinfo=UTC)
    assert record(binary(json.dumps(data).encode())).text == "It is broken", "JSON is what no content type means"


def test_text_in_binary_mode() -> None:
    found = record(binary("Grüße".encode("latin-1"), 'text/plain; charset="latin-1"', time="2026-01-02T03:04:05Z"))
    assert (found.source, found.text, found.attributes) == ("shop-tickets", "Grüße", {"ce_type": CE["type"]})
    assert found.event_time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_protobuf_in_binary_mode() -> None:
    message = Record(record_id="r:1", source="tickets", text="Hi", attributes={"label": "x"})
    found = record(binary(message.SerializeToString(), "application/protobuf", type="tidemill.ingest.v1.Record"))
    assert found == RawRecord("tickets", "Hi", {"label": "x", "ce_type": "tidemill.ingest.v1.Record"}, "r:1")
    assert record(binary(Record(text="Hi").SerializeToString(), "application/protobuf")).source == "shop-tickets"


def test_a_record_may_name_its_tenant() -> None:
    named = Record(text="Hi", tenant="acme").SerializeToString()
    assert record(binary(named, "application/protobuf")).tenant == "acme"
    found = record(structured(data={"text": "Hi"}, tenant="acme"))
    # As every extension it is an attribute, too.
    assert (found.tenant, found.attributes["ce_tenant"]) == ("acme", "acme")
    odd = record(structured(data={"text": "Hi"}, tenant="no tenant"))
    assert (odd.tenant, "not a valid name of a tenant" in odd.attributes[NOTES_ATTRIBUTE]) == ("", True)
    with pytest.raises(InvalidArgumentError) as refused:
        record(binary(Record(text="Hi", tenant="no tenant").SerializeToString(), "application/protobuf"))
    assert refused.value.reason == "INVALID_TENANT"


def test_structured_mode() -> None:
    data = {"text": "It is broken", "source": "support-tickets"}
    assert record(structured(data=data)).text == "It is broken"
    assert record(structured(data="plain", datacontenttype="text/plain")).text == "plain"
    assert record(structured(data="a JSON string")).text == "a JSON string"
    packed = base64.b64encode(Record(text="Hi").SerializeToString()).decode()
    assert record(structured(data_base64=packed, datacontenttype="application/protobuf")).text == "Hi"
    packed = base64.b64encode(json.dumps(data).encode()).decode()
    assert record(structured(data_base64=packed)).text == "It is broken"


@pytest.mark.parametrize(("write", "content_type"), [(to_binary, True), (to_structured, True), (to_structured, False)])
def test_what_the_cloudevents_sdk_for_python_writes(write: Any, content_type: bool) -> None:
    attributes = {**CE, "datacontenttype": "application/json"} if content_type else CE
    message = write(CloudEvent(attributes, {"text": "from the SDK"}))
    found = record(Delivery("tidemill.inbound", 0, 0, None, message.value, message.headers))
    assert (found.source, found.text) == ("shop-tickets", "from the SDK")


def test_an_event_that_comes_again_is_the_same_record() -> None:
    first = record(binary(b"text", "text/plain"))
    assert record(structured(data="text", datacontenttype="text/plain")).record_id == first.record_id
    assert record(binary(b"corrected", "text/plain")).record_id == first.record_id
    others = [record(binary(b"text", "text/plain", id="e-2")), record(binary(b"text", "text/plain", source="/shop"))]
    assert len({first.record_id, *(other.record_id for other in others)}) == 3
    assert record(binary(b'{"text": "x", "record_id": "mine"}')).record_id == "mine"


def test_the_trace_of_the_message_is_continued() -> None:
    assert accepted_from(binary(b'{"text": "x"}')).trace == {}
    message = binary(b'{"text": "x"}')
    headers = {**message.headers, "traceparent": TRACE.encode(), "tracestate": b"v=1"}
    traced = Delivery("t", 0, 0, None, message.value, headers)
    assert accepted_from(traced).trace == {"traceparent": TRACE, "tracestate": "v=1"}
    assert accepted_from(binary(b'{"text": "x"}', traceparent=TRACE)).trace == {"traceparent": TRACE}


def test_what_the_envelope_says_is_kept_beside_what_the_data_says() -> None:
    found = record(binary(b'{"text": "x", "ce_subject": "own"}', subject="order/7", tenant="acme", dataschema="urn:x"))
    assert found.attributes == {
        "ce_subject": "own",
        "ce_type": CE["type"],
        "ce_subject_2": "order/7",
        "ce_tenant": "acme",
        "ce_dataschema": "urn:x",
    }
    found = record(structured(data={"text": "x"}, subject={"a": 1}, traceparent="\udfff", n=5))
    assert found.attributes == {"ce_type": CE["type"], "ce_subject_a": "1", "ce_n": "5"}


@pytest.mark.parametrize(
    ("message", "kept", "noted"),
    [
        (binary(json.dumps({"text": "x", "side": "y" * 17_000}).encode()), {"side": "y" * 16_384}, "side"),
        (binary(b'{"text": "x", "source": "UPPER"}'), {"source": "UPPER"}, "source"),
        (binary(b'{"text": "x", "source": [1]}'), {"source": "[1]"}, "source"),
        (binary(b'{"text": "x", "attributes": ["a"]}'), {"attributes": '["a"]'}, ""),
        (binary(b'{"text": "x", "attributes": {"Bad": 1}}'), {"bad": "1"}, ""),
        (binary(b'{"text": "x", "record_id": "a b"}'), {"record_id": "a b"}, "record_id"),
        (binary(b'{"text": "x", "event_time": "yesterday"}'), {"event_time": "yesterday"}, "event_time"),
        (binary(b'{"text": "x", "event_time": 1764064800}'), {"event_time": "1764064800"}, "event_time"),
        (binary(b'{"text": "x"}', time="0001-01-01T00:00:00+23:59"), {}, "ce_time"),
        (binary(b'{"text": "x", "score": NaN}'), {}, "score"),
        (binary(json.dumps({"text": "x", **{f"m{i}": i for i in range(65)}}).encode()), {"m61": "61"}, "3 of 66"),
    ],
)
def test_nothing_beside_text_and_source_refuses_a_record(message: Delivery, kept: dict[str, str], noted: str) -> None:
    found = record(message)
    check_record(found)
    assert found.text == "x"
    assert kept.items() <= found.attributes.items()
    assert found.attributes.get("ingest_notes", "").startswith(noted)
    assert bool(noted) == ("ingest_notes" in found.attributes)


def test_a_whole_number_is_an_identity_and_a_time_without_a_zone_is_utc() -> None:
    found = record(binary(b'{"text": "x", "record_id": 7, "event_time": "2026-01-02T03:04:05"}'))
    assert (found.record_id, found.event_time) == ("7", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert "UTC" in found.attributes["ingest_notes"]
    assert record(binary(b'{"text": "x", "source": 7}')).source == "7"
    assert record(binary(b'{"text": "x", "source": "/A/B"}')).source == "a-b"
    message = Record(source="Bad Source", text="x", record_id="a b", attributes={"Bad": "y" * 17_000})
    message.event_time.seconds = 10**14
    found = record(binary(message.SerializeToString(), "application/protobuf"))
    assert (found.source, found.event_time) == ("bad-source", None)
    assert set(found.attributes) >= {"bad", "source", "record_id", "ingest_notes"}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (delivery(b"poison \xff"), "NOT_A_CLOUDEVENT"),
        (delivery(b""), "NOT_A_CLOUDEVENT"),
        (delivery(b'{"text": "x"}', content_type="application/json"), "NOT_A_CLOUDEVENT"),
        (delivery(b"<e/>", content_type="application/cloudevents+xml"), "UNSUPPORTED_EVENT_FORMAT"),
        (delivery(b"[]", content_type="application/cloudevents-batch+json"), "UNSUPPORTED_EVENT_FORMAT"),
        (delivery(b"{", content_type="application/cloudevents+json"), "INVALID_JSON"),
        (delivery(b"[]", content_type="application/cloudevents+json"), "INVALID_JSON"),
        (structured(data={"text": "x"}, id=""), "MISSING_ATTRIBUTE"),
        (structured(data={"text": "x"}, id="\ud800"), "INVALID_ATTRIBUTE"),
        (structured(data={"text": "x"}, specversion="0.3"), "UNSUPPORTED_SPECVERSION"),
        (structured(data_base64="!"), "INVALID_BASE64"),
        (structured(), "MISSING_TEXT"),
        (binary(b'{"text": "x"}', id=""), "MISSING_ATTRIBUTE"),
        (binary(b"{"), "INVALID_JSON"),
        (binary(b""), "INVALID_JSON"),
        (binary(b"{}"), "MISSING_TEXT"),
        (binary(b'{"text": ["x"]}'), "TEXT_NOT_A_STRING"),
        (binary(b'{"text": ""}'), "EMPTY_TEXT"),
        (binary(b'{"text": "x", "text": "y"}'), "FIELD_TWICE"),
        (binary(b'{"text": "x", "record_id": 1, "record_id": 2}'), "FIELD_TWICE"),
        (binary(b'{"text": "x"}', source="他"), "UNUSABLE_SOURCE"),
        (binary(b"\xff", "text/plain"), "NOT_DECODABLE"),
        (binary(b"x", "text/plain; charset=none"), "NOT_DECODABLE"),
        (binary(b"x", "text/plain; charset=undefined"), "NOT_DECODABLE"),
        (binary(b"x", "text/plain; charset=a\0b"), "NOT_DECODABLE"),
        (binary(b"\xff", "application/protobuf"), "UNDECODABLE_DATA"),
        (binary(b"x", "image/png"), "UNSUPPORTED_CONTENT_TYPE"),
        (binary(b"x" * 600_000, "text/plain"), "TEXT_TOO_LONG"),
    ],
)
def test_poison_is_refused_with_its_reason(message: Delivery, reason: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        accepted_from(message)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/Shop/Reviews", "shop-reviews"),
        ("https://example.com/shop?x=1", "example.com-shop-x-1"),
        ("urn:shop:reviews", "urn-shop-reviews"),
        ("--a..b_", "a..b"),
        ("/shop/他/reviews", "shop-reviews"),
    ],
)
def test_a_source_gets_a_name(source: str, name: str) -> None:
    assert source_name(source) == name


@given(st.text(min_size=1, max_size=200))
def test_a_name_of_a_source_is_valid_or_refused(source: str) -> None:
    try:
        name = source_name(source)
    except RecordRefusedError:
        assert not any(character in NAME_CHARACTERS for character in source.lower().rpartition("://")[2])
        return
    check_record(RawRecord(name, "x", {}))
    assert source_name(name) == name


@given(
    st.binary(max_size=64),
    st.dictionaries(
        st.sampled_from(["content-type", "ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time"]),
        st.one_of(
            st.binary(max_size=12),
            st.sampled_from(
                [b"1.0", b"text/plain", b"application/json", b"application/protobuf", b"application/cloudevents+json"]
            ),
        ),
    ),
)
def test_whatever_comes_is_a_record_or_refused(value: bytes, headers: dict[str, bytes]) -> None:
    with suppress(InvalidArgumentError):
        check_record(record(Delivery("t", 0, 0, None, value, headers)))
