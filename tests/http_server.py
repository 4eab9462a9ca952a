"""A small HTTP server in a test's own event loop, for models that the code under test asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web


@asynccontextmanager
async def http_server(posts: Mapping[str, Callable[[web.Request], Awaitable[web.Response]]]) -> AsyncIterator[int]:
    """Serves POST requests by path on a free port of this machine, which it gives."""
    app = web.Application()
    for path, handler in posts.items():
        app.router.add_post(path, handler)
    runner = web.AppRunner(app, shutdown_timeout=0.05)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
