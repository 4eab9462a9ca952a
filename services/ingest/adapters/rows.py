"""Rows of the database to domain objects and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy.engine import RowMapping

from services.ingest.domain.source_import import (
    Differences,
    Import,
    ImportState,
    PluginSource,
    PushedSource,
    SourceKind,
    SourcePolicy,
    SourceSpec,
)
from services.ingest.engine.formats import make_format
from services.kit.failure import Failure
from services.kit.progress import Progress


def spec_json(spec: SourceSpec) -> dict[str, Any]:
    """JSON of a spec."""
    more: dict[str, Any] = {"may_be_empty": True} if spec.may_be_empty else {}
    if spec.policy != SourcePolicy():
        more["policy"] = asdict(spec.policy)
    return {"source": spec.source, spec.kind.field: asdict(spec)["kind"], "max_records": spec.max_records, **more}


def spec_of(value: Mapping[str, Any]) -> SourceSpec:
    """Spec of its JSON."""
    (name,) = value.keys() - {"source", "max_records", "may_be_empty", "policy"}
    return SourceSpec(
        value["source"],
        _kind(name, value[name]),
        value["max_records"],
        value.get("may_be_empty", False),
        SourcePolicy(**value.get("policy", {})),
    )


def _kind(name: str, options: Mapping[str, Any]) -> SourceKind:
    for kind in (PluginSource, PushedSource):
        if name == kind.field:
            return kind(**options)
    return make_format(name, options)


def import_row(item: Import) -> dict[str, Any]:
    """Row of `imports`, pending announcement if it succeeded."""
    body = {
        "progress": item.progress.to_json() if item.progress else None,
        "failure": asdict(item.failure) if item.failure else None,
        "differences": asdict(item.differences),
        "not_synchronized": item.not_synchronized,
    }
    return {
        "name": item.name,
        "state": item.state.value,
        "spec": spec_json(item.spec),
        "spec_digest": item.spec.digest,
        "source_digest": item.source_digest,
        "create_time": item.create_time,
        "update_time": item.update_time,
        "record_count": item.record_count,
        "rejected_count": item.rejected_count,
        "digest": item.digest,
        "body": body,
        "traceparent": item.traceparent,
        "announced": False,
        "origin": item.spec.origin,
    }


def import_of(row: RowMapping) -> Import:
    """Import of a row of `imports`."""
    body = row["body"]
    return Import(
        row["name"],
        spec_of(row["spec"]),
        ImportState(row["state"]),
        row["create_time"],
        row["update_time"],
        record_count=row["record_count"],
        rejected_count=row["rejected_count"],
        digest=row["digest"],
        source_digest=row["source_digest"],
        progress=Progress.from_json(body["progress"]) if body["progress"] else None,
        failure=Failure(**body["failure"]) if body["failure"] else None,
        traceparent=row["traceparent"],
        # Older releases did not record it.
        differences=Differences(**body.get("differences", {})),
        not_synchronized=body.get("not_synchronized", ""),
    )
