"""Raw records from the bus."""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.ingest.v1.ingest_events_pb2 import RecordIngested

from services.cleaning.app.ports import Arrival
from services.cleaning.app.records import Records
from services.cleaning.domain.record import RawRecord
from services.kit.bus.cloudevents import decode
from services.kit.bus.port import Delivery
from services.kit.errors import InvalidArgumentError
from services.kit.grpc.validation import validate


class RawRecordHandler:
    """Handles deliveries of `tidemill.records.raw`; what is no valid record is refused and becomes a dead letter."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def handle(self, batch: Sequence[Delivery]) -> None:
        """Cleans the batch; idempotent, see `Records`."""
        self._records.collect([_arrival(delivery) for delivery in batch])


def _arrival(delivery: Delivery) -> Arrival:
    message = decode(delivery, RecordIngested)
    validate(message)
    record = message.record
    if not record.record_id:
        raise InvalidArgumentError("A raw record on the bus bears its identity.", reason="MISSING_RECORD_ID")
    raw = RawRecord(record.record_id, record.source, record.text, dict(record.attributes), message.import_name)
    return Arrival(raw, delivery.headers.get("traceparent", b"").decode("ascii", "replace")[:64])
