# ruff: noqa: N802 - method names follow the contract
"""InferenceService over gRPC: map in, one call, map out. What touches disk or database runs in threads.

The calls that are answered with a model are the gateway's (docs/adr/0017).
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any, NoReturn, ParamSpec, TypeVar

import grpc
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import inference_service_pb2_grpc as grpc_stubs

from services.inference.app.publishing import Publishing
from services.inference.app.reconciling import Reconciler
from services.inference.app.route_book import RouteBook
from services.inference.domain.model import ModelVersion
from services.inference.entrypoints import mapping
from services.inference.entrypoints.route_stream import stream_routes
from services.kit.grpc.paging import NUMBER, number_of, read_page
from services.kit.telemetry.context import current_traceparent
from services.kit.threads import in_thread
from services.serving.adapters.route_messages import cascade_from, role_from, route_to
from services.serving.domain.names import model_of

_CHANGES = 8
_ELSEWHERE = (
    "The inference service decides which versions answer, and answers nothing itself: call the gateway "
    "(TIDEMILL_BIND of that process, port 7100 as a rule)."
)

P = ParamSpec("P")
T = TypeVar("T")


class InferenceServicer(grpc_stubs.InferenceServiceServicer):
    """Implements `tidemill.inference.v1.InferenceService`."""

    def __init__(self, publishing: Publishing, reconciler: Reconciler, book: RouteBook) -> None:
        self._book, self._reconciler = book, reconciler
        self._publishing = publishing
        # Changes of a model wait for each other, for minutes at worst. In threads of their own they leave the event
        # loop's threads to read-only calls.
        self._changes = ThreadPoolExecutor(_CHANGES, "publishing")

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        """Is answered by the gateway."""
        await _elsewhere(context)

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        """Is answered by the gateway."""
        await _elsewhere(context)

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        """Is answered by the gateway."""
        await _elsewhere(context)

    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: Any
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        """Is answered by the gateway."""
        await _elsewhere(context)
        yield  # type: ignore[unreachable]  # makes it a stream

    async def PublishModel(self, request: pb.PublishModelRequest, context: Any) -> pb.PublishModelResponse:
        """Publishes a build; completes even if the caller leaves."""
        version, reused = await self._change(
            self._publishing.publish,
            model_of(request.model),
            mapping.lineage_from(request),
            request.request_id,
            current_traceparent(),
            role=role_from(request.role),
            weight=request.weight,
            cause=mapping.cause_of(request, context),
        )
        return pb.PublishModelResponse(model_version=mapping.version_to(version), reused=reused)

    async def RollBackModel(self, request: pb.RollBackModelRequest, context: Any) -> pb.RollBackModelResponse:
        """Lets an earlier version answer again."""
        version = await self._change(
            self._publishing.roll_back,
            model_of(request.model),
            request.version,
            request.request_id,
            current_traceparent(),
            mapping.cause_of(request, context),
        )
        return pb.RollBackModelResponse(model_version=mapping.version_to(version))

    async def UnpublishModel(self, request: pb.UnpublishModelRequest, context: Any) -> pb.UnpublishModelResponse:
        """Takes a model out of service."""
        cause = mapping.cause_of(request, context)
        model = await self._change(self._publishing.unpublish, model_of(request.model), current_traceparent(), cause)
        return pb.UnpublishModelResponse(model=mapping.model_to(model))

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        """Reads a model."""
        model = await asyncio.to_thread(self._publishing.get, model_of(request.name))
        return pb.GetModelResponse(model=mapping.model_to(model))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        """Lists models; the page token is the last name."""
        read = in_thread(self._publishing.list)
        page = await read_page(request, "[a-z0-9][a-z0-9-]{0,63}", read, lambda model: model.name)
        return pb.ListModelsResponse(models=[mapping.model_to(m) for m in page.items], next_page_token=page.next_token)

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Any
    ) -> pb.ListModelVersionsResponse:
        """Lists versions; the page token is the last number."""
        model = model_of(request.model)

        async def read(token: str, limit: int) -> Sequence[ModelVersion]:
            return await asyncio.to_thread(self._publishing.versions, model, number_of(token), limit)

        page = await read_page(request, NUMBER, read, lambda version: str(version.number))
        versions = [mapping.version_to(version) for version in page.items]
        return pb.ListModelVersionsResponse(model_versions=versions, next_page_token=page.next_token)

    async def GetRoute(self, request: pb.GetRouteRequest, context: Any) -> pb.GetRouteResponse:
        """Reads a route."""
        route = await asyncio.to_thread(self._publishing.route, model_of(request.model))
        return pb.GetRouteResponse(route=route_to(route))

    async def ListRoutes(self, request: pb.ListRoutesRequest, context: Any) -> pb.ListRoutesResponse:
        """Lists routes; the page token is the last model."""
        read = in_thread(self._publishing.routes)
        page = await read_page(request, "[a-z0-9][a-z0-9-]{0,63}", read, lambda route: route.model)
        return pb.ListRoutesResponse(routes=[route_to(r) for r in page.items], next_page_token=page.next_token)

    async def SetRoute(self, request: pb.SetRouteRequest, context: Any) -> pb.SetRouteResponse:
        """Replaces a route; completes even if the caller leaves."""
        route = await self._change(
            self._publishing.set_route,
            model_of(request.model),
            mapping.entries_from(request),
            dict(request.aliases),
            request.etag,
            current_traceparent(),
            mapping.cause_of(request, context),
        )
        return pb.SetRouteResponse(route=route_to(route))

    async def PromoteVersion(self, request: pb.PromoteVersionRequest, context: Any) -> pb.PromoteVersionResponse:
        """Makes a version of a route the serving one; completes even if the caller leaves."""
        route = await self._change(
            self._publishing.promote,
            model_of(request.model),
            request.version,
            request.etag,
            request.request_id,
            current_traceparent(),
            mapping.cause_of(request, context),
        )
        return pb.PromoteVersionResponse(route=route_to(route))

    async def SetCascade(self, request: pb.SetCascadeRequest, context: Any) -> pb.SetCascadeResponse:
        """Sets the larger model behind a classifier; completes even if the caller leaves."""
        route = await self._change(
            self._publishing.set_cascade,
            model_of(request.model),
            cascade_from(request.cascade) if request.HasField("cascade") else None,
            request.etag,
            current_traceparent(),
            mapping.cause_of(request, context),
        )
        return pb.SetCascadeResponse(route=route_to(route))

    async def WatchRoutes(self, request: pb.WatchRoutesRequest, context: Any) -> AsyncIterator[pb.WatchRoutesResponse]:
        """Watches which versions answer."""
        async with aclosing(stream_routes(self._book)) as responses:
            async for response in responses:
                yield response

    async def ReportModelFailure(
        self, request: pb.ReportModelFailureRequest, context: Any
    ) -> pb.ReportModelFailureResponse:
        """Takes a report that a model's process seems dead."""
        report = self._reconciler.report_failure
        accepted = await asyncio.to_thread(report, model_of(request.model), request.generation, request.version)
        return pb.ReportModelFailureResponse(accepted=accepted)

    async def _change(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `asyncio.to_thread`, in the threads of changes."""
        work = partial(contextvars.copy_context().run, do, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._changes, work)


async def _elsewhere(context: Any) -> NoReturn:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, _ELSEWHERE)
    raise AssertionError("unreachable: abort raises")
