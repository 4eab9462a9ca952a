"""Which traces are exported: some of those that begin here, and every error and slow request besides.

The decision falls at the beginning of a trace (head sampling), so that all processes keep the same ones: a bucket of
ten seconds' traces fills at a rate for each process. A trace that a caller brings is kept if the caller keeps it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState
from opentelemetry.util.types import Attributes

from services.kit.telemetry import schema

_BURST_S = 10.0
_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Sampling:
    """What is kept of the traces of one process."""

    traces_per_s: float = 10.0
    """Of those that begin here; infinite keeps all."""
    slow_s: float = 5.0
    """A span that lasts this long is kept whatever became of its trace."""


class RateLimitedSampler(Sampler):
    """Decides at the beginning of a trace. All spans are recorded, for no one knows yet which of them will fail."""

    def __init__(self, traces_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        traces_per_s: of those that begin in this process.
        clock: seconds that only go forward.
        """
        self._rate = traces_per_s
        self._limit = max(1.0, traces_per_s * _BURST_S) if traces_per_s else 0.0
        self._clock = clock
        self._tokens, self._filled_at = self._limit, clock()
        self._lock = threading.Lock()

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """See the base class."""
        parent = trace.get_current_span(parent_context).get_span_context()
        sampled = parent.trace_flags.sampled if parent.is_valid else self._take()
        decision = Decision.RECORD_AND_SAMPLE if sampled else Decision.RECORD_ONLY
        return SamplingResult(decision, attributes, parent.trace_state if parent.is_valid else None)

    def get_description(self) -> str:
        """See the base class."""
        return f"RateLimitedSampler({self._rate:g}/s)"

    def _take(self) -> bool:
        if self._limit == float("inf"):
            return True
        with self._lock:
            now = self._clock()
            self._tokens = min(self._limit, self._tokens + (now - self._filled_at) * self._rate)
            self._filled_at = now
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True


class KeepingProcessor(SpanProcessor):
    """Passes on what is sampled, and each error and slow span of other traces, marked with the reason."""

    def __init__(self, inner: SpanProcessor, slow_s: float) -> None:
        """Args:
        inner: exports sampled spans.
        slow_s: see `Sampling`.
        """
        self._inner = inner
        self._slow_ns = slow_s * _NANOSECONDS

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """See the base class."""
        self._inner.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """See the base class."""
        context = span.get_span_context()
        if context is None or context.trace_flags.sampled:
            self._inner.on_end(span)
        elif span.status.status_code is StatusCode.ERROR:
            self._inner.on_end(_kept(span, context, "error"))
        elif (span.end_time or 0) - (span.start_time or 0) >= self._slow_ns:
            self._inner.on_end(_kept(span, context, "slow"))

    def shutdown(self) -> None:
        """See the base class."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """See the base class."""
        return self._inner.force_flush(timeout_millis)


def _kept(span: ReadableSpan, context: SpanContext, why: str) -> ReadableSpan:
    """A copy that exporters take for sampled."""
    flags = TraceFlags(context.trace_flags | TraceFlags.SAMPLED)
    return ReadableSpan(
        name=span.name,
        context=SpanContext(context.trace_id, context.span_id, context.is_remote, flags, context.trace_state),
        parent=span.parent,
        resource=span.resource,
        attributes={**(span.attributes or {}), schema.KEPT: why},
        events=span.events,
        links=span.links,
        kind=span.kind,
        instrumentation_scope=span.instrumentation_scope,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
    )
