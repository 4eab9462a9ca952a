"""Keeps the rules of capture equal to what the pipeline service says, and without it as they were.

Across a restart they lie in a file. Where neither is known, nothing of a text is kept.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb

from services.kit.errors import InvalidArgumentError
from services.kit.retrying import Backoff
from services.masking.masks import MaskSpec, mask_of
from services.serving.app.capture import Capture, CaptureRules

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0


class CaptureFeed:
    """Watches the rules. `stub` is an asynchronous stub of PipelineService."""

    def __init__(self, stub: Any, rules: CaptureRules, file: Path) -> None:
        self._stub, self._rules, self._file = stub, rules, file
        self.connected = False
        """Whether changes arrive at present."""

    async def restore(self) -> None:
        """Takes the rules that were known last; call it once, before `run`."""
        message = await asyncio.to_thread(self._load)
        if message is not None:
            self._rules.replace(_rules(message.policies))

    async def run(self) -> None:
        """Watches until it is cancelled, again and again."""
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            why = "the stream ended"
            try:
                async for message in self._stub.WatchCapture(pb.WatchCaptureRequest()):
                    self._rules.replace(_rules(message.policies))
                    self.connected = True
                    backoff.reset()
                    await asyncio.to_thread(self._save, message)
                    logger.info("answers of %d models are captured", len(message.policies))
            except grpc.aio.AioRpcError as error:
                why = error.details() or error.code().name
            if self.connected:
                logger.warning("what is captured stays as it is until the pipeline service answers again: %s", why)
            self.connected = False
            await asyncio.sleep(backoff.next_s())

    def _load(self) -> pb.WatchCaptureResponse | None:
        try:
            return json_format.Parse(self._file.read_text(encoding="utf-8"), pb.WatchCaptureResponse())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, json_format.ParseError) as error:
            logger.warning(
                "%s cannot be read; nothing is captured until the pipeline service answers: %s", self._file, error
            )
            return None

    def _save(self, message: pb.WatchCaptureResponse) -> None:
        partial = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with partial.open("w", encoding="utf-8") as file:
                file.write(json_format.MessageToJson(message, preserving_proto_field_name=True))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._file)
        except OSError as error:
            logger.warning("%s cannot be written; a restart would have to ask what is captured: %s", self._file, error)


def _rules(policies: Iterable[pb.CapturePolicy]) -> list[tuple[str, Capture]]:
    """The rules of models; of a model whose masks this release does not know nothing is kept."""
    found = []
    for policy in policies:
        capture = policy.capture
        masks = [MaskSpec(item.name, json_format.MessageToDict(item.params)) for item in capture.masks]
        try:
            rule = Capture(capture.sample if capture.HasField("sample") else 1.0, mask_of(masks))
        except InvalidArgumentError as error:
            logger.error("answers of %s are not captured: %s", policy.model, error.message)
            continue
        found.append((policy.model.removeprefix("models/"), rule))
    return found
