"""Requests of KServe V2, passed on to Triton with the current trace; responses stay unchanged.

Triton's response cache knows an answer by its inputs alone. A request for some of a model's outputs would leave an
answer without the others to everyone who sends the same inputs, so all outputs are always requested from Triton.
"""

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

Metadata = Sequence[tuple[str, str | bytes]]

_LOOK_UP_S = 60.0


class TritonV2:
    """Asks Triton in its own protocol.

    Where Triton answers with an error, the methods raise `grpc.aio.AioRpcError` with its status and text, but
    UnavailableError where it does not answer.
    """

    def __init__(self, channel: grpc.aio.Channel, liveness: Liveness, guard: TritonGuard) -> None:
        self._stub = GRPCInferenceServiceStub(channel)
        self._liveness = liveness
        self._guard = guard

    async def look_up(self, method: str, request: Any, timeout_s: float) -> Any:
        """Calls a method that reads something, such as `ModelMetadata`."""
        with _away():
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
        with _away(), self._noticed(request.model_name, asked):
            async with self._guard.request(request.model_name) as admitted:
                wanted = await self._widen(request, timeout_s)
                response = await admitted.answer(self._stub.ModelInfer(request, timeout=timeout_s))
        if unknown := wanted - {output.name for output in response.outputs}:
            raise InvalidArgumentError(
                f"unexpected inference output '{min(unknown)}' for model '{request.model_name}'",
                reason="UNKNOWN_OUTPUT",
            )
        return _narrowed(response, wanted)

    async def stream(
        self, requests: AsyncIterator[Any], timeout_s: float | None, metadata: Metadata = ()
    ) -> AsyncGenerator[Any, None]:
        """Answers of a decoupled model."""
        first = await anext(aiter(requests), None)
        if first is None:
            return
        model, asked = first.model_name, self._liveness.asked(first.model_name)
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
                add_trace(request)
                if names := await self._widen(request, _LOOK_UP_S):
                    wanted.setdefault(model, set()).update(names)
                else:
                    everything.add(model)
                yield request

        try:
            with _away():
                async with self._guard.request(first.model_name) as admitted:
                    call = self._stub.ModelStreamInfer(traced(), timeout=timeout_s, metadata=tuple(metadata))
                    admitted.watch(call)
                    try:
                        async for response in call:
                            admitted.heard()
                            if response.error_message:
                                self._liveness.tells_death(model, response.error_message, asked)
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
            self._liveness.tells_death(model, error.details() or "", asked)
            raise

    @contextmanager
    def _noticed(self, model: str, asked: Asked) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            self._liveness.tells_death(model, error.details() or "", asked)
            raise

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


@contextmanager
def _away() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        raise UnavailableError(
            f"Triton does not answer: {error.details()}", reason="TRITON_UNAVAILABLE", retry_after_s=1.0
        ) from error
