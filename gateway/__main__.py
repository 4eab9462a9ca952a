"""Builds and runs the gateway: `python -m gateway`."""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from functools import partial

import uvloop
from opentelemetry import trace

from gateway.batches.runner import BatchRunner
from gateway.batches.store import BatchStore
from gateway.console.app import Console
from gateway.console.calls import Services
from gateway.console.sessions import Sessions
from gateway.facade.auth import ApiKeyInterceptor
from gateway.facade.messages import MessageBudget, MessageInterceptor
from gateway.facade.proxy import FacadeHandler
from gateway.facade.sockets import ClientConnections
from gateway.facade.spans import SpanInterceptor
from gateway.facade.table import public_services
from gateway.facade.tiers import TierInterceptor
from gateway.health import PartsHealth
from gateway.http.app import create_app, create_routes
from gateway.http.batches import RouteCaller
from gateway.http.limits import BodyBudget
from gateway.http.server import HttpServer
from gateway.keys.limiter import KeyLimiter
from gateway.keys.ring import KeyRing
from gateway.keys.store import KeyStore
from gateway.keys.usage import FILE_NAME, UsageTable
from gateway.metrics import BatchRequests, Refusals
from gateway.peers import Peers
from gateway.plane import DataPlane
from gateway.settings import GatewaySettings
from infra.stack.private import place_secret
from services.kit.bus.kafka import answers
from services.kit.clock import SystemClock
from services.kit.config import UNIX, load_settings, state_dir
from services.kit.runtime.service import Service, run_service
from services.kit.telemetry.metrics import RequestMetrics
from services.kit.telemetry.process_metrics import ProcessMetrics
from services.kit.threads import in_thread
from services.kit.tls import ServerTls
from services.serving.entrypoints.answers import answer_handlers
from services.serving.entrypoints.kserve import kserve_handlers

logger = logging.getLogger(__name__)

# The services set deadlines of their own; this one only ends calls that have none.
_LAST_DEADLINE_S = 900.0
# For what the console shows of parts that are not services of ours.
_PROBE_S = 2.0


def grpc_limits(settings: GatewaySettings) -> tuple[tuple[str, int], ...]:
    """What one gRPC client may take, as options of gRPC's core.

    A message is read only once its call has passed the key check, and then up to the kit's largest message.
    """
    return (
        # Above the second limit each call gets RESOURCE_EXHAUSTED, between the two some calls, so that clients notice.
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.absolute_max_metadata_size", 32 * 1024),
        ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_connection_idle_ms", 15 * 60 * 1000),
        # Varied by gRPC's core, up to a tenth, so that clients do not reconnect all at once. They are asked to open
        # another connection; calls continue on this one until they end by themselves, since no grace period is set.
        ("grpc.max_connection_age_ms", round(1000 * settings.connection_age_s)),
        ("grpc.server_handshake_timeout_ms", 10_000),
        # What a call may send before its message is read. By itself gRPC's core raises it on a fast connection without
        # a limit; while a message is read, the window is as large as the message.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 64 * 1024),
    )


async def _open_keys(settings: GatewaySettings) -> tuple[KeyStore, KeyRing]:
    store = await asyncio.to_thread(KeyStore.open, settings.database_url)
    path = await asyncio.to_thread(store.ensure_local_key, state_dir())
    logger.info("this machine's API key is in %s", path)
    ring = KeyRing(store.list, store.note_uses)
    await ring.refresh()
    return store, ring


def _usage(settings: GatewaySettings) -> UsageTable:
    return UsageTable(settings.state / "gateway" / FILE_NAME, settings.gateway_process, settings.gateway_processes)


def _console_secret(settings: GatewaySettings) -> str:
    """What signs the console's sessions; all processes of this gateway read the same."""
    folder = settings.state / "gateway"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place_secret(folder / "console.secret")


def _own_socket(settings: GatewaySettings) -> tuple[str, ...]:
    """Where a probe reaches this process and no other of those that share its ports."""
    if settings.gateway_sockets is None:
        return ()
    return (f"{UNIX}{settings.gateway_sockets / f'gateway-{settings.gateway_process}'}",)


async def build(settings: GatewaySettings, metrics: RequestMetrics) -> Service:
    """Creates the gateway inside the running event loop."""
    store, ring = await _open_keys(settings)
    if not settings.auth:
        logger.warning("TIDEMILL_AUTH is off: anyone who can reach this gateway may use it")
    peers = Peers.open(settings)
    limiter = KeyLimiter(table=_usage(settings))
    plane = await DataPlane.open(
        settings, peers.channels["inference"], peers.channels["pipeline"], metrics.registry, limiter
    )
    tracer = trace.get_tracer("tidemill.gateway")
    services = public_services()
    limits = settings.http_limits
    several = settings.gateway_processes > 1
    messages = MessageBudget(settings.message_limits)
    processes = ProcessMetrics(
        metrics.registry, "gateway", settings.gateway_sockets, settings.gateway_process, settings.gateway_processes
    )
    refusals = Refusals(metrics.registry)
    checked = ring if settings.auth else None
    health = PartsHealth(
        peers.channels,
        {
            "Kafka": in_thread(partial(answers, settings.brokers, _PROBE_S)),
            "Triton": partial(plane.v2.is_ready, _PROBE_S),
        },
    )
    sessions = Sessions(await asyncio.to_thread(_console_secret, settings), SystemClock())
    bodies, made = BodyBudget(limits), asyncio.Event()
    batches = await asyncio.to_thread(
        BatchStore, settings.state / "gateway" / "batches", settings.batch_bytes, time.time
    )
    answered = BatchRequests(metrics.registry)
    routes = create_routes(peers, plane, batches, made, processes, health, keyed=settings.auth)
    runner = BatchRunner(
        batches, RouteCaller(routes, bodies, tracer), ring.holder, settings.batch_requests, made, answered.count
    )
    console = Console(Services.over(peers.channels), health, checked, limiter, sessions)
    app = create_app(routes, checked, limiter, metrics, tracer, bodies, settings.origins, console)
    tls = ServerTls(settings.tls_files) if settings.tls_files is not None else None
    http = HttpServer(
        app, settings.http_bind, limits, refusals.count, tls.context() if tls is not None else None, shared=several
    )
    logger.info("gateway serves %s on port %d", "HTTPS" if tls is not None else "HTTP", http.port)
    connections = ClientConnections(settings.max_connections_per_client, {http.port}, refusals.count)
    facade = FacadeHandler(services, peers.channels, {**answer_handlers(plane.answers), **kserve_handlers(plane.v2)})

    def register(server: object) -> list[str]:
        server.add_generic_rpc_handlers((facade,))  # type: ignore[attr-defined]
        return list(dict.fromkeys(service.name for service in services))

    return Service(
        register=register,
        tasks=[
            http.serve,
            processes.serve,
            ring.run,
            messages.run,
            connections.run,
            runner.run,
            *plane.tasks,
            *([tls.watch] if tls is not None else []),
        ],
        stopping=plane.stopping,
        closers=[ring.write_uses, *plane.closers, peers.close, store.close],
        server_options=(*grpc_limits(settings), *((("grpc.so_reuseport", 1),) if several else ())),
        also_on=_own_socket(settings),
        credentials=tls.grpc_credentials() if tls is not None else None,
        for_peers=False,
        interceptors=[
            *([ApiKeyInterceptor(ring, limiter)] if settings.auth else []),
            MessageInterceptor(messages, MessageBudget(settings.stranger_limits) if settings.auth else messages),
            SpanInterceptor(facade.paths, tracer),
            TierInterceptor(),
        ],
        default_deadline_s=_LAST_DEADLINE_S,
        traced=False,  # both doors create their own, cheaper spans
    )


def _allow_open_files(needed: int) -> None:
    """Raises the limit of open files as far as allowed: many systems start with 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < needed:
        logger.warning("this process may open %d files; %d connections need %d", wanted, needed // 2, needed)


def main() -> None:
    """Entry point."""
    settings = load_settings(GatewaySettings)
    _allow_open_files(2 * settings.max_connections + 512)
    # One loop for both servers, and the fastest one.
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    run_service("gateway", settings, lambda metrics: build(settings, metrics))


if __name__ == "__main__":
    main()
