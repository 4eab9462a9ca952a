"""Publishes the service's events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from tidemill.cleaning.v1 import cleaning_events_pb2 as events

from services.cleaning.app.ports import Announcement
from services.cleaning.domain.dataset import DatasetVersion
from services.cleaning.domain.record import Verdict
from services.kit.bus.port import EventPublisher, LostMessages, OutgoingEvent
from services.kit.bus.topics import CLEANING_EVENTS, RECORDS_CLEAN, RECORDS_REJECTED, Topic
from services.kit.clock import Clock
from services.kit.grpc.messages import timestamp
from services.kit.ids import sha256_hex
from services.kit.telemetry.context import continued_trace


class BusAnnouncer:
    """Implements `services.cleaning.app.ports.Announcer`; an event continues the trace that caused it."""

    def __init__(self, publisher: EventPublisher, clock: Clock) -> None:
        self._publisher = publisher
        self._clock = clock

    def verdicts(self, announcements: Sequence[Announcement]) -> None:
        """See the port."""
        now = timestamp(self._clock.now())
        groups: dict[tuple[str, Topic], list[OutgoingEvent]] = defaultdict(list)
        for announcement in announcements:
            topic, event = _event(announcement.verdict, now)
            groups[announcement.traceparent, topic].append(event)
        for (traceparent, topic), batch in groups.items():
            with continued_trace(traceparent):
                self._publisher.publish(topic, batch)

    def version_built(self, version: DatasetVersion) -> None:
        """See the port."""
        snapshot = version.snapshot
        assert snapshot is not None
        message = events.DatasetVersionBuilt(
            dataset_version=version.name,
            digest=snapshot.digest,
            uri=snapshot.uri,
            train_count=snapshot.train_count,
            holdout_count=snapshot.holdout_count,
        )
        event = OutgoingEvent(version.dataset, message, event_id=sha256_hex(version.name, snapshot.digest))
        with continued_trace(version.traceparent):
            self._publisher.publish(CLEANING_EVENTS, [event])

    def records_lost(self, lost: LostMessages, moment: datetime) -> None:
        """See the port."""
        message = events.RecordsLost(
            topic=lost.topic,
            partition=lost.partition,
            first_offset=lost.first_offset,
            next_offset=lost.next_offset,
            find_time=timestamp(moment),
        )
        event_id = sha256_hex("RecordsLost", lost.topic, str(lost.partition), str(lost.next_offset))
        self._publisher.publish(CLEANING_EVENTS, [OutgoingEvent(lost.topic, message, event_id=event_id)])


def _event(verdict: Verdict, now: Timestamp) -> tuple[Topic, OutgoingEvent]:
    # Derived from its content, so that a repeat after a crash is the same event; the last digest covers the source.
    event_id = sha256_hex(verdict.dataset, verdict.record_id, verdict.recipe_digest, verdict.content_digest)
    rejection = verdict.cleaned.rejection
    if rejection is not None:
        rejected = events.RecordRejected(
            record_id=verdict.record_id,
            source=verdict.source,
            dataset=verdict.dataset,
            recipe_digest=verdict.recipe_digest,
            reason=rejection.reason,
            detail=rejection.detail,
            operator=rejection.operator,
        )
        return RECORDS_REJECTED, OutgoingEvent(verdict.name, rejected, event_id=event_id)
    cleaned = events.RecordCleaned(
        record_id=verdict.record_id,
        source=verdict.source,
        dataset=verdict.dataset,
        recipe_digest=verdict.recipe_digest,
        text=verdict.cleaned.text,
        attributes=verdict.cleaned.attributes,
        clean_time=now,
    )
    return RECORDS_CLEAN, OutgoingEvent(verdict.name, cleaned, event_id=event_id)
