"""A whole gateway on free ports in front of fake services, in an event loop of its own thread, so that the official
synchronous clients meet it as they would meet a deployed one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway import plane
from gateway.__main__ import build
from gateway.keys.store import KeyStore
from gateway.settings import GatewaySettings
from services.kit.grpc.server import bind, create_server, finish_server
from services.kit.telemetry.metrics import RequestMetrics
from services.serving.app import serving
from tests.integration.gateway.fake_peers import ANSWER, FakeBus, FakePeers
from tests.waiting import wait_until

T = TypeVar("T")


@dataclass
class Mesh:
    """The running gateway and what is behind it."""

    peers: FakePeers
    loop: asyncio.AbstractEventLoop
    http: str
    """host:port."""
    grpc: str
    """host:port."""
    state: Path
    store: KeyStore

    @property
    def key(self) -> str:
        """The key that the gateway wrote."""
        return (self.state / "api-key").read_text().strip()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs something in the mesh's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)


class _Running:
    """Starts and stops inside the loop."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.peers = FakePeers()

    async def start(self) -> tuple[str, str]:
        await self.peers.start()
        address = self.peers.address
        settings = GatewaySettings.model_validate(
            {
                "http_bind": "127.0.0.1:0",
                "cors_origins": "https://app.example.com, http://localhost:3000",
                "database_url": f"sqlite:///{self.state / 'db' / 'gateway.sqlite'}",
                "ingest_address": address,
                "cleaning_address": address,
                "training_address": "127.0.0.1:1",  # no one there
                "inference_address": address,
                "triton_grpc": address,
                "state": str(self.state),
                "pipeline_address": address,
                "telemetry_address": address,
            }
        )
        metrics = RequestMetrics("gateway")
        self.service = await build(settings, metrics)
        self.server = create_server(
            metrics, extra=self.service.interceptors, traced=self.service.traced, options=self.service.server_options
        )
        grpc_server = finish_server(self.server, self.service.register(self.server))
        port = bind(self.server, "127.0.0.1:0")
        await self.server.start()
        await grpc_server.set_serving(True)
        self.tasks = [asyncio.create_task(task()) for task in self.service.tasks]
        http = self.service.tasks[0].__self__.port  # type: ignore[attr-defined]
        return f"127.0.0.1:{http}", f"127.0.0.1:{port}"

    async def stop(self) -> None:
        await self.server.stop(None)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for close in self.service.closers:
            result = close()
            if asyncio.iscoroutine(result):
                await result
        await self.peers.stop()


@pytest.fixture(scope="session")
def exported() -> InMemorySpanExporter:
    """The spans that this process ended."""
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture(scope="module")
def mesh(exported: InMemorySpanExporter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The gateway, for one module of tests."""
    state = tmp_path_factory.mktemp("state")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    running = _Running(state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEMILL_STATE", str(state))
        patch.setattr(plane, "KafkaEventPublisher", FakeBus)
        # Every answer has the id that tests know.
        patch.setattr(serving, "new_answer", lambda: ANSWER)
        http, grpc_address = asyncio.run_coroutine_threadsafe(running.start(), loop).result(60)
        store = KeyStore.open(f"sqlite:///{state / 'db' / 'gateway.sqlite'}")
        mesh = Mesh(running.peers, loop, http, grpc_address, state, store)
        with httpx.Client(base_url=f"http://{mesh.http}", headers={"x-api-key": mesh.key}) as client:
            wait_until(lambda: client.get("/v1/models").status_code == 200, "routes")
        yield mesh
        store.close()
        asyncio.run_coroutine_threadsafe(running.stop(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def http(mesh: Mesh) -> Iterator[httpx.Client]:
    """A client of the HTTP door with a key that may do everything."""
    with httpx.Client(base_url=f"http://{mesh.http}", headers={"x-api-key": mesh.key}) as client:
        yield client
