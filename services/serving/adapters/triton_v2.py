"""Requests of KServe V2, passed on to Triton with the current trace; responses stay unchanged."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from services.kit.errors import InvalidArgumentError, UnavailableError
from services.serving.adapters.texts import check_texts
from services.serving.adapters.triton_guard import TritonGuard
from services.serving.adapters.triton_liveness import Asked, Liveness
from services.serving.adapters.triton_tensors import add_trace
from services.serving.app.routing import RoutingTable

Metadata = Sequence[tuple[str, str | bytes]]


class TritonV2:
    """Asks Triton in its own protocol.

    Where Triton answers with an error, the methods raise `grpc.aio.AioRpcError` with its status and text, but
    UnavailableError where it does not answer, or does not know a model that is published: then it has just started, and
    loads it again.
    """

    def __init__(self, channel: grpc.aio.Channel, liveness: Liveness, guard: TritonGuard, table: RoutingTable) -> None:
        self._table = table
        self._stub = GRPCInferenceServiceStub(channel)
        self._liveness = liveness
        self._guard = guard

    async def look_up(self, method: str, request: Any, timeout_s: float) -> Any:
        """Calls a method that reads something, such as `ModelMetadata`."""
        with self._away(getattr(request, "name", ""), getattr(request, "version", "")):
            return await getattr(self._stub, method)(request, timeout=timeout_s)

    async def is_ready(self, timeout_s: float) -> bool:
        """Whether Triton accepts requests."""
        try:
            answer = await self._stub.ServerReady(pb.ServerReadyRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.ready)

    async def infer(self, request: Any, timeout_s: float) -> Any:
        """One answer."""
        check_texts(request)
        add_trace(request)
        asked = self._liveness.asked(request.model_name)
        with self._away(request.model_name, request.model_version), self._noticed(request.model_name, asked):
            async with self._guard.request(request.model_name) as admitted:
                response = await admitted.answer(self._stub.ModelInfer(request, timeout=timeout_s))
        if not response.outputs:
            # What Triton returns for requests that a model's process was handling when it died: OK, and nothing in it.
            self._liveness.died(request.model_name, asked)
            raise _died(request.model_name)
        return response

    async def stream(
        self, requests: AsyncIterator[Any], timeout_s: float | None, metadata: Metadata = ()
    ) -> AsyncGenerator[Any, None]:
        """Answers of a decoupled model."""
        first = await anext(aiter(requests), None)
        if first is None:
            return
        model, asked = first.model_name, self._liveness.asked(first.model_name)
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
                add_trace(request)
                yield request

        try:
            with self._away(first.model_name, first.model_version):
                async with self._guard.request(first.model_name) as admitted:
                    call = self._stub.ModelStreamInfer(traced(), timeout=timeout_s, metadata=tuple(metadata))
                    admitted.watch(call)
                    try:
                        async for response in call:
                            admitted.heard()
                            if response.error_message:
                                self._liveness.tells_death(model, response.error_message, asked)
                            yield response
                        if refused:
                            raise refused[0]
                    finally:
                        if not call.done():
                            call.cancel()
        except grpc.aio.AioRpcError as error:
            if self._liveness.tells_death(model, error.details() or "", asked):
                raise _died(model) from error
            raise

    @contextmanager
    def _away(self, model: str, version: str) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            unknown = error.code() is grpc.StatusCode.NOT_FOUND and self._table.serves(model, version)
            if error.code() is not grpc.StatusCode.UNAVAILABLE and not unknown:
                raise
            why = f"it loads models/{model} again" if unknown else error.details()
            raise UnavailableError(
                f"Triton does not answer: {why}", reason="TRITON_UNAVAILABLE", retry_after_s=1.0
            ) from error

    @contextmanager
    def _noticed(self, model: str, asked: Asked) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            if self._liveness.tells_death(model, error.details() or "", asked):
                raise _died(model) from error
            raise


async def _after(first: Any, others: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """A request, and then those that follow it."""
    yield first
    async for request in others:
        yield request


def _died(model: str) -> UnavailableError:
    return UnavailableError(
        f"Triton does not answer: the process of models/{model} died while it answered",
        reason="TRITON_UNAVAILABLE",
        retry_after_s=1.0,
    )
