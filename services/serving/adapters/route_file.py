"""The last routes that a data plane knew, in a file, so that it can serve after a restart without the control plane."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from tidemill.inference.v1 import inference_service_pb2 as pb

from services.serving.adapters.message_file import MessageFile
from services.serving.adapters.route_messages import route_from, route_to
from services.serving.domain.route import Route

logger = logging.getLogger(__name__)


class RouteFile:
    """Routes in a `MessageFile`."""

    def __init__(self, path: Path) -> None:
        self._file = MessageFile(path, pb.WatchRoutesResponse)

    def load(self) -> Sequence[Route] | None:
        """The routes that were saved last; None if there are none, or they cannot be read."""
        message = self._file.load()
        try:
            return None if message is None else [route_from(route) for route in message.routes]
        except ValueError as error:
            logger.warning("the routes in %s cannot be read and are asked for again: %s", self._file.path, error)
            return None

    def save(self, routes: Iterable[Route]) -> None:
        """Replaces them; see `MessageFile.save`."""
        self._file.save(pb.WatchRoutesResponse(snapshot=True, routes=[route_to(route) for route in routes]))
