"""The loop of a background worker: step after step, with a pause where nothing is left to do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from services.kit.errors import TidemillError, is_retryable
from services.kit.retrying import Backoff

logger = logging.getLogger(__name__)

IDLE_S = 0.2


class Wakeup:
    """Ends the pause of a loop; `set` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._event = loop, asyncio.Event()

    def set(self) -> None:
        """Wakes the loop; if it is not pausing, its next pause ends at once."""
        self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout_s: float) -> None:
        """Returns once `set` was called since the last `wait`, or after `timeout_s` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        self._event.clear()


async def step_forever(
    step: Callable[[], Awaitable[object]],
    what: str,
    *,
    idle_s: float | None = None,
    wakeup: Wakeup | None = None,
    survives_defects: bool = False,
) -> None:
    """Runs steps until it is cancelled. An outage is logged once, not at every attempt.

    Args:
        step: one step; the next one follows at once if it returns True.
        what: what the worker does, such as `building`, for the log.
        idle_s: pause after a step that did not return True; `IDLE_S` when None.
        wakeup: ends a pause early.
        survives_defects: continue after unexpected exceptions, if one of them must not end all other work.

    Raises:
        Exception: what a step raised that is not retryable, which ends the process.
    """
    backoff, outage = Backoff(), ""
    pause_of = asyncio.sleep if wakeup is None else wakeup.wait
    while True:
        pause = IDLE_S if idle_s is None else idle_s
        try:
            again = await step() is True
            if outage:
                logger.info("%s continues", what)
            backoff.reset()
            outage = ""
            if again:
                continue
        except TidemillError as error:
            if not (survives_defects or is_retryable(error)):
                raise
            if error.reason != outage:
                logger.warning("%s waits: %s", what, error.message)
            outage, pause = error.reason, backoff.next_s()
        except Exception:
            if not survives_defects:
                raise
            logger.exception("%s: a step failed; retrying", what)
            pause = backoff.next_s()
        await pause_of(pause)
