"""Retries while a dependency is unavailable, with pauses that double."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_when_event_set,
    wait_exponential,
)

from services.kit.errors import TidemillError, is_retryable

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0

T = TypeVar("T")


class StoppedError(Exception):
    """The process ends; what was tried is left to the next one."""


def persistently(
    do: Callable[[], T],
    what: str,
    stop: threading.Event,
    *,
    repeats: Callable[[BaseException], bool] = is_retryable,
) -> T:
    """Its result, as soon as it gives one.

    Args:
        do: what is done; doing it twice must be the same as once.
        what: what waits meanwhile, for the log.
        stop: ends the attempts.
        repeats: whether an error is retryable.

    Raises:
        StoppedError: `stop` was set before it succeeded.
        Exception: the first error that is not retryable.
    """

    def log(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        message = error.message if isinstance(error, TidemillError) else error
        logger.warning("%s waits %.1f s: %s", what, state.upcoming_sleep, message)

    def ended(state: RetryCallState) -> T:
        raise StoppedError from (state.outcome.exception() if state.outcome is not None else None)

    if stop.is_set():
        raise StoppedError
    attempts = Retrying(
        retry=retry_if_exception(repeats),
        wait=wait_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S),
        stop=stop_when_event_set(stop),
        sleep=sleep_using_event(stop),
        before_sleep=log,
        retry_error_callback=ended,
    )
    return attempts(do)
