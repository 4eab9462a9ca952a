"""Which traces are kept: some, and each error and slow request."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags, Tracer

from services.kit.telemetry import schema
from services.kit.telemetry.sampling import KeepingProcessor, RateLimitedSampler


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def tracer_of(rate: float, clock: Clock | None = None) -> tuple[Tracer, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=RateLimitedSampler(rate, clock or Clock()))
    provider.add_span_processor(KeepingProcessor(SimpleSpanProcessor(exporter), slow_s=5.0))
    return provider.get_tracer("t"), exporter


def names(exporter: InMemorySpanExporter) -> list[str]:
    return [span.name for span in exporter.get_finished_spans()]


def test_ten_seconds_of_traces_at_once_and_then_the_rate() -> None:
    clock = Clock()
    tracer, exporter = tracer_of(2.0, clock)
    for _ in range(50):
        tracer.start_span("first").end()
    assert names(exporter) == ["first"] * 20
    clock.now = 1.5
    for _ in range(50):
        tracer.start_span("later").end()
    assert names(exporter)[20:] == ["later"] * 3


def test_a_trace_is_kept_as_a_whole_or_not_at_all() -> None:
    tracer, exporter = tracer_of(0.0)
    with tracer.start_as_current_span("root") as root, tracer.start_as_current_span("child") as child:
        assert not root.get_span_context().trace_flags.sampled
        assert not child.get_span_context().trace_flags.sampled
    assert names(exporter) == []


def test_the_caller_decides_about_the_trace_that_it_brings() -> None:
    tracer, exporter = tracer_of(0.0)
    for flags, name in ((TraceFlags(TraceFlags.SAMPLED), "kept"), (TraceFlags(), "left")):
        remote = NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=flags))
        tracer.start_span(name, context=trace.set_span_in_context(remote)).end()
    assert names(exporter) == ["kept"]


def test_errors_and_slow_requests_are_kept_with_their_reason() -> None:
    tracer, exporter = tracer_of(0.0)
    failed = tracer.start_span("failed", attributes={"a": 1})
    failed.set_status(StatusCode.ERROR, "why")
    failed.end()
    tracer.start_span("slow", start_time=0).end(end_time=5_000_000_000)
    tracer.start_span("quick", start_time=0).end(end_time=4_999_999_999)
    found = exporter.get_finished_spans()
    assert [(span.name, (span.attributes or {})[schema.KEPT]) for span in found] == [
        ("failed", "error"),
        ("slow", "slow"),
    ]
    assert found[0].get_span_context() is not None
    assert found[0].status.description == "why"
    assert (found[0].attributes or {})["a"] == 1


def test_an_infinite_rate_keeps_all() -> None:
    tracer, exporter = tracer_of(float("inf"))
    for _ in range(1000):
        tracer.start_span("each").end()
    assert len(names(exporter)) == 1000
