"""Keeps the table of routes up to date with the control plane; while that is unavailable, nothing changes."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from tidemill.inference.v1 import inference_service_pb2 as pb

from services.serving.adapters.feed import Feed
from services.serving.adapters.route_file import RouteFile
from services.serving.adapters.route_messages import route_from
from services.serving.app.routing import RoutingTable

logger = logging.getLogger(__name__)


class RouteFeed(Feed[pb.WatchRoutesResponse]):
    """Watches the routes. `stub` is an asynchronous stub of InferenceService."""

    def __init__(self, stub: Any, table: RoutingTable, file: RouteFile) -> None:
        self._table = table
        self._file = file
        super().__init__(
            lambda: stub.WatchRoutes(pb.WatchRoutesRequest()),
            self._apply,
            lambda _: file.save(table.routes()),
            "the routes stay as they are until inference answers again",
        )

    async def restore(self) -> None:
        """Takes the routes that were known last; call it once, before `run`."""
        routes = await asyncio.to_thread(self._file.load)
        if routes is not None:
            self._table.replace(routes)
            logger.info("%d models by the routes that were known last", len(routes))

    def _apply(self, message: pb.WatchRoutesResponse) -> None:
        routes = [route_from(route) for route in message.routes]
        if message.snapshot:
            self._table.replace(routes)
        else:
            self._table.change(routes)
        if not self.connected:
            logger.info("routes of %d models arrive from inference", len(self._table.routes()))
