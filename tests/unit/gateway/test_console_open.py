"""The console of a gateway that requires no keys, and one whose services do not answer."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import httpx
import pytest
from opentelemetry import trace

from gateway.console.app import Console
from gateway.console.calls import Services
from gateway.console.sessions import Sessions
from gateway.health import PartsHealth
from gateway.http.app import create_app
from gateway.http.door import Receive, Scope, Send
from gateway.http.limits import BodyBudget, HttpLimits
from gateway.keys.limiter import KeyLimiter
from gateway.peers import PEERS, Peers
from gateway.settings import GatewaySettings
from services.kit.clock import SystemClock
from services.kit.telemetry.metrics import RequestMetrics


async def _never(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("no path of these tests is another door's")


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A browser at a gateway without keys, behind which nothing listens."""
    peers = Peers.open(GatewaySettings.model_validate({f"{name}_address": "127.0.0.1:1" for name in PEERS}))
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
    async with httpx.AsyncClient(transport=transport, base_url="http://mesh:8080") as client:
        yield client
    await peers.close()


async def test_no_one_signs_in_where_no_key_is_required(client: httpx.AsyncClient) -> None:
    home = await client.get("/console")
    assert home.status_code == 200
    assert "Sign out" not in home.text
    assert (await client.get("/console/sign-in")).headers["location"] == "/console"


async def test_each_service_that_does_not_answer_is_named_once(client: httpx.AsyncClient) -> None:
    home = (await client.get("/console")).text
    for name in PEERS:
        assert f"The {name} service: does not answer" in home
    assert home.count("The pipeline service does not answer") == 1


async def test_pages_of_others_can_order_nothing_there_either(client: httpx.AsyncClient) -> None:
    path = "/console/pipelines/p/pause"
    asked = await client.get("/console/rollouts/r/freeze")
    found = re.search(r'name="form_token" value="([0-9a-f]{64})"', asked.text)
    assert found is not None
    own, foreign = {"origin": "http://mesh:8080"}, {"origin": "https://evil.example.com"}
    form = {"form_token": found[1]}
    assert (await client.post(path, data=form, headers=own)).status_code == 503  # it got as far as the service
    assert (await client.post(path, data=form, headers=foreign)).status_code == 403
    assert (await client.post(path, data={}, headers={**own, "content-type": _FORM})).status_code == 403


_FORM = "application/x-www-form-urlencoded"
