# ruff: noqa: N802 - method names follow the protocol
"""KServe V2's GRPCInferenceService, passed on to Triton, so that clients written for Triton work unchanged.

What changes the server (load, unload, shared memory, settings) is not passed on: the repository is the control plane's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, NoReturn, Protocol

import grpc
from tritonclient.grpc import service_pb2 as pb

from services.serving.domain.route import RoutedVersion
from services.serving.entrypoints.answers import note_version, user_of

SERVICE = "inference.GRPCInferenceService"
_REAL_STATUS = "triton_grpc_error"
_DEADLINE_S = 60.0
_LOOK_UPS = ("ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")


class V2(Protocol):
    """Asks Triton; see `services.serving.adapters.triton_v2`."""

    async def look_up(self, method: str, request: Any, timeout_s: float) -> Any:
        """Calls a method that reads something."""
        ...

    async def is_ready(self, timeout_s: float) -> bool:
        """Whether Triton accepts requests."""
        ...

    async def infer(self, request: Any, timeout_s: float, user: str = "") -> tuple[Any, RoutedVersion]:
        """One answer, and the version that gave it."""
        ...

    def stream(
        self,
        requests: AsyncIterator[Any],
        user: str = "",
        *,
        by_status: bool = False,
    ) -> AsyncGenerator[Any, None]:
        """Answers of a decoupled model; `by_status`: its first error ends the stream, instead of a text in it."""
        ...


def kserve_handlers(v2: V2) -> Mapping[str, Any]:
    """GRPC handlers of the protocol's methods that are offered, by path; all others are UNIMPLEMENTED."""
    passed = KServe(v2)
    unary = {"ServerLive": passed.ServerLive, "ServerReady": passed.ServerReady, "ModelInfer": passed.ModelInfer}
    unary |= {name: passed.look_up(name) for name in _LOOK_UPS}
    handlers: dict[str, Any] = {
        f"/{SERVICE}/{name}": grpc.unary_unary_rpc_method_handler(
            behaviour,
            request_deserializer=getattr(pb, f"{name}Request").FromString,
            response_serializer=getattr(pb, f"{name}Response").SerializeToString,
        )
        for name, behaviour in unary.items()
    }
    handlers[f"/{SERVICE}/ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
        passed.ModelStreamInfer,
        request_deserializer=pb.ModelInferRequest.FromString,
        response_serializer=pb.ModelStreamInferResponse.SerializeToString,
    )
    return handlers


class KServe:
    """Behaviour of the methods: the caller's deadline goes along, and Triton's own status comes back."""

    def __init__(self, v2: V2) -> None:
        self._v2 = v2

    async def ServerLive(self, request: Any, context: Any) -> Any:
        """Always: who answers here lives."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        """Whether Triton accepts requests."""
        return pb.ServerReadyResponse(ready=await self._v2.is_ready(_limit(context)))

    def look_up(self, name: str) -> Any:
        """A method that only reads."""

        async def read(request: Any, context: Any) -> Any:
            try:
                return await self._v2.look_up(name, request, _limit(context))
            except grpc.aio.AioRpcError as error:
                await _relay(error, context)

        return read

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """One answer."""
        try:
            response, version = await self._v2.infer(request, _limit(context), user_of(context))
            note_version(context, version.name, version.role)
            return response
        except grpc.aio.AioRpcError as error:
            await _relay(error, context)

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        """Answers of a decoupled model."""
        by_status = dict(context.invocation_metadata() or ()).get(_REAL_STATUS) == "true"
        try:
            async with aclosing(self._v2.stream(requests, user_of(context), by_status=by_status)) as responses:
                async for response in responses:
                    yield response
        except grpc.aio.AioRpcError as error:
            await _relay(error, context)


async def _relay(error: grpc.aio.AioRpcError, context: Any) -> NoReturn:
    await context.abort(error.code(), error.details() or "")
    raise AssertionError("unreachable: abort raises")


def _limit(context: Any) -> float:
    remaining: float | None = context.time_remaining()
    return _DEADLINE_S if remaining is None else remaining
