"""Rows of the database to domain objects and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.engine import RowMapping

from services.ingest.domain.source_import import (
    Differences,
    Import,
    ImportState,
    JsonLines,
    Progress,
    SourceSpec,
    TextFolder,
)
from services.kit.failure import Failure

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def from_micros(micros: int) -> datetime:
    """The moment, in UTC."""
    return _EPOCH + timedelta(microseconds=micros)


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _spec_json(spec: SourceSpec) -> str:
    kind = "text_folder" if isinstance(spec.kind, TextFolder) else "json_lines"
    return _dump({"source": spec.source, kind: asdict(spec.kind), "max_records": spec.max_records})


def _spec_of(text: str) -> SourceSpec:
    value = json.loads(text)
    kind: TextFolder | JsonLines
    if "text_folder" in value:
        kind = TextFolder(**value["text_folder"])
    else:
        fields = value["json_lines"]
        kind = JsonLines(**{**fields, "attribute_fields": tuple(fields["attribute_fields"])})
    return SourceSpec(value["source"], kind, value["max_records"])


def import_row(item: Import) -> dict[str, Any]:
    """Row of `imports`, still to be announced if it succeeded."""
    progress: dict[str, Any] | None = None
    if item.progress is not None:
        progress = asdict(item.progress)
        moment = item.progress.update_time
        progress["update_time"] = to_micros(moment) if moment else None
    body = {
        "progress": progress,
        "failure": asdict(item.failure) if item.failure else None,
        "differences": asdict(item.differences),
        "not_synchronized": item.not_synchronized,
    }
    return {
        "name": item.name,
        "state": item.state.value,
        "spec": _spec_json(item.spec),
        "spec_digest": item.spec.digest,
        "source_digest": item.source_digest,
        "create_time": to_micros(item.create_time),
        "update_time": to_micros(item.update_time),
        "record_count": item.record_count,
        "rejected_count": item.rejected_count,
        "digest": item.digest,
        "body": _dump(body),
        "traceparent": item.traceparent,
        "announced": False,
        "origin": item.spec.origin,
    }


def import_of(row: RowMapping) -> Import:
    """Import of a row of `imports`."""
    body = json.loads(row["body"])
    progress = body["progress"]
    if progress is not None and progress["update_time"] is not None:
        progress["update_time"] = from_micros(progress["update_time"])
    return Import(
        row["name"],
        _spec_of(row["spec"]),
        ImportState(row["state"]),
        from_micros(row["create_time"]),
        from_micros(row["update_time"]),
        record_count=row["record_count"],
        rejected_count=row["rejected_count"],
        digest=row["digest"],
        source_digest=row["source_digest"],
        progress=Progress(**progress) if progress else None,
        failure=Failure(**body["failure"]) if body["failure"] else None,
        traceparent=row["traceparent"],
        # Older releases did not tell.
        differences=Differences(**body.get("differences", {})),
        not_synchronized=body.get("not_synchronized", ""),
    )
