from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from services.telemetry.domain.days import Retention
from services.telemetry.entrypoints.mapping import log_to, span_to
from services.telemetry.entrypoints.otlp_mapping import MAX_BYTES, Mapped, logs_from, spans_from
from tests.unit.telemetry.requests import any_value, logs, pairs, spans

_NOW = int(datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()) * 10**9
_RETENTION = Retention(14)
_TRACE, _SPAN, _PARENT = bytes(range(1, 17)), bytes(range(1, 9)), bytes(range(11, 19))


def _record(message: Any = "hello", **fields: Any) -> LogRecord:
    attributes = pairs(fields.pop("attributes", {}))
    defaults: dict[str, Any] = {"time_unix_nano": _NOW + 123, "severity_number": 9}
    return LogRecord(body=any_value(message), attributes=attributes, **(defaults | fields))


def _span(**fields: Any) -> Span:
    attributes = pairs(fields.pop("attributes", {}))
    defaults: dict[str, Any] = {
        "trace_id": _TRACE,
        "span_id": _SPAN,
        "name": "work",
        "start_time_unix_nano": _NOW + 1001,
        "end_time_unix_nano": _NOW + 3501,
    }
    return Span(attributes=attributes, **(defaults | fields))


def _logs(*records: LogRecord, **resource: Any) -> Mapped:
    return logs_from(logs(records, **resource), _RETENTION, _NOW)


def _spans(*items: Span, **resource: Any) -> Mapped:
    return spans_from(spans(items, **resource), _RETENTION, _NOW)


def _source(mapped: Mapped) -> dict[str, Any]:
    assert mapped.refused == 0, mapped.reason
    (document,) = mapped.documents
    source: dict[str, Any] = json.loads(document.source)
    return source


def test_a_log_line_in_ecs() -> None:
    record = _record(
        severity_number=17,
        severity_text="ERROR",
        trace_id=_TRACE,
        span_id=_SPAN,
        attributes={
            "exception.type": "ValueError",
            "exception.message": "no",
            "exception.stacktrace": "Traceback",
            "code.file.path": "/a.py",
            "code.line.number": 7,
            "http.route": "/x",
        },
    )
    source = _source(_logs(record, service_name="gateway", service_instance_id="42", process_pid=42, team="blue"))
    del source["event.id"]
    assert source == {
        "@timestamp": "2026-11-24T12:00:00.000000123Z",
        "service.name": "gateway",
        "ecs.version": "8.17.0",
        "service.node.name": "42",
        "process.pid": 42,
        "log.level": "error",
        "level": ["error"],
        "message": "hello",
        "log.logger": "a.logger",
        "trace.id": _TRACE.hex(),
        "span.id": _SPAN.hex(),
        "error.type": "ValueError",
        "error.message": "no",
        "error.stack_trace": "Traceback",
        "log.origin.file.name": "/a.py",
        "log.origin.file.line": 7,
        "labels": {"team": "blue", "http.route": "/x"},
    }


def test_a_log_line_of_nearly_nothing() -> None:
    mapped = _logs(LogRecord())
    source = _source(mapped)
    assert source["@timestamp"] == "2026-11-24T12:00:00.000000000Z"
    assert source["message"] == ""
    assert set(source) == {"@timestamp", "message", "log.logger", "event.id", "ecs.version"}
    assert mapped.documents[0].index == "tidemill-logs-2026.11.24"


def test_observed_time_stands_in_for_the_time() -> None:
    source = _source(_logs(LogRecord(observed_time_unix_nano=_NOW - 5)))
    assert source["@timestamp"] == "2026-11-24T11:59:59.999999995Z"


def test_ids_of_no_trace_are_left_out() -> None:
    source = _source(_logs(_record(trace_id=bytes(16), span_id=bytes(8))))
    assert "trace.id" not in source
    assert "span.id" not in source


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        (True, "true"),
        (2**63 - 1, "9223372036854775807"),
        (0.1, "0.1"),
        (math.nan, "nan"),
        (b"\x00\xff", '"AP8="'),
        ({"a": [1, {"b": None}]}, '{"a":[1,{"b":null}]}'),
        (["a", 1, True], ["a", "1", "true"]),
        (None, ""),
    ],
)
def test_attributes_are_text_or_lists_of_text(value: Any, text: Any) -> None:
    assert _source(_logs(_record(attributes={"v": value})))["labels"] == {"v": text}


def test_a_structured_body_is_json() -> None:
    assert _source(_logs(_record({"a": 1, "b": ["c"]})))["message"] == '{"a":1,"b":["c"]}'


def test_a_number_field_takes_numbers_only() -> None:
    source = _source(_logs(_record(attributes={"code.line.number": "many"}), process_pid="1e9"))
    assert "log.origin.file.line" not in source
    assert "process.pid" not in source
    assert source["labels"] == {"code.line.number": "many", "process.pid": "1e9"}


def test_the_same_line_has_the_same_id_whenever_it_is_sent() -> None:
    (first,) = _logs(_record(), service_name="a").documents
    (again,) = logs_from(logs([_record()], service_name="a"), _RETENTION, _NOW + 10**9).documents
    assert again == first


@pytest.mark.parametrize(
    "other",
    [
        logs([_record("other")], service_name="a"),
        logs([_record(time_unix_nano=_NOW + 124)], service_name="a"),
        logs([_record()], service_name="b"),
        logs([_record()], scope="another.logger", service_name="a"),
        logs([_record(attributes={"x": "y"})], service_name="a"),
    ],
)
def test_another_line_has_another_id(other: Any) -> None:
    (first,) = _logs(_record(), service_name="a").documents
    (document,) = logs_from(other, _RETENTION, _NOW).documents
    assert document.id != first.id


def test_equal_lines_of_one_request_stay_two_and_are_distinguished_by_order() -> None:
    first, again = _logs(_record(), _record()), _logs(_record(), _record())
    assert len({document.id for document in first.documents}) == 2
    assert [document.id for document in again.documents] == [document.id for document in first.documents]


def test_a_span_in_ecs() -> None:
    span = _span(
        parent_span_id=_PARENT,
        kind=Span.SPAN_KIND_SERVER,
        status=Status(code=Status.STATUS_CODE_ERROR, message="broken"),
        links=[Span.Link(trace_id=_PARENT * 2, span_id=_SPAN)],
        events=[
            Span.Event(name="exception", attributes=pairs({"exception.type": "E", "exception.escaped": "False"})),
            Span.Event(name="retry", time_unix_nano=_NOW, attributes=pairs({"n": 1})),
        ],
        attributes={"http.route": "/x"},
    )
    mapped = _spans(span, service_name="gateway")
    assert mapped.documents[0].id == f"{_TRACE.hex()}-{_SPAN.hex()}"
    assert mapped.documents[0].index == "tidemill-traces-2026.11.24"
    assert _source(mapped) == {
        "@timestamp": "2026-11-24T12:00:00.000001001Z",
        "ecs.version": "8.17.0",
        "service.name": "gateway",
        "trace.id": _TRACE.hex(),
        "span.id": _SPAN.hex(),
        "parent.id": _PARENT.hex(),
        "span.name": "work",
        "span.kind": "server",
        "event.duration": 2500,
        "event.outcome": "failure",
        "error": True,
        "error.type": "E",
        "status.message": "broken",
        "span.links.trace.id": [(_PARENT * 2).hex()],
        "span.links.span.id": [_SPAN.hex()],
        "span.events": [{"@timestamp": "2026-11-24T12:00:00.000000000Z", "name": "retry", "attributes": {"n": "1"}}],
        "attributes": {"http.route": "/x"},
    }


def test_a_root_span_has_no_parent_and_no_error() -> None:
    source = _source(_spans(_span()))
    assert "parent.id" not in source
    assert source["error"] is False
    assert source["event.outcome"] == "success"
    assert source["span.kind"] == "internal"


def test_a_span_that_ends_before_it_began_took_no_time() -> None:
    assert _source(_spans(_span(end_time_unix_nano=0)))["event.duration"] == 0


@pytest.mark.parametrize(
    "fields", [{"trace_id": b""}, {"trace_id": bytes(16)}, {"span_id": b"short"}, {"span_id": bytes(8)}]
)
def test_a_span_without_valid_ids_is_refused(fields: dict[str, bytes]) -> None:
    mapped = _spans(_span(**fields), _span())
    assert len(mapped.documents) == 1
    assert mapped.refused == 1
    assert "id is not valid" in mapped.reason


@pytest.mark.parametrize("days", [-15, 3])
def test_events_out_of_time_are_refused(days: int) -> None:
    time_ns = _NOW + days * 86_400 * 10**9
    for mapped in (
        _logs(_record(time_unix_nano=time_ns), _record()),
        _spans(_span(start_time_unix_nano=time_ns), _span()),
    ):
        assert len(mapped.documents) == 1
        assert mapped.refused == 1
        assert "its time is" in mapped.reason


def test_a_line_that_is_too_large_is_refused() -> None:
    mapped = _logs(_record("x" * MAX_BYTES), _record())
    assert len(mapped.documents) == 1
    assert mapped.refused == 1
    assert "bytes" in mapped.reason


def test_a_log_line_as_a_message() -> None:
    record = _record(
        trace_id=_TRACE,
        span_id=_SPAN,
        attributes={"exception.type": "E", "exception.stacktrace": "T", "list": ["a", "b"]},
    )
    message = log_to(_source(_logs(record, service_name="gateway", service_version="1")))
    assert message.time.ToNanoseconds() == _NOW + 123
    assert (message.level, message.service, message.message) == ("info", "gateway", "hello")
    assert (message.logger, message.stack_trace) == ("a.logger", "T")
    assert (message.trace_id, message.span_id) == (_TRACE.hex(), _SPAN.hex())
    assert message.labels == {"error.type": "E", "service.version": "1", "list": '["a", "b"]'}


def test_a_span_as_a_message() -> None:
    span = _span(
        parent_span_id=_PARENT,
        kind=Span.SPAN_KIND_CONSUMER,
        status=Status(code=Status.STATUS_CODE_ERROR),
        links=[Span.Link(trace_id=_TRACE, span_id=_PARENT)],
        events=[
            Span.Event(name="exception", attributes=pairs({"exception.type": "E", "exception.message": "no"})),
        ],
        attributes={"n": 5},
    )
    message = span_to(_source(_spans(span, service_name="ingest")))
    assert (message.span_id, message.parent_span_id) == (_SPAN.hex(), _PARENT.hex())
    assert (message.name, message.service, message.kind) == ("work", "ingest", "consumer")
    assert message.start_time.ToNanoseconds() == _NOW + 1001
    assert message.duration.ToNanoseconds() == 2500
    assert message.error
    assert message.status_message == "E: no"
    assert message.attributes == {"n": "5", "exception.type": "E", "exception.message": "no"}
    assert message.links == [f"{_TRACE.hex()}/{_PARENT.hex()}"]
