"""Documents as the messages of `tidemill.telemetry.v1`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tidemill.telemetry.v1 import telemetry_service_pb2 as pb

from services.telemetry.domain.days import nanoseconds

Source = Mapping[str, Any]

# Nanoseconds of Elasticsearch's `date_nanos`.
_LAST_TIME = 2**63 - 1

# Fields that have a field of their own in LogRecord, or that no reader needs.
_NOT_ATTRIBUTES = frozenset(
    {"@timestamp", "log.level", "level", "service.name", "message", "log.logger", "trace.id", "span.id"}
    | {"error.stack_trace", "labels", "event.id", "agent.name", "agent.version", "ecs.version"}
)
_EXCEPTION = {
    "error.type": "exception.type",
    "error.message": "exception.message",
    "error.stack_trace": "exception.stacktrace",
}


def log_to(source: Source) -> pb.LogRecord:
    """A log line."""
    rest = {key: _text(value) for key, value in source.items() if key not in _NOT_ATTRIBUTES}
    return pb.LogRecord(
        time=_time(source),
        level=source.get("log.level", ""),
        service=source.get("service.name", ""),
        message=source.get("message", ""),
        logger=source.get("log.logger", ""),
        trace_id=source.get("trace.id", ""),
        span_id=source.get("span.id", ""),
        stack_trace=source.get("error.stack_trace", ""),
        labels=rest | _texts(source.get("labels", {})),
    )


def span_to(source: Source) -> pb.Span:
    """A span."""
    duration = Duration()
    duration.FromNanoseconds(source["event.duration"])
    exception = {name: source[key] for key, name in _EXCEPTION.items() if key in source}
    message = source.get("status.message", "")
    links = zip(source.get("span.links.trace.id", ()), source.get("span.links.span.id", ()), strict=True)
    return pb.Span(
        span_id=source["span.id"],
        parent_span_id=source.get("parent.id", ""),
        name=source["span.name"],
        service=source.get("service.name", ""),
        kind=source["span.kind"],
        start_time=_time(source),
        duration=duration,
        error=source["error"],
        status_message=message or (": ".join(exception[key] for key in list(exception)[:2]) if source["error"] else ""),
        attributes=exception | _texts(source.get("attributes", {})),
        links=[f"{trace_id}/{span_id}" for trace_id, span_id in links],
    )


def time_from(message: Timestamp) -> int:
    """Nanoseconds since 1970, limited to the times that an event can have: 1970 to 2262."""
    return min(max(message.ToNanoseconds(), 0), _LAST_TIME)


def _time(source: Source) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(nanoseconds(source["@timestamp"]))
    return stamp


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: _text(value) for key, value in values.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
