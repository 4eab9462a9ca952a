"""Keeps the rules of capture up to date with the pipeline service; while that is unavailable, they stay as they are.

The last rules are in a file, for a restart. Without any, nothing of a text is kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb

from services.kit.errors import InvalidArgumentError
from services.masking.masks import MaskSpec, mask_of
from services.serving.adapters.feed import Feed
from services.serving.adapters.message_file import MessageFile
from services.serving.app.capture import Capture, CaptureRules

logger = logging.getLogger(__name__)


class CaptureFeed(Feed[pb.WatchCaptureResponse]):
    """Watches the rules. `stub` is an asynchronous stub of PipelineService."""

    def __init__(self, stub: Any, rules: CaptureRules, file: Path) -> None:
        self._rules = rules
        self._file = MessageFile(file, pb.WatchCaptureResponse)
        super().__init__(
            lambda: stub.WatchCapture(pb.WatchCaptureRequest()),
            self._apply,
            self._file.save,
            "what is captured stays as it is until the pipeline service answers again",
        )

    async def restore(self) -> None:
        """Takes the rules that were known last; call it once, before `run`."""
        message = await asyncio.to_thread(self._file.load)
        if message is not None:
            self._rules.replace(_rules(message.policies, message.user_key))

    def _apply(self, message: pb.WatchCaptureResponse) -> None:
        self._rules.replace(_rules(message.policies, message.user_key))
        logger.info("answers of %d models are captured", len(message.policies))


def _rules(policies: Iterable[pb.CapturePolicy], user_key: str) -> list[tuple[str, Capture]]:
    """The rules of models; of a model whose masks this release does not know nothing is kept."""
    found = []
    for policy in policies:
        capture = policy.capture
        masks = [MaskSpec(item.name, json_format.MessageToDict(item.params)) for item in capture.masks]
        try:
            rule = Capture(capture.sample if capture.HasField("sample") else 1.0, mask_of(masks), user_key)
        except InvalidArgumentError as error:
            logger.error("answers of %s are not captured: %s", policy.model, error.message)
            continue
        found.append((policy.model.removeprefix("models/"), rule))
    return found
