"""Blocking work in threads, for callers on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_thread(do: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Turns a blocking function into a coroutine function that runs it in a thread."""

    def call(*args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return asyncio.to_thread(do, *args, **kwargs)

    return call
