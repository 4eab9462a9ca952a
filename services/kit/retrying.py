"""Retries while a dependency is unavailable, with pauses that double."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_after_delay,
    stop_any,
    stop_never,
    stop_when_event_set,
    wait_exponential,
)
from tenacity.stop import stop_base

from services.kit.errors import AbortedError, TidemillError, is_retryable

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0

T = TypeVar("T")


class StoppedError(Exception):
    """The process stopped before the retried call succeeded; the next process repeats it."""


class Backoff:
    """Pauses for a loop that does its own retries: they double until `reset`."""

    def __init__(self, first_s: float | None = None, longest_s: float | None = None) -> None:
        """Pauses in seconds; `FIRST_PAUSE_S` and `LONGEST_PAUSE_S` when None."""
        self._first_s = FIRST_PAUSE_S if first_s is None else first_s
        self._longest_s = LONGEST_PAUSE_S if longest_s is None else longest_s
        self._next_s = self._first_s

    def reset(self) -> None:
        """Starts again with the first pause; call it after a success."""
        self._next_s = self._first_s

    def next_s(self) -> float:
        """Seconds to wait after another failure."""
        pause, self._next_s = self._next_s, min(self._next_s * 2, self._longest_s)
        return pause


def call_with_retries(
    do: Callable[[], T],
    what: str,
    stop: threading.Event,
    *,
    should_retry: Callable[[BaseException], bool] = is_retryable,
    patience_s: float | None = None,
    on_wait: Callable[[BaseException], None] | None = None,
) -> T:
    """Calls `do` until it returns, and returns its result.

    Args:
        do: must be idempotent.
        what: names the waiting work in the log.
        stop: ends the retries when set.
        should_retry: whether an error is transient.
        patience_s: seconds after which even a transient error is raised; no limit when None.
        on_wait: called with the error before each pause.

    Raises:
        StoppedError: `stop` was set before it succeeded.
        Exception: the first error that is not retried, or the last one after `patience_s`.
    """

    def ended(state: RetryCallState) -> T:
        error = _error(state)
        if stop.is_set():
            raise StoppedError from error
        raise error

    log = _logger(what)

    def before_sleep(state: RetryCallState) -> None:
        log(state)
        if on_wait is not None:
            on_wait(_error(state))

    if stop.is_set():
        raise StoppedError
    attempts = Retrying(
        **_policy(should_retry, stop_any(stop_when_event_set(stop), _stop_after(patience_s))),
        sleep=sleep_using_event(stop),
        before_sleep=before_sleep,
        retry_error_callback=ended,
    )
    return attempts(do)


async def call_with_retries_async(
    do: Callable[[], Awaitable[T]],
    what: str,
    *,
    patience_s: float | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    on_wait: Callable[[BaseException], Awaitable[None]] | None = None,
) -> T:
    """`call_with_retries` on an event loop; retries until it is cancelled.

    Args:
        do: must be idempotent.
        what: names the waiting work in the log.
        patience_s: seconds after which even a transient error is raised; no limit when None.
        sleep: waits between two attempts; what it raises ends the retries.
        on_wait: called with the error before each pause.

    Raises:
        Exception: the first error that is not retried, or the last one after `patience_s`.
    """
    log = _logger(what)

    async def before_sleep(state: RetryCallState) -> None:
        log(state)
        if on_wait is not None:
            await on_wait(_error(state))

    async def attempt() -> T:
        # tenacity awaits coroutine functions only, not a function that returns a coroutine.
        return await do()

    policy = _policy(is_retryable, _stop_after(patience_s))
    return await AsyncRetrying(**policy, sleep=sleep, before_sleep=before_sleep, reraise=True)(attempt)


async def again_if_aborted(do: Callable[[], Awaitable[T]], tries: int = 5) -> T:
    """Calls `do`, which reads before it writes, again where someone else was faster.

    Raises:
        AbortedError: someone else was faster each time.
    """

    async def attempt() -> T:
        return await do()

    policy = AsyncRetrying(retry=retry_if_exception_type(AbortedError), stop=stop_after_attempt(tries), reraise=True)
    return await policy(attempt)


def _policy(should_retry: Callable[[BaseException], bool], stop: stop_base) -> dict[str, Any]:
    wait = wait_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S)
    return {"retry": retry_if_exception(should_retry), "wait": wait, "stop": stop}


def _stop_after(patience_s: float | None) -> stop_base:
    return stop_never if patience_s is None else stop_after_delay(patience_s)


def _logger(what: str) -> Callable[[RetryCallState], None]:
    def log(state: RetryCallState) -> None:
        error = _error(state)
        message = error.message if isinstance(error, TidemillError) else error
        logger.warning("%s waits %.1f s: %s", what, state.upcoming_sleep, message)

    return log


def _error(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome is not None else None
    assert error is not None, "only attempts that raised are retried"
    return error
