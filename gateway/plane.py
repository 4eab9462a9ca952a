"""The data plane: what the doors answer with, in one hop to Triton, by routes that inference sends.

While inference is unavailable it keeps serving by the last routes that it knew; they are in the state folder, for a
restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub

from gateway.access import BACKGROUND, CALLER
from gateway.keys.limiter import KeyLimiter
from gateway.settings import GatewaySettings
from services.kit.bus.kafka import KafkaEventPublisher
from services.kit.clock import SystemClock
from services.serving.adapters.answer_journal import AnswerJournal
from services.serving.adapters.answer_memory import AnswerMemory
from services.serving.adapters.capture_feed import CaptureFeed
from services.serving.adapters.cascade_counts import PrometheusCascadeCounts
from services.serving.adapters.death_reports import DeathReports
from services.serving.adapters.route_feed import RouteFeed
from services.serving.adapters.route_file import RouteFile
from services.serving.adapters.served_log import BackgroundServedLog
from services.serving.adapters.shadow_counts import PrometheusShadowCounts
from services.serving.adapters.triton_client import TritonClient, open_triton
from services.serving.adapters.triton_guard import TritonGuard
from services.serving.adapters.triton_liveness import Liveness
from services.serving.adapters.triton_v2 import TritonV2
from services.serving.app.answer_cache import CachingServer
from services.serving.app.capture import CaptureRules
from services.serving.app.cascading import Cascades
from services.serving.app.ports import InferenceServer, Spend
from services.serving.app.routing import RoutingTable
from services.serving.app.serving import Serving
from services.serving.app.shadowing import Shadows
from services.serving.domain.answer import CallerPriority
from services.serving.entrypoints.answers import Answers


@dataclass(frozen=True, slots=True)
class DataPlane:
    """The parts that the doors use, and what runs beside them."""

    table: RoutingTable
    answers: Answers
    v2: TritonV2
    tasks: Sequence[Callable[[], Coroutine[Any, Any, None]]]
    stopping: Sequence[Callable[[], None]]
    closers: Sequence[Callable[[], object]]

    @classmethod
    async def open(
        cls,
        settings: GatewaySettings,
        inference: grpc.aio.Channel,
        pipeline: grpc.aio.Channel,
        registry: CollectorRegistry,
        limiter: KeyLimiter,
    ) -> DataPlane:
        """Opens it inside the running event loop. Neither Triton nor inference nor the bus need answer yet."""

        def meter() -> Spend | None:
            caller = CALLER.get()
            return limiter.meter(caller.key) if caller is not None else None

        channel = open_triton(settings.triton_grpc, settings.peer_files)
        table, stub = RoutingTable(), InferenceServiceStub(inference)
        feed = RouteFeed(stub, table, RouteFile(settings.state / "gateway" / "routes.json"))
        await feed.restore()
        Gauge("routes_connected", "1 while changes of routes arrive from inference", registry=registry).set_function(
            lambda: float(feed.connected)
        )
        capture = CaptureRules()
        captured = CaptureFeed(PipelineServiceStub(pipeline), capture, settings.state / "gateway" / "capture.json")
        await captured.restore()
        deaths = DeathReports(stub, table)
        liveness = Liveness(channel, deaths)
        guard = TritonGuard(channel, liveness, deaths)
        publisher = KafkaEventPublisher(settings.brokers, "gateway", connect=False)
        # The folder in which inference kept it in releases where inference answered: an update loses no answer.
        journal = await asyncio.to_thread(AnswerJournal, settings.state / "answers")
        served = BackgroundServedLog(publisher, registry, journal)
        client, clock = TritonClient(channel, liveness, guard, _turn), SystemClock()
        shadows = Shadows(table, client, served, PrometheusShadowCounts(registry), clock)
        server, close_cache = cached(client, settings, registry)
        cascades = Cascades(table, server, PrometheusCascadeCounts(registry), clock)
        serving = Serving(table, server, served, shadows, clock, capture, cascades)
        return cls(
            table=table,
            answers=Answers(serving, _tenant, meter),
            v2=TritonV2(channel, liveness, guard, table, shadows, meter, _turn),
            tasks=[feed.run, captured.run, deaths.run],
            stopping=[publisher.finish],
            closers=[shadows.close, close_cache, channel.close, served.close, publisher.close],
        )


def cached(
    client: TritonClient, settings: GatewaySettings, registry: CollectorRegistry
) -> tuple[InferenceServer, Callable[[], Awaitable[None]]]:
    """What answers callers, and what closes the cache: Triton, behind a cache where one is on.

    Shadows are always asked themselves.
    """
    if not settings.answer_cache_bytes and settings.answer_cache_url is None:
        return client, _nothing
    asked = Counter("answer_cache_requests", "Questions to the cache of answers", ("result",), registry=registry)
    if settings.answer_cache_url is not None:
        # Its client is a sixth of the time in which the gateway starts.
        from services.serving.adapters.answer_valkey import ValkeyAnswers

        failed = Counter("answer_cache_errors", "Times that the shared cache could not be used", registry=registry)
        shared = ValkeyAnswers(settings.answer_cache_url, settings.answer_cache_ttl_s, failed.inc)
        return CachingServer(client, shared, _tenant, lambda result: asked.labels(result).inc()), shared.close
    memory = AnswerMemory(settings.answer_cache_bytes, settings.answer_cache_ttl_s)
    Gauge("answer_cache_bytes", "Memory of the answers that are kept", registry=registry).set_function(
        lambda: float(memory.size)
    )
    return CachingServer(client, memory, _tenant, lambda result: asked.labels(result).inc()), _nothing


async def _nothing() -> None:
    """Closes nothing."""


def _tenant() -> str:
    caller = CALLER.get()
    return caller.key.tenant if caller is not None else ""


def _turn() -> CallerPriority:
    caller = CALLER.get()
    return CallerPriority(caller.key.key_id if caller is not None else "", BACKGROUND.get())
