"""The deadline of the current call, visible to all work done for it, also in other threads."""

from __future__ import annotations

import time
from contextvars import ContextVar

_END: ContextVar[float | None] = ContextVar("tidemill_call_deadline", default=None)
# The share of a call's time that is kept for sending its answer. When the deadlines of many callers end together, their
# answers take a while, above all on a busy machine.
_ANSWER_SHARE, _MIN_ANSWER_S, _MAX_ANSWER_S = 0.1, 0.5, 3.0


def work_deadline() -> float | None:
    """When work for the current call has to end so that there is time left to send its caller an error.

    Returns:
        A time on the monotonic clock, in seconds; None without a caller.
    """
    return _END.get()


def set_call_deadline(limit_s: float) -> None:
    """Sets the deadline of the current call, in seconds from now."""
    reserved = min(max(limit_s * _ANSWER_SHARE, _MIN_ANSWER_S), _MAX_ANSWER_S)
    _END.set(time.monotonic() + limit_s - reserved)
