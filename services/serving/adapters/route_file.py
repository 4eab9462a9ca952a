"""The routes that a data plane knew last, in a file, so that it serves on after a restart without the control plane."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from google.protobuf import json_format
from tidemill.inference.v1 import inference_service_pb2 as pb

from services.serving.adapters.route_messages import route_from, route_to
from services.serving.domain.route import Route

logger = logging.getLogger(__name__)


class RouteFile:
    """One file of JSON, replaced as a whole. Blocking. Several processes may share it: they write the same routes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failing = False

    def load(self) -> Sequence[Route] | None:
        """The routes that were saved last; None where there are none, or none that can be read."""
        try:
            message = json_format.Parse(self._path.read_text(encoding="utf-8"), pb.WatchRoutesResponse())
            return [route_from(route) for route in message.routes]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, json_format.ParseError) as error:
            logger.warning("the routes in %s cannot be read and are asked for again: %s", self._path, error)
            return None

    def save(self, routes: Iterable[Route]) -> None:
        """Replaces them. Where that is impossible this process serves on, and the log says so once."""
        message = pb.WatchRoutesResponse(snapshot=True, routes=[route_to(route) for route in routes])
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with partial.open("w", encoding="utf-8") as file:
                file.write(json_format.MessageToJson(message, preserving_proto_field_name=True))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path)
        except OSError as error:
            if not self._failing:
                logger.warning(
                    "%s cannot be written; a restart would have to ask for the routes: %s", self._path, error
                )
            self._failing = True
        else:
            self._failing = False
