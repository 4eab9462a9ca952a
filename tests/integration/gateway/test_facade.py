"""The gRPC door: services on one port, passed on with everything that belongs to a call."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from tidemill.inference.v1.inference_service_pb2 import (
    EmbedRequest,
    GenerateRequest,
    ListModelsRequest,
    PredictRequest,
    StreamGenerateRequest,
)
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from tidemill.ingest.v1.ingest_service_pb2 import IngestRecordsRequest, StreamRecordsRequest
from tidemill.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tidemill.ingest.v1.record_pb2 import Record
from tidemill.training.v1.training_service_pb2 import CreateRunRequest, GetRunRequest
from tidemill.training.v1.training_service_pb2_grpc import TrainingServiceStub
from tritonclient.grpc import service_pb2 as v2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from gateway.facade.table import OWN, public_services
from tests.faults.http2 import DATA, HEADERS, PREFACE, SETTINGS, fields, frame
from tests.integration.gateway.conftest import Mesh
from tests.integration.gateway.fake_peers import ANSWER, WORDS
from tests.waiting import wait_until


@pytest.fixture
def channel(mesh: Mesh) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(mesh.grpc) as channel:
        yield channel


@pytest.fixture
def auth(mesh: Mesh) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {mesh.key}"),)


def test_unary_call_with_metadata_deadline_and_trailers(
    mesh: Mesh, channel: grpc.Channel, auth: tuple[tuple[str, str], ...]
) -> None:
    stub = InferenceServiceStub(channel)
    response, call = stub.ListModels.with_call(
        ListModelsRequest(page_size=7),
        metadata=(*auth, ("x-request-id", "r-1"), ("x-blob-bin", b"\x00\x01")),
        timeout=20,
    )
    assert [model.name for model in response.models] == ["models/headlines"]
    seen = mesh.peers.seen
    assert seen.requests[-1].page_size == 7
    assert seen.metadata[-1]["x-request-id"] == "r-1"
    assert seen.metadata[-1]["x-blob-bin"] == b"\x00\x01"
    assert "authorization" not in seen.metadata[-1]
    remaining = seen.remaining_s[-1]
    assert remaining is not None
    assert remaining < 21  # the wire rounds up
    assert ("x-cache", "hit") in [(key, value) for key, value in call.trailing_metadata()]


def test_what_is_answered_with_a_model_is_answered_here(
    channel: grpc.Channel, auth: tuple[tuple[str, str], ...]
) -> None:
    request = PredictRequest(model="models/reviews", texts=["a", "b"])
    response = InferenceServiceStub(channel).Predict(request, metadata=auth, timeout=20)
    assert [prediction.label for prediction in response.predictions] == ["positive", "positive"]
    assert response.model_version == "models/reviews/versions/1"
    vectors = InferenceServiceStub(channel).Embed(
        EmbedRequest(model="models/reviews", texts=["a", "long"]), metadata=auth, timeout=20
    )
    assert [item.truncated_tokens for item in vectors.embeddings] == [0, 2]
    assert list(vectors.embeddings[0].values) == pytest.approx([0.1, 0.7, 0.1, 0.7])
    assert vectors.model_version == "models/reviews/versions/1"
    with pytest.raises(grpc.RpcError) as found:
        InferenceServiceStub(channel).Generate(GenerateRequest(model="models/reviews", text="a"), metadata=auth)
    status = rpc_status.from_call(found.value)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.reason == "WRONG_TASK"


def test_streams(channel: grpc.Channel, auth: tuple[tuple[str, str], ...]) -> None:
    pieces = InferenceServiceStub(channel).StreamGenerate(
        StreamGenerateRequest(model="models/headlines", text="x"), metadata=auth
    )
    assert [piece.text_delta for piece in pieces] == [*WORDS, ""]
    batches = (StreamRecordsRequest(request_id=name, records=[Record(source="s", text="t")]) for name in ("one", "two"))
    answers = IngestServiceStub(channel).StreamRecords(batches, metadata=auth)
    assert [answer.request_id for answer in answers] == ["one", "two"]


def test_cancelling_reaches_the_service(mesh: Mesh, channel: grpc.Channel, auth: tuple[tuple[str, str], ...]) -> None:
    cancelled = mesh.peers.seen.cancelled
    mesh.loop.call_soon_threadsafe(cancelled.clear)
    pieces = InferenceServiceStub(channel).StreamGenerate(
        StreamGenerateRequest(model="models/headlines", text="wait"), metadata=auth
    )
    assert next(pieces).answer == ANSWER
    pieces.cancel()
    mesh.run(cancelled.wait())


@pytest.mark.parametrize("deadline", [None, 0.5])
def test_a_caller_of_kserve_that_leaves_its_stream_ends_the_generation(
    mesh: Mesh, channel: grpc.Channel, auth: tuple[tuple[str, str], ...], deadline: float | None
) -> None:
    cancelled = mesh.peers.seen.cancelled
    mesh.loop.call_soon_threadsafe(cancelled.clear)
    request = v2.ModelInferRequest(model_name="headlines")
    request.inputs.add(name="text", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(struct.pack("<I", 4) + b"wait")
    # What only the gateway may say.
    request.parameters["tidemill_request"].string_param = "mine"
    go = threading.Event()

    def requests() -> Iterator[v2.ModelInferRequest]:
        yield request
        go.wait(60)

    stub = GRPCInferenceServiceStub(channel)
    before = mesh.peers.seen.cancelled_calls
    pieces = stub.ModelStreamInfer(requests(), metadata=auth, timeout=deadline)
    try:
        assert next(pieces).infer_response.outputs
        if deadline is None:
            pieces.cancel()
        mesh.run(cancelled.wait())
    finally:
        go.set()
    assert mesh.peers.seen.cancelled_calls == before


def test_the_services_own_error_details_arrive(channel: grpc.Channel, auth: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(grpc.RpcError) as found:
        IngestServiceStub(channel).IngestRecords(IngestRecordsRequest(), metadata=auth)
    assert found.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(found.value)  # type: ignore[arg-type]
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    assert bad.field_violations[0].field == "records"


def test_a_deadline_ends_the_call(channel: grpc.Channel, auth: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(grpc.RpcError) as found:
        InferenceServiceStub(channel).Generate(
            GenerateRequest(model="models/headlines", text="wait"), metadata=auth, timeout=0.3
        )
    assert found.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_what_is_not_public_does_not_exist(channel: grpc.Channel, auth: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(grpc.RpcError) as found:
        TrainingServiceStub(channel).CreateRun(CreateRunRequest(), metadata=auth)
    assert found.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_service_that_is_unavailable_is_named(channel: grpc.Channel, auth: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(grpc.RpcError) as found:
        TrainingServiceStub(channel).GetRun(GetRunRequest(name="runs/r"), metadata=auth, timeout=20)
    assert found.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "training service does not answer" in str(found.value.details())


@pytest.mark.parametrize(
    "metadata", [(), (("authorization", "Bearer tm_000000000000_" + "0" * 64),), (("x-api-key", "?"),)]
)
def test_without_a_valid_key_nothing_is_reached(
    mesh: Mesh, channel: grpc.Channel, metadata: tuple[tuple[str, str], ...]
) -> None:
    before = len(mesh.peers.seen.requests)
    for call in (
        lambda: InferenceServiceStub(channel).Predict(PredictRequest(model="models/m", texts=["a"]), metadata=metadata),
        lambda: list(
            InferenceServiceStub(channel).StreamGenerate(
                StreamGenerateRequest(model="models/headlines", text="x"), metadata=metadata
            )
        ),
        lambda: list(IngestServiceStub(channel).StreamRecords(iter(()), metadata=metadata)),
    ):
        with pytest.raises(grpc.RpcError) as found:
            call()
        assert found.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "tidemill keys create" in str(found.value.details())
    assert len(mesh.peers.seen.requests) == before


def test_strangers_make_up_no_names_of_metrics(mesh: Mesh, channel: grpc.Channel) -> None:
    for name in ("/made.up.Service/Method", "/tidemill.inference.v1.InferenceService/MadeUp"):
        with pytest.raises(grpc.RpcError) as found:
            channel.unary_unary(name)(b"")  # type: ignore[arg-type]
        assert found.value.code() is grpc.StatusCode.UNIMPLEMENTED
    text = httpx.get(f"http://{mesh.http}/metrics").text
    assert "made.up" not in text
    assert "MadeUp" not in text


def test_a_new_key_is_valid_at_once_and_a_revoked_one_soon_refused(mesh: Mesh, channel: grpc.Channel) -> None:
    key, text = mesh.store.create("visitor")
    request, metadata = PredictRequest(model="models/m", texts=["a"]), (("x-api-key", text),)
    stub = InferenceServiceStub(channel)
    assert stub.Predict(request, metadata=metadata).predictions
    mesh.store.revoke(key.key_id)

    def refused() -> bool:
        try:
            stub.Predict(request, metadata=metadata)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAUTHENTICATED
        return False

    wait_until(refused, "the refusal of a revoked key")


def test_health_is_open_and_reflection_lists_the_services(
    channel: grpc.Channel, auth: tuple[tuple[str, str], ...]
) -> None:
    health = health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]
        health_pb2.HealthCheckRequest()
    )
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), metadata=auth)  # type: ignore[operator]
    names = {service.name for service in next(asked).list_services_response.service}
    assert {"tidemill.ingest.v1.IngestService", "inference.GRPCInferenceService"} <= names


def test_bytes_that_are_not_message_are_refused_through_the_gateway(
    mesh: Mesh, channel: grpc.Channel, auth: tuple[tuple[str, str], ...]
) -> None:
    for service in public_services():
        if service.peer not in (OWN, "inference", "ingest", "pipeline", "telemetry"):  # the others are not played here
            continue
        for method in service.public_methods():
            client, reply = ("stream" if s else "unary" for s in (method.client_streaming, method.server_streaming))
            call = getattr(channel, f"{client}_{reply}")(f"/{service.name}/{method.name}")
            request = iter([b"\xff\xff\xff\xff\x00"]) if method.client_streaming else b"\xff\xff\xff\xff\x00"
            code = None
            try:
                answer = call(request, metadata=auth, timeout=20)
                if method.server_streaming:
                    list(answer)
            except grpc.RpcError as error:
                code = error.code()
            assert code is grpc.StatusCode.INVALID_ARGUMENT, method.full_name


def test_metadata_of_any_text_is_passed_on(mesh: Mesh) -> None:
    sent = {
        ":method": b"POST",
        ":scheme": b"http",
        ":path": b"/tidemill.inference.v1.InferenceService/ListModels",
        ":authority": b"x",
        "te": b"trailers",
        "content-type": b"application/grpc",
        "x-api-key": mesh.key.encode(),
        "x-name": "Zoë 50% 看".encode(),
    }
    request = ListModelsRequest().SerializeToString()
    body = b"\0" + len(request).to_bytes(4, "big") + request
    before = len(mesh.peers.seen.metadata)
    host, _, port = mesh.grpc.partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))
        connection.sendall(frame(HEADERS, 4, 1, fields(sent)) + frame(DATA, 1, 1, body))
        wait_until(lambda: len(mesh.peers.seen.metadata) > before, "the call")
    value = mesh.peers.seen.metadata[-1]["x-name"]
    assert isinstance(value, str)
    assert unquote(value) == "Zoë 50% 看"


def test_a_text_with_nul_is_refused_by_its_field(channel: grpc.Channel, auth: tuple[tuple[str, str], ...]) -> None:
    stub: Any = InferenceServiceStub(channel)
    for call, request in (
        (stub.Predict, PredictRequest(model="models/m", texts=["a", "b\0c"])),
        (stub.Generate, GenerateRequest(model="models/headlines", text="b\0c")),
    ):
        with pytest.raises(grpc.RpcError) as found:
            call(request, metadata=auth)
        assert found.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "text" in str(found.value.details())
