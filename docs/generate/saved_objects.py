"""Kibana's saved objects, in the form that its import reads: one JSON object a line.

The form is that of Kibana 8.8 and newer (https://www.elastic.co/guide/en/kibana/8.17/saved-objects-api-import.html;
Lens: `x-pack/plugins/lens/common`). Kibana migrates older forms while it imports them, so the versions below are the
oldest that know what is used here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

_CORE = "8.8.0"
_VERSIONS = {
    "index-pattern": "8.0.0",
    "search": "8.0.0",
    "lens": "8.9.0",
    "dashboard": "8.9.0",
    "alert": "8.8.0",
}
_MOMENT = "2026-01-01T00:00:00.000Z"
_LAYER = "layer"
_GRID = 48


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a chart: a value, or what values are grouped by. `source` is a field of the data view."""

    name: str
    label: str
    operation: str
    source: str
    params: Mapping[str, Any] = field(default_factory=dict)
    filter: str = ""
    """KQL: only these documents count."""
    kind: str = "number"
    """Its type in Lens: number, string or date."""

    @property
    def is_bucket(self) -> bool:
        """Whether values are grouped by it."""
        return self.operation in ("terms", "date_histogram")

    def body(self) -> Json:
        """As Lens keeps it."""
        scale = {"terms": "ordinal", "date_histogram": "interval"}.get(self.operation, "ratio")
        found: Json = {
            "label": self.label,
            "customLabel": True,
            "dataType": self.kind,
            "operationType": self.operation,
            "isBucketed": self.is_bucket,
            "scale": scale,
            "sourceField": self.source,
            "params": dict(self.params),
        }
        if self.filter:
            found["filter"] = {"query": self.filter, "language": "kuery"}
        return found


def over_time() -> Column:
    """Groups by time, as fine as the chart is wide."""
    params = {"interval": "auto", "includeEmptyRows": True, "dropPartials": False}
    return Column("time", "time", "date_histogram", "@timestamp", params, kind="date")


def by(source: str, label: str, order: str, size: int = 10) -> Column:
    """Groups by the values of a field, those with the largest `order` (the name of a column) first."""
    params = {
        "size": size,
        "orderBy": {"type": "column", "columnId": order},
        "orderDirection": "desc",
        "otherBucket": False,
        "missingBucket": False,
        "parentFormat": {"id": "terms"},
        "include": [],
        "exclude": [],
        "includeIsRegex": False,
        "excludeIsRegex": False,
    }
    return Column("by", label, "terms", source, params, kind="string")


def count(label: str, filter: str = "", name: str = "count") -> Column:
    """How many documents there are."""
    return Column(name, label, "count", "___records___", {"emptyAsNull": False}, filter)


def percentile(source: str, percent: int) -> Column:
    """A percentile of a number."""
    return Column(f"p{percent}", f"p{percent}", "percentile", source, {"percentile": percent})


def total(source: str, label: str, name: str = "sum") -> Column:
    """The sum of a number."""
    return Column(name, label, "sum", source, {"emptyAsNull": False})


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of a data view: lines or bars over time, or a table."""

    name: str
    title: str
    view: str
    form: str
    """`line`, `bar_stacked`, or `table`."""
    columns: Sequence[Column]
    query: str = ""
    """KQL."""

    def saved(self) -> Json:
        """As a saved object."""
        state = {
            "visualization": self._table() if self.form == "table" else self._xy(),
            "query": {"query": self.query, "language": "kuery"},
            "filters": [],
            "datasourceStates": {
                "formBased": {
                    "layers": {
                        _LAYER: {
                            "columns": {each.name: each.body() for each in self.columns},
                            "columnOrder": [each.name for each in self.columns],
                            "incompleteColumns": {},
                            "sampling": 1,
                        }
                    }
                }
            },
            "internalReferences": [],
            "adHocDataViews": {},
        }
        attributes = {
            "title": self.title,
            "description": "",
            "visualizationType": "lnsDatatable" if self.form == "table" else "lnsXY",
            "state": state,
        }
        role = f"indexpattern-datasource-layer-{_LAYER}"
        return saved_object("lens", self.name, attributes, [reference("index-pattern", self.view, role)])

    def _table(self) -> Json:
        columns = [{"columnId": each.name, "isTransposed": False} for each in self.columns]
        return {"layerId": _LAYER, "layerType": "data", "columns": columns}

    def _xy(self) -> Json:
        layer: Json = {
            "layerId": _LAYER,
            "layerType": "data",
            "seriesType": self.form,
            "position": "top",
            "showGridlines": False,
            "xAccessor": next(each.name for each in self.columns if each.operation == "date_histogram"),
            "accessors": [each.name for each in self.columns if not each.is_bucket],
        }
        split = [each.name for each in self.columns if each.operation == "terms"]
        if split:
            layer["splitAccessor"] = split[0]
        return {
            "legend": {"isVisible": True, "position": "right"},
            "valueLabels": "hide",
            "preferredSeriesType": self.form,
            "layers": [layer],
        }


def saved_object(kind: str, name: str, attributes: Json, references: Sequence[Json] = ()) -> Json:
    """One line of an import."""
    return {
        "type": kind,
        "id": name,
        "attributes": attributes,
        "references": list(references),
        "managed": False,
        "coreMigrationVersion": _CORE,
        "typeMigrationVersion": _VERSIONS[kind],
        "created_at": _MOMENT,
        "updated_at": _MOMENT,
    }


def reference(kind: str, name: str, role: str) -> Json:
    """What another object is for this one."""
    return {"type": kind, "id": name, "name": role}


def data_view(name: str, pattern: str, title: str, runtime: Mapping[str, Json], formats: Mapping[str, Json]) -> Json:
    """A data view: indices, with fields that are computed while searching."""
    attributes = {
        "title": pattern,
        "name": title,
        "timeFieldName": "@timestamp",
        "sourceFilters": "[]",
        "fields": "[]",
        "typeMeta": "{}",
        "fieldAttrs": "{}",
        "fieldFormatMap": _text(dict(formats)),
        "runtimeFieldMap": _text(dict(runtime)),
        "allowHidden": False,
    }
    return saved_object("index-pattern", name, attributes)


def search(name: str, title: str, description: str, view: str, query: str, columns: Sequence[str]) -> Json:
    """A saved search, newest first; `query` is KQL."""
    role = "kibanaSavedObjectMeta.searchSourceJSON.index"
    source = {"query": {"query": query, "language": "kuery"}, "filter": [], "indexRefName": role}
    attributes = {
        "title": title,
        "description": description,
        "columns": list(columns),
        "sort": [["@timestamp", "desc"]],
        "grid": {},
        "hideChart": False,
        "isTextBasedQuery": False,
        "timeRestore": False,
        "kibanaSavedObjectMeta": {"searchSourceJSON": _text(source)},
    }
    return saved_object("search", name, attributes, [reference("index-pattern", view, role)])


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart or a search on a dashboard, by its kind (`lens`, `search`) and name, and its size of 48 columns."""

    kind: str
    name: str
    width: int = 24
    height: int = 12


def dashboard(name: str, title: str, description: str, panels: Sequence[Panel], since: str = "now-24h") -> Json:
    """A dashboard; its panels fill rows in order."""
    placed, references = [], []
    x = y = row = 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > _GRID:
            x, y, row = 0, y + row, 0
        index = str(number)
        placed.append(
            {
                "type": panel.kind,
                "panelIndex": index,
                "gridData": {"x": x, "y": y, "w": panel.width, "h": panel.height, "i": index},
                "embeddableConfig": {"enhancements": {}},
                "panelRefName": f"panel_{index}",
            }
        )
        references.append(reference(panel.kind, panel.name, f"{index}:panel_{index}"))
        x, row = x + panel.width, max(row, panel.height)
    options = {
        "useMargins": True,
        "syncColors": True,
        "syncCursor": True,
        "syncTooltips": False,
        "hidePanelTitles": False,
    }
    everything = {"query": {"query": "", "language": "kuery"}, "filter": []}
    attributes = {
        "title": title,
        "description": description,
        "version": 2,
        "timeRestore": True,
        "timeFrom": since,
        "timeTo": "now",
        "refreshInterval": {"pause": False, "value": 60000},
        "optionsJSON": _text(options),
        "panelsJSON": _text(placed),
        "kibanaSavedObjectMeta": {"searchSourceJSON": _text(everything)},
    }
    return saved_object("dashboard", name, attributes, references)


def rule(name: str, title: str, pattern: str, query: Json, above: int, minutes: int) -> Json:
    """A rule that counts the documents of a query, and alerts above a number. It is disabled, as every imported one is.

    Args:
        name: its id; Kibana asks for a UUID.
        title: what people see.
        pattern: of the indices.
        query: in Elasticsearch's query language.
        above: the number.
        minutes: how far back it counts.
    """
    params = {
        "searchType": "esQuery",
        "esQuery": _text({"query": query}),
        "index": [pattern],
        "timeField": "@timestamp",
        "size": 10,
        "threshold": [above],
        "thresholdComparator": ">",
        "timeWindowSize": minutes,
        "timeWindowUnit": "m",
        "aggType": "count",
        "groupBy": "all",
        "excludeHitsFromPreviousRun": True,
    }
    attributes = {
        "name": title,
        "tags": ["tidemill"],
        "enabled": False,
        "alertTypeId": ".es-query",
        "consumer": "stackAlerts",
        "legacyId": None,
        "schedule": {"interval": "1m"},
        "actions": [],
        "params": params,
        "mapped_params": {},
        "createdBy": None,
        "updatedBy": None,
        "createdAt": _MOMENT,
        "updatedAt": _MOMENT,
        "apiKey": None,
        "apiKeyOwner": None,
        "apiKeyCreatedByUser": None,
        "throttle": None,
        "notifyWhen": None,
        "muteAll": False,
        "mutedInstanceIds": [],
        "executionStatus": {"status": "pending", "lastExecutionDate": _MOMENT, "error": None, "warning": None},
        "meta": {"versionApiKeyLastmodified": _CORE},
        "revision": 0,
        "running": False,
    }
    return saved_object("alert", name, attributes)


def ndjson(objects: Sequence[Json]) -> str:
    """The file: the objects, then the summary that ends each export."""
    summary = {
        "exportedCount": len(objects),
        "missingRefCount": 0,
        "missingReferences": [],
        "excludedObjectsCount": 0,
        "excludedObjects": [],
    }
    return "".join(f"{_text(each)}\n" for each in (*objects, summary))


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
