"""Records of named members: JSON objects, and rows of a table whose columns have names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from services.ingest.domain.record import RawRecord, RecordRefusedError, check_record, is_record_id
from services.ingest.engine.attributes import Attributes
from services.ingest.engine.file_format import FileFormat
from services.kit.ids import sha256_hex
from services.kit.json_text import repeated_names

# A line may contain much besides the text; this bounds the memory for it.
MAX_LINE_BYTES = 4 * 1024 * 1024

P = TypeVar("P")


@dataclass(frozen=True)
class MemberFormat(FileFormat[P]):
    """Files whose records have named members: one has the text, one may have the id, others become attributes."""

    text_field: str = "text"
    id_field: str = ""
    attribute_fields: tuple[str, ...] = ()

    def violations(self) -> Iterator[tuple[str, str]]:
        """See `FileFormat`."""
        yield from super().violations()
        for number, name in enumerate(self.attribute_fields):
            if not name:
                message = "must not be empty; name a member, or a nested one by its path with dots."
                yield f"attribute_fields[{number}]", message

    def record_of_members(self, source: str, value: Mapping[str, Any]) -> RawRecord:
        """The record of an object or a row; its attributes are the members that the options name, or all others.

        Raises:
            RecordRefusedError: it is not a valid record; the message names the field or column.
        """
        for name in repeated_names(value):
            if name in (self.text_field, self.id_field):
                raise RecordRefusedError(f"The field {name!r} occurs twice; remove one.", reason="FIELD_TWICE")
        text, attributes = _text(value, self.text_field), Attributes()
        for name in self.attribute_fields or [name for name in value if name not in (self.text_field, self.id_field)]:
            if name in repeated_names(value):
                attributes.note(f"{name}: occurs twice; the last one is kept")
            attributes.add(name, value[name] if name in value else member_at(value, name))
        record_id = _identity(value, self.id_field, attributes)
        record = RawRecord(source, text, attributes.result(), record_id)
        check_record(record)
        return record.identified()


def member_at(value: Mapping[str, Any], path: str) -> Any:
    """A member by its name, else by its path with dots."""
    if path in value:
        return value[path]
    inner: Any = value
    for name in path.split("."):
        if not isinstance(inner, Mapping) or name not in inner:
            return None
        inner = inner[name]
    return inner


def _text(value: Mapping[str, Any], field: str) -> str:
    text = value.get(field)
    if text is None:
        raise RecordRefusedError(f"The field {field!r} is missing.", reason="MISSING_TEXT")
    if not isinstance(text, str):
        raise RecordRefusedError(f"The field {field!r} is not a string.", reason="TEXT_NOT_A_STRING")
    return text


def _identity(value: Mapping[str, Any], field: str, attributes: Attributes) -> str:
    if not field:
        return ""
    identity = value.get(field)
    if isinstance(identity, bool) or not isinstance(identity, str | int | float) or identity == "":
        raise RecordRefusedError(
            f"The field {field!r}, which holds the record id, is missing, or is neither text nor a number.",
            reason="MISSING_ID",
        )
    return fitted_id(identity, field, attributes)


def fitted_id(identity: str | float, name: str, attributes: Attributes) -> str:
    """A record id from the producer's identifier; one that is not valid is kept as an attribute instead."""
    identity = str(identity)
    if is_record_id(identity):
        return identity
    attributes.add(name, identity)
    attributes.note(f"{name}: not a valid record id (A-Z a-z 0-9 . _ : / -, at most 128); its digest is used instead")
    return "id_" + sha256_hex(identity.encode("utf-8", "surrogatepass"))[:32]
