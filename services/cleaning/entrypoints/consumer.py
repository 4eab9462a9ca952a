"""Raw records and withdrawals from the bus."""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.ingest.v1.ingest_events_pb2 import RecordIngested, RecordWithdrawn
from tidemill.ingest.v1.source_import_pb2 import SourcePolicy

from services.cleaning.app.ports import Arrival
from services.cleaning.app.records import Records
from services.cleaning.domain.record import Keeping, RawRecord, Withdrawal
from services.kit.bus.cloudevents import decode, traceparent_of
from services.kit.bus.port import Delivery
from services.kit.errors import InvalidArgumentError
from services.kit.grpc.validation import validate

_WITHDRAWN = RecordWithdrawn.DESCRIPTOR.full_name
_ORIGINALS = {
    SourcePolicy.ORIGINALS_UNSPECIFIED: None,
    SourcePolicy.ORIGINALS_PLAIN: Keeping.PLAIN,
    SourcePolicy.ORIGINALS_ENCRYPTED: Keeping.ENCRYPTED,
    SourcePolicy.ORIGINALS_NONE: Keeping.NONE,
}


class RawRecordHandler:
    """Handles deliveries of `tidemill.records.raw`; an invalid record is refused and becomes a dead letter."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def handle(self, batch: Sequence[Delivery]) -> None:
        """Cleans the batch; idempotent, see `Records`."""
        withdrawals = [_withdrawal(delivery) for delivery in batch if delivery.event_type == _WITHDRAWN]
        arrivals = [_arrival(delivery) for delivery in batch if delivery.event_type != _WITHDRAWN]
        self._records.collect(arrivals, withdrawals)


def _arrival(delivery: Delivery) -> Arrival:
    message = decode(delivery, RecordIngested)
    validate(message)
    record = message.record
    if not record.record_id:
        raise InvalidArgumentError(
            "A raw record on the bus must have a source and a record_id.", reason="MISSING_RECORD_ID"
        )
    accepted = message.ingest_time.ToMicroseconds()
    raw = RawRecord(
        record.record_id,
        record.source,
        record.text,
        dict(record.attributes),
        message.import_name,
        event_time=record.event_time.ToMicroseconds() if record.HasField("event_time") else accepted,
        # Earlier releases did not send the time of arrival.
        arrival=message.arrival or accepted,
        origin=message.origin,
        tenant=record.tenant,
    )
    if message.originals not in _ORIGINALS:
        raise InvalidArgumentError(
            f"originals: {message.originals} is not known to this release, which must not keep an original otherwise.",
            reason="UNKNOWN_ORIGINALS",
        )
    return Arrival(raw, traceparent_of(delivery), _ORIGINALS[message.originals])


def _withdrawal(delivery: Delivery) -> Withdrawal:
    message = decode(delivery, RecordWithdrawn)
    if not (message.record_id and message.source and message.origin):
        raise InvalidArgumentError(
            "A withdrawal on the bus must have a source, a record_id and an origin.", reason="MISSING_RECORD_ID"
        )
    return Withdrawal(message.record_id, message.source, message.import_name, message.origin, message.arrival)
