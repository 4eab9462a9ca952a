"""Validation of messages by the rules in the protos (protovalidate)."""

from __future__ import annotations

import protovalidate
from google.protobuf.message import Message

from services.kit.errors import FieldViolation, InvalidArgumentError


def _path(violation: protovalidate.Violation) -> str:
    parts: list[str] = []
    field = violation.proto.field
    for element in field.elements if field is not None else ():
        text = element.field_name
        subscript = getattr(element, "subscript", None)
        if subscript is not None and getattr(subscript, "value", None) is not None:
            value = subscript.value
            text += f"[{value!r}]" if isinstance(value, str) else f"[{value}]"
        parts.append(text)
    return ".".join(parts)


def violations_of(message: Message) -> list[FieldViolation]:
    """The rules that a message breaks; empty if it is valid."""
    return [
        FieldViolation(_path(violation) or message.DESCRIPTOR.name, violation.proto.message)
        for violation in protovalidate.collect_violations(message)
    ]


def validate(message: Message) -> None:
    """Validates a message.

    Raises:
        InvalidArgumentError: the message is invalid; one violation per broken rule.
    """
    found = violations_of(message)
    if found:
        text = "; ".join(f"{violation.field}: {violation.description}" for violation in found[:5])
        more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
        raise InvalidArgumentError(f"{text}{more}", reason="INVALID_FIELD", violations=found)
