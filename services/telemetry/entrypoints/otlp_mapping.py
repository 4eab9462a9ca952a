"""Maps OTLP's log records and spans to documents with the names of the Elastic Common Schema.

Every log line of the mesh passes here, so a resource and a scope are mapped only once for all their records.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from services.kit.telemetry.schema import ECS_VERSION
from services.telemetry.domain.days import Retention, Signal, timestamp
from services.telemetry.domain.document import Document
from services.telemetry.domain.severity import level_of, search_words

MAX_BYTES = 1024 * 1024
"""Largest document; a larger one is refused."""

_RESOURCE_FIELDS = {
    "service.name": "service.name",
    "service.version": "service.version",
    "service.namespace": "service.namespace",
    "service.instance.id": "service.node.name",
    "deployment.environment.name": "service.environment",
    "host.name": "host.name",
    "process.pid": "process.pid",
}
_ERROR_FIELDS = {
    "exception.type": "error.type",
    "exception.message": "error.message",
    "exception.stacktrace": "error.stack_trace",
}
_LOG_FIELDS = {
    **_ERROR_FIELDS,
    "code.file.path": "log.origin.file.name",
    "code.line.number": "log.origin.file.line",
    "code.function.name": "log.origin.function",
}
_NUMBERS = frozenset({"process.pid", "log.origin.file.line"})
_SDK = ("telemetry.sdk.name", "telemetry.sdk.language", "telemetry.sdk.version")
_KINDS = {
    Span.SPAN_KIND_SERVER: "server",
    Span.SPAN_KIND_CLIENT: "client",
    Span.SPAN_KIND_PRODUCER: "producer",
    Span.SPAN_KIND_CONSUMER: "consumer",
}
Value = str | list[str]


@dataclass(slots=True)
class Mapped:
    """The documents of one request, and the events that could not be mapped."""

    documents: list[Document] = field(default_factory=list)
    refused: int = 0
    reason: str = ""

    def refuse(self, reason: str) -> None:
        """Notes a refused event."""
        self.refused += 1
        self.reason = self.reason or reason


def logs_from(request: ExportLogsServiceRequest, retention: Retention, now_ns: int) -> Mapped:
    """The log records of a request."""
    mapped = Mapped()
    seen: dict[str, int] = {}
    for of_resource in request.resource_logs:
        base = _resource(of_resource.resource)
        for of_scope in of_resource.scope_logs:
            origin = _digest(of_resource.resource.SerializeToString(deterministic=True), of_scope.scope.name.encode())
            for record in of_scope.log_records:
                time_ns = record.time_unix_nano or record.observed_time_unix_nano or now_ns
                if objection := retention.objection(time_ns, now_ns):
                    mapped.refuse(f"a log record is refused: {objection}")
                    continue
                identity = _identity(origin, record, seen)
                source = _log(base, of_scope.scope.name, record, time_ns) | {"event.id": identity}
                _append(mapped, Signal.LOGS, time_ns, identity, source)
    return mapped


def _identity(origin: bytes, record: LogRecord, seen: dict[str, int]) -> str:
    """The id of a record: equal records of one origin have equal ids, except several in one request."""
    content = record.SerializeToString(deterministic=True)
    identity = base64.urlsafe_b64encode(_digest(origin, content)).decode().rstrip("=")
    repeat = seen.get(identity, 0)
    seen[identity] = repeat + 1
    return f"{identity}-{repeat}" if repeat else identity


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=18)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _log(base: Mapping[str, Any], scope: str, record: LogRecord, time_ns: int) -> dict[str, Any]:
    source: dict[str, Any] = {"@timestamp": timestamp(time_ns), **base}
    if level := level_of(record.severity_number, record.severity_text):
        source["log.level"] = level
        source["level"] = search_words(level)
    source["message"] = _text(record.body)
    if scope:
        source["log.logger"] = scope
    if len(record.trace_id) == 16 and any(record.trace_id):
        source["trace.id"] = record.trace_id.hex()
        if len(record.span_id) == 8 and any(record.span_id):
            source["span.id"] = record.span_id.hex()
    if record.event_name:
        source["event.action"] = record.event_name
    _spread(source, "labels", record.attributes, _LOG_FIELDS)
    return source


def spans_from(request: ExportTraceServiceRequest, retention: Retention, now_ns: int) -> Mapped:
    """The spans of a request."""
    mapped = Mapped()
    for of_resource in request.resource_spans:
        base = _resource(of_resource.resource)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                if (
                    len(span.trace_id) != 16
                    or len(span.span_id) != 8
                    or not any(span.trace_id)
                    or not any(span.span_id)
                ):
                    mapped.refuse("a span is refused: its trace id or span id is not valid")
                elif objection := retention.objection(span.start_time_unix_nano, now_ns):
                    mapped.refuse(f"a span is refused: {objection}")
                else:
                    identity = f"{span.trace_id.hex()}-{span.span_id.hex()}"
                    source = _span(base, of_scope.scope.name, span)
                    _append(mapped, Signal.TRACES, span.start_time_unix_nano, identity, source)
    return mapped


def _span(base: Mapping[str, Any], scope: str, span: Span) -> dict[str, Any]:
    failed = span.status.code == Status.STATUS_CODE_ERROR
    source: dict[str, Any] = {
        "@timestamp": timestamp(span.start_time_unix_nano),
        **base,
        "trace.id": span.trace_id.hex(),
        "span.id": span.span_id.hex(),
        "span.name": span.name,
        "span.kind": _KINDS.get(span.kind, "internal"),
        "event.duration": max(span.end_time_unix_nano - span.start_time_unix_nano, 0),
        "event.outcome": "failure" if failed else "success",
        "error": failed,
    }
    if scope:
        source["service.framework.name"] = scope
    if any(span.parent_span_id):
        source["parent.id"] = span.parent_span_id.hex()
    if span.status.message:
        source["status.message"] = span.status.message
    if span.links:
        source["span.links.trace.id"] = [link.trace_id.hex() for link in span.links]
        source["span.links.span.id"] = [link.span_id.hex() for link in span.links]
    _spread(source, "attributes", span.attributes, {})
    for event in span.events:
        if event.name == "exception":
            _spread(source, "", (each for each in event.attributes if each.key in _ERROR_FIELDS), _ERROR_FIELDS)
    if span.events:
        source["span.events"] = [
            {"@timestamp": timestamp(event.time_unix_nano), "name": event.name, "attributes": _values(event.attributes)}
            for event in span.events
            if event.name != "exception"
        ]
    return source


def _append(mapped: Mapped, signal: Signal, time_ns: int, identity: str, source: Mapping[str, Any]) -> None:
    text = orjson.dumps(source)
    if len(text) > MAX_BYTES:
        mapped.refuse(f"an event of {len(text):,} bytes is refused: the limit is {MAX_BYTES:,}")
        return
    mapped.documents.append(Document(signal.index(time_ns), identity, text))


def _resource(resource: Resource) -> dict[str, Any]:
    """The fields that all events of a resource share."""
    source: dict[str, Any] = {"ecs.version": ECS_VERSION}
    _spread(source, "labels", (each for each in resource.attributes if each.key not in _SDK), _RESOURCE_FIELDS)
    sdk = {each.key: _text(each.value) for each in resource.attributes if each.key in _SDK}
    if sdk:
        name, language, version = (sdk.get(key, "") for key in _SDK)
        source["agent.name"], source["agent.version"] = f"{name}/{language}", version
    return source


def _spread(source: dict[str, Any], container: str, pairs: Iterable[KeyValue], fields: Mapping[str, str]) -> None:
    """Puts each attribute into its own field, if it has one, or into the container."""
    rest: dict[str, Value] = {}
    for pair in pairs:
        name = fields.get(pair.key)
        if name is None:
            rest[pair.key] = _value(pair.value)
        elif name not in _NUMBERS:
            source[name] = _text(pair.value)
        elif (text := _text(pair.value)).isdecimal() and len(text) < 10:
            source[name] = int(text)
        else:
            rest[pair.key] = text
    if rest:
        source[container] = {**source.get(container, {}), **rest}


def _values(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Value:
    """The value as text; a list of simple values stays a list, so that each can be found."""
    if value.HasField("array_value"):
        return [_text(each) for each in value.array_value.values]
    return _text(value)


def _text(value: AnyValue) -> str:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    if kind == "int_value":
        return str(value.int_value)
    if kind == "double_value":
        return repr(value.double_value)
    if kind is None:
        return ""
    return orjson.dumps(_plain(value)).decode()


def _plain(value: AnyValue) -> Any:
    """The value as JSON; 64-bit integers stay exact, bytes become base64."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: _plain(pair.value) for pair in value.kvlist_value.values}
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    return getattr(value, kind) if kind else None
