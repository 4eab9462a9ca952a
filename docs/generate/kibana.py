"""What Kibana and a full Elasticsearch get of the mesh: `infra/kibana`, from the telemetry service's own mapping.

Names of fields are those of `services/telemetry/adapters/schema.py`; names of attributes those of
`services/kit/telemetry/schema.py`. Attributes lie in one flattened field, which Kibana's charts cannot group by, so the
data views have runtime fields for those that are used.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from docs.generate.saved_objects import (
    Chart,
    Json,
    Panel,
    by,
    count,
    dashboard,
    data_view,
    ndjson,
    over_time,
    percentile,
    rule,
    search,
    total,
)
from services.kit.telemetry import schema
from services.telemetry.adapters.schema import CONTAINERS, VERSION, template, template_name
from services.telemetry.domain.days import Signal

LOGS, TRACES = "tidemill-logs", "tidemill-traces"
POLICY = "tidemill"
KEEP_DAYS = 7
_ABOVE_OWN_VERSIONS = 1000
"""The telemetry service replaces templates of lower versions only."""
_KEYWORDS = (
    schema.MODEL_VERSION,
    schema.CYCLE,
    schema.STAGE,
    schema.RUN,
    schema.RPC_METHOD,
    schema.RPC_STATUS,
    schema.HTTP_ROUTE,
    schema.HTTP_STATUS,
    schema.ANSWER,
    schema.API_KEY,
)
_NUMBERS = (schema.GEN_AI_INPUT_TOKENS, schema.GEN_AI_OUTPUT_TOKENS)
_DURATION = {
    "id": "duration",
    "params": {"inputFormat": "nanoseconds", "outputFormat": "asMilliseconds", "outputPrecision": 1},
}
_TROUBLE = "log.level : (warning or error or critical)"
_ERRORS = "log.level : (error or critical)"
_REQUESTS = "span.kind : server"
_FAILED = "error : true"
_ANSWERED = f"{schema.MODEL_VERSION} : *"
_STAGED = f"{schema.STAGE} : *"


def kibana_files() -> dict[str, str]:
    """Contents of the files in `infra/kibana`, by name."""
    return {
        "saved_objects.ndjson": ndjson(objects()),
        "lifecycle_policy.json": _pretty(policy()),
        **{f"template_{signal.value}.json": _pretty(full_template(signal)) for signal in Signal},
    }


def objects() -> list[Json]:
    """All saved objects; what others refer to comes first."""
    return [*_views(), *_searches(), *(chart.saved() for chart in _charts()), *_dashboards(), *_rules()]


def policy() -> Json:
    """The lifecycle of a daily index: written for a day, then compacted, then deleted."""
    return {
        "policy": {
            "phases": {
                "hot": {"min_age": "0ms", "actions": {"set_priority": {"priority": 100}}},
                "warm": {
                    "min_age": "2d",
                    "actions": {"forcemerge": {"max_num_segments": 1}, "set_priority": {"priority": 50}},
                },
                "delete": {"min_age": f"{KEEP_DAYS}d", "actions": {"delete": {}}},
            }
        }
    }


def full_template(signal: Signal) -> Json:
    """The service's own template, with the lifecycle and a replica; the service leaves a higher version as it is."""
    found: dict[str, Any] = template(signal)
    found["version"] = _ABOVE_OWN_VERSIONS + VERSION
    settings = found["template"]["settings"]
    settings |= {"index.number_of_replicas": 1, "index.lifecycle.name": POLICY}
    found["_meta"] = {"description": f"{template_name(signal)} of Tidemill for a cluster with lifecycle management"}
    return found


def runtime_fields(signal: Signal) -> dict[str, Json]:
    """Fields that are computed from the attributes of spans, by name; log lines are found by their trace."""
    if signal is Signal.LOGS:
        return {}
    keywords = {name: _runtime(signal, name, "keyword") for name in _KEYWORDS}
    return keywords | {name: _runtime(signal, name, "long") for name in _NUMBERS}


def _runtime(signal: Signal, name: str, kind: str) -> Json:
    place = f"{CONTAINERS[signal]}.{name}"
    value = f"doc['{place}'].value"
    emitted = f"Long.parseLong({value})" if kind == "long" else value
    return {"type": kind, "script": {"source": f"if (doc['{place}'].size() > 0) {{ emit({emitted}) }}"}}


def _views() -> list[Json]:
    durations = {"event.duration": _DURATION}
    return [
        data_view(LOGS, Signal.LOGS.pattern, "Tidemill logs", runtime_fields(Signal.LOGS), {}),
        data_view(TRACES, Signal.TRACES.pattern, "Tidemill traces", runtime_fields(Signal.TRACES), durations),
    ]


def _searches() -> list[Json]:
    lines = ("service.name", "log.level", "message", "trace.id")
    spans = ("service.name", "span.name", "event.duration", "trace.id")
    return [
        search("tidemill-errors", "Tidemill: errors", "Log lines of errors.", LOGS, _ERRORS, lines),
        search("tidemill-warnings", "Tidemill: warnings", "Log lines of warnings.", LOGS, "log.level : warning", lines),
        search(
            "tidemill-failed",
            "Tidemill: failed requests",
            "Requests that a service could not answer.",
            TRACES,
            f"{_REQUESTS} and {_FAILED}",
            (*spans, "status.message"),
        ),
        search(
            "tidemill-slow",
            "Tidemill: slow requests",
            "Requests of 5 s or more; all of them are kept, whatever the sampling.",
            TRACES,
            f"{_REQUESTS} and event.duration >= 5000000000",
            spans,
        ),
        search(
            "tidemill-cycles",
            "Tidemill: stages of cycles",
            "Each stage of each cycle, with its trace.",
            TRACES,
            _STAGED,
            (schema.CYCLE, schema.STAGE, "event.duration", "event.outcome", "trace.id"),
        ),
        search(
            "tidemill-answers",
            "Tidemill: answers",
            "Calls of models, with the version that answered. They hold no text.",
            TRACES,
            _ANSWERED,
            (schema.MODEL_VERSION, schema.ANSWER, "event.duration", "event.outcome", "trace.id"),
        ),
    ]


def _charts() -> list[Chart]:
    duration = "event.duration"
    return [
        Chart(
            "tidemill-lines-by-level",
            "Log lines by level",
            LOGS,
            "bar_stacked",
            (over_time(), by("log.level", "level", "count"), count("lines")),
        ),
        Chart(
            "tidemill-errors-by-service",
            "Errors by service",
            LOGS,
            "bar_stacked",
            (over_time(), by("service.name", "service", "count"), count("errors")),
            _ERRORS,
        ),
        Chart(
            "tidemill-requests-by-service",
            "Requests by service (sampled)",
            TRACES,
            "line",
            (over_time(), by("service.name", "service", "count"), count("requests")),
            _REQUESTS,
        ),
        Chart(
            "tidemill-latency",
            "Latency of requests",
            TRACES,
            "line",
            (over_time(), percentile(duration, 50), percentile(duration, 95), percentile(duration, 99)),
            _REQUESTS,
        ),
        Chart(
            "tidemill-methods",
            "Requests by method",
            TRACES,
            "table",
            (
                by("span.name", "request", "count", 25),
                count("requests"),
                count("failed", _FAILED, "failed"),
                percentile(duration, 50),
                percentile(duration, 99),
            ),
            _REQUESTS,
        ),
        Chart(
            "tidemill-stages",
            "Stages of cycles over time",
            TRACES,
            "bar_stacked",
            (over_time(), by(schema.STAGE, "stage", "count"), count("stages")),
            _STAGED,
        ),
        Chart(
            "tidemill-stage-durations",
            "How long stages take",
            TRACES,
            "table",
            (
                by(schema.STAGE, "stage", "count", 25),
                count("runs"),
                count("failed", _FAILED, "failed"),
                percentile(duration, 50),
                percentile(duration, 99),
            ),
            _STAGED,
        ),
        Chart(
            "tidemill-loop-lines",
            "Warnings and errors of the loop's services",
            LOGS,
            "bar_stacked",
            (over_time(), by("service.name", "service", "count"), count("lines")),
            f"{_TROUBLE} and service.name : (ingest or cleaning or training or pipeline)",
        ),
        Chart(
            "tidemill-answers-by-version",
            "Answers by version (sampled)",
            TRACES,
            "line",
            (over_time(), by(schema.MODEL_VERSION, "version", "count"), count("answers")),
            _ANSWERED,
        ),
        Chart(
            "tidemill-answer-latency",
            "Latency of answers by version, p99",
            TRACES,
            "line",
            (over_time(), by(schema.MODEL_VERSION, "version", "p99"), percentile(duration, 99)),
            _ANSWERED,
        ),
        Chart(
            "tidemill-answer-tokens",
            "Tokens read and written (sampled)",
            TRACES,
            "line",
            (
                over_time(),
                total(schema.GEN_AI_INPUT_TOKENS, "read", "read"),
                total(schema.GEN_AI_OUTPUT_TOKENS, "written", "written"),
            ),
            _ANSWERED,
        ),
        Chart(
            "tidemill-versions",
            "Versions",
            TRACES,
            "table",
            (
                by(schema.MODEL_VERSION, "version", "count", 25),
                count("answers"),
                count("failed", _FAILED, "failed"),
                percentile(duration, 50),
                percentile(duration, 99),
            ),
            _ANSWERED,
        ),
    ]


def _dashboards() -> list[Json]:
    return [
        dashboard(
            "tidemill-services",
            "Tidemill: services",
            "Requests, latency and errors of every service.",
            (
                Panel("lens", "tidemill-requests-by-service"),
                Panel("lens", "tidemill-latency"),
                Panel("lens", "tidemill-errors-by-service"),
                Panel("lens", "tidemill-lines-by-level"),
                Panel("lens", "tidemill-methods", 48, 14),
                Panel("search", "tidemill-errors", 48, 16),
            ),
        ),
        dashboard(
            "tidemill-loops",
            "Tidemill: loops",
            "Cycles: what their stages take, and what goes wrong.",
            (
                Panel("lens", "tidemill-stages"),
                Panel("lens", "tidemill-loop-lines"),
                Panel("lens", "tidemill-stage-durations", 48, 12),
                Panel("search", "tidemill-cycles", 48, 16),
            ),
            "now-7d",
        ),
        dashboard(
            "tidemill-answers-board",
            "Tidemill: answers",
            "What models answer, by version: how many, how fast, how many failed.",
            (
                Panel("lens", "tidemill-answers-by-version"),
                Panel("lens", "tidemill-answer-latency"),
                Panel("lens", "tidemill-answer-tokens", 48, 10),
                Panel("lens", "tidemill-versions", 48, 12),
                Panel("search", "tidemill-answers", 48, 16),
            ),
        ),
    ]


def _rules() -> list[Json]:
    server: Json = {"term": {"span.kind": "server"}}
    failed: Json = {"term": {"error": True}}
    answered: Json = {"exists": {"field": f"{CONTAINERS[Signal.TRACES]}.{schema.MODEL_VERSION}"}}
    slow: Json = {"range": {"event.duration": {"gte": 5_000_000_000}}}
    training: Json = {"exists": {"field": f"{CONTAINERS[Signal.TRACES]}.{schema.STAGE}"}}
    logs, traces = Signal.LOGS.pattern, Signal.TRACES.pattern
    errors: Json = {"terms": {"log.level": ["error", "critical"]}}
    return [
        _rule("Tidemill: many errors in the logs", logs, [errors], 50),
        _rule("Tidemill: many failed requests", traces, [server, failed], 50),
        _rule("Tidemill: slow requests", traces, [server, slow], 20),
        _rule("Tidemill: failed answers", traces, [answered, failed], 20),
        _rule("Tidemill: a stage of a cycle failed", traces, [training, failed], 0),
    ]


def _rule(title: str, pattern: str, filters: list[Json], above: int) -> Json:
    # The same id each time, so that an import replaces the rule.
    name = str(uuid.uuid5(uuid.NAMESPACE_URL, f"https://tidemill.dev/kibana/{title}"))
    return rule(name, title, pattern, {"bool": {"filter": filters}}, above, 5)


def _pretty(value: Json) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
