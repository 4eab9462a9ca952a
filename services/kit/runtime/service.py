"""Runs a service: start, serve, and stop in order.

The order of the stop: NOT_SERVING, pause consumers, drain calls, commit, close adapters, flush telemetry.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
from prometheus_client import CollectorRegistry

from services.kit.config import TERMINATION_LOG, UNIX, ServiceSettings
from services.kit.errors import DataLossError, InvalidArgumentError, TidemillError, explained
from services.kit.fatal import FATAL
from services.kit.grpc.server import bind, create_server, finish_server
from services.kit.retrying import call_with_retries_async
from services.kit.storage.disk import disk_space
from services.kit.storage.temporary import temporary_files
from services.kit.telemetry.metrics import RequestMetrics
from services.kit.telemetry.sampling import Sampling
from services.kit.telemetry.scraping import ScrapeToken
from services.kit.telemetry.setup import Telemetry, start_telemetry
from services.kit.tls import ServerTls, TlsFiles

logger = logging.getLogger(__name__)

_DRAIN_S = 10.0
_START_PATIENCE_S = 30.0

T = TypeVar("T")


class Consumer(Protocol):
    """A consumer of events in its own thread."""

    def start(self) -> None:
        """Starts it."""
        ...

    def stop(self) -> None:
        """Stops it after the current batch."""
        ...


@dataclass(slots=True)
class Service:
    """What a composition root built.

    `register` adds the servicers and returns their full proto names. `stopping` are called when a stop begins and must
    return at once: they wake what waits for a dependency that hangs. `closers` run in order at the end, after the last
    call. `tasks` run next to the server; if one fails, the process ends, and the supervisor starts it again.
    """

    register: Callable[[grpc.aio.Server], Sequence[str]]
    consumers: Sequence[Consumer] = ()
    tasks: Sequence[Callable[[], Coroutine[Any, Any, None]]] = ()
    stopping: Sequence[Callable[[], None]] = ()
    closers: Sequence[Callable[[], object]] = ()
    interceptors: Sequence[grpc.aio.ServerInterceptor] = field(default_factory=tuple)
    requests: grpc.aio.ServerInterceptor | None = None
    """Answers repeated requests, see `services.kit.grpc.request_ids`."""
    default_deadline_s: float = 60.0
    traced: bool = True
    server_options: Sequence[tuple[str, int]] = ()
    credentials: grpc.ServerCredentials | None = None
    also_on: Sequence[str] = ()
    """Further addresses of the gRPC server, in plain text: `unix:/path` of sockets that only this user can open."""
    metrics: CollectorRegistry | None = None
    """What Prometheus reads, where it is not this process's metrics alone."""
    for_peers: bool = True
    """Whether its callers are services of the mesh, which show certificates if TLS between services is on."""


Build = Callable[[RequestMetrics], Awaitable[Service]]


def run_service(name: str, settings: ServiceSettings, build: Build, *, export_telemetry: bool = True) -> None:
    """Runs a service until SIGTERM or SIGINT; exits with 1 if it cannot start.

    Args:
        name: the service's name, as in `service.name`.
        settings: its settings.
        build: creates the service inside the event loop. UnavailableError is retried for a while, since all parts
            start at the same time.
        export_telemetry: False for the process that receives the telemetry of all others.
    """
    endpoint = settings.otlp_endpoint if export_telemetry else None
    sampling = Sampling(settings.traces_per_s, settings.slow_trace_s)
    try:
        telemetry = start_telemetry(name, endpoint, settings.log_level, settings.peer_files, sampling)
    except TidemillError as error:
        logger.error("%s cannot run: %s", name, error.message)
        _report_exit(error)
        sys.exit(1)
    try:
        with temporary_files(settings.state, name):
            asyncio.run(_serve(name, settings, build, telemetry))
    except TidemillError as error:
        logger.error("%s cannot run: %s", name, error.message)
        _report_exit(error)
        sys.exit(1)
    except Exception as error:
        # Also into the log, where people look for it, not only to where the process was started.
        logger.exception("%s failed unexpectedly", name)
        _report_exit(error)
        sys.exit(1)
    finally:
        telemetry.shutdown()


def _report_exit(error: Exception) -> None:
    """Reports to the supervisor why the process ends, and whether a restart can help."""
    path = os.environ.get(TERMINATION_LOG)
    if not path:
        return
    known = explained(error)
    word = {
        "reason": known.reason if known else "UNEXPECTED",
        "message": known.message if known else f"{type(error).__name__}: {error}",
        "permanent": isinstance(known, DataLossError | InvalidArgumentError),
    }
    try:
        Path(path).write_text(json.dumps(word), encoding="utf-8")
    except OSError as cause:
        logger.warning("%s cannot be written: %s", path, cause)


async def _unless_stopped(work: Coroutine[Any, Any, T], stop: asyncio.Event) -> T | None:
    """The built service; None if the process was stopped first."""
    doing, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({doing, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        for task in (doing, stopped):
            task.cancel()
        await asyncio.gather(doing, stopped, return_exceptions=True)


@contextmanager
def _fatal_faults() -> Iterator[Callable[[], Coroutine[Any, Any, None]]]:
    """A task that fails with the first fault after which this process must not continue."""
    loop = asyncio.get_running_loop()
    first: asyncio.Future[None] = loop.create_future()

    def note(fault: TidemillError) -> None:
        if not first.done():
            first.set_exception(fault)

    async def wait() -> None:
        await first

    with FATAL.heard_by(lambda fault: loop.call_soon_threadsafe(note, fault)):
        try:
            yield wait
        finally:
            first.cancel()


async def _build(name: str, build: Build, metrics: RequestMetrics) -> Service:
    return await call_with_retries_async(partial(build, metrics), f"the start of {name}", patience_s=_START_PATIENCE_S)


def _peer_tls(settings: ServiceSettings) -> ServerTls | None:
    files = settings.peer_files
    return None if files is None or settings.bind.startswith(UNIX) else ServerTls(TlsFiles(*files))


async def _serve(name: str, settings: ServiceSettings, build: Build, telemetry: Telemetry) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    token = settings.metrics_token_file
    metrics = RequestMetrics(name, token=ScrapeToken(token) if token is not None else None)
    metrics.watch_disk(lambda: disk_space(settings.state, settings.disk_reserve_bytes))
    service = await _unless_stopped(_build(name, build, metrics), stop)
    if service is None:
        logger.info("%s was stopped before it served", name)
        telemetry.shutdown()
        # A thread of `build` may wait for its dependency for another half minute, and closing the loop would wait for
        # it. Nothing has been accepted yet that could be lost.
        os._exit(0)
    failure: BaseException | None = None
    listening = ExitStack()
    broken = listening.enter_context(_fatal_faults())
    # Also set if the process ends because a task failed.
    stopping = asyncio.Event()
    try:
        server = create_server(
            metrics,
            default_deadline_s=service.default_deadline_s,
            extra=service.interceptors,
            traced=service.traced,
            stopping=stopping,
            options=service.server_options,
            requests=service.requests,
        )
        grpc_server = finish_server(server, service.register(server))
        peers = _peer_tls(settings) if service.for_peers else None
        port = bind(server, settings.bind, peers.grpc_credentials() if peers else service.credentials)
        for address in service.also_on:
            bind(server, address)
        if settings.metrics_bind:
            metrics.serve(settings.metrics_bind, service.metrics)
        # Until everything runs: the health service itself starts as SERVING.
        await grpc_server.set_serving(False)
        await server.start()
        for consumer in service.consumers:
            consumer.start()
        watches = () if peers is None else (peers.watch,)
        tasks = [asyncio.create_task(factory()) for factory in (*service.tasks, *watches, broken)]
        await grpc_server.set_serving(True)
        logger.info("%s serves on %s", name, settings.bind if settings.bind.startswith(UNIX) else f"port {port}")

        stopper = asyncio.create_task(stop.wait())
        waiting: set[asyncio.Task[Any]] = {stopper, *tasks}
        while not stop.is_set():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            failure = next((e for t in done if t is not stopper and (e := t.exception()) is not None), None)
            if failure is not None:
                logger.error("a task of %s failed; the process ends", name, exc_info=failure)
                break

        await grpc_server.set_serving(False)
        stopping.set()
        for begin in service.stopping:
            begin()
        # In parallel: each may wait for the bus, and none should wait for another.
        await asyncio.gather(
            server.stop(_DRAIN_S), *(asyncio.to_thread(consumer.stop) for consumer in service.consumers)
        )
        for task in (stopper, *tasks):
            task.cancel()
        await asyncio.gather(stopper, *tasks, return_exceptions=True)
    finally:
        for close in service.closers:
            try:
                result = close()
                if asyncio.iscoroutine(result):
                    await result
            except Exception:
                # The remaining closers must run, too.
                logger.exception("%s could not close a resource", name)
        listening.close()
    logger.info("%s ended", name)
    if failure is not None:
        if isinstance(failure, Exception):
            _report_exit(failure)
        sys.exit(1)
