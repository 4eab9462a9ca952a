"""Mappings of the daily indices, as index templates.

Dots in names do not nest (`subobjects: false`), so that the short names of the query language (`service`, `trace`) can
be aliases of ECS's names (`service.name`). Attributes that ECS has no name for go into one `flattened` field, so the
mapping does not grow, whatever senders send.
"""

from __future__ import annotations

from typing import Any

from services.telemetry.domain.days import Signal

VERSION = 3
"""Increase it with each change. An installed template with a higher version is not replaced."""

CONTAINERS = {Signal.LOGS: "labels", Signal.TRACES: "attributes"}
"""The field for all attributes without a field of their own."""

TIE_BREAKERS = {Signal.LOGS: "event.id", Signal.TRACES: "span.id"}
"""Second sorting key, for events of the same nanosecond."""

WORD_FIELDS = {
    Signal.LOGS: ("message", "error.message", "error.type", "error.stack_trace"),
    Signal.TRACES: ("span.name.text", "service.name.text", "status.message", "error.message"),
}
"""Fields that are searched for words without a field name."""

_KEYWORD = {"type": "keyword", "ignore_above": 1024}
# The lower-case normalizer is built in: `level:ERROR` finds `error`.
_LEVEL = {"type": "keyword", "normalizer": "lowercase", "ignore_above": 64}
_TEXT = {"type": "text"}
_WORDS = _KEYWORD | {"fields": {"text": _TEXT}}
_FLATTENED = {"type": "flattened", "ignore_above": 1024}


def _alias(path: str) -> dict[str, str]:
    return {"type": "alias", "path": path}


_SHARED: dict[str, dict[str, Any]] = {
    "@timestamp": {"type": "date_nanos"},
    "service.name": _WORDS,
    "service.version": _KEYWORD,
    "service.namespace": _KEYWORD,
    "service.node.name": _KEYWORD,
    "service.environment": _KEYWORD,
    "service.framework.name": _KEYWORD,
    "host.name": _KEYWORD,
    "process.pid": {"type": "long"},
    "agent.name": _KEYWORD,
    "ecs.version": _KEYWORD,
    "trace.id": _KEYWORD,
    "span.id": _KEYWORD,
    "error.type": _KEYWORD,
    "error.message": _TEXT,
    "error.stack_trace": _TEXT,
    "labels": _FLATTENED,
    "service": _alias("service.name"),
    "trace": _alias("trace.id"),
}
_LOGS: dict[str, dict[str, Any]] = {
    "event.id": _KEYWORD,
    "event.action": _KEYWORD,
    "log.level": _LEVEL,
    "log.logger": _KEYWORD,
    "log.origin.file.name": _KEYWORD,
    "log.origin.file.line": {"type": "integer"},
    "log.origin.function": _KEYWORD,
    "message": _TEXT,
    # All words that people use for the level; `log.level` has only the canonical one.
    "level": _LEVEL,
    "logger": _alias("log.logger"),
    "span": _alias("span.id"),
}
_TRACES: dict[str, dict[str, Any]] = {
    "parent.id": _KEYWORD,
    "span.name": _KEYWORD | {"fields": {"text": _TEXT, "caseless": _KEYWORD | {"normalizer": "lowercase"}}},
    "span.kind": _KEYWORD,
    "span.links.trace.id": _KEYWORD,
    "span.links.span.id": _KEYWORD,
    "event.duration": {"type": "long"},
    "event.outcome": _KEYWORD,
    "status.message": _TEXT,
    "attributes": _FLATTENED,
    "error": {"type": "boolean"},
    "name": _alias("span.name.caseless"),
    "kind": _alias("span.kind"),
    "duration": _alias("event.duration"),
}
PROPERTIES = {Signal.LOGS: _SHARED | _LOGS, Signal.TRACES: _SHARED | _TRACES}

# Fields of Elasticsearch itself that a query may name.
_BUILT_IN = {"_exists_", "_id", "_index"}
FIELDS = {
    signal: frozenset(properties)
    | {f"{name}.{part}" for name, mapping in properties.items() for part in mapping.get("fields", ())}
    | _BUILT_IN
    for signal, properties in PROPERTIES.items()
}
"""Field names that queries can use unchanged."""


def template_name(signal: Signal) -> str:
    """Name of a signal's template."""
    return f"tidemill-{signal.value}"


def template(signal: Signal) -> dict[str, Any]:
    """Body of a signal's composable index template."""
    return {
        "index_patterns": [signal.pattern],
        "priority": 200,
        "version": VERSION,
        "template": {
            "settings": {
                "index.number_of_shards": 1,
                "index.number_of_replicas": 0,
                "index.refresh_interval": "1s",
            },
            "mappings": {"dynamic": False, "subobjects": False, "properties": PROPERTIES[signal]},
        },
    }
