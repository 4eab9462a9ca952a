"""Waits for a state, never for a moment; a state that never comes fails the test with what was last seen.

Tests have no waiting loops of their own: `tests/unit/test_waiting.py` refuses them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 90.0
_PAUSE_S = 0.02
_STATE = "the awaited state"


def _nothing() -> None:
    """Nothing has to hold while a test waits."""


def wait_until(
    look: Callable[[], T | None],
    what: str = _STATE,
    patience_s: float = PATIENCE_S,
    meanwhile: Callable[[], object] = _nothing,
) -> T:
    """What `look` returns as soon as it is true; an AssertionError of the look itself counts as not yet.

    `meanwhile` is called before each look. What it raises ends the wait at once.
    """
    looks = _looks(look, what, patience_s, meanwhile)
    while True:
        try:
            next(looks)
        except StopIteration as found:
            return found.value  # type: ignore[no-any-return]
        time.sleep(_PAUSE_S)


async def eventually(
    look: Callable[[], T | None],
    what: str = _STATE,
    patience_s: float = PATIENCE_S,
    meanwhile: Callable[[], object] = _nothing,
) -> T:
    """`wait_until` for a test that runs in an event loop."""
    looks = _looks(look, what, patience_s, meanwhile)
    while True:
        try:
            next(looks)
        except StopIteration as found:
            return found.value  # type: ignore[no-any-return]
        await asyncio.sleep(_PAUSE_S)


def wait_for(
    read: Callable[[], T], reached: Callable[[T], object], what: str = _STATE, patience_s: float = PATIENCE_S
) -> T:
    """What `read` returns as soon as `reached` holds for it."""

    def look() -> tuple[T]:
        found = read()
        assert reached(found), found
        return (found,)

    return wait_until(look, what, patience_s)[0]


async def eventually_is(
    read: Callable[[], Awaitable[T]],
    reached: Callable[[T], object] = bool,
    what: str = _STATE,
    patience_s: float = PATIENCE_S,
) -> T:
    """`wait_for` for a test that runs in an event loop."""
    end = time.monotonic() + patience_s
    while not reached(found := await read()):
        assert time.monotonic() < end, f"{what} did not come within {patience_s:.0f} s; last seen: {found!r}"
        await asyncio.sleep(_PAUSE_S)
    return found


def _looks(
    look: Callable[[], T | None], what: str, patience_s: float, meanwhile: Callable[[], object]
) -> Generator[None, None, T]:
    """Yields after each look that found nothing; returns what a look found."""
    end = time.monotonic() + patience_s
    while True:
        meanwhile()
        last: T | AssertionError | None
        try:
            last = look()
        except AssertionError as error:
            last = error
        if last and not isinstance(last, AssertionError):
            return last
        assert time.monotonic() < end, f"{what} did not come within {patience_s:.0f} s; last seen: {last!r}"
        yield
