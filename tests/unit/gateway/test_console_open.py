"""The console of a gateway that requires no keys, and one whose services do not answer."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.peers import PEERS
from tests.unit.gateway.console_door import opened


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A browser at a gateway behind which nothing listens."""
    async with opened({}) as client:
        yield client


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
