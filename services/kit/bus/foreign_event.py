"""CloudEvents 1.0 of foreign producers, read from Kafka's binary or structured mode into one form.

Detection: a `content-type` of `application/cloudevents+json` means structured; else a `ce_specversion` header means
binary; else a JSON object with `specversion` is structured, too, because the CloudEvents SDK for Python puts the
data's content type, or none, in the header of a structured message.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.kit.bus.port import Delivery
from services.kit.errors import InvalidArgumentError
from services.kit.json_text import read_json

_STRUCTURED = "application/cloudevents"
_JSON = "application/json"
_SURROGATE = re.compile("[\ud800-\udfff]")
_REQUIRED = ("id", "source", "type", "specversion")


@dataclass(frozen=True, slots=True)
class ForeignEvent:
    """A CloudEvent of another producer; `attributes` are its further attributes and extensions, unchanged.

    `data` is the value of JSON data (`is_json`), otherwise bytes.
    """

    event_id: str
    source: str
    event_type: str
    attributes: Mapping[str, Any]
    content_type: str
    data: Any
    is_json: bool
    notes: tuple[str, ...] = ()

    @property
    def media_type(self) -> str:
        """Content type of the data without parameters, in lower case."""
        return self.content_type.partition(";")[0].strip().lower()

    @property
    def charset(self) -> str:
        """Encoding of textual data."""
        for parameter in self.content_type.split(";")[1:]:
            name, _, value = parameter.partition("=")
            if name.strip().lower() == "charset":
                return value.strip().strip('"')
        return "utf-8"


def read_event(delivery: Delivery) -> ForeignEvent:
    """The event in a delivery.

    Raises:
        InvalidArgumentError: it is not a CloudEvent, or is damaged; see the reason.
    """
    content_type = delivery.content_type
    if content_type.strip().lower().startswith(_STRUCTURED):
        if content_type.partition(";")[0].strip().lower() != f"{_STRUCTURED}+json":
            raise _refused("UNSUPPORTED_EVENT_FORMAT", f"Structured events must be JSON, not {content_type}.")
        return _structured(_json(delivery.value, "The event"))
    if "ce_specversion" in delivery.headers:
        return _binary(delivery)
    try:
        value = read_json(delivery.value)
    except ValueError:
        value = None
    if isinstance(value, dict) and "specversion" in value:
        return _structured(value)
    raise _refused(
        "NOT_A_CLOUDEVENT",
        "The message is not a CloudEvent: it has neither a ce_specversion header nor the content-type "
        "application/cloudevents+json.",
    )


def _binary(delivery: Delivery) -> ForeignEvent:
    attributes: dict[str, Any] = {}
    notes = []
    for header, value in delivery.headers.items():
        if not header.startswith("ce_"):
            continue
        name = header[3:]
        try:
            attributes[name] = value.decode()
        except UnicodeDecodeError as error:
            if name in _REQUIRED:
                raise _refused("INVALID_ATTRIBUTE", f"The header {header} is not UTF-8.") from error
            attributes[name] = value.decode("utf-8", "replace")
            notes.append(f"{header}: not UTF-8, invalid bytes were replaced")
    content_type = delivery.content_type or _JSON
    if _is_json(content_type):
        return _event(attributes, content_type, _json(delivery.value, "The data"), is_json=True, notes=notes)
    return _event(attributes, content_type, delivery.value, is_json=False, notes=notes)


def _structured(value: Any) -> ForeignEvent:
    if not isinstance(value, dict):
        raise _refused("INVALID_JSON", "A structured event must be a JSON object.")
    data_members = ("data", "data_base64")
    attributes = {name: item for name, item in value.items() if name not in data_members and item is not None}
    for name in _REQUIRED:
        given = attributes.get(name)
        if isinstance(given, int) and not isinstance(given, bool):
            attributes[name] = str(given)
        elif given is not None and (not isinstance(given, str) or _SURROGATE.search(given)):
            raise _refused("INVALID_ATTRIBUTE", f"The attribute {name} is not Unicode text.")
    given = attributes.get("datacontenttype")
    content_type = given if isinstance(given, str) and given else _JSON
    if "data_base64" not in value:
        data = value.get("data")
        if not _is_json(content_type) and isinstance(data, str):
            # Text may be embedded directly; then it is UTF-8 like the envelope, whatever its charset was.
            media_type = content_type.partition(";")[0]
            return _event(attributes, media_type, data.encode("utf-8", "surrogatepass"), is_json=False)
        return _event(attributes, content_type, data, is_json=True)
    try:
        data = base64.b64decode(value["data_base64"], validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise _refused("INVALID_BASE64", f"data_base64 is not base64: {error}.") from error
    if _is_json(content_type):
        return _event(attributes, content_type, _json(data, "The data"), is_json=True)
    return _event(attributes, content_type, data, is_json=False)


def _event(
    attributes: Mapping[str, Any], content_type: str, data: Any, *, is_json: bool, notes: Sequence[str] = ()
) -> ForeignEvent:
    missing = [name for name in _REQUIRED if not attributes.get(name)]
    if missing:
        raise _refused("MISSING_ATTRIBUTE", f"The CloudEvent lacks {', '.join(missing)}.")
    if attributes["specversion"] != "1.0":
        version = attributes["specversion"][:16]
        raise _refused("UNSUPPORTED_SPECVERSION", f"CloudEvents {version!r} is not supported; use 1.0.")
    further = {name: value for name, value in attributes.items() if name not in _REQUIRED}
    event_id, source, event_type = (attributes[name] for name in _REQUIRED[:3])
    return ForeignEvent(event_id, source, event_type, further, content_type, data, is_json, tuple(notes))


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type in (_JSON, "text/json") or media_type.endswith("+json")


def _json(data: bytes, what: str) -> Any:
    try:
        return read_json(data)
    except ValueError as error:
        raise _refused("INVALID_JSON", f"{what} is not valid JSON: {error}.") from error


def _refused(reason: str, message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, reason=reason)
