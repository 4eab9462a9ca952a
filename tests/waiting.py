"""Waits for a state, never for a moment; a state that never comes fails the test with what was last seen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 90.0
_PAUSE_S = 0.02


def wait_until(look: Callable[[], T], what: str, patience_s: float = PATIENCE_S) -> T:
    """What `look` returns as soon as it is true; an AssertionError of the look itself counts as not yet."""
    end = time.monotonic() + patience_s
    while True:
        last = _look(look)
        if last and not isinstance(last, AssertionError):
            return last
        assert time.monotonic() < end, f"{what} did not come within {patience_s:.0f} s; last seen: {last!r}"
        time.sleep(_PAUSE_S)


async def eventually(look: Callable[[], T], what: str, patience_s: float = PATIENCE_S) -> T:
    """`wait_until` for a test that runs in an event loop."""
    end = time.monotonic() + patience_s
    while True:
        last = _look(look)
        if last and not isinstance(last, AssertionError):
            return last
        assert time.monotonic() < end, f"{what} did not come within {patience_s:.0f} s; last seen: {last!r}"
        await asyncio.sleep(_PAUSE_S)


def _look(look: Callable[[], T]) -> T | AssertionError:
    try:
        return look()
    except AssertionError as error:
        return error
