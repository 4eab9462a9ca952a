"""A door with the console alone, which requires no keys, in front of services at given addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx
from opentelemetry import trace

from gateway.console.app import Console
from gateway.console.calls import Services
from gateway.console.sessions import Sessions
from gateway.health import PartsHealth
from gateway.http.app import create_app
from gateway.http.door import Receive, Scope, Send
from gateway.http.limits import BodyBudget
from gateway.keys.limiter import KeyLimiter
from gateway.limits import HttpLimits
from gateway.peers import PEERS, Peers
from gateway.settings import GatewaySettings
from services.kit.clock import SystemClock
from services.kit.telemetry.metrics import RequestMetrics

URL = "http://mesh:8080"
NOWHERE = "127.0.0.1:1"
"""Where nothing listens."""


async def _never(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("no path of these tests is another door's")


@asynccontextmanager
async def opened(addresses: Mapping[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    """A browser at the console; services without an address do not answer."""
    settings = {f"{name}_address": addresses.get(name, NOWHERE) for name in PEERS}
    peers = Peers.open(GatewaySettings.model_validate(settings))
    health, limiter = PartsHealth(peers.channels), KeyLimiter()
    door = create_app(
        _never,
        None,
        limiter,
        RequestMetrics("gateway"),
        trace.get_tracer("t"),
        BodyBudget(HttpLimits()),
        ("*",),
        Console(Services.over(peers.channels), health, None, limiter, Sessions("secret", SystemClock())),
    )
    transport = httpx.ASGITransport(app=door)
    async with httpx.AsyncClient(transport=transport, base_url=URL, headers={"origin": URL}, timeout=60) as client:
        yield client
    await peers.close()
