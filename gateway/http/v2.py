"""KServe V2 over HTTP, answered by Triton's V2 over gRPC."""

from __future__ import annotations

from typing import Any

import grpc
from fastapi import APIRouter, Request
from starlette.responses import Response
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as v2

from gateway.http.bodies import described
from gateway.http.body import body_of
from gateway.http.calls import json_response, unless_gone, user_of, version_headers, watch_disconnect
from gateway.http.v2_bodies import (
    InferAnswer,
    InferBody,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorMetadata,
    answered,
    described_message,
)
from gateway.http.v2_codec import message_json, read_infer, write_infer
from services.kit.errors import (
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    TidemillError,
)
from services.kit.grpc.errors import translate_rpc_errors
from services.serving.adapters.triton_v2 import TritonV2
from services.serving.domain.route import RoutedVersion

_INFER_S = 60.0
_LOOK_UP_S = 10.0
_PROBE_S = 2.0
_UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
_JSON_SIZE = "inference-header-content-length"
_INFER_DOCS = {
    "response_model": InferAnswer,
    "responses": {200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
    **described(InferBody, "Infers (JSON, or JSON and binary tensor data)"),
}
_CONFIG_DOCS = described_message(model_config_pb2.ModelConfig)
_STATISTICS_DOCS = described_message(v2.ModelStatisticsResponse)


def v2_routes(triton: TritonV2) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["KServe V2"])

    async def ask(method: str, message: Any, timeout_s: float = _LOOK_UP_S) -> Any:
        with translate_rpc_errors("Triton"):
            return await triton.look_up(method, message, timeout_s)

    async def answer(message: Any, user: str) -> tuple[Any, RoutedVersion]:
        with translate_rpc_errors("Triton"):
            return await triton.infer(message, _INFER_S, user)

    @router.get("/v2", response_model=ServerMetadata)
    async def server_metadata() -> Response:
        found = await ask("ServerMetadata", v2.ServerMetadataRequest())
        return answered(ServerMetadata(name=found.name, version=found.version, extensions=list(found.extensions)))

    @router.get("/v2/health/live", response_model=ServerLive)
    async def live() -> Response:
        return answered(ServerLive(live=True))

    @router.get("/v2/health/ready", response_model=ServerReady)
    async def server_ready() -> Response:
        ready = await triton.is_ready(_PROBE_S)
        return answered(ServerReady(ready=ready), 200 if ready else 503)

    @router.get("/v2/models/{model}/versions/{version}/ready", response_model=ModelReady)
    @router.get("/v2/models/{model}/ready", response_model=ModelReady)
    async def model_ready(model: str, version: str = "") -> Response:
        # Not an error of the server: the protocol requires a 4xx for a model that is not ready.
        try:
            found = await ask("ModelReady", v2.ModelReadyRequest(name=model, version=version), _PROBE_S)
            status = 200 if found.ready else 404
        except (InvalidArgumentError, NotFoundError):
            status = 404  # no such model, or a version that is not a number
        except TidemillError:
            status = 503
        return answered(ModelReady(name=model, ready=status == 200), status)

    @router.get("/v2/models/{model}/versions/{version}/config", **_CONFIG_DOCS)
    @router.get("/v2/models/{model}/config", **_CONFIG_DOCS)
    async def model_config(model: str, version: str = "") -> Response:
        found = await ask("ModelConfig", v2.ModelConfigRequest(name=model, version=version))
        return json_response(message_json(found.config))

    @router.get("/v2/models/stats", **_STATISTICS_DOCS)
    @router.get("/v2/models/{model}/versions/{version}/stats", **_STATISTICS_DOCS)
    @router.get("/v2/models/{model}/stats", **_STATISTICS_DOCS)
    async def model_statistics(model: str = "", version: str = "") -> Response:
        found = await ask("ModelStatistics", v2.ModelStatisticsRequest(name=model, version=version))
        return json_response(message_json(found))

    @router.get("/v2/models/{model}/versions/{version}", response_model=ModelMetadata)
    @router.get("/v2/models/{model}", response_model=ModelMetadata)
    async def model_metadata(model: str, version: str = "") -> Response:
        found = await ask("ModelMetadata", v2.ModelMetadataRequest(name=model, version=version))
        return answered(
            ModelMetadata(
                name=found.name,
                versions=list(found.versions),
                platform=found.platform,
                inputs=[_tensor(tensor) for tensor in found.inputs],
                outputs=[_tensor(tensor) for tensor in found.outputs],
            )
        )

    @router.post("/v2/models/{model}/versions/{version}/infer", **_INFER_DOCS)
    @router.post("/v2/models/{model}/infer", **_INFER_DOCS)
    async def infer(request: Request, model: str, version: str = "") -> Response:
        call = read_infer(await body_of(request), _json_size(request), model, version)
        gone = watch_disconnect(request)
        try:
            response, chosen = await unless_gone(answer(call.request, user_of(request)), gone)
        except InternalError as error:
            if isinstance(error.__cause__, grpc.aio.AioRpcError) and error.__cause__.code() is _UNIMPLEMENTED:
                raise FailedPreconditionError(
                    f"The model {model} answers in a stream: use /v1/chat/completions, or ModelStreamInfer over gRPC.",
                    reason="STREAMS_ONLY",
                ) from error
            raise
        finally:
            gone.cancel()
        content, json_size = write_infer(response, call)
        headers = version_headers(chosen.name, chosen.role)
        if json_size is None:
            return Response(content, headers=headers, media_type="application/json")
        headers[_JSON_SIZE] = str(json_size)
        return Response(content, headers=headers, media_type="application/octet-stream")

    return router


def _tensor(tensor: Any) -> TensorMetadata:
    return TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=list(tensor.shape))


def _json_size(request: Request) -> int | None:
    given = request.headers.get(_JSON_SIZE)
    if given is None:
        return None
    if not given.isascii() or not given.isdigit():
        raise InvalidArgumentError("Inference-Header-Content-Length must be a number.", reason="INVALID_HEADER")
    return int(given)
