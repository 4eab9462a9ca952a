"""Nothing is lost silently, and nothing is there twice: repeats, refusals, outages, restarts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tidemill.telemetry.v1 import telemetry_service_pb2 as pb

from infra.stack.state import StackState
from infra.stack.testing import REUSE
from tests.integration.telemetry.conftest import Emitter, TelemetryProcess, behind_proxy
from tests.integration.telemetry.cuttable_proxy import CuttableProxy
from tests.unit.telemetry.requests import any_value, logs, pairs, spans
from tests.waiting import wait_until

pytestmark = pytest.mark.real


def _lines(count: int, service: str, **attributes: Any) -> Any:
    now = time.time_ns()
    records = [
        LogRecord(body=any_value(f"line {n}"), time_unix_nano=now + n, attributes=pairs(attributes))
        for n in range(count)
    ]
    return logs(records, service_name=service)


def _http(stack: StackState, method: str, path: str, body: Any = None) -> Any:
    answer = httpx.request(method, f"{stack.elasticsearch_url}{path}", json=body, timeout=30, trust_env=False)
    return answer.raise_for_status().json()


def _indices(stack: StackState) -> set[str]:
    return {index["index"] for index in _http(stack, "GET", "/_cat/indices?format=json")}


def _messages(telemetry: TelemetryProcess, service: str) -> list[str]:
    request = pb.SearchLogsRequest(query=f"service:{service}", page_size=1000)
    return [record.message for record in telemetry.search.SearchLogs(request, timeout=30).records]


def _refusal(error: grpc.RpcError) -> tuple[str, bool]:
    """The reason, and whether it says when to come again."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    reason, retries = "", False
    for detail in rpc_status.from_call(cast(grpc.Call, error)).details:
        if detail.Unpack(info):
            reason = info.reason
        retries = retries or (detail.Unpack(retry) and retry.retry_delay.ToNanoseconds() > 0)
    return reason, retries


def test_a_repeated_request_changes_nothing(telemetry: TelemetryProcess, service_name: str) -> None:
    lines = _lines(20, service_name)
    span = Span(trace_id=uuid.uuid4().bytes, span_id=b"8 bytes!", name="once", start_time_unix_nano=time.time_ns())
    before = telemetry.metric('telemetry_documents_total{fate="duplicate",signal="logs"}')
    for _ in range(3):
        assert not telemetry.logs.Export(lines, timeout=30).HasField("partial_success")
        assert not telemetry.traces.Export(spans([span], service_name=service_name), timeout=30).HasField(
            "partial_success"
        )
    # Sent later, it is found later: all that came before is found then.
    telemetry.logs.Export(_lines(1, f"{service_name}-after"), timeout=30)
    wait_until(lambda: telemetry.total(f"service:{service_name}-after"))
    assert telemetry.total(f"service:{service_name}") == 20
    found = wait_until(
        lambda: (
            telemetry.search.SearchTraces(pb.SearchTracesRequest(query=f"service:{service_name}"), timeout=30).traces
        )
    )
    assert len(found) == 1
    assert telemetry.metric('telemetry_documents_total{fate="duplicate",signal="logs"}') == before + 40


def test_what_elasticsearch_refuses_is_reported_and_the_rest_is_kept(
    telemetry: TelemetryProcess, service_name: str
) -> None:
    metric = 'telemetry_documents_total{fate="refused",signal="logs"}'
    before = telemetry.metric(metric)
    request = _lines(5, service_name)
    of_scope = request.resource_logs[0].scope_logs[0]
    # A flattened field takes no name with this character in it.
    of_scope.log_records[1].attributes.extend(pairs({"bad\0name": "x"}))
    of_scope.log_records[2].time_unix_nano = 1
    answer = telemetry.logs.Export(request, timeout=30)
    assert answer.partial_success.rejected_log_records == 2
    assert "its time is" in answer.partial_success.error_message
    wait_until(lambda: telemetry.total(f"service:{service_name}") == 3)
    assert sorted(_messages(telemetry, service_name)) == ["line 0", "line 3", "line 4"]
    assert telemetry.metric(metric) == before + 2

    del of_scope.log_records[2]
    answer = telemetry.logs.Export(request, timeout=30)
    assert answer.partial_success.rejected_log_records == 1
    assert "labels" in answer.partial_success.error_message


def test_any_attributes_do_not_grow_the_mapping(
    telemetry: TelemetryProcess, stack: StackState, service_name: str
) -> None:
    attributes = {f"key{n}.{service_name}": value for n, value in enumerate(["x", 1, 1.5, True, {"a": 1}, ["b"]] * 50)}
    telemetry.logs.Export(_lines(1, service_name, **attributes), timeout=30)
    index = time.strftime("tidemill-logs-%Y.%m.%d", time.gmtime())
    assert service_name not in json.dumps(_http(stack, "GET", f"/{index}/_mapping"))
    wait_until(lambda: telemetry.total(f"key1.{service_name}:1") == 1)


def test_a_short_outage_is_waited_out_and_a_longer_one_is_reported(
    stack: StackState, tmp_path: Path, service_name: str
) -> None:
    with behind_proxy(stack, tmp_path, TIDEMILL_TELEMETRY_PATIENCE_S="5", TIDEMILL_TELEMETRY_QUEUE_BYTES="3000") as (
        telemetry,
        proxy,
    ):
        first, second = _lines(10, service_name), _lines(10, service_name, second=True)
        proxy.cut()
        with pytest.raises(grpc.RpcError) as caught:
            telemetry.logs.Export(first, timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert _refusal(caught.value) == ("TELEMETRY_NOT_WRITTEN", True)
        with pytest.raises(grpc.RpcError) as caught:
            telemetry.search.SearchLogs(pb.SearchLogsRequest(), timeout=30)
        assert _refusal(caught.value) == ("ELASTICSEARCH_UNAVAILABLE", True)

        # The first waits in the queue, which is full with it.
        waiting = telemetry.logs.Export.future(first, timeout=30)
        wait_until(lambda: telemetry.metric("telemetry_queue_bytes") > 0)
        with pytest.raises(grpc.RpcError) as caught:
            telemetry.logs.Export(second, timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert _refusal(caught.value) == ("TELEMETRY_QUEUE_FULL", True)
        proxy.restore()
        assert not waiting.result(timeout=30).HasField("partial_success")
        telemetry.logs.Export(second, timeout=30)
        wait_until(lambda: telemetry.total(f"service:{service_name}") == 20)
        assert telemetry.metric("telemetry_queue_bytes") == 0
        assert "accepts all documents again" in telemetry.log.read_text()


def test_it_starts_without_elasticsearch_and_takes_what_waits_when_it_comes(
    stack: StackState, tmp_path: Path, service_name: str
) -> None:
    proxy = CuttableProxy(("127.0.0.1", stack.ports["elasticsearch"]))
    proxy.cut()
    telemetry = TelemetryProcess(f"http://{proxy.address}", tmp_path, {"TIDEMILL_TELEMETRY_PATIENCE_S": "30"})
    try:
        telemetry.start()
        waiting = telemetry.logs.Export.future(_lines(1, service_name), timeout=30)
        wait_until(lambda: telemetry.metric("telemetry_queue_bytes") > 0)
        proxy.restore()
        assert not waiting.result(timeout=30).HasField("partial_success")
        wait_until(lambda: telemetry.total(f"service:{service_name}") == 1)
    finally:
        telemetry.kill()
        proxy.close()


def test_an_elasticsearch_that_comes_back_empty_gets_its_templates_again(
    stack: StackState, tmp_path: Path, service_name: str
) -> None:
    with behind_proxy(stack, tmp_path) as (telemetry, proxy):
        sent: list[Any] = []
        proxy.cut()
        waiting = threading.Thread(
            target=lambda: sent.append(telemetry.logs.Export(_lines(1, service_name), timeout=30))
        )
        waiting.start()
        wait_until(lambda: telemetry.metric("telemetry_queue_bytes") > 0)
        wait_until(lambda: "does not answer" in telemetry.log.read_text())
        _http(stack, "DELETE", "/_index_template/tidemill-logs")
        proxy.restore()
        waiting.join(30)
        assert len(sent) == 1
        found = _http(stack, "GET", "/_index_template/tidemill-logs")
        assert found["index_templates"][0]["index_template"]["version"] >= 1


@pytest.mark.usefixtures("telemetry")  # the templates are there
def test_a_template_of_someone_else_in_the_way_is_reported_and_loses_nothing(
    stack: StackState, tmp_path: Path, service_name: str
) -> None:
    ours, theirs = "/_index_template/tidemill-logs", "/_index_template/someone-elses"
    body = _http(stack, "GET", ours)["index_templates"][0]["index_template"]
    _http(stack, "DELETE", ours)
    # Of the same priority for the same names.
    _http(stack, "PUT", theirs, {"index_patterns": ["tidemill-logs-*"], "priority": 200})
    telemetry = TelemetryProcess(stack.elasticsearch_url, tmp_path, {"TIDEMILL_TELEMETRY_PATIENCE_S": "1"})
    try:
        telemetry.start()
        with pytest.raises(grpc.RpcError) as caught:
            telemetry.logs.Export(_lines(1, service_name), timeout=30)
        assert _refusal(caught.value) == ("TELEMETRY_NOT_WRITTEN", True)
        assert "someone-elses" in str(caught.value.details())
        assert "someone-elses" in telemetry.log.read_text()
        _http(stack, "DELETE", theirs)
        lines = _lines(1, service_name)

        def taken() -> bool:
            # As an exporter does: it comes again with the same.
            with contextlib.suppress(grpc.RpcError):
                return bool(telemetry.logs.Export(lines, timeout=30) is not None)
            return False

        wait_until(taken)
        wait_until(lambda: telemetry.total(f"service:{service_name}") == 1)
        assert telemetry.stop() == 0
    finally:
        telemetry.kill()
        with contextlib.suppress(httpx.HTTPStatusError):
            _http(stack, "DELETE", theirs)
        _http(stack, "PUT", ours, body)


@pytest.mark.usefixtures("telemetry")  # the templates are there
def test_at_its_start_it_leaves_a_later_template_and_deletes_the_days_that_are_over(
    stack: StackState, tmp_path: Path
) -> None:
    path = "/_index_template/tidemill-traces"
    ours = _http(stack, "GET", path)["index_templates"][0]["index_template"]
    _http(stack, "PUT", path, ours | {"version": 1_000_000})
    others = {"tidemill-logs-2020.01.01-mine", "others-2020.01.01"}
    over = "tidemill-logs-2020.01.01"
    for name in (over, *others):
        _http(stack, "PUT", f"/{name}")
    telemetry = TelemetryProcess(stack.elasticsearch_url, tmp_path)
    try:
        telemetry.start()
        assert _http(stack, "GET", path)["index_templates"][0]["index_template"]["version"] == 1_000_000
        wait_until(lambda: over not in _indices(stack))
        assert _indices(stack) >= others
        assert telemetry.stop() == 0
    finally:
        _http(stack, "PUT", path, ours)
        for name in others:
            _http(stack, "DELETE", f"/{name}")


def test_kills_of_the_service_and_of_elasticsearch_lose_no_line_and_double_none(
    stack: StackState, tmp_path: Path, service_name: str, emit: Callable[..., Emitter]
) -> None:
    telemetry = TelemetryProcess(stack.elasticsearch_url, tmp_path)
    telemetry.start()
    try:
        emitter = emit(service_name, telemetry.endpoint, lines=300, seconds=3)
        wait_until(lambda: telemetry.total(f"service:{service_name}") >= 30)
        # Not one that others use.
        if REUSE not in os.environ:
            pid = stack.children["elasticsearch"].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        telemetry.kill()
        telemetry.start()

        def is_whole() -> bool:
            with contextlib.suppress(grpc.RpcError):
                # Spans and lines lie in two indices.
                request = pb.SearchTracesRequest(query=f"service:{service_name}")
                roots = telemetry.search.SearchTraces(request, timeout=30).traces
                return telemetry.total(f"service:{service_name}") >= 301 and len(roots) > 0
            return False

        wait_until(is_whole, "all lines and the trace", 240)
        trace_id = emitter.finish()
        assert Counter(_messages(telemetry, service_name)) == Counter(["it broke", *(f"line {n}" for n in range(300))])
        trace = telemetry.search.GetTrace(pb.GetTraceRequest(trace_id=trace_id), timeout=30)
        assert len(trace.spans) == 31
    finally:
        telemetry.kill()
