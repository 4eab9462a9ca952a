"""What Kibana imports: the form of each line, and that every field, reference and word in it exists.

No package brings Kibana, so the form is checked against what Elastic publishes of it (documentation of the import, 8.17
and types of Lens), written down below as JSON schemas that allow nothing else.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from docs.generate.__main__ import ROOT
from docs.generate.kibana import KEEP_DAYS, POLICY, full_template, kibana_files, objects, policy, runtime_fields
from services.kit.telemetry import schema
from services.telemetry.adapters.schema import CONTAINERS, PROPERTIES, VERSION, template, template_name
from services.telemetry.domain.days import Signal
from services.telemetry.domain.severity import level_of

LINES = [json.loads(line) for line in kibana_files()["saved_objects.ndjson"].splitlines()]
OBJECTS, SUMMARY = LINES[:-1], LINES[-1]
BY_NAME = {(each["type"], each["id"]): each for each in OBJECTS}
SIGNALS = {"tidemill-logs": Signal.LOGS, "tidemill-traces": Signal.TRACES}
_WORDS = re.compile(r"([a-z_@][\w.@]*)\s*(?::|>=)")


def closed(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """The schema of an object with these members and no others."""
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


TEXT, NUMBER, FLAG, NOTHING = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {"type": "null"}
NAMED = {"type": "string", "minLength": 1}
MOMENT = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"}
RELEASE = {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"}
QUERY = closed({"query": TEXT, "language": {"const": "kuery"}})
META = closed({"searchSourceJSON": NAMED})
COLUMN = closed(
    {
        "label": NAMED,
        "customLabel": FLAG,
        "dataType": {"enum": ["string", "number", "date"]},
        "operationType": {"enum": ["date_histogram", "terms", "count", "percentile", "sum"]},
        "isBucketed": FLAG,
        "scale": {"enum": ["ordinal", "interval", "ratio"]},
        "sourceField": NAMED,
        "params": {"type": "object"},
    },
    filter=QUERY,
)
LAYER = closed(
    {
        "columns": {"type": "object", "additionalProperties": COLUMN, "minProperties": 1},
        "columnOrder": {"type": "array", "items": NAMED, "minItems": 1},
        "incompleteColumns": {"const": {}},
        "sampling": {"const": 1},
    }
)
XY = closed(
    {
        "legend": closed({"isVisible": FLAG, "position": {"enum": ["right", "bottom"]}}),
        "valueLabels": {"const": "hide"},
        "preferredSeriesType": {"enum": ["line", "bar_stacked"]},
        "layers": {
            "type": "array",
            "items": closed(
                {
                    "layerId": NAMED,
                    "layerType": {"const": "data"},
                    "seriesType": {"enum": ["line", "bar_stacked"]},
                    "position": {"const": "top"},
                    "showGridlines": FLAG,
                    "xAccessor": NAMED,
                    "accessors": {"type": "array", "items": NAMED, "minItems": 1},
                },
                splitAccessor=NAMED,
            ),
        },
    }
)
TABLE = closed(
    {
        "layerId": NAMED,
        "layerType": {"const": "data"},
        "columns": {"type": "array", "items": closed({"columnId": NAMED, "isTransposed": FLAG})},
    }
)
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "index-pattern": closed(
        dict.fromkeys(("title", "name", "fields", "sourceFilters", "typeMeta", "fieldAttrs"), NAMED)
        | {"fieldFormatMap": NAMED, "runtimeFieldMap": NAMED, "timeFieldName": {"const": "@timestamp"}}
        | {"allowHidden": FLAG}
    ),
    "search": closed(
        {"title": NAMED, "description": TEXT, "columns": {"type": "array", "items": NAMED}}
        | {"sort": {"type": "array"}, "grid": {"const": {}}, "hideChart": FLAG, "isTextBasedQuery": FLAG}
        | {"timeRestore": FLAG, "kibanaSavedObjectMeta": META}
    ),
    "lens": closed(
        {
            "title": NAMED,
            "description": TEXT,
            "visualizationType": {"enum": ["lnsXY", "lnsDatatable"]},
            "state": closed(
                {
                    "visualization": {"oneOf": [XY, TABLE]},
                    "query": QUERY,
                    "filters": {"const": []},
                    "datasourceStates": closed(
                        {"formBased": closed({"layers": {"type": "object", "additionalProperties": LAYER}})}
                    ),
                    "internalReferences": {"const": []},
                    "adHocDataViews": {"const": {}},
                }
            ),
        }
    ),
    "dashboard": closed(
        {"title": NAMED, "description": TEXT, "version": NUMBER, "timeRestore": FLAG, "timeFrom": NAMED}
        | {"timeTo": NAMED, "refreshInterval": closed({"pause": FLAG, "value": NUMBER}), "optionsJSON": NAMED}
        | {"panelsJSON": NAMED, "kibanaSavedObjectMeta": META}
    ),
    "alert": closed(
        {"name": NAMED, "tags": {"const": ["tidemill"]}, "enabled": {"const": False}}
        | {"alertTypeId": {"const": ".es-query"}, "consumer": {"const": "stackAlerts"}}
        | {"schedule": closed({"interval": {"const": "1m"}}), "actions": {"const": []}, "mapped_params": {"const": {}}}
        | dict.fromkeys(("legacyId", "createdBy", "updatedBy", "throttle", "notifyWhen"), NOTHING)
        | dict.fromkeys(("apiKey", "apiKeyOwner", "apiKeyCreatedByUser"), NOTHING)
        | {"createdAt": MOMENT, "updatedAt": MOMENT, "muteAll": FLAG, "mutedInstanceIds": {"const": []}}
        | {"executionStatus": {"type": "object"}, "meta": {"type": "object"}, "revision": NUMBER, "running": FLAG}
        | {
            "params": closed(
                {"searchType": {"const": "esQuery"}, "esQuery": NAMED, "index": {"type": "array", "items": NAMED}}
                | {
                    "timeField": {"const": "@timestamp"},
                    "size": NUMBER,
                    "threshold": {"type": "array", "items": NUMBER},
                }
                | {"thresholdComparator": {"const": ">"}, "timeWindowSize": NUMBER, "timeWindowUnit": {"const": "m"}}
                | {"aggType": {"const": "count"}, "groupBy": {"const": "all"}, "excludeHitsFromPreviousRun": FLAG}
            )
        }
    ),
}
PANEL = closed(
    {
        "type": {"enum": ["lens", "search"]},
        "panelIndex": NAMED,
        "gridData": closed(dict.fromkeys("xywh", NUMBER) | {"i": NAMED}),
        "embeddableConfig": closed({"enhancements": {"const": {}}}),
        "panelRefName": NAMED,
    }
)


def of(kind: str) -> list[dict[str, Any]]:
    return [each for each in OBJECTS if each["type"] == kind]


def fields(signal: Signal) -> dict[str, str]:
    """Every field that Kibana can use, with its type; aliases have the type of what they stand for."""
    found: dict[str, str] = {}
    for name, mapping in PROPERTIES[signal].items():
        found[name] = mapping["type"]
        found |= {f"{name}.{part}": inner["type"] for part, inner in mapping.get("fields", {}).items()}
    for name, mapping in PROPERTIES[signal].items():
        if mapping["type"] == "alias":
            found[name] = found[mapping["path"]]
    return found | {name: body["type"] for name, body in runtime_fields(signal).items()}


def view_of(saved: dict[str, Any]) -> Signal:
    (reference,) = (each for each in saved["references"] if each["type"] == "index-pattern")
    return SIGNALS[reference["id"]]


def queries(saved: dict[str, Any]) -> Iterator[str]:
    """All KQL of an object."""
    if saved["type"] == "search":
        yield json.loads(saved["attributes"]["kibanaSavedObjectMeta"]["searchSourceJSON"])["query"]["query"]
    if saved["type"] == "lens":
        state = saved["attributes"]["state"]
        yield state["query"]["query"]
        for layer in state["datasourceStates"]["formBased"]["layers"].values():
            yield from (column["filter"]["query"] for column in layer["columns"].values() if "filter" in column)


def test_each_line_has_the_form_of_an_import() -> None:
    line = closed(
        {"type": {"enum": list(ATTRIBUTES)}, "id": NAMED, "attributes": {"type": "object"}, "managed": FLAG}
        | {"references": {"type": "array", "items": closed({"type": NAMED, "id": NAMED, "name": NAMED})}}
        | {"coreMigrationVersion": RELEASE, "typeMigrationVersion": RELEASE, "created_at": MOMENT, "updated_at": MOMENT}
    )
    for each in OBJECTS:
        jsonschema.validate(each, line)
        jsonschema.validate(each["attributes"], ATTRIBUTES[each["type"]])
    counts = {"exportedCount": len(OBJECTS), "missingRefCount": 0, "missingReferences": []}
    assert {**counts, "excludedObjectsCount": 0, "excludedObjects": []} == SUMMARY
    assert len(BY_NAME) == len(OBJECTS)
    assert {kind: len(of(kind)) > 1 for kind in ATTRIBUTES} == dict.fromkeys(ATTRIBUTES, True)


def test_every_reference_leads_to_an_object_of_the_file() -> None:
    for each in OBJECTS:
        for reference in each["references"]:
            assert (reference["type"], reference["id"]) in BY_NAME, each["id"]
    # Everything is on a dashboard or is a data view, search, dashboard or rule itself.
    shown = {(ref["type"], ref["id"]) for board in of("dashboard") for ref in board["references"]}
    assert {("lens", each["id"]) for each in of("lens")} <= shown


def test_panels_refer_to_what_they_show_and_lie_side_by_side() -> None:
    for board in of("dashboard"):
        panels = json.loads(board["attributes"]["panelsJSON"])
        references = {ref["name"]: ref for ref in board["references"]}
        assert set(json.loads(board["attributes"]["optionsJSON"])) == {
            *("useMargins", "syncColors", "syncCursor", "syncTooltips", "hidePanelTitles")
        }
        for panel in panels:
            jsonschema.validate(panel, PANEL)
            assert references[f"{panel['panelIndex']}:{panel['panelRefName']}"]["type"] == panel["type"]
            assert panel["gridData"]["x"] + panel["gridData"]["w"] <= 48
        for one, other in itertools.combinations([panel["gridData"] for panel in panels], 2):
            apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            assert apart_x or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]


def test_charts_use_fields_that_exist_and_can_do_what_is_asked() -> None:
    groups = {"keyword", "boolean"}
    for chart in of("lens"):
        known, state = fields(view_of(chart)), chart["attributes"]["state"]
        for layer in state["datasourceStates"]["formBased"]["layers"].values():
            columns = layer["columns"]
            assert list(columns) == layer["columnOrder"]
            # Lens wants what is grouped by first.
            buckets = [column["isBucketed"] for column in columns.values()]
            assert buckets == sorted(buckets, reverse=True)
            for name, column in columns.items():
                match column["operationType"]:
                    case "count":
                        assert column["sourceField"] == "___records___"
                    case "terms":
                        assert known[column["sourceField"]] in groups, (chart["id"], column["sourceField"])
                        assert column["params"]["orderBy"]["columnId"] in set(columns) - {name}
                    case "date_histogram":
                        assert known[column["sourceField"]] == "date_nanos"
                    case _:
                        assert known[column["sourceField"]] == "long", (chart["id"], column["sourceField"])
            shown = state["visualization"]
            used = [item["columnId"] for item in shown["columns"]] if "columns" in shown else []
            for xy in shown.get("layers", ()):
                used += [xy["xAccessor"], *xy["accessors"], *([xy["splitAccessor"]] if "splitAccessor" in xy else [])]
            assert sorted(used) == sorted(columns), chart["id"]
            role = "indexpattern-datasource-layer-layer"
            assert [ref["name"] for ref in chart["references"]] == [role]


def test_searches_and_queries_name_fields_that_exist() -> None:
    named = 0
    for saved in (*of("search"), *of("lens")):
        known = set(fields(view_of(saved)))
        assert set(saved["attributes"].get("columns", ())) <= known, saved["id"]
        for query in queries(saved):
            words = _WORDS.findall(query)
            named += len(words)
            assert set(words) <= known, (saved["id"], query)
            assert bool(words) is bool(query), query
    assert named > 15


def test_levels_are_those_that_log_lines_have() -> None:
    levels = {level_of(0, word) for word in ("warn", "warning", "error", "fatal", "critical")}
    text = "\n".join(query for saved in OBJECTS for query in queries(saved)) + json.dumps(of("alert"))
    used = {word for found in re.findall(r"log\.level : \(?([a-z ]+)", text) for word in found.split(" or ")}
    assert {word.split(" ")[0] for word in used} == levels
    assert '\\"log.level\\":[\\"error\\",\\"critical\\"]' in text


def test_computed_fields_read_attributes_that_spans_have() -> None:
    declared = {value for name, value in vars(schema).items() if name.isupper() and isinstance(value, str)}
    for view in of("index-pattern"):
        signal = SIGNALS[view["id"]]
        assert view["attributes"]["title"] == signal.pattern
        assert json.loads(view["attributes"]["runtimeFieldMap"]) == runtime_fields(signal)
        assert set(json.loads(view["attributes"]["fieldFormatMap"])) <= set(PROPERTIES[signal])
        for name, body in runtime_fields(signal).items():
            assert name in declared
            # A computed field must not hide one of the index.
            assert name not in PROPERTIES[signal]
            place = f"{CONTAINERS[signal]}.{name}"
            assert re.findall(r"doc\['([^']+)'\]", body["script"]["source"]) == [place, place]
            assert PROPERTIES[signal][CONTAINERS[signal]]["type"] == "flattened"


def test_rules_ask_about_fields_that_exist() -> None:
    for saved in of("alert"):
        params = saved["attributes"]["params"]
        (signal,) = (signal for signal in Signal if [signal.pattern] == params["index"])
        filters = json.loads(params["esQuery"])["query"]["bool"]["filter"]
        for clause in filters:
            ((kind, body),) = clause.items()
            name = body["field"] if kind == "exists" else next(iter(body))
            container = f"{CONTAINERS[signal]}."
            assert name in PROPERTIES[signal] or name.removeprefix(container) in runtime_fields(signal), name
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", saved["id"])


@pytest.mark.parametrize("signal", list(Signal))
def test_the_template_of_a_cluster_is_the_services_own_with_a_lifecycle(signal: Signal) -> None:
    full, own = full_template(signal), template(signal)
    assert full["template"]["mappings"] == own["template"]["mappings"]
    assert full["index_patterns"] == own["index_patterns"]
    settings = {**own["template"]["settings"], "index.number_of_replicas": 1, "index.lifecycle.name": POLICY}
    assert full["template"]["settings"] == settings
    # The service replaces lower versions only, and must keep doing so for years of its own.
    assert full["version"] > VERSION + 100
    assert template_name(signal) == f"tidemill-{signal.value}"


def test_the_lifecycle_deletes_last() -> None:
    phases = policy()["policy"]["phases"]
    assert list(phases) == ["hot", "warm", "delete"]
    assert phases["delete"] == {"min_age": f"{KEEP_DAYS}d", "actions": {"delete": {}}}
    # Daily indices are named by the telemetry service, so nothing rolls over.
    assert "rollover" not in json.dumps(policy())


def test_the_files_are_those_of_the_code() -> None:
    for name, text in kibana_files().items():
        assert (ROOT / "infra" / "kibana" / name).read_text("utf-8") == text
    assert objects() == objects()
