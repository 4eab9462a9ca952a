"""Reads lists to their end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from gateway.cli.connection import Connection

_TIMEOUT_S = 30


def pages(connection: Connection, method: Callable[..., Any], request: Any) -> Iterator[Any]:
    """Every page of a list; `request` is changed."""
    while True:
        page = method(request, metadata=connection.metadata, timeout=_TIMEOUT_S)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
