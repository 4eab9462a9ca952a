"""What is sent is found: from an exporter of OpenTelemetry's SDK to the answers of the search."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any, cast

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from tidemill.telemetry.v1 import telemetry_service_pb2 as pb

from tests.integration.telemetry.conftest import Emitter, TelemetryProcess
from tests.unit.telemetry.requests import any_value, logs, pairs, spans
from tests.waiting import wait_until

pytestmark = pytest.mark.real


def _record(message: str, time_ns: int, **fields: Any) -> LogRecord:
    return LogRecord(body=any_value(message), time_unix_nano=time_ns, **({"severity_number": 9} | fields))


def _root(name: str, time_ns: int, **fields: Any) -> Span:
    defaults: dict[str, Any] = {
        "trace_id": uuid.uuid4().bytes,
        "span_id": uuid.uuid4().bytes[:8],
        "start_time_unix_nano": time_ns,
        "end_time_unix_nano": time_ns + 1000,
    }
    return Span(name=name, **(defaults | fields))


def _stamp(time_ns: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(time_ns)
    return stamp


def _roots(telemetry: TelemetryProcess, service: str, query: str = "") -> list[str]:
    """Names of the root spans, newest first."""
    request = pb.SearchTracesRequest(query=f"service:{service} {query}")
    return [trace.root.name for trace in telemetry.search.SearchTraces(request, timeout=30).traces]


def _field_violations(error: grpc.RpcError) -> dict[str, str]:
    status = rpc_status.from_call(cast(grpc.Call, error))
    bad = error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(bad):
            return {violation.field: violation.description for violation in bad.field_violations}
    return {}


def test_what_a_process_logs_and_traces_is_found(
    telemetry: TelemetryProcess, service_name: str, emit: Callable[..., Emitter]
) -> None:
    trace_id = emit(service_name, telemetry.endpoint, lines=30).finish()

    # Spans and lines lie in two indices, of which one may show its news a moment sooner.
    wait_until(lambda: telemetry.total(f"service:{service_name}") == 31 and _roots(telemetry, service_name))
    found = telemetry.search.GetTrace(pb.GetTraceRequest(trace_id=trace_id), timeout=30)
    assert not found.truncated
    assert [span.name for span in found.spans] == ["root", "step", "step", "step"]
    root, *steps = found.spans
    assert {step.parent_span_id for step in steps} == {root.span_id}
    assert [step.error for step in steps] == [False, False, True]
    assert "the last step fails" in steps[-1].status_message
    assert (root.service, root.attributes["tidemill.run"]) == (service_name, "runs/7")
    assert root.duration.ToNanoseconds() >= sum(step.duration.ToNanoseconds() for step in steps)

    assert [record.message for record in found.logs] == [*(f"line {number}" for number in range(30)), "it broke"]
    assert [record.span_id for record in found.logs[:30:10]] == [step.span_id for step in steps]
    line, broke = found.logs[0], found.logs[-1]
    assert (line.level, line.logger, line.labels["number"]) == ("info", "emitter.work", "0")
    assert (broke.level, broke.labels["error.type"]) == ("error", "RuntimeError")
    assert "on purpose" in broke.stack_trace
    assert "Traceback" in broke.stack_trace


def test_the_query_language(telemetry: TelemetryProcess, service_name: str) -> None:
    now, trace_id = time.time_ns(), uuid.uuid4().bytes
    records = [
        _record("cat and dog", now - 3, attributes=pairs({"http.route": "/cats", "sizes": [1, 2]})),
        _record("cat", now - 2, severity_number=13, trace_id=trace_id),
        _record("dog 狗很好", now - 1, severity_number=17, attributes=pairs({"exception.type": "BarkError"})),
    ]
    telemetry.logs.Export(logs(records, scope="pets.home", service_name=service_name), timeout=30)
    wait_until(lambda: telemetry.total(f"service:{service_name}") == 3)
    counts = {
        "cat": 2,
        "cat dog": 1,
        "cat OR dog": 3,
        "cat -dog": 1,
        '"cat and"': 1,
        "好": 1,
        "ca*": 2,
        "level:info": 1,
        "level:INFO": 1,
        "level:warn": 1,
        "level:Warning": 1,
        "log.level:warning": 1,
        "level:(warn OR error)": 2,
        "NOT level:info": 2,
        "logger:pets.*": 3,
        f"trace:{trace_id.hex()}": 1,
        "_exists_:trace": 1,
        'http.route:"/cats"': 1,
        'labels.http.route:"/cats"': 1,
        "sizes:2": 1,
        "sizes:3": 0,
        "BarkError": 1,
        "error.type:BarkError": 1,
    }
    found = {query: telemetry.total(f"({query}) AND service:{service_name}") for query in counts}
    assert found == counts


def test_times_bound_a_search_to_the_nanosecond(telemetry: TelemetryProcess, service_name: str) -> None:
    now = time.time_ns()
    telemetry.logs.Export(logs([_record(str(n), now + n) for n in range(5)], service_name=service_name), timeout=30)
    query = f"service:{service_name}"
    wait_until(lambda: telemetry.total(query) == 5)
    request = pb.SearchLogsRequest(query=query, start_time=_stamp(now + 1), end_time=_stamp(now + 4))
    answer = telemetry.search.SearchLogs(request, timeout=30)
    assert [record.message for record in answer.records] == ["3", "2", "1"]
    everything = pb.SearchLogsRequest(query=query, start_time=Timestamp(seconds=-1), end_time=Timestamp(seconds=10**11))
    assert telemetry.search.SearchLogs(everything, timeout=30).total == 5
    assert [record.time.ToNanoseconds() for record in answer.records] == [now + 3, now + 2, now + 1]


def test_pages_hold_each_line_once_newest_first(telemetry: TelemetryProcess, service_name: str) -> None:
    now = time.time_ns()
    # Five lines of each time: pages end amidst them. Two are of yesterday's index.
    times = [now - 86_400 * 10**9] * 2 + [now + n // 5 for n in range(23)]
    records = [_record(f"line {n}", time_ns) for n, time_ns in enumerate(times)]
    telemetry.logs.Export(logs(records, service_name=service_name), timeout=30)
    query = f"service:{service_name}"
    wait_until(lambda: telemetry.total(query) == 25)
    request, pages = pb.SearchLogsRequest(query=query, page_size=7), []
    while True:
        answer = telemetry.search.SearchLogs(request, timeout=30)
        assert answer.total == 25
        pages.append(list(answer.records))
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
    assert [len(page) for page in pages] == [7, 7, 7, 4]
    lines = [record for page in pages for record in page]
    assert {record.message for record in lines} == {f"line {n}" for n in range(25)}
    found = [record.time.ToNanoseconds() for record in lines]
    assert found == sorted(times, reverse=True)


def test_the_trace_of_a_caller_whose_own_spans_are_elsewhere_is_found(telemetry: TelemetryProcess) -> None:
    now, mark = time.time_ns(), uuid.uuid4().hex
    caller = {"parent_span_id": uuid.uuid4().bytes[:8], "attributes": pairs({"test.mark": mark})}
    at_the_door = [
        _root("/Generate", now, kind=Span.SPAN_KIND_SERVER, **caller),
        _root("inside", now + 1, kind=Span.SPAN_KIND_CLIENT, **caller),
    ]
    behind = [
        _root("process tidemill.inbound", now + 2, kind=Span.SPAN_KIND_CONSUMER, **caller),
        _root("/Cleaned", now + 3, kind=Span.SPAN_KIND_SERVER, **caller),
    ]
    telemetry.traces.Export(spans(at_the_door, service_name="gateway"), timeout=30)
    telemetry.traces.Export(spans(behind, service_name="ingest"), timeout=30)
    request = pb.SearchTracesRequest(query=f"test.mark:{mark}")

    def names() -> set[str]:
        return {trace.root.name for trace in telemetry.search.SearchTraces(request, timeout=30).traces}

    assert wait_until(lambda: names() == {"/Generate", "process tidemill.inbound"})


def test_traces_are_found_by_their_root(telemetry: TelemetryProcess, service_name: str) -> None:
    now = time.time_ns()
    items = [
        _root("Area/Predict", now, attributes=pairs({"rpc.method": "Predict"})),
        _root("Area/Train", now + 1, status=Status(code=Status.STATUS_CODE_ERROR, message="out of luck")),
        _root("Area/Predict", now + 2, parent_span_id=uuid.uuid4().bytes[:8]),
    ]
    telemetry.traces.Export(spans(items, service_name=service_name), timeout=30)

    def names(query: str) -> list[str]:
        return _roots(telemetry, service_name, query)

    assert wait_until(lambda: names("")) == ["Area/Train", "Area/Predict"]
    found = {
        query: names(query)
        for query in (
            "error:true",
            "error:false",
            "name:*predict",
            "rpc.method:Predict",
            "luck",
            "train",
            "duration:>2000",
        )
    }
    assert found == {
        "error:true": ["Area/Train"],
        "error:false": ["Area/Predict"],
        "name:*predict": ["Area/Predict"],
        "rpc.method:Predict": ["Area/Predict"],
        "luck": ["Area/Train"],
        "train": ["Area/Train"],
        "duration:>2000": [],
    }
    request = pb.SearchTracesRequest(query=f"service:{service_name}", page_size=1)
    first = telemetry.search.SearchTraces(request, timeout=30)
    request.page_token = first.next_page_token
    second = telemetry.search.SearchTraces(request, timeout=30)
    assert [trace.trace_id for trace in (*first.traces, *second.traces)] == [
        items[1].trace_id.hex(),
        items[0].trace_id.hex(),
    ]
    assert second.next_page_token == ""


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("level:(", "ends"),
        ('"never closed', "does not close"),
        ("a AND OR b", "OR is not expected"),
        ("@timestamp:yesterday", "yesterday"),
        ("route:/a", "quotes"),
        ("a )", ") is not expected"),
    ],
)
def test_a_wrong_query_is_refused_with_what_is_wrong(
    telemetry: TelemetryProcess, service_name: str, query: str, word: str
) -> None:
    telemetry.logs.Export(logs([_record("x", time.time_ns())], service_name=service_name), timeout=30)
    with pytest.raises(grpc.RpcError) as caught:
        telemetry.search.SearchLogs(pb.SearchLogsRequest(query=query), timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    violations = _field_violations(caught.value)
    assert set(violations) == {"query"}
    assert word in violations["query"]


def test_a_wrong_error_value_is_reported_for_traces(telemetry: TelemetryProcess, service_name: str) -> None:
    telemetry.traces.Export(spans([_root("x", time.time_ns())], service_name=service_name), timeout=30)
    with pytest.raises(grpc.RpcError) as caught:
        telemetry.search.SearchTraces(pb.SearchTracesRequest(query="error:maybe"), timeout=30)
    assert "maybe" in _field_violations(caught.value)["query"]


def test_a_token_of_another_search_is_refused(telemetry: TelemetryProcess) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        telemetry.search.SearchLogs(pb.SearchLogsRequest(page_token="no token"), timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert set(_field_violations(caught.value)) == {"page_token"}


def test_an_unknown_trace_is_not_found(telemetry: TelemetryProcess) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        telemetry.search.GetTrace(pb.GetTraceRequest(trace_id=uuid.uuid4().hex), timeout=30)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "try again" in str(caught.value.details())


def test_a_trace_larger_than_an_answer_is_cut_at_its_end(telemetry: TelemetryProcess, service_name: str) -> None:
    now, trace_id = time.time_ns(), uuid.uuid4().bytes
    items = [_root(f"span {n}", now + n, trace_id=trace_id) for n in range(10_020)]
    for first in range(0, len(items), 2004):
        telemetry.traces.Export(spans(items[first : first + 2004], service_name=service_name), timeout=60)

    def whole() -> pb.GetTraceResponse | None:
        try:
            answer = telemetry.search.GetTrace(pb.GetTraceRequest(trace_id=trace_id.hex()), timeout=60)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return None
        return answer if answer.truncated else None

    found = wait_until(whole)
    assert len(found.spans) == 10_000
    assert (found.spans[0].name, found.spans[-1].name) == ("span 0", "span 9999")
