"""Publishes accepted records, refused pieces and completed imports on the bus."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from tidemill.ingest.v1 import ingest_events_pb2 as events
from tidemill.ingest.v1.record_pb2 import Record
from tidemill.ingest.v1.source_import_pb2 import SourcePolicy

from services.ingest.app.ports import Accepted
from services.ingest.domain.arrival import ArrivalStamps
from services.ingest.domain.record import RawRecord, Refusal
from services.ingest.domain.source_import import Import
from services.kit.bus.port import DeadLetter, DeadLetterPublisher, OutgoingEvent
from services.kit.bus.topics import INGEST_EVENTS, RECORDS_RAW
from services.kit.clock import Clock
from services.kit.grpc.messages import timestamp
from services.kit.ids import record_name, sha256_hex
from services.kit.storage.disk import DiskGuard

_ORIGINALS = {
    "": SourcePolicy.ORIGINALS_UNSPECIFIED,
    "plain": SourcePolicy.ORIGINALS_PLAIN,
    "encrypted": SourcePolicy.ORIGINALS_ENCRYPTED,
    "none": SourcePolicy.ORIGINALS_NONE,
}
# Enough of a refused piece is kept for people to recognise it.
_KEPT_BYTES = 64 * 1024


class BusRecordSink:
    """Implements `services.ingest.app.ports.RecordSink`. Thread-safe."""

    def __init__(
        self, publisher: DeadLetterPublisher, clock: Clock, disk: DiskGuard, after: datetime | None = None
    ) -> None:
        """`after`: all arrivals are later than this, whatever the clock says: the last one of the previous process."""
        self._publisher = publisher
        self._stamps = ArrivalStamps(clock, after)
        self._disk = disk

    def accept(self, records: Sequence[Accepted], import_name: str = "", origin: str = "") -> None:
        """See the port."""
        self._disk.check()
        stamps = self._stamps.take(len(records))
        self._publisher.publish(
            RECORDS_RAW,
            [_ingested(item, import_name, origin, stamp) for item, stamp in zip(records, stamps, strict=True)],
        )

    def refuse(self, refusals: Sequence[Refusal], import_name: str) -> None:
        """See the port."""
        self._disk.check()
        self._publisher.set_aside(
            [
                DeadLetter(
                    key=item.location.encode("utf-8", "replace"),
                    value=item.content[:_KEPT_BYTES],
                    reason=item.reason,
                    message=f"{item.location}: {item.message}",
                    origin={"import": import_name, "location": item.location},
                )
                for item in refusals
            ]
        )

    def withdraw(self, source: str, record_ids: Sequence[str], import_name: str, origin: str) -> None:
        """See the port."""
        self._disk.check()
        self._publisher.publish(
            RECORDS_RAW,
            [
                _withdrawn(source, record_id, import_name, origin, stamp)
                for record_id, stamp in zip(record_ids, self._stamps.take(len(record_ids)), strict=True)
            ],
        )

    def complete(self, done: Import) -> None:
        """See the port."""
        message = events.ImportCompleted(
            import_name=done.name,
            record_count=done.record_count,
            digest=done.digest,
            changed_count=done.differences.changed,
            withdrawn_count=done.differences.gone,
        )
        trace = {"traceparent": done.traceparent} if done.traceparent else {}
        event = OutgoingEvent(done.name, message, event_id=sha256_hex(done.name, done.digest), trace=trace)
        self._publisher.publish(INGEST_EVENTS, [event])


def _ingested(item: Accepted, import_name: str, origin: str, arrival: int) -> OutgoingEvent:
    record = item.record
    arrived = Timestamp(seconds=arrival // 1_000_000, nanos=arrival % 1_000_000 * 1000)
    message = events.RecordIngested(
        record=Record(
            record_id=record.record_id,
            source=record.source,
            text=record.text,
            attributes=record.attributes,
            event_time=arrived if record.event_time is None else timestamp(record.event_time),
            tenant=record.tenant,
        ),
        ingest_time=arrived,
        import_name=import_name,
        origin=origin,
        arrival=arrival,
        originals=_ORIGINALS[record.originals],
    )
    return OutgoingEvent(record.name, message, event_id=_event_id(record, import_name), trace=item.trace)


def _withdrawn(source: str, record_id: str, import_name: str, origin: str, arrival: int) -> OutgoingEvent:
    message = events.RecordWithdrawn(
        record_id=record_id, source=source, import_name=import_name, origin=origin, arrival=arrival
    )
    message.withdraw_time.FromMicroseconds(arrival)
    event_id = sha256_hex("withdrawn", import_name, source, record_id)[:32]
    return OutgoingEvent(record_name(source, record_id), message, event_id=event_id)


def _event_id(record: RawRecord, import_name: str) -> str:
    # Derived from the content, so that a repeat after a crash is the same event.
    return sha256_hex(import_name, record.record_id, record.content_digest)[:32]
