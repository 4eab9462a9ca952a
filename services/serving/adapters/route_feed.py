"""Keeps the table of routes equal to what the control plane says, and without it as it was."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
from tidemill.inference.v1 import inference_service_pb2 as pb

from services.kit.retrying import Backoff
from services.serving.adapters.route_file import RouteFile
from services.serving.adapters.route_messages import route_from
from services.serving.app.routing import RoutingTable

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0


class RouteFeed:
    """Watches the routes. `stub` is an asynchronous stub of InferenceService."""

    def __init__(self, stub: Any, table: RoutingTable, file: RouteFile) -> None:
        self._stub = stub
        self._table = table
        self._file = file
        self.connected = False
        """Whether changes arrive at present."""

    async def restore(self) -> None:
        """Takes the routes that were known last; call it once, before `run`."""
        routes = await asyncio.to_thread(self._file.load)
        if routes is not None:
            self._table.replace(routes)
            logger.info("%d models by the routes that were known last", len(routes))

    async def run(self) -> None:
        """Watches until it is cancelled, again and again."""
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            why = "the stream ended"
            try:
                async for message in self._stub.WatchRoutes(pb.WatchRoutesRequest()):
                    self._take(message)
                    backoff.reset()
                    await asyncio.to_thread(self._file.save, self._table.routes())
            except grpc.aio.AioRpcError as error:
                why = error.details() or error.code().name
            except ValueError as error:
                why = str(error)
            if self.connected:
                logger.warning("the routes stay as they are until inference answers again: %s", why)
            self.connected = False
            await asyncio.sleep(backoff.next_s())

    def _take(self, message: pb.WatchRoutesResponse) -> None:
        routes = [route_from(route) for route in message.routes]
        if message.snapshot:
            self._table.replace(routes)
        else:
            self._table.change(routes)
        if not self.connected:
            logger.info("routes of %d models arrive from inference", len(self._table.routes()))
        self.connected = True
