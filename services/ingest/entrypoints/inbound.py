"""Records out of the CloudEvents that other producers put on `tidemill.inbound`.

What a record is made of:

- Data of `application/protobuf` is a `tidemill.ingest.v1.Record`. JSON data is an object with `text`, and optionally
  `record_id`, `source`, `event_time` (RFC 3339) and `attributes` (an object); every other member that is text, number
  or boolean and bears an attribute's name becomes an attribute; JSON data that is a string is the text itself. Data
  of `text/*` is the text, in the charset of the content type (UTF-8 when it names none). Other data is refused.
- Source: the data's own; else the event's `source` in lower case without its scheme (`https://`), each run of other
  characters than a-z 0-9 . _ - made one `-`, none of . _ - at either end: `/Shop/Reviews` is `shop-reviews`. What is
  longer than 64 characters keeps 55 and gets 8 of its sha256.
- Identity: the data's own; else derived from the event's `source` and `id`, which CloudEvents holds to be unique
  together: an event that is delivered or sent again is the same record.
- Time: the data's own; else the event's `time`; else when it is accepted.
- Trace: the message's `traceparent` header; else the event's `traceparent` extension.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from google.protobuf.message import DecodeError
from tidemill.ingest.v1.record_pb2 import Record

from services.ingest.app.intake import Intake
from services.ingest.app.ports import Accepted
from services.ingest.domain.record import RawRecord, RecordRefusedError, check_record, is_attribute_name
from services.ingest.engine.parsing import attribute_text
from services.ingest.entrypoints.foreign_event import ForeignEvent, parse_time, read_event
from services.ingest.entrypoints.mapping import record_from
from services.kit.bus.port import Delivery
from services.kit.ids import sha256_hex

_PROTOBUF = ("application/protobuf", "application/x-protobuf")
_MEMBERS = frozenset({"record_id", "source", "text", "attributes", "event_time"})
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_NO_SOURCE_CHARACTER = re.compile(r"[^a-z0-9._-]+")
_LONGEST_SOURCE = 64
_TRACE = ("traceparent", "tracestate")


class InboundHandler:
    """Handles deliveries of `tidemill.inbound`; what gives no record is refused and becomes a dead letter."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def handle(self, batch: Sequence[Delivery]) -> None:
        """Accepts the batch; idempotent, for identities do not change. A refusal comes before anything is accepted."""
        self._intake.accept_traced([accepted_from(delivery) for delivery in batch])


def accepted_from(delivery: Delivery) -> Accepted:
    """The record of a delivery, with the trace that it continues.

    Raises:
        InvalidArgumentError: it gives no record; the reason says why.
    """
    event = read_event(delivery)
    record = record_of(event)
    check_record(record)
    return Accepted(record, _trace(delivery, event))


def record_of(event: ForeignEvent) -> RawRecord:
    """The record of an event, as the module's docstring tells; not yet held against the limits."""
    given = _data_of(event)
    return replace(
        given,
        source=given.source or source_name(event.source),
        record_id=given.record_id or "evt_" + sha256_hex(event.source, event.event_id)[:32],
        event_time=given.event_time or event.time,
    )


def _data_of(event: ForeignEvent) -> RawRecord:
    """What the data alone says; source, identity and time may be empty."""
    if event.is_json:
        return _json_record(event.data if isinstance(event.data, dict) else {"text": event.data})
    if event.media_type in _PROTOBUF:
        try:
            return record_from(Record.FromString(event.data))
        except DecodeError as error:
            message = f"The data is no tidemill.ingest.v1.Record: {error}."
            raise RecordRefusedError(message, reason="UNDECODABLE_DATA") from error
    if event.media_type.startswith("text/"):
        return RawRecord("", _decoded(event), {})
    raise RecordRefusedError(
        f"Data of {event.content_type[:80]} gives no record; JSON, text and application/protobuf do.",
        reason="UNSUPPORTED_CONTENT_TYPE",
    )


def _json_record(members: Mapping[str, Any]) -> RawRecord:
    if members.get("text") is None:
        raise RecordRefusedError("The data has no `text`.", reason="MISSING_TEXT")
    for name in ("text", "source", "record_id", "event_time"):
        if not isinstance(members.get(name, ""), str | None):
            raise RecordRefusedError(f"`{name}` of the data is no string.", reason=f"{name.upper()}_NOT_A_STRING")
    moment = members.get("event_time")
    return RawRecord(
        members.get("source") or "",
        members["text"],
        _attributes(members),
        members.get("record_id") or "",
        parse_time(moment) if moment else None,
    )


def source_name(source: str) -> str:
    """Name of a record's source out of a CloudEvents source, see the module's docstring.

    Raises:
        RecordRefusedError: nothing is left of it.
    """
    name = _NO_SOURCE_CHARACTER.sub("-", _SCHEME.sub("", source.lower(), count=1)).strip("-._")
    if not name:
        raise RecordRefusedError(
            f"The event's source {source[:80]!a} gives no name; let the data name its `source`.",
            reason="UNUSABLE_SOURCE",
        )
    if len(name) > _LONGEST_SOURCE:
        return f"{name[: _LONGEST_SOURCE - 9]}-{sha256_hex(source)[:8]}"
    return name


def _attributes(members: Mapping[str, Any]) -> dict[str, str]:
    named = members.get("attributes")
    if named is not None and not isinstance(named, dict):
        raise RecordRefusedError("`attributes` of the data is no object.", reason="ATTRIBUTES_NOT_AN_OBJECT")
    found = {
        name: attribute_text(value)
        for name, value in members.items()
        if name not in _MEMBERS and is_attribute_name(name) and isinstance(value, str | int | float)
    }
    return found | {name: attribute_text(value) for name, value in (named or {}).items() if value is not None}


def _decoded(event: ForeignEvent) -> str:
    data: bytes = event.data
    try:
        return data.decode(event.charset)
    # ValueError: what decodes otherwise than to text, and names that are none at all.
    except (ValueError, LookupError) as error:
        raise RecordRefusedError(
            f"The text is not in {event.charset[:40]!a}: {error}.", reason="NOT_DECODABLE"
        ) from error


def _trace(delivery: Delivery, event: ForeignEvent) -> dict[str, str]:
    found = {name: delivery.headers[name].decode("ascii", "replace") for name in _TRACE if name in delivery.headers}
    if "traceparent" not in found and "traceparent" in event.attributes:
        found = {name: event.attributes[name] for name in _TRACE if name in event.attributes}
    return found if "traceparent" in found else {}
