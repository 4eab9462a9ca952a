"""Keeps a data plane up to date with a control plane; while that is unavailable, nothing changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Callable
from typing import Generic, TypeVar

import grpc
from google.protobuf.message import Message

from services.kit.retrying import Backoff

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0

M = TypeVar("M", bound=Message)


class Feed(Generic[M]):
    """Watches a stream of messages, and opens it again when it ends."""

    def __init__(
        self,
        watch: Callable[[], AsyncIterable[M]],
        take: Callable[[M], None],
        save: Callable[[M], None],
        lost: str,
    ) -> None:
        """Args:
        watch: opens the stream.
        take: applies a message; a ValueError ends the stream.
        save: keeps a message that was applied, for the next start; it may block.
        lost: what the log says when the stream breaks off.
        """
        self._watch, self._take, self._save, self._lost = watch, take, save, lost
        self.connected = False
        """Whether changes arrive at present."""

    async def run(self) -> None:
        """Watches until it is cancelled."""
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            why = "the stream ended"
            try:
                async for message in self._watch():
                    self._take(message)
                    self.connected = True
                    backoff.reset()
                    await asyncio.to_thread(self._save, message)
            except grpc.aio.AioRpcError as error:
                why = error.details() or error.code().name
            except ValueError as error:
                why = str(error)
            if self.connected:
                logger.warning("%s: %s", self._lost, why)
            self.connected = False
            await asyncio.sleep(backoff.next_s())
