"""Wakes cycles that wait for a peer when an event reports on its work."""

from __future__ import annotations

import asyncio
from collections import defaultdict


class EventWakeups:
    """Implements `services.pipeline.app.ports.Wakeups`; `notify` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)

    async def wait(self, resource: str, timeout_s: float) -> None:
        """See the port."""
        event = asyncio.Event()
        self._waiting[resource].add(event)
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting[resource].discard(event)
            if not self._waiting[resource]:
                del self._waiting[resource]

    def notify(self, resource: str) -> None:
        """Wakes the cycles that wait for the resource."""
        self._loop.call_soon_threadsafe(self._wake, resource)

    def _wake(self, resource: str) -> None:
        for event in self._waiting.get(resource, ()):
            event.set()
