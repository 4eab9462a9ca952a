"""Watch streams: a resource now, at each change, and at its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

_PAUSE_S = 0.2

T = TypeVar("T")


async def watch(read: Callable[[], Awaitable[T]], ended: Callable[[T], bool]) -> AsyncGenerator[T, None]:
    """Yields what `read` returns, now and after each change; ends with the first state for which `ended` is true."""
    sent: T | None = None
    while sent is None or not ended(sent):
        found = await read()
        if found != sent:
            yield found
            sent = found
        else:
            await asyncio.sleep(_PAUSE_S)
