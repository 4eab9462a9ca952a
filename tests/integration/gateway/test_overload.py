"""A refusal that is temporary says when to come again, at every door: Retry-After over HTTP, RetryInfo over gRPC.

The gateway is real, and so is what makes it refuse: a key's rate, requests that wait for a model, a full queue, a
service that refuses, and services that are gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import httpx
import openai
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from tritonclient.grpc import service_pb2 as v2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from gateway.access import METHODS, ROUTES
from gateway.facade.table import OWN, public_services
from gateway.keys.key import KeyLimits, Role
from services.kit.errors import ResourceExhaustedError
from services.serving.adapters import triton_guard
from tests.integration.gateway.conftest import Mesh
from tests.integration.gateway.fake_peers import ANSWER, FULL_S
from tests.waiting import wait_until

_WAITING = 4
"""Requests that may wait for a model, in this module."""
_FOREVER = "wait"
_FEEDBACK = {"answer": ANSWER, "rating": 1}
_ALERT = {
    "status": "firing",
    "labels": {"alertname": "a", "pipeline": "p"},
    "startsAt": "2026-01-01T00:00:00Z",
    "fingerprint": "f",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a call ended: its code, and the seconds that its caller is asked to wait; 0 if none are named."""

    code: str
    wait_s: float


@dataclass(frozen=True, slots=True)
class HttpDoor:
    """A route that asks a model or a service."""

    route: str
    peer: str
    body: Mapping[str, Any]

    def ask(self, mesh: Mesh, key: str, text: str = "x") -> Refusal:
        """Posts the body, with `text` in place of `TEXT`."""
        path = self.route.replace("{model}", "reviews").replace("{version}", "1")
        with httpx.Client(base_url=f"http://{mesh.http}", headers={"x-api-key": key}, timeout=30) as http:
            answer = http.post(path, json=_filled(self.body, text))
        return _of_http(answer)


def _of_http(answer: httpx.Response) -> Refusal:
    code = {429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}.get(answer.status_code, answer.text)
    seconds, exact = answer.headers.get("retry-after", "0"), answer.headers.get("retry-after-ms", "0")
    assert int(exact) <= 1000 * int(seconds)
    return Refusal(code, int(exact) / 1000)


def _filled(value: Any, text: str) -> Any:
    if isinstance(value, dict):
        return {name: _filled(item, text) for name, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, text) for item in value]
    return text if value == "TEXT" else value


def _wrote(**more: Any) -> dict[str, Any]:
    return {"model": "headlines", **more}


_CHAT = [{"role": "user", "content": "TEXT"}]
_TENSORS = {"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["TEXT"]}]}
HTTP: Mapping[str, HttpDoor] = {
    "chat": HttpDoor("/v1/chat/completions", "writer", _wrote(messages=_CHAT)),
    "chat, streamed": HttpDoor("/v1/chat/completions", "writer", _wrote(messages=_CHAT, stream=True)),
    "completions": HttpDoor("/v1/completions", "writer", _wrote(prompt="TEXT")),
    "completions, streamed": HttpDoor("/v1/completions", "writer", _wrote(prompt="TEXT", stream=True)),
    "responses": HttpDoor("/v1/responses", "writer", _wrote(input="TEXT")),
    "responses, streamed": HttpDoor("/v1/responses", "writer", _wrote(input="TEXT", stream=True)),
    "predict": HttpDoor("/v1/predict", "classifier", {"model": "reviews", "texts": ["TEXT"]}),
    "embeddings": HttpDoor("/v1/embeddings", "classifier", {"model": "reviews", "input": ["TEXT"]}),
    "v2": HttpDoor("/v2/models/{model}/infer", "classifier", _TENSORS),
    "v2, version": HttpDoor("/v2/models/{model}/versions/{version}/infer", "classifier", _TENSORS),
    "feedback": HttpDoor("/v1/feedback", "pipeline", _FEEDBACK),
    "feedback, batch": HttpDoor("/v1/feedback/batch", "pipeline", {"judgements": [_FEEDBACK]}),
    "alerts": HttpDoor("/v1/alerts", "pipeline", {"alerts": [_ALERT]}),
    "records": HttpDoor("/v1/records", "ingest", {"records": [{"source": "s", "text": "TEXT"}]}),
}
_OWN_ROUTES = {"/v1/files", "/v1/batches", "/v1/batches/{batch_id}/cancel"}
"""What the gateway answers from its own disk; `tests/unit/gateway/test_batch_store.py` has its refusals."""


@dataclass(frozen=True, slots=True)
class RpcDoor:
    """An RPC that asks a model."""

    stub: Any
    method: str
    peer: str

    def ask(self, mesh: Mesh, key: str, text: str = "x", **metadata: str) -> Refusal:
        """Calls it and reads all that it answers."""
        with grpc.insecure_channel(mesh.grpc) as channel:
            return _of_rpc(self.call(channel, key, text, **metadata))

    def call(self, channel: grpc.Channel, key: str, text: str, **metadata: str) -> Callable[[], None]:
        """A function that calls it."""
        sent = (("x-api-key", key), *metadata.items())

        def answered() -> None:
            found = getattr(self.stub(channel), self.method)(self.request(text), metadata=sent, timeout=30)
            if isinstance(found, Iterator):
                for item in found:
                    assert not getattr(item, "error_message", ""), item.error_message

        return answered

    def request(self, text: str) -> Any:
        """The request, or the stream of them."""
        if self.stub is GRPCInferenceServiceStub:
            tensors = v2.ModelInferRequest(model_name="headlines" if self.peer == "writer" else "reviews")
            tensors.inputs.add(name="text", datatype="BYTES", shape=[1] if self.peer == "writer" else [1, 1])
            tensors.raw_input_contents.append(len(text).to_bytes(4, "little") + text.encode())
            return iter([tensors]) if self.method == "ModelStreamInfer" else tensors
        kind = getattr(pb, f"{self.method}Request")
        if self.peer == "writer":
            return kind(model="models/headlines", text=text)
        return kind(model="models/reviews", texts=[text])


def _of_rpc(call: Callable[[], object]) -> Refusal:
    try:
        call()
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        info = error_details_pb2.RetryInfo()
        named = status is not None and any(detail.Unpack(info) for detail in status.details)
        return Refusal(error.code().name, info.retry_delay.ToNanoseconds() / 1e9 if named else 0.0)
    return Refusal("OK", 0.0)


RPCS: Mapping[str, RpcDoor] = {
    "Predict": RpcDoor(InferenceServiceStub, "Predict", "classifier"),
    "Embed": RpcDoor(InferenceServiceStub, "Embed", "classifier"),
    "Generate": RpcDoor(InferenceServiceStub, "Generate", "writer"),
    "StreamGenerate": RpcDoor(InferenceServiceStub, "StreamGenerate", "writer"),
    "ModelInfer": RpcDoor(GRPCInferenceServiceStub, "ModelInfer", "classifier"),
    "ModelStreamInfer": RpcDoor(GRPCInferenceServiceStub, "ModelStreamInfer", "writer"),
}
MODELS: Mapping[str, HttpDoor | RpcDoor] = {
    **{name: door for name, door in HTTP.items() if door.peer in ("writer", "classifier")},
    **RPCS,
}
FORWARDED = [
    f"/{service.name}/{method.name}"
    for service in public_services()
    if service.peer != OWN
    for method in service.public_methods()
]
_LOOK_UPS = {"ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig"}


@pytest.fixture(scope="module", autouse=True)
def short_queue() -> Iterator[None]:
    """The gateway of this module lets few requests wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_guard, "Limits", partial(triton_guard.Limits, waiting=_WAITING))
        yield


@contextmanager
def crowd(mesh: Mesh) -> Iterator[None]:
    """As many requests wait for each model as may."""
    with grpc.insecure_channel(mesh.grpc) as channel:
        stub, sent = InferenceServiceStub(channel), (("x-api-key", mesh.key),)
        before = len(mesh.peers.seen.requests)
        written = pb.GenerateRequest(model="models/headlines", text=_FOREVER)
        predicted = pb.PredictRequest(model="models/reviews", texts=[_FOREVER])
        both: list[Callable[..., Any]] = [
            partial(stub.Generate.future, written),
            partial(stub.Predict.future, predicted),
        ]
        asks = both * _WAITING
        waiting = [ask(metadata=sent, timeout=60) for ask in asks]

        def are_there() -> bool:
            for at, ask in enumerate(asks):
                # Refused: a place of an earlier crowd is not free yet.
                if waiting[at].done():
                    waiting[at] = ask(metadata=sent, timeout=60)
            return len(mesh.peers.seen.requests) >= before + len(waiting)

        wait_until(are_there, "the crowd")
        try:
            yield
        finally:
            for call in waiting:
                call.cancel()


def test_every_door_is_in_the_tables() -> None:
    posts = {path for method, path in ROUTES if method == "POST"}
    assert posts == {door.route for door in HTTP.values()} | _OWN_ROUTES
    own = {method.name for service in public_services() if service.peer == OWN for method in service.public_methods()}
    assert own == set(RPCS) | _LOOK_UPS | {"ModelStatistics"}


def test_a_key_at_its_rate_gets_a_time_at_every_route_and_rpc(mesh: Mesh) -> None:
    _, key = mesh.store.create("slow", {Role.ADMIN}, limits=KeyLimits(requests_per_s=0.01))
    headers = {"x-api-key": key}
    silent: list[tuple[str, object]] = []
    with httpx.Client(base_url=f"http://{mesh.http}", headers=headers) as http:
        assert http.get("/v1/models").status_code == 200
        for (verb, template), roles in ROUTES.items():
            if roles is not None and template != "/metrics":
                found = _of_http(http.request(verb, re.sub(r"\{\w+\}", "1", template)))
                if found.code != "RESOURCE_EXHAUSTED" or not 90 < found.wait_s <= 100:
                    silent.append((template, found))
    with grpc.insecure_channel(mesh.grpc) as channel:
        for method, roles in METHODS.items():
            if roles is not None:
                found = _of_rpc(_raw(channel, method, key))
                if found.code != "RESOURCE_EXHAUSTED" or not 90 < found.wait_s <= 100:
                    silent.append((method, found))
    assert silent == []


@pytest.mark.parametrize("door", MODELS.values(), ids=MODELS)
def test_a_model_for_which_too_many_wait(mesh: Mesh, door: HttpDoor | RpcDoor) -> None:
    with crowd(mesh):
        found = door.ask(mesh, mesh.key)
    assert found.code == "RESOURCE_EXHAUSTED"
    assert found.wait_s > 0


@pytest.mark.parametrize("door", [door for door in MODELS.values() if door.peer == "writer"])
def test_a_model_whose_own_queue_is_full(mesh: Mesh, door: HttpDoor | RpcDoor) -> None:
    metadata = {"triton_grpc_error": "true"} if door is RPCS["ModelStreamInfer"] else {}
    assert door.ask(mesh, mesh.key, "full", **metadata) == Refusal("RESOURCE_EXHAUSTED", FULL_S)


def test_a_full_queue_in_the_stream_of_v2_is_a_text_that_says_when(mesh: Mesh) -> None:
    # Without asking for statuses: of several requests in a stream only one is refused.
    with pytest.raises(AssertionError, match=f"ask again in {FULL_S} s"):
        RPCS["ModelStreamInfer"].ask(mesh, mesh.key, "full")


def test_openais_client_reads_the_time(mesh: Mesh) -> None:
    client = openai.OpenAI(base_url=f"http://{mesh.http}/v1", api_key=mesh.key, max_retries=0)
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(
                model="headlines", messages=[{"role": "user", "content": "full"}], stream=stream
            )
        assert caught.value.response.headers["retry-after"] == str(FULL_S)


def test_a_service_that_refuses_is_passed_on_with_its_time(mesh: Mesh) -> None:
    mesh.peers.refusing.error = ResourceExhaustedError("Too much.", retry_after_s=3)
    try:
        silent = _silent_services(mesh, Refusal("RESOURCE_EXHAUSTED", 3.0))
        mesh.peers.refusing.error = ResourceExhaustedError("Too much.")  # it knows no time
        silent += _silent_services(mesh, Refusal("RESOURCE_EXHAUSTED", 1.0))
    finally:
        mesh.peers.refusing.error = None
    assert silent == []


def test_services_and_triton_that_are_gone(mesh: Mesh) -> None:
    """The last test of this module: they do not come back."""
    mesh.run(mesh.peers.stop())
    silent = _silent_services(mesh, Refusal("UNAVAILABLE", 1.0))
    with ThreadPoolExecutor(_WAITING - 1) as pool:  # more would have to wait for their model
        found = zip(MODELS, pool.map(lambda door: door.ask(mesh, mesh.key), MODELS.values()), strict=True)
        silent += [(name, refusal) for name, refusal in found if refusal.code != "UNAVAILABLE" or refusal.wait_s <= 0]
    assert silent == []


def _silent_services(mesh: Mesh, expected: Refusal, methods: Collection[str] = FORWARDED) -> list[tuple[str, Refusal]]:
    """The doors to services that answer something else."""
    doors: dict[str, Callable[[], Refusal]] = {
        name: partial(door.ask, mesh, mesh.key)
        for name, door in HTTP.items()
        if door.peer not in ("writer", "classifier")
    }
    # Where a service is gone its channel tries for a second.
    with grpc.insecure_channel(mesh.grpc) as channel, ThreadPoolExecutor(32) as pool:
        for method in methods:
            if "TrainingService" not in method:  # which is not there at all
                doors[method] = partial(_of_rpc, _raw(channel, method, mesh.key))
        found = zip(doors, pool.map(lambda ask: ask(), doors.values()), strict=True)
        return [(name, refusal) for name, refusal in found if refusal != expected]


def _raw(channel: grpc.Channel, method: str, key: str) -> Callable[[], object]:
    """Calls any RPC with an empty message: what refuses it has not read it."""

    def as_it_is(message: bytes) -> bytes:
        return message

    call = channel.stream_stream(method, as_it_is, as_it_is)
    return lambda: list(call(iter([b""]), metadata=(("x-api-key", key),), timeout=30))
