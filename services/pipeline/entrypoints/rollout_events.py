"""Consumes what roll-outs need to know: calls that versions answered or not, and who changed a route."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC

from tidemill.inference.v1.inference_events_pb2 import PredictionFailed, PredictionServed, RouteChanged
from tidemill.inference.v1.route_pb2 import VersionRole

from services.kit.bus.cloudevents import decode
from services.kit.bus.port import Delivery
from services.kit.bus.topics import INFERENCE_EVENTS, PREDICTIONS
from services.kit.ids import sha256_hex
from services.pipeline.app.rollout_ports import AuditStore, Call, Outcome, RolloutMetrics
from services.pipeline.domain.audit import AuditEntry, actor_of

_SERVED, _FAILED = PredictionServed.DESCRIPTOR.full_name, PredictionFailed.DESCRIPTOR.full_name
_CHANGED = RouteChanged.DESCRIPTOR.full_name


class RolloutEvents:
    """Counts calls, notes changed routes, and passes on what others need."""

    def __init__(
        self, metrics: RolloutMetrics, audit: AuditStore, others: Callable[[Sequence[Delivery]], None]
    ) -> None:
        self._metrics, self._audit, self._others = metrics, audit, others

    def handle(self, batch: Sequence[Delivery]) -> None:
        """Handles a batch, idempotently."""
        calls = [
            _failed(decode(delivery, PredictionFailed))
            if delivery.event_type == _FAILED
            else _served(decode(delivery, PredictionServed))
            for delivery in batch
            if delivery.topic == PREDICTIONS.name
        ]
        if calls:
            self._metrics.count(calls)
        changes = [decode(d, RouteChanged) for d in batch if d.event_type == _CHANGED]
        if entries := [_entry(change) for change in changes if change.method or change.reason]:
            self._audit.append(entries)
        others = [d for d in batch if d.event_type != _FAILED and d.topic != INFERENCE_EVENTS.name]
        if others:
            self._others(others)


def _served(message: PredictionServed) -> Call:
    empty = message.method == "generate" and not message.completion_tokens
    return Call(
        answer=message.answer,
        model_version=message.model_version,
        latency_ms=message.latency_ms,
        route_etag=message.route_etag,
        user_slot=message.user_slot,
        label=message.label,
        shadow=bool(message.shadowed_answer),
        outcome=Outcome.REFUSED if empty else Outcome.ANSWERED,
    )


def _failed(message: PredictionFailed) -> Call:
    return Call(
        answer=message.answer,
        model_version=message.model_version,
        latency_ms=message.latency_ms,
        route_etag=message.route_etag,
        user_slot=message.user_slot,
        shadow=bool(message.shadowed_answer),
        outcome=Outcome.REFUSED if message.code == "RESOURCE_EXHAUSTED" else Outcome.FAILED,
    )


def _entry(change: RouteChanged) -> AuditEntry:
    """The entry of a changed route; a repeated event gets the same id."""
    moment = change.change_time
    milliseconds = moment.seconds * 1000 + moment.nanos // 1_000_000
    versions = ", ".join(
        f"{entry.version}:{VersionRole.Name(entry.role).removeprefix('VERSION_ROLE_').lower()}={entry.weight}"
        for entry in change.entries
    )
    return AuditEntry(
        entry_id=f"{milliseconds:012x}{sha256_hex(change.model, change.etag)[:14]}",
        create_time=moment.ToDatetime(UTC),
        # What a service does by itself has no method.
        actor=actor_of(change.api_key) if change.method else "inference",
        action=f"route.{change.method or 'repair'}",
        resource=change.model,
        reason=change.reason,
        facts={"versions": versions, "etag": change.etag},
    )
