"""The loop of a background worker: step after step, with longer pauses while a dependency is unavailable."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from services.kit.errors import TidemillError, is_retryable

logger = logging.getLogger(__name__)

IDLE_S = 0.2
AWAY_S = 2.0


async def step_forever(
    step: Callable[[], Awaitable[object]],
    what: str,
    *,
    idle_s: float | None = None,
    survives_defects: bool = False,
) -> None:
    """Steps until it is cancelled.

    Args:
        step: one step; the next one follows at once where it returns True.
        what: what the worker does, such as `building`, for the log.
        idle_s: pause after a step that did not return True; `IDLE_S` where it is not given.
        survives_defects: continue after unexpected exceptions, if one of them must not end all other work.

    Raises:
        Exception: what a step raised that is not retryable, which ends the process.
    """
    while True:
        pause = IDLE_S if idle_s is None else idle_s
        try:
            if await step() is True:
                continue
        except TidemillError as error:
            if not (survives_defects or is_retryable(error)):
                raise
            logger.warning("%s waits: %s", what, error.message)
            pause = AWAY_S
        except Exception:
            if not survives_defects:
                raise
            logger.exception("%s: a step failed; it is tried again", what)
            pause = AWAY_S
        await asyncio.sleep(pause)
