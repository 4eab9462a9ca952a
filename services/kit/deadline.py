"""The deadline of the current call, visible to all work done for it, also in other threads."""

from __future__ import annotations

from contextvars import ContextVar

_END: ContextVar[float | None] = ContextVar("tidemill_call_deadline", default=None)


def call_deadline() -> float | None:
    """Deadline on the monotonic clock, in seconds; None without a caller or without a deadline."""
    return _END.get()


def set_call_deadline(end: float) -> None:
    """Sets the deadline of the current call."""
    _END.set(end)
