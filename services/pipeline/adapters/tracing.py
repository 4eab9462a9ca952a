"""Spans of a cycle's stages, in the trace of the request that created the cycle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context

from services.kit.telemetry import schema
from services.kit.telemetry.context import current_traceparent, trace_context
from services.pipeline.domain.cycle import Cycle


class SpanTracing:
    """Implements `services.pipeline.app.ports.StageTracing`."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer(__name__)

    @contextmanager
    def stage(self, cycle: Cycle, stage: str) -> Iterator[None]:
        """See the port."""
        parent = trace_context(cycle.traceparent)
        attributes = {schema.CYCLE: cycle.name, schema.STAGE: stage}
        with self._tracer.start_as_current_span(f"stage {stage}", context=parent, attributes=attributes):
            yield

    @contextmanager
    def triggered(self) -> Iterator[str]:
        """A new trace around the start of a cycle by triggers; gives its traceparent."""
        with self._tracer.start_as_current_span("trigger", context=Context()):
            yield current_traceparent()
