"""Reads from the protos: comments, which the generated Python code leaves out, and validation rules."""

from __future__ import annotations

import re
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parents[2] / "protos"
INTEGERS = {FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64}
NUMBERS = {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT, *INTEGERS}


@cache
def comments() -> dict[str, str]:
    """The comment above each message, field and value of an enum, by its full name, in one line.

    Raises:
        RuntimeError: protoc refused a file; it has said why.
    """
    own = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "tidemill").rglob("*.proto"))
    include = [f"-I{PROTOS}", f"-I{PROTOS / 'vendor'}", f"-I{files('grpc_tools') / '_proto'}"]
    with tempfile.NamedTemporaryFile() as output:
        if protoc.main(["protoc", *include, "--include_source_info", f"--descriptor_set_out={output.name}", *own]) != 0:
            raise RuntimeError("protoc failed; see above")
        parsed = FileDescriptorSet.FromString(Path(output.name).read_bytes())
    found = {}
    for file in parsed.file:
        names = dict(_names(file.package, list(file.message_type), (4,)))
        names |= _values(file.package, list(file.enum_type), (5,))
        for location in file.source_code_info.location:
            name = names.get(tuple(location.path))
            if name is not None:
                found[name] = " ".join(location.leading_comments.split())
    return found


_Path = tuple[int, ...]
"""Where something stands in a file's descriptor: numbers of fields and positions, see descriptor.proto."""


def _names(scope: str, messages: list[DescriptorProto], path: _Path) -> dict[_Path, str]:
    """Full names of some messages, their fields and all that they hold."""
    found = {}
    for number, message in enumerate(messages):
        here, name = (*path, number), f"{scope}.{message.name}"
        found[here] = name
        found |= {(*here, 2, at): f"{name}.{field.name}" for at, field in enumerate(message.field)}
        found |= _values(name, list(message.enum_type), (*here, 4))
        found |= _names(name, list(message.nested_type), (*here, 3))
    return found


def _values(scope: str, enums: list[EnumDescriptorProto], path: _Path) -> dict[_Path, str]:
    """Full names of the values of some enums: a value's scope is that of its enum."""
    return {
        (*path, number, 2, at): f"{scope}.{value.name}"
        for number, enum in enumerate(enums)
        for at, value in enumerate(enum.value)
    }


def rules_of(field: FieldDescriptor) -> Any:
    """Rules of a field for protovalidate (`buf.validate.FieldRules`)."""
    return field.GetOptions().Extensions[validate_pb2.field]


def oneofs(message: Descriptor) -> list[OneofDescriptor]:
    """The choices of a message; the compiler makes one of its own of each `optional` field."""
    return [oneof for oneof in message.oneofs if [f"_{field.name}" for field in oneof.fields] != [oneof.name]]


def is_oneof_required(message: Descriptor, oneof: str) -> bool:
    """Whether one of the fields must be given."""
    return bool(message.oneofs_by_name[oneof].GetOptions().Extensions[validate_pb2.oneof].required)


def is_required(field: FieldDescriptor) -> bool:
    """Whether a message without the field is refused: it says so, or the rules refuse the empty value."""
    rules = rules_of(field)
    if rules.required:
        return True
    if field.containing_oneof is not None or (field.message_type is not None and not field.is_repeated):
        return False
    if field.is_repeated:
        return bool(rules.repeated.min_items or rules.map.min_pairs)
    if field.type == FieldDescriptor.TYPE_STRING:
        pattern = rules.string.pattern
        refuses_empty = bool(pattern) and re.search(pattern, "") is None
        return bool(rules.string.min_len or refuses_empty or rules.string.contains)
    least = bounds(field)
    return least.get("minimum", 0) > 0 or least.get("exclusiveMinimum", -1) >= 0


def bounds(field: FieldDescriptor) -> dict[str, float]:
    """Limits of a number, or of each number of a list, in JSON schema's words."""
    rules = rules_of(field).repeated.items if field.is_repeated else rules_of(field)
    kind = rules.WhichOneof("type")
    if field.type not in NUMBERS or kind is None:
        return {}
    limits = getattr(rules, kind)
    names = {"gte": "minimum", "gt": "exclusiveMinimum", "lte": "maximum", "lt": "exclusiveMaximum"}
    return {word: getattr(limits, name) for name, word in names.items() if limits.HasField(name)}


def short_values(enum: EnumDescriptor) -> list[str]:
    """The values of an enum as pipeline files write them: without the enum's name, without the unset one."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return [value.name.removeprefix(prefix).lower() for value in enum.values if value.number]
