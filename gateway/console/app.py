"""The console as an ASGI application: finds the page, checks the session, sets the headers.

Whoever is not signed in gets the sign-in page and the files that it loads, nothing else. What a page may read or order
is decided by the calls that it makes (`gateway.console.calls`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

from opentelemetry import trace
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Match, Route

from gateway.access import CALLER, Caller
from gateway.console.calls import Services
from gateway.console.forms import TOKEN, read_form, refuse_foreign
from gateway.console.pages import audit, cycles, data, home, judges, loops, models, reviews, rollouts, telemetry
from gateway.console.rendering import STATIC, digest, environment, render, static_files
from gateway.console.sessions import COOKIE, MAX_PERSON, Session, Sessions
from gateway.console.view import ROOT, Page, View
from gateway.health import PartsHealth
from gateway.http.door import Message, Receive, Scope, Send
from gateway.http.errors import CODE_KEY, status_of, unexpected
from gateway.keys.key import ApiKey
from gateway.keys.limiter import KeyLimiter
from gateway.keys.ring import KeyRing
from services.kit.errors import (
    NotFoundError,
    PermissionDeniedError,
    TidemillError,
    UnauthenticatedError,
)
from services.kit.telemetry import schema

logger = logging.getLogger(__name__)

SIGN_IN = f"{ROOT}/sign-in"
SIGN_OUT = f"{ROOT}/sign-out"
_MAX_SIGN_IN_BYTES = 4096
_HEADERS = {
    # No script and no style but our files; no page of others may frame ours.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not `no-referrer`: a browser would then send `Origin: null` with our own forms.
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_ALWAYS = "public, max-age=31536000, immutable"


def pages() -> Iterable[Page]:
    """All pages for people who are signed in."""
    for module in (home, loops, cycles, rollouts, reviews, judges, models, data, audit, telemetry):
        yield from module.PAGES


class Console:
    """The ASGI application below `/console`."""

    def __init__(
        self,
        services: Services,
        health: PartsHealth,
        ring: KeyRing | None,
        limiter: KeyLimiter,
        sessions: Sessions,
    ) -> None:
        """Args:
        services: to call in a caller's name.
        health: of the services.
        ring: the valid keys; None where the gateway requires none, and no one signs in.
        limiter: the keys' limits, shared with the doors.
        sessions: who is signed in.
        """
        self._services, self._health = services, health
        self._ring, self._limiter, self._sessions = ring, limiter, sessions
        self._templates = environment()
        self._files = static_files()
        self._routes = [(Route(f"{ROOT}{page.path}", _never, methods=[page.method]), page) for page in pages()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                more = [
                    (name.encode(), value.encode()) for name, value in _HEADERS.items() if name.encode() not in given
                ]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        request = Request(scope, receive, send)
        try:
            with ExitStack() as stack:
                response = await self._answer(request, stack.callback)
        except ClientDisconnect:
            scope[CODE_KEY] = "CANCELLED"
            return
        except TidemillError as error:
            response = self._failed(request, error)
        except Exception as error:
            logger.exception("a page of the console failed")
            response = self._failed(request, unexpected(error))
        await response(scope, receive, with_headers)

    async def _answer(self, request: Request, at_end: Callable[[Callable[[], None]], object]) -> Response:
        path, method = request.url.path, request.method
        if path.startswith(f"{ROOT}/static/"):
            return self._static(path.rpartition("/")[2])
        if path == SIGN_IN:
            _known(request, SIGN_IN)
            return await self._sign_in(request)
        if path == SIGN_OUT and method == "POST":
            _known(request, SIGN_OUT)
            return await self._sign_out(request)
        page = self._find(request)
        session, key = await self._caller(request)
        if key is not None:
            CALLER.set(Caller(key))  # each request has a task of its own
            trace.get_current_span().set_attribute(schema.API_KEY, key.key_id)
            at_end(self._limiter.enter(key))
        form = await self._form(request, session) if method == "POST" else {}
        view = View(request, self._services, self._health, session, self._sessions, key, self._templates, form)
        return await page.handler(view)

    def _find(self, request: Request) -> Page:
        for route, page in self._routes:
            match, found = route.matches(request.scope)
            if match is Match.FULL:
                request.scope["path_params"] = found["path_params"]
                _known(request, route.path)
                return page
        raise NotFoundError("This page does not exist.", reason="UNKNOWN_PATH")

    async def _caller(self, request: Request) -> tuple[Session, ApiKey | None]:
        """Who is signed in, with the key, which may have been revoked since.

        Raises:
            UnauthenticatedError: no one.
        """
        session = self._sessions.read(request.cookies.get(COOKIE, ""))
        if self._ring is None:
            # Forms need a token that other origins cannot read; there is nothing else to know.
            return session or Session("", "", "open", 0), None
        if session is None:
            raise UnauthenticatedError("Sign in to see this page.", reason="NOT_SIGNED_IN")
        return session, await self._ring.holder(session.key_id)

    async def _form(self, request: Request, session: Session) -> Mapping[str, str]:
        refuse_foreign(request)
        form = await read_form(request)
        if not self._sessions.admits(session, form.get(TOKEN, "")):
            raise PermissionDeniedError(
                "This form belongs to another session. Reload the page and submit the form again.",
                reason="FOREIGN_FORM",
            )
        return form

    async def _sign_in(self, request: Request) -> Response:
        if self._ring is None:
            return RedirectResponse(ROOT, 303)
        target = _inside(request.query_params.get("next", ""))
        if request.method != "POST":
            ended = "Your session has ended." if "ended" in request.query_params else ""
            return self._sign_in_page(target, ended, 200)
        refuse_foreign(request)
        form = await read_form(request, _MAX_SIGN_IN_BYTES)
        try:
            key = await self._ring.check(form.get("key", "").strip())
        except UnauthenticatedError as error:
            request.scope[CODE_KEY] = error.code
            why = "This API key has expired." if error.reason == "API_KEY_EXPIRED" else "This API key is not valid."
            return self._sign_in_page(target, why, 401)
        self._limiter.enter(key)()
        _, cookie = self._sessions.begin(key.key_id, form.get("person", "").strip()[:MAX_PERSON])
        response = RedirectResponse(target, 303)
        response.set_cookie(COOKIE, cookie, path=ROOT, secure=_secure(request), httponly=True, samesite="strict")
        return response

    def _sign_in_page(self, target: str, why: str, status: int) -> Response:
        return HTMLResponse(
            render(self._templates, "sign_in.html", root=ROOT, target=target, why=why, max_person=MAX_PERSON), status
        )

    async def _sign_out(self, request: Request) -> Response:
        session = self._sessions.read(request.cookies.get(COOKIE, ""))
        if session is not None:
            await self._form(request, session)
        response = RedirectResponse(SIGN_IN if self._ring is not None else ROOT, 303)
        response.delete_cookie(COOKIE, path=ROOT, secure=_secure(request), httponly=True, samesite="strict")
        return response

    def _static(self, name: str) -> Response:
        content = self._files.get(name)
        if content is None:
            raise NotFoundError("This file does not exist.", reason="UNKNOWN_PATH")
        headers = {"etag": f'"{digest(content)}"', "cache-control": _ALWAYS}
        return Response(content, headers=headers, media_type=STATIC[name])

    def _failed(self, request: Request, error: TidemillError) -> Response:
        request.scope[CODE_KEY] = error.code
        if isinstance(error, UnauthenticatedError):
            had = COOKIE in request.cookies
            path = _inside(request.url.path)
            return RedirectResponse(f"{SIGN_IN}?next={path}{'&ended=1' if had else ''}", 303)
        status = status_of(error)
        content = render(self._templates, "error.html", root=ROOT, error=error, status=status)
        return HTMLResponse(content, status)


async def _never(_: Request) -> Response:
    raise AssertionError("unreachable: routes only find pages")


def _known(request: Request, path: str) -> None:
    """Names the route for span and metrics, which must not have names that callers choose."""
    request.scope["route"] = Route(path, _never)


def _inside(path: str) -> str:
    """A path of the console to continue at; its home for any other."""
    plain = all(character.isalnum() or character in "/-_." for character in path) and path.isascii()
    return path if plain and (path == ROOT or path.startswith(f"{ROOT}/")) and "//" not in path else ROOT


def _secure(request: Request) -> bool:
    """Whether the browser uses TLS, as a proxy's header says. A forged header harms only the sender's session."""
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", ""))
