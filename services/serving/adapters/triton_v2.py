"""Requests of KServe V2, passed on to Triton with the current trace, under the names that callers know.

A caller names a model, and a version by number or alias if it wants one; Triton knows each version as a model of its
own. Names go one way in a request and the other way in its response and in Triton's texts; nothing else changes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from services.kit.errors import FailedPreconditionError, NotFoundError, TidemillError
from services.kit.grpc.request_streams import RequestStream
from services.serving.adapters.texts import check_texts
from services.serving.adapters.triton_errors import (
    is_not_loaded,
    queue_full,
    status_of_text,
    triton_unavailable,
)
from services.serving.adapters.triton_guard import TritonGuard
from services.serving.adapters.triton_liveness import Asked, Liveness
from services.serving.adapters.triton_streams import TritonStream
from services.serving.adapters.triton_tensors import add_request_id, add_trace, add_turn, departure_of
from services.serving.adapters.v2_tokens import TokenCount
from services.serving.app.ports import Meter, NotLoadedError
from services.serving.app.routing import RoutingTable
from services.serving.app.shadowing import Shadows
from services.serving.domain.answer import CallerPriority
from services.serving.domain.names import ModelReference, parse_server_model
from services.serving.domain.route import RoutedVersion

logger = logging.getLogger(__name__)

_SHORTEST_S = 60.0
_DEPARTURES = 64
EXTENSIONS = ("binary_tensor_data", "model_configuration", "statistics")
"""Of the protocol, as offered at both doors; Triton's other ones (repository, shared memory, traces, logs) are not."""


class TritonV2:
    """Asks Triton in its own protocol.

    Where Triton answers with an error, the methods raise `grpc.aio.AioRpcError` with its status and text, but
    UnavailableError where it does not answer, or does not know a version that is in a route: then it has just started,
    and loads it again. What no route knows is NotFoundError.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        liveness: Liveness,
        guard: TritonGuard,
        table: RoutingTable,
        shadows: Shadows | None = None,
        meter: Meter = lambda: None,
        turn: Callable[[], CallerPriority] = CallerPriority,
    ) -> None:
        """Args:
        channel: to Triton.
        liveness: of its models.
        guard: admits requests.
        table: the routes.
        shadows: get copies of what `infer` answers; a stream's requests are not copied.
        meter: of the present caller's tokens.
        turn: the present caller's.
        """
        self._shadows, self._meter, self._turn = shadows, meter, turn
        self._table = table
        self._stub = GRPCInferenceServiceStub(channel)
        self._liveness = liveness
        self._guard = guard

    async def look_up(self, method: str, request: Any, timeout_s: float) -> Any:
        """Calls a method that reads something, such as `ModelMetadata`; without a version, about the serving one."""
        call = getattr(self._stub, method)
        if method == "ModelStatistics":
            return await self._statistics(request, timeout_s)
        if method == "ServerMetadata":
            with self._translated():
                found = await call(request, timeout=timeout_s)
            del found.extensions[:]
            found.extensions.extend(EXTENSIONS)
            return found
        try:
            version = self._table.find(ModelReference(request.name, request.version))
        except NotFoundError:
            if method == "ModelReady":
                return pb.ModelReadyResponse(ready=False)
            raise
        with self._translated(version):
            response = await call(type(request)(name=version.server_model), timeout=timeout_s)
        if method == "ModelMetadata":
            response.name = version.model
            del response.versions[:]
            route = self._table.route(version.model)
            numbers = [each.number for each in route.versions] if route is not None else [version.number]
            response.versions.extend(str(number) for number in sorted(numbers))
        elif method == "ModelConfig":
            response.config.name = version.model
        return response

    async def _statistics(self, request: Any, timeout_s: float) -> Any:
        """The counters of one version, of all that a route has, or of all routes."""
        if request.name:
            route = self._table.route(request.name)
            first = self._table.find(ModelReference(request.name, request.version))
            versions = (first,) if request.version or route is None else route.versions
        else:
            versions = tuple(version for route in self._table.routes() for version in route.versions)
        found = pb.ModelStatisticsResponse()
        for version in versions:
            with self._translated(version):
                asked = pb.ModelStatisticsRequest(name=version.server_model)
                response = await self._stub.ModelStatistics(asked, timeout=timeout_s)
            for each in response.model_stats:
                each.name = version.model
            found.MergeFrom(response)
        return found

    async def is_ready(self, timeout_s: float) -> bool:
        """Whether Triton accepts requests."""
        try:
            answer = await self._stub.ServerReady(pb.ServerReadyRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.ready)

    async def infer(self, request: Any, timeout_s: float, user: str = "") -> tuple[Any, RoutedVersion]:
        """One answer, and the version that gave it.

        Args:
            request: `ModelInferRequest` as the caller wrote it; it is changed.
            timeout_s: for Triton.
            user: for whom it is; see `RoutingTable.choose`.
        """
        check_texts(request)
        add_trace(request)
        add_turn(request, self._turn())
        asked = ModelReference(request.model_name, request.model_version)
        spend = self._meter()
        count = TokenCount.of_texts(spend) if spend is not None else None
        version = self._table.choose(asked, user)
        if count is not None:
            count.ask(request)
        try:
            response = await self._infer(request, version, timeout_s)
        except NotLoadedError as error:
            again = await self._table.choose_again(asked, version, user)
            if again is None:
                raise error
            version = again
            response = await self._infer(request, version, timeout_s)
        if count is not None:
            count.read(response)
        if self._shadows is not None:
            self._shadows.passed(asked, lambda shadow: self._copy(request, shadow, timeout_s))
        return response, version

    async def _copy(self, request: Any, shadow: RoutedVersion, timeout_s: float) -> None:
        copied = pb.ModelInferRequest()
        copied.CopyFrom(request)
        try:
            await self._infer(copied, shadow, timeout_s)
        except grpc.aio.AioRpcError as error:
            raise FailedPreconditionError(error.details() or error.code().name) from error

    async def _infer(self, request: Any, version: RoutedVersion, timeout_s: float) -> Any:
        request.model_name, request.model_version = version.server_model, ""
        asked = self._liveness.asked(version.server_model)
        with self._translated(version), self._noticed(version.server_model, asked):
            async with self._guard.request(version.server_model, self._turn().caller) as admitted:
                # A caller whose deadline passes has left; a deadline of Triton's would cancel the call there.
                call = self._stub.ModelInfer(request, timeout=max(timeout_s, _SHORTEST_S))
                response = await admitted.answer(call)
        if not response.outputs:
            # What Triton returns for requests that a model's process was handling when it died: OK, and nothing in it.
            self._liveness.died(version.server_model, asked)
            raise self._liveness.dead(version.server_model)
        response.model_name = version.model
        return response

    async def stream(
        self, requests: AsyncIterator[Any], user: str = "", *, by_status: bool = False
    ) -> AsyncGenerator[Any, None]:
        """Answers of a decoupled model. A stream whose version is not loaded ends with an error: its caller has the
        requests.
        """
        first = await anext(aiter(requests), None)
        if first is None:
            return
        spend, turn = self._meter(), self._turn()
        count = TokenCount.of_answers(spend) if spend is not None else None
        version = self._choose(first, user)
        model, asked = version.server_model, self._liveness.asked(version.server_model)
        refused: list[TidemillError] = []
        # Of the newest requests only: a stream may have very many.
        departures: deque[Any] = deque(maxlen=_DEPARTURES)

        async def traced() -> AsyncIterator[Any]:
            nonlocal model
            async for request in _while_there(_after(first, requests), refused):
                try:
                    chosen = version if request is first else self._choose(request, user)
                    check_texts(request)
                    if request is not first:
                        self._meter()
                except TidemillError as error:  # gRPC swallows what is raised here
                    refused.append(error)
                    return
                model = chosen.server_model
                request.model_name, request.model_version = model, ""
                add_trace(request)
                add_turn(request, turn)
                add_request_id(request)
                if count is not None:
                    count.ask(request)
                departures.append(departure_of(request))
                yield request

        try:
            with self._translated(version):
                async with self._guard.request(version.server_model, self._turn().caller) as admitted:
                    # Without the caller's deadline: where that passes, the caller has left.
                    call = TritonStream(self._stub, RequestStream(self._stub.ModelStreamInfer(traced())), departures)
                    admitted.watch(call)
                    try:
                        async for response in call:
                            admitted.heard()
                            if response.error_message:
                                self._liveness.notice_death(model, response.error_message, asked)
                                code, response.error_message = status_of_text(response.error_message)
                                if by_status:
                                    raise _ended(code, response.error_message)
                            if count is not None:
                                count.read(response.infer_response)
                            yield _as_called(response, model)
                        if refused:
                            raise refused[0]
                    finally:
                        call.leave()
        except grpc.aio.AioRpcError as error:
            if self._liveness.notice_death(model, error.details() or "", asked):
                raise self._liveness.dead(model) from error
            raise
        finally:
            if count is not None:
                count.close()

    def _choose(self, request: Any, user: str) -> RoutedVersion:
        return self._table.choose(ModelReference(request.model_name, request.model_version), user)

    @contextmanager
    def _translated(self, version: RoutedVersion | None = None) -> Iterator[None]:
        asked = self._liveness.asked(version.server_model) if version is not None else None
        try:
            yield
        except grpc.aio.AioRpcError as error:
            details = error.details() or ""
            if version is not None and asked is not None and is_not_loaded(details, error.code()):
                self._liveness.missing(version.server_model, asked)
                raise self._liveness.not_loaded(version.server_model) from error
            if version is not None and (full := queue_full(version.server_model, details)) is not None:
                raise full from error
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise triton_unavailable(version.server_model if version is not None else "", details) from error
            if version is None or version.server_model not in details:
                raise
            raise grpc.aio.AioRpcError(
                error.code(),
                error.initial_metadata(),
                error.trailing_metadata(),
                details.replace(version.server_model, version.model),
                error.debug_error_string(),
            ) from error

    @contextmanager
    def _noticed(self, model: str, asked: Asked) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            if self._liveness.notice_death(model, error.details() or "", asked):
                raise self._liveness.dead(model) from error
            raise


def _as_called(response: Any, model: str) -> Any:
    """A response of a stream under the names that callers know."""
    found = parse_server_model(response.infer_response.model_name)
    if found is not None:
        response.infer_response.model_name = found[0]
    known = parse_server_model(model)
    if response.error_message and known is not None:
        response.error_message = response.error_message.replace(model, known[0])
    return response


async def _while_there(requests: AsyncIterator[Any], refused: list[TidemillError]) -> AsyncIterator[Any]:
    """A caller's requests until it leaves: what is raised while gRPC reads them would cancel the call to Triton."""
    try:
        async for request in requests:
            yield request
    except TidemillError as error:
        refused.append(error)
    except (Exception, asyncio.CancelledError) as error:
        logger.debug("the requests of a stream ended: %r", error)


def _ended(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


async def _after(first: Any, others: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """A request, and then those that follow it."""
    yield first
    async for request in others:
        yield request
