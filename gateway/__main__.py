"""Builds and runs the gateway: `python -m gateway`."""

from __future__ import annotations

import asyncio
import logging

import uvloop
from opentelemetry import trace

from gateway.facade.auth import ApiKeyInterceptor
from gateway.facade.proxy import FacadeHandler
from gateway.facade.table import public_services
from gateway.http.app import create_app
from gateway.http.server import HttpServer
from gateway.keys.ring import KeyRing
from gateway.keys.store import KeyStore
from gateway.peers import Peers
from gateway.settings import GatewaySettings
from services.kit.config import load_settings, state_dir
from services.kit.runtime.service import Service, run_service
from services.kit.telemetry.metrics import RequestMetrics

logger = logging.getLogger(__name__)

# The services have deadlines of their own; this one only ends what they forgot.
_LAST_DEADLINE_S = 900.0


async def _open_keys(settings: GatewaySettings) -> tuple[KeyStore, KeyRing]:
    store = await asyncio.to_thread(KeyStore.open, settings.database_url)
    path = await asyncio.to_thread(store.ensure_local_key, state_dir())
    logger.info("this machine's API key is in %s", path)
    ring = KeyRing(store.list)
    await ring.refresh()
    return store, ring


async def build(settings: GatewaySettings, metrics: RequestMetrics) -> Service:
    """Makes the gateway inside the running event loop."""
    store, ring = await _open_keys(settings)
    if not settings.auth:
        logger.warning("TIDEMILL_AUTH is off: everybody who reaches this gateway may use it")
    peers = Peers.open(settings)
    tracer = trace.get_tracer("tidemill.gateway")
    services = public_services()
    app = create_app(
        peers,
        ring if settings.auth else None,
        metrics,
        tracer,
        max_body_bytes=settings.max_body_bytes,
    )
    http = HttpServer(app, settings.http_bind)
    logger.info("gateway serves HTTP on port %d", http.port)
    facade = FacadeHandler(services, peers.channels, tracer)

    def register(server: object) -> list[str]:
        server.add_generic_rpc_handlers((facade,))  # type: ignore[attr-defined]
        return [service.name for service in services]

    return Service(
        register=register,
        tasks=[http.serve, ring.run],
        closers=[peers.close, store.close],
        interceptors=[ApiKeyInterceptor(ring)] if settings.auth else [],
        default_deadline_s=_LAST_DEADLINE_S,
        traced=False,  # both doors make their own, leaner spans
    )


def main() -> None:
    """Entry point."""
    settings = load_settings(GatewaySettings)
    # One loop for both servers, and the fastest one.
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    run_service("gateway", settings, lambda metrics: build(settings, metrics))


if __name__ == "__main__":
    main()
