"""Keys with less than every right, at both doors: roles, limits, and what the services learn of the caller."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tidemill.inference.v1.inference_service_pb2 import ListModelsRequest, PredictRequest
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from tidemill.pipeline.v1.pipeline_service_pb2 import CreateCycleRequest, ListCyclesRequest
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub

from gateway.keys.key import KeyLimits, Role
from tests.integration.gateway.conftest import Mesh

_PREDICT = PredictRequest(model="models/m", texts=["a"])
_CHAT = {"model": "headlines", "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture
def channel(mesh: Mesh) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(mesh.grpc) as channel:
        yield channel


def code_of(call: Any, request: Any, key: str) -> grpc.StatusCode:
    try:
        call(request, metadata=(("x-api-key", key),), timeout=20)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_each_door_asks_for_the_role(mesh: Mesh, channel: grpc.Channel) -> None:
    predicts, pipeline = InferenceServiceStub(channel), PipelineServiceStub(channel)
    for role, chat, records, models in ((Role.PREDICT, 200, 403, 200), (Role.INGEST, 403, 200, 403)):
        _, key = mesh.store.create("one", {role})
        with httpx.Client(base_url=f"http://{mesh.http}", headers={"x-api-key": key}) as http:
            assert http.post("/v1/chat/completions", json=_CHAT).status_code == chat
            assert http.post("/v1/records", json={"records": [{"source": "s", "text": "t"}]}).status_code == records
            assert http.get("/v1/models").status_code == models
            assert http.get("/v1/nothing").status_code == 404
        expected = grpc.StatusCode.OK if role is Role.PREDICT else grpc.StatusCode.PERMISSION_DENIED
        assert code_of(predicts.Predict, _PREDICT, key) is expected
        assert code_of(pipeline.CreateCycle, CreateCycleRequest(), key) is grpc.StatusCode.PERMISSION_DENIED
        assert code_of(pipeline.ListCycles, ListCyclesRequest(), key) is grpc.StatusCode.PERMISSION_DENIED


def test_a_refusal_names_the_role_and_reads_no_body(mesh: Mesh, channel: grpc.Channel) -> None:
    _, key = mesh.store.create("reader", {Role.READ})
    before = len(mesh.peers.seen.requests)
    answer = httpx.post(f"http://{mesh.http}/v1/records", content=b"no json", headers={"x-api-key": key})
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("role_missing", "permission_error")
    assert "the role ingest" in error["message"]
    with pytest.raises(grpc.RpcError) as found:
        InferenceServiceStub(channel).Predict(_PREDICT, metadata=(("x-api-key", key),))
    assert "the role predict" in str(found.value.details())
    assert len(mesh.peers.seen.requests) == before


def test_services_learn_key_and_tenant_and_no_one_else_can_learn_them(mesh: Mesh, channel: grpc.Channel) -> None:
    made, key = mesh.store.create("acme's", tenant="acme")
    claims = {"x-tidemill-tenant": "other", "x-tidemill-key": "other", "x-tidemill-more": "other"}
    metadata = (("x-api-key", key), *claims.items())
    InferenceServiceStub(channel).ListModels(ListModelsRequest(), metadata=metadata)
    seen = mesh.peers.seen.metadata
    sent = {name: value for name, value in seen[-1].items() if name.startswith("x-tidemill-")}
    assert sent == {"x-tidemill-tenant": "acme", "x-tidemill-key": made.key_id}
    headers = {"x-api-key": key, **claims}
    records = {"records": [{"source": "s", "text": "t"}]}
    assert httpx.post(f"http://{mesh.http}/v1/records", json=records, headers=headers).status_code == 200
    assert {n: v for n, v in seen[-1].items() if n.startswith("x-tidemill-")} == sent
    # A key without a tenant takes over no one's.
    InferenceServiceStub(channel).ListModels(ListModelsRequest(), metadata=(("x-api-key", mesh.key), *claims.items()))
    assert "x-tidemill-tenant" not in seen[-1]


def test_a_key_at_its_rate_gets_a_time_to_retry(mesh: Mesh, channel: grpc.Channel) -> None:
    _, key = mesh.store.create("slow", limits=KeyLimits(requests_per_s=0.01))
    headers = {"x-api-key": key}
    assert httpx.get(f"http://{mesh.http}/v1/models", headers=headers).status_code == 200
    answer = httpx.get(f"http://{mesh.http}/v1/models", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "request_rate")
    assert 90 < int(answer.headers["retry-after"]) <= 100
    assert int(answer.headers["retry-after-ms"]) <= 1000 * int(answer.headers["retry-after"])
    with pytest.raises(grpc.RpcError) as found:  # both doors count together
        InferenceServiceStub(channel).Predict(_PREDICT, metadata=(("x-api-key", key),))
    assert found.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = error_details_pb2.RetryInfo()
    status = rpc_status.from_call(found.value)  # type: ignore[arg-type]
    assert any(detail.Unpack(retry) for detail in status.details)
    assert 90 < retry.retry_delay.seconds <= 100


def test_requests_at_once_are_counted_until_they_end(mesh: Mesh) -> None:
    _, key = mesh.store.create("one at a time", limits=KeyLimits(concurrent=1))
    url, headers = f"http://{mesh.http}/v1/chat/completions", {"x-api-key": key}
    body = {"model": "headlines", "stream": True, "messages": [{"role": "user", "content": "wait"}]}
    with httpx.stream("POST", url, json=body, headers=headers) as running:
        pieces = running.iter_bytes()  # kept: its end would close the connection
        assert next(pieces)
        refused = httpx.post(url, json=_CHAT, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "concurrent_requests")
        assert refused.headers["retry-after"]
    while httpx.post(url, json=_CHAT, headers=headers).status_code == 429:  # the test's own time limit ends it
        pass
    assert httpx.post(url, json=_CHAT, headers=headers).status_code == 200
