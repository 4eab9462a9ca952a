"""The W3C trace of the current work, and how later work continues it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context, propagate
from opentelemetry.context import Context


def current_traceparent() -> str:
    """The `traceparent` of the current trace; empty outside one."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent", "")


def trace_context(traceparent: str) -> Context:
    """The context of a trace; an empty one if `traceparent` is empty."""
    return propagate.extract({"traceparent": traceparent}, Context()) if traceparent else Context()


@contextmanager
def continued_trace(traceparent: str) -> Iterator[None]:
    """Work inside continues that trace, or the current one if `traceparent` is empty."""
    if not traceparent:
        yield
        return
    token = context.attach(trace_context(traceparent))
    try:
        yield
    finally:
        context.detach(token)
