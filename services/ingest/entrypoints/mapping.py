"""Messages of the contract to domain objects and back."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC
from typing import Any

from google.protobuf.json_format import MessageToDict
from tidemill.ingest.v1 import source_import_pb2, source_pb2
from tidemill.ingest.v1.record_pb2 import Record

from services.ingest.domain.declared_source import Collection, SourceView, Timetable
from services.ingest.domain.record import RawRecord
from services.ingest.domain.source_import import (
    Import,
    ImportState,
    PluginSource,
    PushedSource,
    SourceKind,
    SourcePolicy,
    SourceSpec,
)
from services.ingest.engine.formats import make_format
from services.kit.errors import FieldViolation, InvalidArgumentError
from services.kit.grpc.messages import failure_to, progress_to, timestamp

_STATES = {
    ImportState.RUNNING: source_import_pb2.Import.STATE_RUNNING,
    ImportState.SUCCEEDED: source_import_pb2.Import.STATE_SUCCEEDED,
    ImportState.FAILED: source_import_pb2.Import.STATE_FAILED,
    ImportState.CANCELLED: source_import_pb2.Import.STATE_CANCELLED,
}

_Policy = source_import_pb2.SourcePolicy
_CLASSES = {
    "": _Policy.DATA_CLASS_UNSPECIFIED,
    "public": _Policy.DATA_CLASS_PUBLIC,
    "internal": _Policy.DATA_CLASS_INTERNAL,
    "private": _Policy.DATA_CLASS_PRIVATE,
}
_MASKS = {"": _Policy.MASK_UNSPECIFIED, "edge": _Policy.MASK_EDGE}
_ORIGINALS = {
    "": _Policy.ORIGINALS_UNSPECIFIED,
    "plain": _Policy.ORIGINALS_PLAIN,
    "encrypted": _Policy.ORIGINALS_ENCRYPTED,
    "none": _Policy.ORIGINALS_NONE,
}
_SHORT_ORIGINALS = {value: name for name, value in _ORIGINALS.items()}
_SHORT_CLASS = {value: name for name, value in _CLASSES.items()}
_SHORT_MASK = {value: name for name, value in _MASKS.items()}


def record_from(message: Record, place: str = "record") -> RawRecord:
    """A pushed record, unchanged.

    Args:
        message: the record.
        place: its position in the request, for example `records[3]`.

    Raises:
        InvalidArgumentError: its time is outside the years 1 to 9999.
    """
    try:
        event_time = message.event_time.ToDatetime(UTC) if message.HasField("event_time") else None
    except (ValueError, OverflowError) as error:
        raise InvalidArgumentError(
            f"{place}.event_time must be between the years 1 and 9999: {error}.",
            reason="INVALID_TIME",
            violations=[FieldViolation(f"{place}.event_time", str(error))],
        ) from error
    return RawRecord(
        message.source, message.text, dict(message.attributes), message.record_id, event_time, message.tenant
    )


def spec_from(message: source_import_pb2.SourceSpec) -> SourceSpec:
    """The source of a message; what is empty has the default that the contract gives it."""
    name = message.WhichOneof("kind")
    assert name is not None, "validation requires a kind"
    kind: SourceKind
    if name == PushedSource.field:
        kind = PushedSource()
    elif name == PluginSource.field:
        kind = PluginSource(message.plugin.name, MessageToDict(message.plugin.config))
    else:
        kind = make_format(name, {field.name: value for field, value in getattr(message, name).ListFields()})
    return SourceSpec(message.source, kind, message.max_records, message.may_be_empty, _policy_from(message.policy))


def spec_to(spec: SourceSpec) -> source_import_pb2.SourceSpec:
    """A source's spec as a message."""
    kind = {spec.kind.field: asdict(spec)["kind"]}
    return source_import_pb2.SourceSpec(
        source=spec.source,
        max_records=spec.max_records,
        may_be_empty=spec.may_be_empty,
        policy=_policy_to(spec.policy),
        **kind,
    )


def _policy_from(message: _Policy) -> SourcePolicy:
    return SourcePolicy(
        message.licence,
        message.consent,
        _SHORT_CLASS[message.data_class],
        _SHORT_MASK[message.mask],
        _SHORT_ORIGINALS[message.originals],
        message.tenant,
    )


def _policy_to(policy: SourcePolicy) -> _Policy | None:
    if policy == SourcePolicy():
        return None
    return _Policy(
        licence=policy.licence,
        consent=policy.consent,
        data_class=_CLASSES[policy.data_class],
        mask=_MASKS[policy.mask],
        originals=_ORIGINALS[policy.originals],
        tenant=policy.tenant,
    )


def import_to(item: Import, *, reused: bool = False) -> source_import_pb2.Import:
    """An import as a message."""
    progress = item.progress
    if progress is not None and item.state.final:
        progress = replace(progress, rate=0.0)
    return source_import_pb2.Import(
        name=item.name,
        create_time=timestamp(item.create_time),
        update_time=timestamp(item.update_time),
        spec=spec_to(item.spec),
        state=_STATES[item.state],
        record_count=item.record_count,
        rejected_count=item.rejected_count,
        digest=item.digest,
        reused=reused,
        added_count=item.differences.added,
        changed_count=item.differences.changed,
        withdrawn_count=item.differences.gone,
        not_synchronized=item.not_synchronized,
        failure=failure_to(item.failure),
        progress=progress_to(progress),
    )


def timetable_from(message: source_import_pb2.SourceSpec) -> Timetable | None:
    """When the source of a message is collected by itself; None if it is not."""
    if not message.HasField("collect"):
        return None
    collect = message.collect
    return Timetable(collect.every_minutes, collect.schedule, collect.time_zone or "UTC")


def source_to(view: SourceView) -> source_pb2.Source:
    """A declared source as a message."""
    source, last = view.source, view.last_import
    spec = spec_to(source.spec)
    if source.timetable is not None:
        spec.collect.CopyFrom(source_import_pb2.CollectionSchedule(**asdict(source.timetable)))
    pipelines = [f"pipelines/{name}" for name in source.pipelines]
    due = None if source.due_time is None or source.paused else timestamp(source.due_time)
    return source_pb2.Source(
        name=source.name,
        spec=spec,
        pipeline=pipelines[0] if pipelines else "",
        pipelines=sorted(pipelines),
        paused=source.paused,
        pause_reason=source.pause_reason,
        create_time=timestamp(source.create_time),
        update_time=timestamp(source.update_time),
        due_time=due,
        last_import=None if last is None else import_to(last),
        collections=map(_collection, view.collections),
    )


def _collection(item: Collection) -> source_pb2.Collection:
    return source_pb2.Collection(
        order_time=timestamp(item.order_time),
        actor=item.actor,
        import_name=item.import_name,
        reused=item.reused,
        failure=failure_to(item.failure),
    )


def actor_of(context: Any) -> str:
    """Who orders or decides, as the gateway names the caller."""
    key = dict(context.invocation_metadata() or ()).get("x-tidemill-key", "")
    return f"key:{key}"[:160] if key else "mesh"


def tenant_of(context: Any) -> str:
    """The tenant of the caller's key, as the gateway names it; empty without one, and inside the mesh."""
    return str(dict(context.invocation_metadata() or ()).get("x-tidemill-tenant", ""))
