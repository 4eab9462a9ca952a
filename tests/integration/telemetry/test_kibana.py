"""The alert rules and fields of `infra/kibana` on a real Elasticsearch, with what the telemetry service writes."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import httpx
import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, SeverityNumber
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from docs.generate.kibana import objects
from infra.stack.state import StackState
from services.kit.telemetry import schema
from services.telemetry.domain.days import Signal
from tests.integration.telemetry.conftest import TelemetryProcess
from tests.unit.telemetry.requests import any_value, logs, pairs, spans
from tests.waiting import wait_until

pytestmark = pytest.mark.real

SECOND = 10**9


def _http(stack: StackState, method: str, path: str, body: Any = None) -> Any:
    answer = httpx.request(method, f"{stack.elasticsearch_url}{path}", json=body, timeout=30, trust_env=False)
    return answer.raise_for_status().json()


def _span(now: int, seconds: float, *, server: bool, **attributes: str) -> Span:
    return Span(
        name="work",
        trace_id=uuid.uuid4().bytes,
        span_id=uuid.uuid4().bytes[:8],
        kind=Span.SPAN_KIND_SERVER if server else Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=now,
        end_time_unix_nano=now + int(seconds * SECOND),
        status=Status(code=Status.STATUS_CODE_ERROR),
        attributes=pairs(dict(attributes)),
    )


def test_each_rule_finds_what_it_is_about_and_charts_can_group_by_their_fields(
    telemetry: TelemetryProcess, stack: StackState, service_name: str
) -> None:
    now = time.time_ns()
    record = LogRecord(
        body=any_value("it broke"), time_unix_nano=now, severity_number=SeverityNumber.SEVERITY_NUMBER_ERROR
    )
    failed = [
        _span(now, 6, server=True, **{schema.MODEL_VERSION: "models/m/versions/1"}),
        _span(now, 1, server=False, **{schema.STAGE: "train"}),
    ]
    telemetry.logs.Export(logs([record], service_name=service_name), timeout=30)
    telemetry.traces.Export(spans(failed, service_name=service_name), timeout=30)
    wait_until(lambda: telemetry.total(f"service:{service_name}") == 1)
    for rule in (each for each in objects() if each["type"] == "alert"):
        params = rule["attributes"]["params"]
        query = json.loads(params["esQuery"])["query"]
        query["bool"]["filter"].append({"term": {"service.name": service_name}})

        def counted(index: str = params["index"][0], body: Any = query) -> bool:
            return bool(_http(stack, "POST", f"/{index}/_count", {"query": body})["count"] == 1)

        wait_until(counted, rule["attributes"]["name"])
    views = {"tidemill-logs": Signal.LOGS, "tidemill-traces": Signal.TRACES}
    for chart in (each for each in objects() if each["type"] == "lens"):
        signal = views[chart["references"][0]["id"]]
        for layer in chart["attributes"]["state"]["datasourceStates"]["formBased"]["layers"].values():
            used = {each["sourceField"] for each in layer["columns"].values()} - {"___records___"}
            # Those that Kibana computes are the keys of a flattened field here.
            own = {f"attributes.{name}" if name.startswith(("tidemill.", "gen_ai.")) else name for name in used}
            answer = _http(stack, "GET", f"/{signal.pattern}/_field_caps?fields={','.join(sorted(own))}")
            for name in own - {each for each in own if each.startswith("attributes.")}:
                (caps,) = answer["fields"][name].values()
                assert caps["aggregatable"], name
