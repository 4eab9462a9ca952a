"""Keys with less than every right, at both doors: roles, limits, and what the services learn of the caller."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
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

from gateway.access import METHODS, ROUTES
from gateway.console.app import pages
from gateway.keys.key import KeyLimits, Role
from tests.integration.gateway.conftest import Mesh
from tests.waiting import wait_for

_PREDICT = PredictRequest(model="models/m", texts=["a"])
_CHAT = {"model": "headlines", "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture
def channel(mesh: Mesh) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(mesh.grpc) as channel:
        yield channel


def code_of(call: Any, request: Any, key: str) -> grpc.StatusCode:
    try:
        call(request, metadata=(("x-api-key", key),) if key else (), timeout=20)
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
    answered = wait_for(
        lambda: httpx.post(url, json=_CHAT, headers=headers),
        lambda found: found.status_code != 429,
        "the end of the call",
    )
    assert answered.status_code == 200


_OPEN_METHODS = {
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
}
_OPEN_ROUTES = {("GET", "/healthz"), ("GET", "/v2/health/live"), ("GET", "/v2/health/ready")}
# A page of parts that are left empty, forms to be sent, and the search for an answer by its name.
_PAGES_WITHOUT_ROLES = {
    ("GET", path)
    for path in (
        "",
        "/answers",
        "/pipelines/{pipeline}",
        "/pipelines/{pipeline}/cycles/{cycle}/cancel",
        "/rollouts/{rollout}/{order}",
    )
}
# It has a token of its own, and is open to this machine where none is set.
_SCRAPED = ("GET", "/metrics")


@pytest.fixture(scope="module")
def key_without(mesh: Mesh) -> Callable[[frozenset[Role]], str]:
    """A key with every role but some, and but admin."""

    @functools.cache
    def made(roles: frozenset[Role]) -> str:
        return mesh.store.create("all others", set(Role) - roles - {Role.ADMIN})[1]

    return made


def test_what_needs_no_key_is_a_short_list() -> None:
    assert {method for method, roles in METHODS.items() if roles is None} == _OPEN_METHODS
    assert {route for route, roles in ROUTES.items() if roles is None} == _OPEN_ROUTES


def test_every_method_refuses_a_key_with_all_other_roles_and_no_key(
    mesh: Mesh, channel: grpc.Channel, key_without: Callable[[frozenset[Role]], str]
) -> None:
    before = len(mesh.peers.seen.requests)
    wrong: list[tuple[str, str, grpc.StatusCode]] = []
    for method, roles in METHODS.items():
        if roles is None:
            continue
        # The door decides before it knows whether the call is a stream, and reads no message.
        call = channel.unary_unary(method, lambda message: message, lambda message: message)
        if (code := code_of(call, b"", "")) is not grpc.StatusCode.UNAUTHENTICATED:
            wrong.append((method, "no key", code))
        # Any role will do for reflection.
        if (
            set(Role) - roles - {Role.ADMIN}
            and (code := code_of(call, b"", key_without(roles))) is not grpc.StatusCode.PERMISSION_DENIED
        ):
            wrong.append((method, "other roles", code))
    assert not wrong, wrong
    assert len(mesh.peers.seen.requests) == before


def test_every_route_refuses_a_key_with_all_other_roles_and_no_key(
    mesh: Mesh, key_without: Callable[[frozenset[Role]], str]
) -> None:
    wrong: list[tuple[str, str, int]] = []
    before = len(mesh.peers.seen.requests)
    with httpx.Client(base_url=f"http://{mesh.http}", timeout=20) as http:
        for (verb, template), roles in ROUTES.items():
            path = re.sub(r"\{\w+\}", "1", template)
            if roles is None:
                assert http.request(verb, path).status_code not in (401, 403), path
            elif (verb, template) != _SCRAPED:
                if (status := http.request(verb, path).status_code) != 401:
                    wrong.append((verb, template, status))
                answer = http.request(verb, path, headers={"x-api-key": key_without(roles)})
                if answer.status_code != 403 or "needs the role" not in answer.text:
                    wrong.append((verb, template, answer.status_code))
    assert not wrong, wrong
    assert len(mesh.peers.seen.requests) == before


def test_every_page_of_the_console_asks_for_a_session_and_for_roles(mesh: Mesh) -> None:
    """Without the role a page is refused, or shows nothing of a service: no call reaches one."""
    _, key = mesh.store.create("sends only", {Role.INGEST})
    wrong: list[tuple[str, str, int]] = []
    open_pages: set[tuple[str, str]] = set()
    before = len(mesh.peers.seen.requests)
    with (
        httpx.Client(base_url=f"http://{mesh.http}", timeout=20) as stranger,
        httpx.Client(base_url=f"http://{mesh.http}", headers={"origin": f"http://{mesh.http}"}, timeout=20) as sender,
    ):
        assert sender.post("/console/sign-in", data={"key": key}).status_code == 303
        form = re.search(r'name="form_token" value="(\w+)"', sender.get("/console").text)
        assert form is not None
        for page in pages():
            path = "/console" + re.sub(r"\{\w+\}", "1", page.path.replace("{order}", "approve"))
            answer = stranger.request(page.method, path)
            if answer.status_code != 303 or not answer.headers["location"].startswith("/console/sign-in?next="):
                wrong.append((page.method, page.path, answer.status_code))
            status = sender.request(
                page.method, path, data={"form_token": form[1]} if page.method == "POST" else None
            ).status_code
            if status != 403:
                open_pages.add((page.method, page.path))
    assert not wrong, wrong
    assert open_pages == _PAGES_WITHOUT_ROLES
    assert len(mesh.peers.seen.requests) == before
