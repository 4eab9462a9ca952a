"""What the HTTP routes share: JSON bodies, and calls that end when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.http.body import body_of
from gateway.http.errors import ClientGone
from services.kit.errors import FieldViolation, InvalidArgumentError
from services.serving.entrypoints.answers import ROLE, USER, VERSION

T = TypeVar("T")


def invalid(param: str, message: str) -> InvalidArgumentError:
    """An error that names the wrong parameter."""
    return InvalidArgumentError(message, reason="INVALID_FIELD", violations=[FieldViolation(param, message)])


async def json_of(request: Request) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        InvalidArgumentError: it is not a JSON object.
    """
    try:
        value = orjson.loads(await body_of(request))
    except orjson.JSONDecodeError as error:
        raise InvalidArgumentError(f"The body is not valid JSON: {error}", reason="INVALID_JSON") from error
    if not isinstance(value, dict):
        raise InvalidArgumentError("The body must be a JSON object.", reason="INVALID_JSON")
    return value


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(orjson.dumps(value), status, headers, media_type="application/json")


def user_of(request: Request, named: str = "") -> str:
    """The user whom an answer is for: the one that the body names, else the header's; empty where there is neither."""
    return named or request.headers.get(USER, "")


def version_headers(version: str, role: str) -> dict[str, str]:
    """Headers that say which version answered, and what it does in its route."""
    return {VERSION: version, ROLE: role}


def watch_disconnect(request: Request) -> asyncio.Task[None]:
    """A task that ends when the caller hangs up. Start it after the body was read, and cancel it at the end."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return asyncio.create_task(gone())


async def unless_gone(work: Awaitable[T], gone: asyncio.Task[None]) -> T:
    """The result of `work`, which is cancelled if the caller hangs up first.

    Raises:
        ClientGone: the caller hung up.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
