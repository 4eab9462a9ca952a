"""A message in a file, for what a data plane must still know after a restart without its control plane."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Generic, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from services.kit.whole_files import OWNER_ONLY, replace_text

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)


class MessageFile(Generic[M]):
    """One file of JSON, replaced as a whole. Blocking. Several processes may share it: they write the same."""

    def __init__(self, path: Path, kind: type[M]) -> None:
        self.path = path
        self._kind = kind
        self._failing = False

    def load(self) -> M | None:
        """What was saved last; None if there is nothing, or it cannot be read."""
        try:
            return json_format.Parse(self.path.read_text(encoding="utf-8"), self._kind())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, json_format.ParseError) as error:
            logger.warning("%s cannot be read; its content is asked for again: %s", self.path, error)
            return None

    def save(self, message: M) -> None:
        """Replaces it. If that fails, this process keeps serving, and the log says so once."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # For this user only: the rules of capture carry a key.
            replace_text(self.path, json_format.MessageToJson(message, preserving_proto_field_name=True), OWNER_ONLY)
        except OSError as error:
            if not self._failing:
                logger.warning("%s cannot be written; a restart would have to ask for it: %s", self.path, error)
            self._failing = True
        else:
            self._failing = False
