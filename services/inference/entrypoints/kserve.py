# ruff: noqa: N802 - method names follow the protocol
"""KServe V2's GRPCInferenceService, passed on to Triton, so that clients written for Triton work unchanged.

What changes the server (load, unload, shared memory, settings) is not passed on: the repository is the service's.

Triton's response cache knows an answer by its inputs alone. A request for some of a model's outputs would leave an
answer without the others to everyone who sends the same inputs, so all outputs are always requested from Triton.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, NoReturn, Protocol

import grpc
from opentelemetry import propagate
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from services.inference.entrypoints.texts import check_texts
from services.kit.errors import InvalidArgumentError, UnavailableError

SERVICE = "inference.GRPCInferenceService"
_TRACEPARENT = "traceparent"
_REAL_STATUS = "triton_grpc_error"
_DEADLINE_S = 60.0
_UNARY = (
    "ServerLive",
    "ServerReady",
    "ServerMetadata",
    "ModelReady",
    "ModelMetadata",
    "ModelConfig",
    "ModelStatistics",
    "ModelInfer",
)


class Admitted(Protocol):
    """A request that may be sent; see `services.inference.adapters.triton_guard`."""

    async def answer(self, call: Any) -> Any:
        """Awaits a call."""
        ...

    def watch(self, call: Any) -> None:
        """Ends the call when Triton is found to be frozen."""
        ...

    def heard(self) -> None:
        """Triton answered something."""
        ...


class Guard(Protocol):
    """Fails requests at once while Triton does not answer."""

    def request(self, model: str) -> AbstractAsyncContextManager[Admitted]:
        """A request to a model, for the length of the block."""
        ...


def add_kserve(
    server: grpc.aio.Server, channel: grpc.aio.Channel, heard: Callable[[str, str, float], object], guard: Guard
) -> str:
    """Adds the protocol's methods that are offered; all others are UNIMPLEMENTED. Returns the service's full name.

    Args:
        server: the server.
        channel: to Triton.
        heard: called with a model's name, Triton's error for a failed request, and the time of the request.
        guard: admits requests.
    """
    passed = KServe(channel, heard, guard)
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(
            getattr(passed, name),
            request_deserializer=getattr(pb, f"{name}Request").FromString,
            response_serializer=getattr(pb, f"{name}Response").SerializeToString,
        )
        for name in _UNARY
    }
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
        passed.ModelStreamInfer,
        request_deserializer=pb.ModelInferRequest.FromString,
        response_serializer=pb.ModelStreamInferResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    return SERVICE


class KServe:
    """Passes requests on with the caller's deadline, cancellation and the current trace; responses stay unchanged."""

    def __init__(self, channel: grpc.aio.Channel, heard: Callable[[str, str, float], object], guard: Guard) -> None:
        self._stub = GRPCInferenceServiceStub(channel)
        self._heard = heard
        self._guard = guard

    async def ServerLive(self, request: Any, context: Any) -> Any:
        """Always: the service itself answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        """Whether Triton accepts requests."""
        try:
            return await self._stub.ServerReady(request, timeout=_limit(context))
        except grpc.aio.AioRpcError:
            return pb.ServerReadyResponse(ready=False)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        """Name and version of Triton."""
        return await _pass(self._stub.ServerMetadata, request, context)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        """Whether a model answers."""
        return await _pass(self._stub.ModelReady, request, context)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        """Inputs and outputs of a model."""
        return await _pass(self._stub.ModelMetadata, request, context)

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        """Configuration of a model."""
        return await _pass(self._stub.ModelConfig, request, context)

    async def ModelStatistics(self, request: Any, context: Any) -> Any:
        """Counters of a model."""
        return await _pass(self._stub.ModelStatistics, request, context)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """One answer."""
        check_texts(request)
        _continue_trace(request)
        asked = asyncio.get_running_loop().time()
        try:
            async with self._guard.request(request.model_name) as admitted:
                wanted = await self._widen(request, _limit(context))
                response = await admitted.answer(self._stub.ModelInfer(request, timeout=_limit(context)))
        except grpc.aio.AioRpcError as error:
            self._heard(request.model_name, error.details() or "", asked)
            await _relay(error, context)
        if unknown := wanted - {output.name for output in response.outputs}:
            raise InvalidArgumentError(
                f"unexpected inference output '{min(unknown)}' for model '{request.model_name}'",
                reason="UNKNOWN_OUTPUT",
            )
        return _narrowed(response, wanted)

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        """Answers of a decoupled model."""
        first = await anext(aiter(requests), None)
        if first is None:
            return
        model, asked = first.model_name, asyncio.get_running_loop().time()
        wanted: dict[str, set[str]] = {}
        everything: set[str] = set()
        refused: list[InvalidArgumentError] = []

        async def traced() -> AsyncIterator[Any]:
            nonlocal model
            async for request in _after(first, requests):
                model = request.model_name
                try:
                    check_texts(request)
                except InvalidArgumentError as error:  # gRPC swallows what is raised here
                    refused.append(error)
                    return
                _continue_trace(request)
                if names := await self._widen(request, _DEADLINE_S):
                    wanted.setdefault(model, set()).update(names)
                else:
                    everything.add(model)
                yield request

        passed = [(key, value) for key, value in context.invocation_metadata() or () if key == _REAL_STATUS]
        try:
            async with self._guard.request(first.model_name) as admitted:
                call = self._stub.ModelStreamInfer(traced(), timeout=context.time_remaining(), metadata=passed)
                admitted.watch(call)
                try:
                    async for response in call:
                        admitted.heard()
                        if response.error_message:
                            self._heard(model, response.error_message, asked)
                        answered = response.infer_response.model_name
                        if answered not in everything:
                            _narrowed(response.infer_response, wanted.get(answered, set()))
                        yield response
                    if refused:
                        raise refused[0]
                finally:
                    if not call.done():
                        call.cancel()
        except grpc.aio.AioRpcError as error:
            self._heard(model, error.details() or "", asked)
            await _relay(error, context)

    async def _widen(self, request: Any, limit_s: float) -> set[str]:
        """Makes a request ask for all outputs; returns the names of those that its caller wants, none if all."""
        wanted = {output.name for output in request.outputs}
        if any(output.parameters for output in request.outputs):
            # Such as `classification`, which Triton applies to this output when it writes the answer.
            ask = pb.ModelMetadataRequest(name=request.model_name, version=request.model_version)
            for tensor in (await self._stub.ModelMetadata(ask, timeout=limit_s)).outputs:
                if tensor.name not in wanted:
                    request.outputs.add(name=tensor.name)
        else:
            del request.outputs[:]
        return wanted


async def _after(first: Any, others: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """A request, and then those that follow it."""
    yield first
    async for request in others:
        yield request


def _narrowed(response: Any, wanted: set[str]) -> Any:
    """The response with only those outputs; with all if none is named."""
    for index in reversed(range(len(response.outputs) if wanted else 0)):
        if response.outputs[index].name not in wanted:
            del response.outputs[index]
            del response.raw_output_contents[index]
    return response


async def _pass(method: Callable[..., Any], request: Any, context: Any) -> Any:
    try:
        return await method(request, timeout=_limit(context))
    except grpc.aio.AioRpcError as error:
        await _relay(error, context)


async def _relay(error: grpc.aio.AioRpcError, context: Any) -> NoReturn:
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        raise UnavailableError(
            f"Triton does not answer: {error.details()}", reason="TRITON_UNAVAILABLE", retry_after_s=1.0
        ) from error
    await context.abort(error.code(), error.details() or "")
    raise AssertionError("unreachable: abort raises")


def _limit(context: Any) -> float:
    remaining: float | None = context.time_remaining()
    return _DEADLINE_S if remaining is None else remaining


def _continue_trace(request: Any) -> None:
    """Names this service's span as the parent of the model's own."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    if _TRACEPARENT in carrier:
        request.parameters[_TRACEPARENT].string_param = carrier[_TRACEPARENT]
