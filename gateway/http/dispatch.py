"""Calls the endpoints of known routes itself; the framework's layers around an endpoint would cost it twice its time.

Our endpoints read their bodies themselves and depend on nothing but the check of the role. FastAPI has the same routes
for its OpenAPI document, and gets all other requests: unknown paths and methods, documents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from gateway.http.door import App, Message, Receive, Scope, Send, check_role

OnError = Callable[[Request, Exception], Response | None]
"""The response to an error; None for an unexpected one, which the framework then handles."""


@dataclass(frozen=True, slots=True)
class _Known:
    route: APIRoute
    wants_request: bool


class Dispatch:
    """An ASGI application in front of another."""

    def __init__(self, app: App, routes: Iterable[Any], on_error: OnError, unexpected: OnError) -> None:
        """Args:
        app: gets what none of the routes takes.
        routes: `APIRoute`s whose endpoints take the request, or nothing, and the parameters of their path as text.
        on_error: gives the response to an error that is expected.
        unexpected: gives the response to any other error, which is then raised again for the server's log.
        """
        self._app = app
        self._on_error = on_error
        self._unexpected = unexpected
        self._fixed: dict[tuple[str, str], _Known] = {}
        self._patterns: list[_Known] = []
        for route in routes:
            known = _Known(route, "request" in inspect.signature(route.endpoint).parameters)
            if route.param_convertors:
                self._patterns.append(known)
            else:
                self._fixed |= {(method, route.path): known for method in route.methods}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, as ASGI says."""
        found = self._find(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        known, parameters = found
        scope["route"], scope["path_params"] = known.route, parameters
        request = Request(scope, receive, send)
        begun = False

        async def begin(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await check_role(request)
            arguments = (request,) if known.wants_request else ()
            response: Response = await known.route.endpoint(*arguments, **parameters)
            await response(scope, receive, begin)
        except Exception as error:
            if begun:
                raise
            answer = self._on_error(request, error)
            if answer is not None:
                await answer(scope, receive, send)
                return
            if (answer := self._unexpected(request, error)) is not None:
                await answer(scope, receive, send)
            raise

    def _find(self, method: str, path: str) -> tuple[_Known, dict[str, str]] | None:
        if (known := self._fixed.get((method, path))) is not None:
            return known, {}
        for known in self._patterns:
            if method in (known.route.methods or ()) and (match := known.route.path_regex.match(path)) is not None:
                return known, match.groupdict()
        return None
