"""Rows of the database to domain objects and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy.engine import RowMapping

from services.cleaning.domain.augmentation import AugmentSpec, LabelFilter, SimilarityFilter
from services.cleaning.domain.dataset import (
    AwaitedImport,
    Dataset,
    DatasetSpec,
    DatasetVersion,
    HoldoutSpec,
    NewLabels,
    SnapshotSummary,
    VersionState,
)
from services.cleaning.domain.recipe import OperatorSpec
from services.kit.failure import Failure
from services.kit.progress import Progress


def _spec_of(value: Mapping[str, Any]) -> DatasetSpec:
    return DatasetSpec(
        tuple(value["sources"]),
        tuple(OperatorSpec(item["name"], item["params"]) for item in value["operators"]),
        HoldoutSpec(**value["holdout"]),
        tuple(value["required_attributes"]),
        tuple(value.get("feedback_sources", ())),
        tuple(value.get("pushed_sources", ())),
        _augment_of(value.get("augment")),
        NewLabels(**value["new_labels"]) if value.get("new_labels") else None,
        tuple(value.get("tenants", ())),
    )


def _augment_of(value: Mapping[str, Any] | None) -> AugmentSpec | None:
    if value is None:
        return None
    operators = tuple(OperatorSpec(item["name"], item["params"]) for item in value["operators"])
    similarity, labels = value.get("similarity"), value.get("labels")
    return AugmentSpec(
        operators,
        value["seed"],
        value["per_record"],
        value["rate"],
        tuple(value["keep"]),
        SimilarityFilter(**similarity) if similarity else None,
        LabelFilter(**labels) if labels else None,
    )


def dataset_row(dataset: Dataset) -> dict[str, Any]:
    """Row of `datasets`."""
    return {
        "name": dataset.name,
        "spec": asdict(dataset.spec),
        "recipe_digest": dataset.recipe_digest,
        "create_time": dataset.create_time,
        "update_time": dataset.update_time,
    }


def dataset_of(row: RowMapping) -> Dataset:
    """Data set of a row of `datasets`."""
    return Dataset(
        row["name"],
        _spec_of(row["spec"]),
        row["recipe_digest"],
        row["create_time"],
        row["update_time"],
    )


def version_row(version: DatasetVersion) -> dict[str, Any]:
    """Row of `dataset_versions`, without number, request and announcement."""
    body = {
        "awaited": [asdict(item) for item in version.awaited],
        "progress": version.progress.to_json() if version.progress else None,
        "snapshot": asdict(version.snapshot) if version.snapshot else None,
        "failure": asdict(version.failure) if version.failure else None,
    }
    return {
        "dataset": version.dataset,
        "state": version.state.value,
        "spec": asdict(version.spec),
        "recipe_digest": version.recipe_digest,
        "create_time": version.create_time,
        "update_time": version.update_time,
        "body": body,
        "reused": version.reused,
        "traceparent": version.traceparent,
    }


def version_of(row: RowMapping) -> DatasetVersion:
    """Version of a row of `dataset_versions`."""
    body = row["body"]
    return DatasetVersion(
        row["dataset"],
        row["number"],
        _spec_of(row["spec"]),
        row["recipe_digest"],
        VersionState(row["state"]),
        row["create_time"],
        row["update_time"],
        awaited=tuple(AwaitedImport(**item) for item in body["awaited"]),
        progress=Progress.from_json(body["progress"]) if body["progress"] else None,
        snapshot=SnapshotSummary(**body["snapshot"]) if body["snapshot"] else None,
        failure=Failure(**body["failure"]) if body["failure"] else None,
        reused=row["reused"],
        traceparent=row["traceparent"],
    )
