"""OTLP requests as an exporter makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span


def any_value(value: Any) -> AnyValue:
    """A Python value as OTLP has it."""
    match value:
        case None:
            return AnyValue()
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case str():
            return AnyValue(string_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case dict():
            return AnyValue(kvlist_value=KeyValueList(values=pairs(value)))
        case list():
            return AnyValue(array_value=ArrayValue(values=[any_value(each) for each in value]))
    raise TypeError(type(value))


def pairs(values: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in values.items()]


def resource(**attributes: Any) -> Resource:
    """A resource; underscores in names stand for dots."""
    return Resource(attributes=pairs({key.replace("_", "."): value for key, value in attributes.items()}))


def logs(records: Sequence[LogRecord], scope: str = "a.logger", **attributes: Any) -> ExportLogsServiceRequest:
    """A request with records of one resource and scope."""
    request = ExportLogsServiceRequest()
    of_resource = request.resource_logs.add(resource=resource(**attributes))
    of_scope = of_resource.scope_logs.add(log_records=records)
    of_scope.scope.name = scope
    return request


def spans(items: Sequence[Span], **attributes: Any) -> ExportTraceServiceRequest:
    """A request with spans of one resource."""
    request = ExportTraceServiceRequest()
    request.resource_spans.add(resource=resource(**attributes)).scope_spans.add(spans=items)
    return request
