"""`docs/pipeline.md` and `pipelines/pipeline.schema.json`: every field of a pipeline file, from the protos."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.struct_pb2 import Struct, Value
from tidemill.cleaning.v1.dataset_pb2 import OperatorSpec
from tidemill.pipeline.v1.cycle_pb2 import PipelineSpec
from tidemill.pipeline.v1.search_pb2 import SearchRange

from docs.generate.protos import (
    INTEGERS,
    NUMBERS,
    bounds,
    comments,
    is_oneof_required,
    is_required,
    oneofs,
    rules_of,
    short_values,
)
from docs.generate.tables import table
from gateway.cli.pipeline_file import NOT_FOR_DATASETS
from services.cleaning.engine.registry import Registry

# The cycle fills it in; a file that gives it would name a snapshot of another data set.
FILLED_IN = {"tidemill.training.v1.TrainingSpec.dataset"}

OPERATORS = "tidemill.pipeline.v1.PipelineDataset.operators"
AUGMENTERS = "tidemill.cleaning.v1.AugmentSpec.operators"
"""Fields that name operators, each from a registry of its own; others are of the first."""

HEAD = """# Pipeline files

A pipeline file is YAML and describes one pipeline: what is collected, how it is cleaned, trained, measured and served.
`tidemill run FILE` runs it. Its fields are those of `tidemill.pipeline.v1.PipelineSpec`. Copy
[headlines.yaml](../pipelines/headlines.yaml) (a model that writes) or [reviews.yaml](../pipelines/reviews.yaml) (a
classifier) to begin. The first line of both makes an editor with the YAML language server complete and check fields by
[pipeline.schema.json](../pipelines/pipeline.schema.json).

- `${NAME}` and `${NAME:-default}` are replaced from the environment. `${TIDEMILL_DATA}` is the fetched example data
  where it is not set.
- Paths of sources are relative to the file. A mistake is reported with its line, column and field.
- Values of an enum are written in lower case, without the enum's name: `fastest`.
- `--training OTHER` takes that section from a file such as [this one](../pipelines/training/headlines-full.yaml).
- `tidemill dataset build FILE` builds the data set only. A file for it may lack `training`, `gate` and `rollout`,
  all three together ([reports.yaml](../examples/medical/reports.yaml)).
"""
_TYPES = {FieldDescriptor.TYPE_STRING: "text", FieldDescriptor.TYPE_BOOL: "true or false"}
_EFFECTIVE = re.compile(r"; (?P<value>(?:[^;.]|\.(?=\d))+?),? when (?:zero|empty|left out)(?=[,.])")
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?=,|$)(?!, \d)")
_SENTENCE = re.compile(r"\b(?:is|are|must|does)\b")
_VALUES = {"type": "array", "minItems": 1, "items": {"type": ["string", "number", "boolean"]}}
_VARIABLE = {"type": "string", "pattern": r"\$\{[A-Z_][A-Z0-9_]*(:-[^}]*)?\}"}


def pipeline_page() -> str:
    """The page: a section for each message that a file holds, in the order of the file."""
    lines = [HEAD]
    for path, message in _sections(PipelineSpec.DESCRIPTOR, ""):
        lines += ["## " + (f"`{path}`" if path else "The file"), "", comments()[message.full_name], ""]
        for oneof in oneofs(message):
            one = "exactly one" if is_oneof_required(message, oneof.name) else "at most one"
            lines += [f"Give {one} of {', '.join(f'`{field.name}`' for field in oneof.fields)}.", ""]
        lines += table(
            ("field", "type", "default", "meaning"),
            (
                (f"`{field.name}`", _words(field), *_default_and_meaning(field))
                for field in message.fields
                if field.full_name not in FILLED_IN
            ),
        )
        lines.append("")
    return "\n".join(lines)


def _sections(message: Descriptor, path: str) -> list[tuple[str, Descriptor]]:
    found = [(path, message)] if message.fields else []
    for field in message.fields:
        child = field.message_type
        if (
            child is None
            or field.full_name in FILLED_IN
            or child in (Struct.DESCRIPTOR, Value.DESCRIPTOR)
            or child is OperatorSpec.DESCRIPTOR
        ):
            continue
        place = f"{path}.{field.name}".lstrip(".")
        if child.GetOptions().map_entry:
            value = child.fields_by_name["value"].message_type
            found += _sections(value, f"{place}.*") if value is not None else []
        else:
            found += _sections(child, place + ("[]" if field.is_repeated else ""))
    return found


def _words(field: FieldDescriptor) -> str:
    if field.message_type is OperatorSpec.DESCRIPTOR:
        return (
            "list of [augmenters](augmenters.md)"
            if field.full_name == AUGMENTERS
            else "list of [operators](operators.md)"
        )
    if field.message_type is Struct.DESCRIPTOR:
        return "mapping"
    if field.message_type is Value.DESCRIPTOR:
        return "list of texts, numbers, or true and false"
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return "mapping of names to mappings"
    if field.message_type is not None:
        return "list of mappings" if field.is_repeated else "mapping" + ("" if field.message_type.fields else ", empty")
    rules = rules_of(field)
    if field.is_repeated:
        items, limits = rules.repeated.items.string, []
        if getattr(items, "in"):
            limits.append("of " + ", ".join(f"`{value}`" for value in getattr(items, "in")))
        if rules.repeated.max_items:
            limits.append(f"at most {rules.repeated.max_items}")
        kind = "whole numbers" if field.type in INTEGERS else "numbers" if field.type in NUMBERS else "texts"
        return ", ".join([f"list of {kind}", *limits])
    if field.enum_type is not None:
        return ", ".join(f"`{value}`" for value in short_values(field.enum_type))
    if field.type in NUMBERS:
        signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
        limits = [f"{signs[name]} {value:g}" for name, value in bounds(field).items()]
        return ", ".join(["whole number" if field.type in INTEGERS else "number", *limits])
    limits = [f"`{rules.string.pattern}`"] if rules.string.pattern else []
    limits += [f"contains `{rules.string.contains}`"] if rules.string.contains else []
    limits += [f"at most {rules.string.max_len} characters"] if rules.string.max_len else []
    return ", ".join([_TYPES[field.type], *limits])


def _default_and_meaning(field: FieldDescriptor) -> tuple[str, str]:
    """A field's default, and its comment without the clause that names the default."""
    if is_required(field):
        # The loader refuses a file with some of them; `tidemill dataset build` takes a file with none.
        together = field.containing_type is PipelineSpec.DESCRIPTOR and field.name in NOT_FOR_DATASETS
        return "required to train" if together else "required", comments()[field.full_name]
    effective, meaning = effective_default(comments()[field.full_name])
    return effective or _default(field), meaning


def effective_default(comment: str) -> tuple[str, str]:
    """The value that a comment names, as in `Days; 30 when zero.`, and the comment without that clause.

    A value is empty on the wire where it has its default, so the descriptor does not know the effective one. The value
    is "" and the comment unchanged if there is no such clause.
    """
    found = _EFFECTIVE.search(comment)
    if found is None or _SENTENCE.search(found["value"]):
        return "", comment
    number, value = _NUMBER.match(found["value"]), found["value"]
    text = f"`{number[0]}`{value[number.end() :]}" if number else value
    rest = comment[found.end() :]
    # What follows after a comma is another clause: `4 when left out, none when zero`.
    return text, comment[: found.start()] + (f";{rest.removeprefix(',')}" if rest.startswith(",") else rest)


def _default(field: FieldDescriptor) -> str:
    if field.containing_oneof is not None or field.message_type is not None or field.is_repeated:
        return "none"
    if field.enum_type is not None:
        return _unset(field)
    return {FieldDescriptor.TYPE_STRING: "empty", FieldDescriptor.TYPE_BOOL: "`false`"}.get(field.type, "`0`")


def _unset(field: FieldDescriptor) -> str:
    """The default that the comment of an enum's unset value names, as in `Not set: fastest.`, else none."""
    enum = field.enum_type
    assert enum is not None
    text = comments()[f"{enum.full_name.rpartition('.')[0]}.{enum.values[0].name}"]
    return f"`{text.removeprefix('Not set: ').rstrip('.')}`" if text.startswith("Not set: ") else "none"


def pipeline_schema(registries: Mapping[str, Registry]) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a pipeline file."""
    schema = _message(PipelineSpec.DESCRIPTOR, registries)
    # A file for `tidemill dataset build` has none of them; one with some of them can be used for nothing.
    required = [name for name in schema.pop("required") if name not in NOT_FOR_DATASETS]
    # A file for `tidemill sources put` may have nothing but `sources`.
    schema["anyOf"] = [{"required": required}, {"required": ["sources"], "maxProperties": 1}]
    schema["dependentRequired"] = {
        name: [other for other in NOT_FOR_DATASETS if other != name] for name in NOT_FOR_DATASETS
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Tidemill pipeline", **schema}


def _message(message: Descriptor, registries: Mapping[str, Registry]) -> dict[str, Any]:
    fields = [field for field in message.fields if field.full_name not in FILLED_IN]
    schema: dict[str, Any] = {
        "type": "object",
        "description": comments()[message.full_name],
        "additionalProperties": False,
        "properties": {
            field.name: {**_field(field, registries), "description": comments()[field.full_name]} for field in fields
        },
    }
    if required := [field.name for field in fields if is_required(field)]:
        schema["required"] = required
    choices = []
    for oneof in oneofs(message):
        options: list[dict[str, Any]] = [{"required": [field.name]} for field in oneof.fields]
        none = [] if is_oneof_required(message, oneof.name) else [{"not": {"anyOf": list(options)}}]
        choices.append({"oneOf": options + none})
    if choices:
        schema["allOf"] = choices
    return schema


def _field(field: FieldDescriptor, registries: Mapping[str, Registry]) -> dict[str, Any]:
    if not field.is_repeated:
        return _value(field, registries)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        pairs = rules_of(field).map
        value = _value(field.message_type.fields_by_name["value"], registries)
        limits = {"minProperties": pairs.min_pairs, "maxProperties": pairs.max_pairs}
        return {
            "type": "object",
            **{name: limit for name, limit in limits.items() if limit},
            "additionalProperties": value,
        }
    rules = rules_of(field).repeated
    schema: dict[str, Any] = {"type": "array", "items": _value(field, registries)}
    if allowed := list(getattr(rules.items.string, "in")):
        schema["items"] = {"enum": allowed}
    elif rules.items.string.pattern:
        schema["items"]["pattern"] = rules.items.string.pattern
    if rules.min_items:
        schema["minItems"] = rules.min_items
    if rules.max_items:
        schema["maxItems"] = rules.max_items
    if rules.unique:
        schema["uniqueItems"] = True
    return schema


def _value(field: FieldDescriptor, registries: Mapping[str, Registry]) -> dict[str, Any]:
    if field.message_type is OperatorSpec.DESCRIPTOR:
        return _operator(registries.get(field.full_name, registries[OPERATORS]))
    if field.message_type is Struct.DESCRIPTOR:
        return {"type": "object"}
    if field.message_type is Value.DESCRIPTOR:
        return {"type": ["string", "number", "boolean"]}
    if field.message_type is SearchRange.DESCRIPTOR:
        return {"anyOf": [_message(SearchRange.DESCRIPTOR, registries), _VALUES]}
    if field.message_type is not None:
        return _message(field.message_type, registries)
    if field.enum_type is not None:
        return {"enum": short_values(field.enum_type)}
    if field.type in NUMBERS:
        number = {"type": "integer" if field.type in INTEGERS else "number", **bounds(field)}
        return {"anyOf": [number, _VARIABLE]}
    if field.type == FieldDescriptor.TYPE_BOOL:
        return {"anyOf": [{"type": "boolean"}, _VARIABLE]}
    rules = rules_of(field).string
    text: dict[str, Any] = {"type": "string"}
    if rules.min_len:
        text["minLength"] = rules.min_len
    if rules.max_len:
        text["maxLength"] = rules.max_len
    if rules.pattern:
        text["pattern"] = rules.pattern
    elif rules.contains:
        text["pattern"] = rules.contains.replace("{", r"\{").replace("}", r"\}")
    return {"anyOf": [text, _VARIABLE]} if "pattern" in text else text


def _operator(registry: Registry) -> dict[str, Any]:
    """An operator's name, or its name and parameters, in the short and in the long form."""
    kinds = {name: registry.operator_type(name).params_type.model_json_schema() for name in registry.names}
    # A parameter's definitions stand beside it; here each is at its own place.
    short = {name: _inlined(schema, schema.get("$defs", {})) for name, schema in kinds.items()}
    return {
        "anyOf": [
            {"enum": [name for name, schema in short.items() if not schema.get("required")]},
            {
                "type": "object",
                "minProperties": 1,
                "maxProperties": 1,
                "additionalProperties": False,
                "properties": short,
            },
            {
                "type": "object",
                "additionalProperties": False,
                "required": ["name"],
                "properties": {"name": {"enum": list(short)}, "params": {"type": "object"}},
            },
        ]
    }


def _inlined(value: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        if "$ref" in value:
            return _inlined(definitions[value["$ref"].rpartition("/")[2]], definitions)
        return {key: _inlined(item, definitions) for key, item in value.items() if key not in ("$defs", "title")}
    return [_inlined(item, definitions) for item in value] if isinstance(value, list) else value
