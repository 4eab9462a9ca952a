"""An event loop for an import's thread in which every network wait ends: by timeout or by interrupt."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from services.ingest.app.interrupt import Interrupt, InterruptedReadError
from services.ingest.engine.file_format import BadContentError

T = TypeVar("T")

logger = logging.getLogger(__name__)

_FINISH_S = 2.0


class InterruptibleLoop:
    """Runs coroutines one at a time; close it at the end."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._runner = asyncio.Runner()

    def run(self, coroutine: Coroutine[Any, Any, T], limit_s: float, what: str) -> T:
        """The coroutine's result.

        Args:
            coroutine: what to wait for.
            limit_s: timeout.
            what: who is waited for, for the error message.

        Raises:
            BadContentError: nothing arrived in time.
            InterruptedReadError: the interrupt was set.
        """
        scope: asyncio.Timeout | None = None

        async def bounded() -> T:
            nonlocal scope
            task, loop = asyncio.current_task(), asyncio.get_running_loop()
            assert task is not None
            with self._interrupt.then(lambda: loop.call_soon_threadsafe(task.cancel)):
                async with asyncio.timeout(limit_s) as scope:
                    return await coroutine

        try:
            return self._runner.run(bounded())
        except asyncio.CancelledError:
            raise InterruptedReadError from None
        except TimeoutError as error:
            if scope is None or not scope.expired():
                raise
            raise BadContentError("SOURCE_SILENT", f"{what} sent too little for {limit_s:g} s") from error

    def finish(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Closes a connection, also after an interrupt; errors are ignored."""

        async def bounded() -> None:
            async with asyncio.timeout(_FINISH_S):
                await coroutine

        try:
            self._runner.run(bounded())
        except (OSError, TimeoutError) as error:
            logger.debug("could not close a source's connection: %s", error)

    def close(self) -> None:
        """Closes the loop."""
        self._runner.close()
