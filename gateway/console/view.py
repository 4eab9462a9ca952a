"""What a page gets: the request, the services in its caller's name, and how to answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from gateway.console.calls import Services
from gateway.console.rendering import render
from gateway.console.sessions import Session, Sessions
from gateway.health import PartsHealth
from gateway.http.door import CONSOLE
from gateway.keys.key import ApiKey
from services.kit.ids import new_id

ROOT = CONSOLE
NOTES = {
    "approved": "Approved. The roll-out takes its next step.",
    "rolledback": "Rolled back. All users have the version before.",
    "frozen": "Frozen. Guard-rails still roll it back.",
    "resumed": "Resumed.",
    "forced": "Promoted by force.",
    "paused": "Paused. No cycle starts by itself until you resume it.",
    "decided": "Saved.",
    "cancelled": "Cancelled.",
}
"""What a page says after an order; the address carries the word only."""


@dataclass(frozen=True, slots=True)
class View:
    """One request of a person who is signed in."""

    request: Request
    services: Services
    health: PartsHealth
    session: Session
    sessions: Sessions
    key: ApiKey | None
    """None where the gateway requires no keys."""
    templates: Environment
    form: Mapping[str, str]
    """What was sent, for a POST."""

    @property
    def person(self) -> str:
        """Who acts, for a review: the name of the person, else of the key."""
        return self.session.person or (self.key.name if self.key is not None else "console")

    @property
    def next_token(self) -> str:
        """Of the next page of a list; empty for the first."""
        return self.request.query_params.get("after", "")[:256]

    def parameter(self, name: str) -> str:
        """A part of the path."""
        return str(self.request.path_params[name])

    def query(self, name: str) -> str:
        """A parameter of the query; empty without it."""
        return self.request.query_params.get(name, "")[:256]

    def page(self, template: str, /, status: int = 200, **values: Any) -> Response:
        """A page."""
        common = {
            "root": ROOT,
            "path": self.request.url.path,
            "person": self.person,
            "key": self.key,
            "form_token": self.sessions.form_token(self.session),
            "request_id": new_id(),
            "note": NOTES.get(self.query("note"), ""),
        }
        return HTMLResponse(render(self.templates, template, **{**common, **values}), status)

    def go(self, path: str, **query: str) -> Response:
        """Sends the browser to another page, after an order."""
        return RedirectResponse(f"{ROOT}{path}{'?' if query else ''}{urlencode(query)}", 303)


Handler = Callable[[View], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Page:
    """What answers a method and a path."""

    method: str
    path: str
    """Below `/console`, with parameters in braces."""
    handler: Handler
