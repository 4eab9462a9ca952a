"""Makes records of the CloudEvents that other producers publish to `tidemill.inbound`.

Rules:

- Data of `application/protobuf` is a `tidemill.ingest.v1.Record`. JSON data is an object with `text`, and optionally
  `record_id`, `source`, `event_time` (RFC 3339) and `attributes` (an object); JSON data that is a string is the text
  itself. Data of `text/*` is the text, in the charset of the content type (default UTF-8). Other data is
  refused.
- Attributes: `attributes` of the data, then its other members, then `ce_type`, and the event's `subject`, `dataschema`
  and extensions with the prefix `ce_`. Names and limits follow `services.ingest.engine.attributes`, which also notes
  what could not be kept.
- Source: that of the data; else the event's `source`. If it is not a valid source name, it is lower-cased without its
  scheme (`https://`), other characters than a-z 0-9 . _ - become `-`, and . _ - are trimmed at both ends:
  `/Shop/Reviews` is `shop-reviews`. A name longer than 64 characters keeps 55 and gets 8 digits of its sha256.
- Identity: `record_id` of the data, as text; one that is not valid is replaced by its digest and kept as an attribute.
  Otherwise it is derived from the event's `source` and `id`, whose combination CloudEvents requires to be unique: an
  event that is delivered or sent again is the same record.
- Tenant: that of protobuf data; else the event's extension `tenant`, if it is a valid name.
- Time: that of the data; else the event's `time`; else the time of acceptance. A time without offset is UTC, with a
  note; a value that is not a time becomes an attribute.
- Trace: the message's `traceparent` header; else the event's `traceparent` extension.

An event is refused only if it lacks what a record needs: a text, a source and an unambiguous identity.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import DecodeError
from tidemill.ingest.v1.record_pb2 import Record

from services.ingest.app.intake import Intake
from services.ingest.app.ports import Accepted
from services.ingest.domain.record import RawRecord, RecordRefusedError, check_record, is_source_name, is_tenant
from services.ingest.engine.attributes import NOTES_ATTRIBUTE, Attributes
from services.ingest.engine.members import fitted_id
from services.ingest.entrypoints.mapping import record_from
from services.kit.bus.foreign_event import ForeignEvent, read_event
from services.kit.bus.port import Delivery
from services.kit.errors import InvalidArgumentError
from services.kit.ids import sha256_hex
from services.kit.json_text import repeated_names

logger = logging.getLogger(__name__)

_PROTOBUF = ("application/protobuf", "application/x-protobuf")
_MEMBERS = frozenset({"record_id", "source", "text", "attributes", "event_time"})
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_NO_SOURCE_CHARACTER = re.compile(r"[^a-z0-9._-]+")
_LONGEST_SOURCE = 64
_TRACE = ("traceparent", "tracestate")
# Used elsewhere: the record's time, the data's encoding, the trace.
_NOT_KEPT = frozenset({"time", "datacontenttype", *_TRACE})


class InboundHandler:
    """Handles deliveries of `tidemill.inbound`; what is not a valid record becomes a dead letter."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def handle(self, batch: Sequence[Delivery]) -> None:
        """Accepts the batch, idempotently, since identities do not change. Refuses before anything is accepted."""
        accepted = [accepted_from(delivery) for delivery in batch]
        self._intake.accept_traced(accepted)
        if noted := sum(NOTES_ATTRIBUTE in item.record.attributes for item in accepted):
            logger.warning(
                "%d of %d events could not be kept completely; the attribute %s of each says what is missing",
                noted,
                len(accepted),
                NOTES_ATTRIBUTE,
            )


def accepted_from(delivery: Delivery) -> Accepted:
    """The record of a delivery, with the trace to continue.

    Raises:
        InvalidArgumentError: it is not a valid record; see the reason.
    """
    event = read_event(delivery)
    record = record_of(event)
    check_record(record)
    return Accepted(record, _trace(delivery, event))


def record_of(event: ForeignEvent) -> RawRecord:
    """The record of an event, as described in the module's docstring; limits are not checked yet."""
    attributes = Attributes()
    for note in event.notes:
        attributes.note(note)
    data = _data_of(event, attributes)
    attributes.add("ce_type", event.event_type)
    for name, value in event.attributes.items():
        if name not in _NOT_KEPT:
            attributes.add(f"ce_{name}", value)
    record_id = _identity(data.record_id, attributes) or "evt_" + sha256_hex(event.source, event.event_id)[:32]
    source = _source(data.source, attributes) or source_name(event.source)
    moment = data.event_time
    if not isinstance(moment, datetime):
        moment = _moment(moment, "event_time", attributes) or _moment(
            event.attributes.get("time"), "ce_time", attributes
        )
    tenant = data.tenant or _tenant(event.attributes.get("tenant"), attributes)
    return RawRecord(source, data.text, attributes.result(), record_id, moment, tenant)


@dataclass(frozen=True, slots=True)
class _Data:
    """The content of the data; only the text is checked."""

    text: str
    source: Any = None
    record_id: Any = None
    event_time: Any = None
    tenant: str = ""


def _data_of(event: ForeignEvent, attributes: Attributes) -> _Data:
    if event.is_json:
        return _json_data(event.data if isinstance(event.data, dict) else {"text": event.data}, attributes)
    if event.media_type in _PROTOBUF:
        return _protobuf_data(event.data, attributes)
    if event.media_type.startswith("text/"):
        return _Data(_decoded(event))
    raise RecordRefusedError(
        f"Data of {event.content_type[:80]} is not supported; use JSON, text or application/protobuf.",
        reason="UNSUPPORTED_CONTENT_TYPE",
    )


def _json_data(members: Mapping[str, Any], attributes: Attributes) -> _Data:
    for name in repeated_names(members):
        if name in ("text", "record_id", "source"):
            raise RecordRefusedError(f"`{name}` occurs twice in the data; remove one.", reason="FIELD_TWICE")
        attributes.note(f"{name}: occurs twice; the last one is kept")
    text = members.get("text")
    if text is None:
        raise RecordRefusedError("The data has no `text`.", reason="MISSING_TEXT")
    if not isinstance(text, str):
        raise RecordRefusedError("`text` of the data is not a string.", reason="TEXT_NOT_A_STRING")
    named = members.get("attributes")
    if isinstance(named, Mapping):
        for name, value in named.items():
            attributes.add(name, value)
    else:
        attributes.add("attributes", named)
    for name, value in members.items():
        if name not in _MEMBERS:
            attributes.add(name, value)
    return _Data(text, members.get("source"), members.get("record_id"), members.get("event_time"))


def _protobuf_data(data: bytes, attributes: Attributes) -> _Data:
    try:
        message = Record.FromString(data)
    except DecodeError as error:
        text = f"The data is not a valid tidemill.ingest.v1.Record: {error}."
        raise RecordRefusedError(text, reason="UNDECODABLE_DATA") from error
    try:
        record = record_from(message)
    except InvalidArgumentError as error:
        attributes.note(error.message)
        message.ClearField("event_time")
        record = record_from(message)
    for name, value in sorted(record.attributes.items()):
        attributes.add(name, value)
    return _Data(record.text, record.source, record.record_id, record.event_time, record.tenant)


def _identity(given: Any, attributes: Attributes) -> str:
    if isinstance(given, str | int | float) and not isinstance(given, bool):
        return fitted_id(given, "record_id", attributes) if given != "" else ""
    if given is not None:
        attributes.add("record_id", given)
        attributes.note("record_id: neither text nor a number; the event's identity is used instead")
    return ""


def _source(given: Any, attributes: Attributes) -> str:
    if given is None or given == "":
        return ""
    text = given if isinstance(given, str) else str(given) if isinstance(given, int) else ""
    if is_source_name(text):
        return text
    attributes.add("source", given)
    try:
        name = source_name(text)
    except RecordRefusedError:
        attributes.note("source: not a name; the event's source is used instead")
        return ""
    attributes.note(f"source: not a valid source name; {name} is used instead")
    return name


def _tenant(given: Any, attributes: Attributes) -> str:
    if given in (None, ""):
        return ""
    if isinstance(given, str) and is_tenant(given):
        return given
    attributes.note("ce_tenant: not a valid name of a tenant; the record has none of its own")
    return ""


def _moment(value: Any, name: str, attributes: Attributes) -> datetime | None:
    """A time in UTC; None if missing or not valid."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                attributes.note(f"{name}: {value[:40]} has no offset from UTC; read as UTC")
                return moment.replace(tzinfo=UTC)
            return moment.astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    attributes.add(name, value)
    attributes.note(f"{name}: not an RFC 3339 time; kept as an attribute")
    return None


def source_name(source: str) -> str:
    """A source name from a CloudEvents source, see the module's docstring.

    Raises:
        RecordRefusedError: no valid characters are left.
    """
    name = _NO_SOURCE_CHARACTER.sub("-", _SCHEME.sub("", source.lower(), count=1)).strip("-._")
    if not name:
        raise RecordRefusedError(
            f"The event's source {source[:80]!a} has no usable characters; set `source` in the data.",
            reason="UNUSABLE_SOURCE",
        )
    if len(name) > _LONGEST_SOURCE:
        return f"{name[: _LONGEST_SOURCE - 9]}-{sha256_hex(source)[:8]}"
    return name


def _decoded(event: ForeignEvent) -> str:
    data: bytes = event.data
    try:
        return data.decode(event.charset)
    # ValueError: codecs that do not decode to text, and unknown names.
    except (ValueError, LookupError) as error:
        raise RecordRefusedError(
            f"The text is not in {event.charset[:40]!a}: {error}.", reason="NOT_DECODABLE"
        ) from error


def _trace(delivery: Delivery, event: ForeignEvent) -> dict[str, str]:
    found = {name: delivery.headers[name].decode("ascii", "replace") for name in _TRACE if name in delivery.headers}
    if "traceparent" not in found and "traceparent" in event.attributes:
        extensions = {name: event.attributes.get(name) for name in _TRACE}
        found = {name: value for name, value in extensions.items() if isinstance(value, str) and value.isascii()}
    return found if "traceparent" in found else {}
