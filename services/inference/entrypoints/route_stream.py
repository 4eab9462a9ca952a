"""The routes as a stream: all of them, then each change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from tidemill.inference.v1 import inference_service_pb2 as pb

from services.inference.app.route_book import Reader, RouteBook, Routes
from services.kit.grpc.watching import watch
from services.serving.adapters.route_messages import route_to


async def stream_routes(book: RouteBook) -> AsyncGenerator[pb.WatchRoutesResponse, None]:
    """Responses without an end. A response counts as sent when the next one is asked for."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    reader = Reader(lambda: loop.call_soon_threadsafe(changed.set))
    book.add(reader)
    changed.set()

    async def next_routes() -> Routes:
        await changed.wait()
        changed.clear()
        return book.read()

    try:
        before: Routes | None = None
        async with aclosing(watch(next_routes, lambda _: False)) as found:
            async for routes in found:
                yield _response(before, routes)
                book.has(reader, routes.revision)
                before = routes
    finally:
        book.remove_reader(reader)


def _response(before: Routes | None, now: Routes) -> pb.WatchRoutesResponse:
    known = before.by_model if before is not None else {}
    changed = [route for model, route in sorted(now.by_model.items()) if route != known.get(model)]
    return pb.WatchRoutesResponse(
        revision=now.revision, snapshot=before is None, routes=[route_to(route) for route in changed]
    )
