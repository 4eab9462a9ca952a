"""Rows of the database to domain objects and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.engine import RowMapping

from services.cleaning.domain.dataset import (
    AwaitedImport,
    Dataset,
    DatasetSpec,
    DatasetVersion,
    HoldoutSpec,
    Progress,
    SnapshotSummary,
    VersionState,
)
from services.cleaning.domain.recipe import OperatorSpec
from services.cleaning.domain.record import Cleaned, RawRecord, Rejection, Verdict
from services.kit.failure import Failure

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def from_micros(micros: int) -> datetime:
    """The moment, in UTC."""
    return _EPOCH + timedelta(microseconds=micros)


def dump(value: Any) -> str:
    """Canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def raw_row(record: RawRecord) -> dict[str, Any]:
    """Row of `raw_records`, not withdrawn."""
    return {
        "source": record.source,
        "record_id": record.record_id,
        "text": record.text,
        "attributes": dump(dict(record.attributes)),
        "content_digest": record.content_digest,
        "import_name": record.import_name,
        "event_time": record.event_time,
        "arrival": record.arrival,
        "withdrawn": False,
    }


def raw_record(row: RowMapping) -> RawRecord:
    """Record of a row of `raw_records`, where its origin is not kept."""
    return RawRecord(
        row["record_id"],
        row["source"],
        row["text"],
        json.loads(row["attributes"]),
        row["import_name"],
        row["event_time"],
        row["arrival"],
    )


def verdict_row(verdict: Verdict, traceparent: str) -> dict[str, Any]:
    """Row of `verdicts`, still to be announced."""
    rejection = verdict.cleaned.rejection
    return {
        "dataset": verdict.dataset,
        "record_id": verdict.record_id,
        "source": verdict.source,
        "recipe_digest": verdict.recipe_digest,
        "content_digest": verdict.content_digest,
        "text": verdict.cleaned.text,
        "attributes": dump(dict(verdict.cleaned.attributes)),
        "reason": rejection.reason if rejection else "",
        "detail": rejection.detail if rejection else "",
        "operator": rejection.operator if rejection else "",
        "traceparent": traceparent,
        "announced": False,
    }


def verdict_of(row: Mapping[Any, Any], prefix: str = "") -> Verdict:
    """Verdict of a row of `verdicts`, whose columns may bear a prefix."""
    reason = row[prefix + "reason"]
    return Verdict(
        row[prefix + "record_id"],
        row[prefix + "source"],
        row[prefix + "dataset"],
        row[prefix + "recipe_digest"],
        row[prefix + "content_digest"],
        Cleaned(
            row[prefix + "text"],
            json.loads(row[prefix + "attributes"]),
            Rejection(reason, row[prefix + "detail"], row[prefix + "operator"]) if reason else None,
        ),
    )


def spec_json(spec: DatasetSpec) -> str:
    """A spec as JSON."""
    return dump(asdict(spec))


def spec_of(text: str) -> DatasetSpec:
    """The spec of its JSON."""
    value = json.loads(text)
    return DatasetSpec(
        tuple(value["sources"]),
        tuple(OperatorSpec(item["name"], item["params"]) for item in value["operators"]),
        HoldoutSpec(**value["holdout"]),
        tuple(value["required_attributes"]),
    )


def dataset_row(dataset: Dataset) -> dict[str, Any]:
    """Row of `datasets`."""
    return {
        "name": dataset.name,
        "spec": spec_json(dataset.spec),
        "recipe_digest": dataset.recipe_digest,
        "create_time": to_micros(dataset.create_time),
        "update_time": to_micros(dataset.update_time),
    }


def dataset_of(row: RowMapping) -> Dataset:
    """Data set of a row of `datasets`."""
    return Dataset(
        row["name"],
        spec_of(row["spec"]),
        row["recipe_digest"],
        from_micros(row["create_time"]),
        from_micros(row["update_time"]),
    )


def version_row(version: DatasetVersion) -> dict[str, Any]:
    """Row of `dataset_versions`, without number, request and announcement."""
    progress: dict[str, Any] | None = None
    if version.progress is not None:
        progress = asdict(version.progress)
        moment = version.progress.update_time
        progress["update_time"] = to_micros(moment) if moment else None
    body = {
        "awaited": [asdict(item) for item in version.awaited],
        "progress": progress,
        "snapshot": asdict(version.snapshot) if version.snapshot else None,
        "failure": asdict(version.failure) if version.failure else None,
    }
    return {
        "dataset": version.dataset,
        "state": version.state.value,
        "spec": spec_json(version.spec),
        "recipe_digest": version.recipe_digest,
        "create_time": to_micros(version.create_time),
        "update_time": to_micros(version.update_time),
        "body": dump(body),
        "reused": version.reused,
        "traceparent": version.traceparent,
    }


def version_of(row: RowMapping) -> DatasetVersion:
    """Version of a row of `dataset_versions`."""
    body = json.loads(row["body"])
    progress = body["progress"]
    if progress is not None and progress["update_time"] is not None:
        progress["update_time"] = from_micros(progress["update_time"])
    return DatasetVersion(
        row["dataset"],
        row["number"],
        spec_of(row["spec"]),
        row["recipe_digest"],
        VersionState(row["state"]),
        from_micros(row["create_time"]),
        from_micros(row["update_time"]),
        awaited=tuple(AwaitedImport(**item) for item in body["awaited"]),
        progress=Progress(**progress) if progress else None,
        snapshot=SnapshotSummary(**body["snapshot"]) if body["snapshot"] else None,
        failure=Failure(**body["failure"]) if body["failure"] else None,
        reused=row["reused"],
        traceparent=row["traceparent"],
    )
