"""Endpoints are called without the framework's layers, and errors end as they would inside of them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from starlette.responses import PlainTextResponse, Response

from gateway.http.dispatch import Dispatch

router = APIRouter()


@router.get("/fixed")
async def fixed() -> Response:
    return PlainTextResponse("fixed")


@router.post("/of/{name}/x")
async def of(request: Request, name: str) -> Response:
    return PlainTextResponse(f"{name} {(await request.body()).decode()}")


@router.get("/things/{name}")
async def get(name: str) -> Response:
    return PlainTextResponse(f"got {name}")


@router.delete("/things/{name}")
async def delete(name: str) -> Response:
    return PlainTextResponse(f"deleted {name}")


@router.get("/fails/{how}")
async def fails(how: str) -> Response:
    raise {"expected": KeyError, "other": ValueError}[how](how)


def _answer(status: int) -> Any:
    return lambda _request, _error: PlainTextResponse("failed", status)


@pytest.fixture
def client() -> httpx.AsyncClient:
    app = FastAPI()
    app.include_router(router)
    dispatch = Dispatch(
        app, router.routes, lambda r, e: _answer(418)(r, e) if isinstance(e, KeyError) else None, _answer(500)
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=dispatch), base_url="http://x")


async def test_fixed_paths_and_parameters(client: httpx.AsyncClient) -> None:
    assert (await client.get("/fixed")).text == "fixed"
    assert (await client.post("/of/a%20b/x", content="body")).text == "a b body"


async def test_methods_of_one_path_are_distinguished(client: httpx.AsyncClient) -> None:
    assert (await client.get("/things/a")).text == "got a"
    assert (await client.delete("/things/a")).text == "deleted a"
    assert (await client.put("/things/a")).status_code == 405


async def test_what_no_route_takes_goes_to_the_framework(client: httpx.AsyncClient) -> None:
    assert (await client.get("/nowhere")).status_code == 404
    assert (await client.post("/fixed")).status_code == 405
    assert (await client.get("/of/a/x")).status_code == 405
    assert (await client.get("/of/a/b/x")).status_code == 404
    paths = {"/fixed", "/of/{name}/x", "/things/{name}", "/fails/{how}"}
    assert (await client.get("/openapi.json")).json()["paths"].keys() == paths


async def test_an_error_that_is_expected_is_answered_and_any_other_raised_too(client: httpx.AsyncClient) -> None:
    assert (await client.get("/fails/expected")).status_code == 418
    with pytest.raises(ValueError, match="other"):
        await client.get("/fails/other")
