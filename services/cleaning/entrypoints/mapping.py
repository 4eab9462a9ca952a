"""Messages of the contract to domain objects and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from google.protobuf import json_format, struct_pb2
from tidemill.cleaning.v1 import cleaning_service_pb2 as service
from tidemill.cleaning.v1 import dataset_pb2

from services.cleaning.app.explanations import DatasetExplanation
from services.cleaning.app.ports import Placement, RejectedRow, Variant
from services.cleaning.domain.augmentation import AugmentSpec, LabelFilter, SimilarityFilter
from services.cleaning.domain.dataset import (
    AwaitedImport,
    Dataset,
    DatasetSpec,
    DatasetVersion,
    HoldoutSpec,
    NewLabels,
    VersionState,
)
from services.cleaning.domain.recipe import OperatorSpec
from services.cleaning.domain.record import Keeping, Verdict
from services.cleaning.engine.explain import Effect, Explanation
from services.kit.grpc.messages import failure_to, progress_to, timestamp
from services.kit.ids import record_name

_STATES = {
    VersionState.BUILDING: dataset_pb2.DatasetVersion.STATE_BUILDING,
    VersionState.READY: dataset_pb2.DatasetVersion.STATE_READY,
    VersionState.FAILED: dataset_pb2.DatasetVersion.STATE_FAILED,
    VersionState.CANCELLED: dataset_pb2.DatasetVersion.STATE_CANCELLED,
}

KEEPINGS = {
    Keeping.PLAIN: service.ORIGINAL_KEEPING_PLAIN,
    Keeping.ENCRYPTED: service.ORIGINAL_KEEPING_ENCRYPTED,
    Keeping.NONE: service.ORIGINAL_KEEPING_NONE,
}
"""How an original is kept, as the contract says it."""


def operator_from(message: dataset_pb2.OperatorSpec) -> OperatorSpec:
    """One operator."""
    params: dict[str, Any] = json_format.MessageToDict(message.params)
    return OperatorSpec(message.name, params)


def spec_from(message: dataset_pb2.DatasetSpec) -> DatasetSpec:
    """A data set's spec."""
    return DatasetSpec(
        tuple(message.sources),
        tuple(operator_from(item) for item in message.operators),
        HoldoutSpec(message.holdout.fraction, message.holdout.max_records),
        tuple(message.required_attributes),
        tuple(message.feedback_sources),
        tuple(message.pushed_sources),
        augment_from(message.augment) if message.HasField("augment") else None,
        NewLabels(message.new_labels.min_records, message.new_labels.min_people)
        if message.HasField("new_labels")
        else None,
        tuple(message.tenants),
    )


def augment_from(message: dataset_pb2.AugmentSpec) -> AugmentSpec:
    """How variants are made."""
    operators = tuple(operator_from(item) for item in message.operators)
    asked, named = message.similarity, message.labels
    return AugmentSpec(
        operators,
        message.seed,
        message.per_record or 1,
        message.rate or 1.0,
        tuple(message.keep),
        SimilarityFilter(asked.address, asked.model, asked.min_cosine, asked.key_env, asked.private)
        if message.HasField("similarity")
        else None,
        LabelFilter(named.address, named.model, named.attribute or "label", named.key_env, named.private)
        if message.HasField("labels")
        else None,
    )


def spec_to(spec: DatasetSpec) -> dataset_pb2.DatasetSpec:
    """A data set's spec as a message."""
    augment, new = spec.augment, spec.new_labels
    return dataset_pb2.DatasetSpec(
        sources=spec.sources,
        operators=map(_operator_to, spec.operators),
        holdout=dataset_pb2.HoldoutSpec(fraction=spec.holdout.fraction, max_records=spec.holdout.max_records),
        required_attributes=spec.required_attributes,
        feedback_sources=spec.feedback_sources,
        pushed_sources=spec.pushed_sources,
        augment=dataset_pb2.AugmentSpec(
            operators=map(_operator_to, augment.operators),
            seed=augment.seed,
            per_record=augment.per_record,
            rate=augment.rate,
            keep=augment.keep,
            similarity=dataset_pb2.SimilarityFilter(**asdict(augment.similarity)) if augment.similarity else None,
            labels=dataset_pb2.LabelFilter(**asdict(augment.labels)) if augment.labels else None,
        )
        if augment
        else None,
        new_labels=dataset_pb2.NewLabels(min_records=new.min_records, min_people=new.min_people) if new else None,
        tenants=spec.tenants,
    )


def _operator_to(spec: OperatorSpec) -> dataset_pb2.OperatorSpec:
    params = struct_pb2.Struct()
    params.update(dict(spec.params))
    return dataset_pb2.OperatorSpec(name=spec.name, params=params)


def dataset_to(dataset: Dataset) -> dataset_pb2.Dataset:
    """A data set as a message."""
    return dataset_pb2.Dataset(
        name=dataset.name,
        create_time=timestamp(dataset.create_time),
        update_time=timestamp(dataset.update_time),
        spec=spec_to(dataset.spec),
        recipe_digest=dataset.recipe_digest,
    )


def version_to(version: DatasetVersion) -> dataset_pb2.DatasetVersion:
    """A version as a message."""
    message = dataset_pb2.DatasetVersion(
        name=version.name,
        create_time=timestamp(version.create_time),
        update_time=timestamp(version.update_time),
        state=_STATES[version.state],
        spec=spec_to(version.spec),
        reused=version.reused,
        withdrawn_count=sum(item.withdrawn_count for item in version.awaited),
        changed_count=sum(item.changed_count for item in version.awaited),
        failure=failure_to(version.failure),
        progress=progress_to(version.progress),
    )
    snapshot = version.snapshot
    if snapshot is not None:
        message.digest = snapshot.digest
        message.uri = snapshot.uri
        message.records_in = snapshot.records_in
        message.train_count = snapshot.train_count
        message.holdout_count = snapshot.holdout_count
        message.rejected_by_reason.update(snapshot.rejected_by_reason)
        message.feedback_counts.update(snapshot.feedback)
        message.erased_count = snapshot.erased
        message.variant_counts.update(snapshot.variants)
        message.dropped_variant_counts.update(snapshot.dropped_variants)
    return message


def verdict_to(verdict: Verdict) -> service.RecordVerdict:
    """A verdict as a message."""
    rejection = verdict.cleaned.rejection
    return service.RecordVerdict(
        dataset=verdict.dataset,
        recipe_digest=verdict.recipe_digest,
        text=verdict.cleaned.text,
        attributes=verdict.cleaned.attributes,
        rejected_reason=rejection.reason if rejection else "",
        rejected_detail=rejection.detail if rejection else "",
        rejected_operator=rejection.operator if rejection else "",
    )


def effect_to(effect: Effect) -> service.OperatorEffect:
    """What an operator did as a message."""
    rejection = effect.rejection
    return service.OperatorEffect(
        position=effect.position,
        operator=effect.operator,
        changes=[
            service.FieldChange(
                field=change.field,
                edits=[
                    service.TextEdit(start=edit.start, end=edit.end, before=edit.before, after=edit.after)
                    for edit in change.edits
                ],
                added=change.added,
                removed=change.removed,
            )
            for change in effect.changes
        ],
        rejected_reason=rejection.reason if rejection else "",
        rejected_detail=rejection.detail if rejection else "",
        omitted_edits=effect.omitted_edits,
    )


_PLACEMENTS = {
    Placement.TRAIN: service.DatasetExplanation.PLACEMENT_TRAIN,
    Placement.HOLDOUT: service.DatasetExplanation.PLACEMENT_HOLDOUT,
    Placement.REJECTED: service.DatasetExplanation.PLACEMENT_REJECTED,
    Placement.HELD_BACK: service.DatasetExplanation.PLACEMENT_HELD_BACK,
    Placement.ABSENT: service.DatasetExplanation.PLACEMENT_ABSENT,
}


def dataset_explanation_to(item: DatasetExplanation) -> service.DatasetExplanation:
    """What a recipe did to a record, as a message."""
    fate = item.fate
    rejection = fate.rejection if fate else None
    return service.DatasetExplanation(
        dataset=item.dataset,
        recipe_digest=item.recipe_digest,
        effects=map(effect_to, item.explanation.effects),
        text=item.explanation.cleaned.text,
        attributes=item.explanation.cleaned.attributes,
        dataset_version=item.version.name if item.version else "",
        placement=_PLACEMENTS[fate.placement] if fate else service.DatasetExplanation.PLACEMENT_UNSPECIFIED,
        variants=map(variant_to, fate.variants if fate else ()),
        rejected_reason=rejection.reason if rejection else "",
        rejected_detail=rejection.detail if rejection else "",
        rejected_operator=rejection.operator if rejection else "",
    )


def variant_to(variant: Variant) -> service.RecordVariant:
    """A variant as a message."""
    return service.RecordVariant(record_id=variant.record_id, augmenter=variant.augmenter, text=variant.text)


def explanation_to(explanation: Explanation) -> service.CleanTextResponse:
    """What a recipe did to a text, as a message."""
    cleaned, rejection = explanation.cleaned, explanation.cleaned.rejection
    return service.CleanTextResponse(
        text=cleaned.text,
        attributes=cleaned.attributes,
        rejected_reason=rejection.reason if rejection else "",
        rejected_detail=rejection.detail if rejection else "",
        rejected_operator=rejection.operator if rejection else "",
        effects=map(effect_to, explanation.effects),
    )


def awaited_from(message: service.AwaitedImport) -> AwaitedImport:
    """An awaited import."""
    return AwaitedImport(message.name, message.record_count, message.withdrawn_count, message.changed_count)


def sample_to(reason: str, rows: Sequence[RejectedRow]) -> service.RejectionSample:
    """Rejected records of one reason."""
    records = [
        service.RejectedRecord(record=record_name(row.source, row.record_id), detail=row.detail, operator=row.operator)
        for row in rows
    ]
    return service.RejectionSample(reason=reason, records=records)
