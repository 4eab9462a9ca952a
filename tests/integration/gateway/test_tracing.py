"""One request is one trace: the caller's, the gateway's one span, the service's."""

from __future__ import annotations

import grpc
import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from tidemill.inference.v1.inference_service_pb2 import GenerateRequest, PredictRequest
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from services.kit.telemetry import schema
from tests.integration.gateway.conftest import Mesh
from tests.integration.gateway.fake_peers import ANSWER
from tests.waiting import wait_for

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, SPAN = PARENT.split("-")[1:3]
ASK = {"model": "headlines", "messages": [{"role": "user", "content": "Hi"}]}


def of_trace(exported: InMemorySpanExporter, trace_id: str, count: int = 1) -> list[ReadableSpan]:
    """The spans of a trace, as soon as there are `count`: a span may end after its answer was read."""

    def read() -> list[ReadableSpan]:
        return [s for s in exported.get_finished_spans() if s.context and f"{s.context.trace_id:032x}" == trace_id]

    return wait_for(read, lambda found: len(found) >= count, "the spans")


@pytest.fixture(autouse=True)
def _clean(exported: InMemorySpanExporter) -> None:
    exported.clear()


@pytest.mark.parametrize("stream", [False, True])
def test_http(mesh: Mesh, exported: InMemorySpanExporter, stream: bool) -> None:
    headers = {"x-api-key": mesh.key, "traceparent": PARENT}
    answer = httpx.post(f"http://{mesh.http}/v1/chat/completions", json=ASK | {"stream": stream}, headers=headers)
    assert answer.headers["x-trace-id"] == TRACE
    (span,) = of_trace(exported, TRACE)
    assert span.name == "POST /v1/chat/completions"
    assert span.kind is SpanKind.SERVER
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == SPAN
    assert span.attributes is not None
    assert span.attributes[schema.ANSWER] == ANSWER
    assert span.attributes[schema.GEN_AI_OUTPUT_TOKENS] == 3
    assert answer.headers["traceparent"] == mesh.peers.seen.metadata[-1]["traceparent"]


def test_http_without_a_trace_begins_one(mesh: Mesh, exported: InMemorySpanExporter) -> None:
    traces = {
        httpx.get(f"http://{mesh.http}/v1/models", headers={"x-api-key": mesh.key}).headers["x-trace-id"]
        for _ in range(2)
    }
    assert len(traces) == 2
    assert all(len(of_trace(exported, trace_id)) == 1 for trace_id in traces)


@pytest.mark.parametrize(
    ("sent", "kept"), [("order-7", "order-7"), ("x" * 200, "x" * 128), ("caf\xe9", None), (None, None)]
)
def test_the_callers_own_id_comes_back_and_stands_in_the_span(
    mesh: Mesh, exported: InMemorySpanExporter, sent: str | None, kept: str | None
) -> None:
    headers: dict[str, str | bytes] = {"x-api-key": mesh.key}
    if sent is not None:
        headers["x-request-id"] = sent.encode("latin-1")
    answer = httpx.get(f"http://{mesh.http}/v1/models", headers=headers)  # type: ignore[arg-type]
    trace_id = answer.headers["x-trace-id"]
    assert answer.headers["x-request-id"] == (kept or trace_id)
    (span,) = of_trace(exported, trace_id)
    assert span.attributes is not None
    assert span.attributes.get(schema.REQUEST_ID) == kept


def test_probes_are_not_traced(mesh: Mesh, exported: InMemorySpanExporter) -> None:
    for path in ("/healthz", "/metrics", "/v2/health/live"):
        assert httpx.get(f"http://{mesh.http}{path}").status_code == 200
    assert exported.get_finished_spans() == ()


def test_a_failure_marks_the_span(mesh: Mesh, exported: InMemorySpanExporter) -> None:
    ask = {"model": "headlines", "messages": [{"role": "user", "content": "fail"}]}
    headers = {"x-api-key": mesh.key, "traceparent": PARENT}
    httpx.post(f"http://{mesh.http}/v1/chat/completions", json=ask, headers=headers)
    assert of_trace(exported, TRACE)[0].status.status_code is StatusCode.ERROR


def test_grpc(mesh: Mesh, exported: InMemorySpanExporter) -> None:
    metadata = (("authorization", f"Bearer {mesh.key}"), ("traceparent", PARENT))
    with grpc.insecure_channel(mesh.grpc) as channel:
        stub = InferenceServiceStub(channel)
        stub.Predict(PredictRequest(model="models/m", texts=["a"]), metadata=metadata)
        seen = str(mesh.peers.seen.metadata[-1]["traceparent"])
        with pytest.raises(grpc.RpcError):
            stub.Generate(GenerateRequest(model="models/headlines", text="fail"), metadata=metadata)
    good, bad = of_trace(exported, TRACE, 2)
    assert good.name == "/tidemill.inference.v1.InferenceService/Predict"
    assert good.context is not None
    assert seen.split("-")[1:3] == [TRACE, f"{good.context.span_id:016x}"]
    assert good.status.status_code is StatusCode.UNSET
    assert bad.status.status_code is StatusCode.ERROR


def test_a_stranger_with_a_long_path_leaves_a_short_span(mesh: Mesh, exported: InMemorySpanExporter) -> None:
    answer = httpx.get(f"http://{mesh.http}/{'x' * 60_000}", headers={"traceparent": PARENT})
    assert answer.status_code == 401
    (span,) = of_trace(exported, TRACE)
    assert len(span.to_json()) < 4000
