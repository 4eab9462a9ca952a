"""HTTP sources that are asked again while the server says that it is busy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import aiohttp
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from services.ingest.adapters.source_files.http import HttpFile
from services.ingest.domain.source_uri import shown

T = TypeVar("T")

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
# A server that asks for more is unavailable for longer than an import should wait.
_LONGEST_ASKED_S = 300.0


class BusyError(OSError):
    """The server does not answer now; `after_s` is when it asked to come again, 0 if it did not say."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


class PatientHttp(HttpFile):
    """What is fetched from one source, for one thread."""

    def _patiently(self, call: Callable[[], T], attempts: int) -> T:
        """The result of a call that is repeated while it raises a `BusyError` or cannot connect.

        Raises:
            OSError: the server does not answer, also not when asked again.
        """
        retrying = Retrying(
            retry=retry_if_exception_type((BusyError, aiohttp.ClientConnectionError)),
            stop=stop_after_attempt(attempts),
            wait=_wait,
            sleep=self._sleep,
            reraise=True,
        )
        return retrying(call)

    def _sleep(self, seconds: float) -> None:
        # Ends early if the import is cancelled.
        self._waiting.run(asyncio.sleep(seconds), seconds + 5, shown(self._url))

    def _check_busy(self, response: aiohttp.ClientResponse) -> None:
        """Raises a `BusyError` for an answer that will be another one later."""
        if response.status in _PASSING:
            where, after = shown(str(response.url)), _after(response.headers.get("Retry-After", ""))
            if after > _LONGEST_ASKED_S:
                raise OSError(f"{where} answers {response.status} and asks to come again in {after:.0f} s")
            raise BusyError(f"{where} answers {response.status}", after)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.after_s if isinstance(error, BusyError) else 0.0
    pause: float = wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S)(state)
    return max(asked, pause)


def _after(text: str) -> float:
    """Seconds of a `Retry-After` header, which has a number or a date; 0 for anything else."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
