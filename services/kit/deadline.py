"""Until when the caller of the work in hand waits; known to whatever that work runs in, across threads, too."""

from __future__ import annotations

from contextvars import ContextVar

_END: ContextVar[float | None] = ContextVar("tidemill_call_deadline", default=None)


def call_deadline() -> float | None:
    """The moment on the monotonic clock, in seconds; None where nobody waits, or for any time."""
    return _END.get()


def set_call_deadline(end: float) -> None:
    """Sets it for the present call."""
    _END.set(end)
