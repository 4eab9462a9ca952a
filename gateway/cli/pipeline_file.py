"""Reads `pipelines/*.yaml`: tidemill.pipeline.v1.PipelineSpec with its own field names, and a few short forms.

Operators may be written `- exact_dedup` or `- length_filter: {min_chars: 200}`, values of an enum without the enum's
name (`fastest`), ranges of a search as a list of values, sources relative to the file. `${NAME}` and
`${NAME:-default}` are replaced from the environment; `TIDEMILL_DATA`, when unset, is the folder of the fetched example
data. Every error names its line and column.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import yaml
from google.protobuf import json_format, struct_pb2
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from tidemill.cleaning.v1.dataset_pb2 import OperatorSpec
from tidemill.ingest.v1.source_import_pb2 import SourceSpec
from tidemill.pipeline.v1 import cycle_pb2
from tidemill.pipeline.v1.search_pb2 import SearchRange
from tidemill.training.v1 import run_pb2

from services.kit.config import home_dir
from services.kit.errors import FieldViolation, InvalidArgumentError
from services.kit.grpc.validation import validate

_TRAINING = "training"
NOT_FOR_DATASETS = (_TRAINING, "gate", "rollout")
"""Sections that a file for `tidemill dataset build` may lack."""
_NOT_FOR_SOURCES = ("name", "dataset", *NOT_FOR_DATASETS)
_VARIABLE = re.compile(r"\$\{([A-Z_][A-Z0-9_]*)(?::-([^}]*))?\}")
_TAG = "tag:yaml.org,2002:"
_KINDS = {"map": "a mapping", "seq": "a list", "str": "text", "int": "a number", "float": "a number", "null": "nothing"}
_KINDS |= {"bool": "true or false"}
_INTEGERS = {
    FieldDescriptor.TYPE_INT32: 2**31,
    FieldDescriptor.TYPE_INT64: 2**63,
}


@dataclass(frozen=True, slots=True)
class PipelineFile:
    """A parsed file: the pipeline that it describes, and the position of each field.

    `training` is the file that its training comes from, where that is another one.
    """

    path: Path
    spec: cycle_pb2.PipelineSpec
    places: Mapping[str, tuple[int, int]] = field(repr=False)
    training: Path | None = None

    def locate(self, error: InvalidArgumentError, prefix: str = "") -> InvalidArgumentError:
        """A service's error about the spec, with the lines of the file; unchanged if it names no field.

        A request with only a part of the file as its `spec` gives the part's place as `prefix`, such as `dataset.`.
        """
        return _located(self.path, self.places, error, prefix, self.training)


@dataclass(frozen=True, slots=True)
class TrainingFile:
    """The training in a file: the `training` of a pipeline file, or the whole of a file with nothing else."""

    path: Path
    spec: run_pb2.TrainingSpec
    places: Mapping[str, tuple[int, int]] = field(repr=False)
    prefix: str = ""

    def locate(self, error: InvalidArgumentError) -> InvalidArgumentError:
        """See `PipelineFile.locate`."""
        return _located(self.path, self.places, error, self.prefix)


def load_pipeline(path: Path, training: Path | None = None) -> PipelineFile:
    """The pipeline that a file describes, with the training of another file if one is given; see `load_training`.

    Raises:
        InvalidArgumentError: names the file, and line, column and field of everything that is wrong.
    """
    spec = cycle_pb2.PipelineSpec()
    if training is None:
        return PipelineFile(path, spec, _load(path, spec))
    places = {name: place for name, place in _load(path, spec, optional=(_TRAINING,)).items() if not _of_training(name)}
    other = load_training(training)
    spec.training.CopyFrom(other.spec)
    moved = {
        f"{_TRAINING}.{name.removeprefix(other.prefix)}": place
        for name, place in other.places.items()
        if name.startswith(other.prefix)
    }
    file = PipelineFile(path, spec, {**places, _TRAINING: (1, 1), **moved}, training)
    try:
        validate(spec)
    except InvalidArgumentError as error:
        raise file.locate(error) from error
    return file


def load_dataset(path: Path) -> PipelineFile:
    """Sources and data set of a file; training, gate and rollout may be absent.

    Raises:
        InvalidArgumentError: names the file, and line, column and field of everything that is wrong.
    """
    spec = cycle_pb2.PipelineSpec()
    places = _load(path, spec, optional=NOT_FOR_DATASETS)
    return PipelineFile(path, spec, places)


def load_sources(path: Path) -> PipelineFile:
    """Sources of a file; everything else may be absent.

    Raises:
        InvalidArgumentError: names the file, and line, column and field of everything that is wrong.
    """
    spec = cycle_pb2.PipelineSpec()
    places = _load(path, spec, optional=_NOT_FOR_SOURCES)
    return PipelineFile(path, spec, places)


def load_training(path: Path) -> TrainingFile:
    """The training of a file: of a pipeline if it names sources, else the whole file is a `training` section.

    Raises:
        InvalidArgumentError: names the file, and line, column and field of everything that is wrong.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        # Said by the reader, with line and column.
        value = {"sources": []}
    if not isinstance(value, dict) or "sources" in value or "training" in value:
        file = load_pipeline(path)
        return TrainingFile(path, file.spec.training, file.places, "training.")
    spec = run_pb2.TrainingSpec()
    return TrainingFile(path, spec, _load(path, spec))


def _load(path: Path, spec: Message, optional: Sequence[str] = ()) -> Mapping[str, tuple[int, int]]:
    """Reads a file into a message; returns the position of each field. `optional` fields need not be there."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InvalidArgumentError(f"{path}: this file does not exist.", reason="PIPELINE_FILE") from error
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8.", reason="PIPELINE_FILE"
        ) from error
    except OSError as error:
        raise InvalidArgumentError(f"{path}: cannot be read: {error.strerror}.", reason="PIPELINE_FILE") from error
    reader = _Reader(path, text)
    reader.read(spec)
    try:
        validate(spec)
    except InvalidArgumentError as error:
        given = {field.name for field, _ in spec.ListFields()}
        absent = [name for name in optional if name not in given]
        left = [violation for violation in error.violations if violation.field not in absent]
        if left or not error.violations:
            raise _located(path, reader.places, InvalidArgumentError(error.message, violations=left)) from error
    return reader.places


def _located(
    path: Path,
    places: Mapping[str, tuple[int, int]],
    error: InvalidArgumentError,
    prefix: str = "",
    training: Path | None = None,
) -> InvalidArgumentError:
    found = [FieldViolation(prefix + v.field.removeprefix("spec."), v.description) for v in error.violations]
    if not found:
        return error

    def file(name: str) -> Path:
        return training if training and _of_training(name) else path

    return _error([(file(v.field), _place(places, v.field), v.field, v.description) for v in found])


def _of_training(name: str) -> bool:
    return name.partition(".")[0] == _TRAINING


_Wrong = tuple[Path, tuple[int, int] | None, str, str]


def _error(wrong: Sequence[_Wrong]) -> InvalidArgumentError:
    lines = []
    for path, place, name, description in wrong:
        where = f"{path}:{place[0]}:{place[1]}" if place else str(path)
        lines.append(f"{where}: {name}: {description}" if name else f"{where}: {description}")
    return InvalidArgumentError(
        "\n".join(lines),
        reason="PIPELINE_FILE",
        metadata={"file": str(wrong[0][0])},
        violations=[FieldViolation(name, description) for _, _, name, description in wrong],
    )


def _place(places: Mapping[str, tuple[int, int]], name: str) -> tuple[int, int] | None:
    """The position of a field, or of its nearest parent if it is missing."""
    while name and name not in places:
        name = re.sub(r"(\.[^.\[]*|\[[^\]]*\]|^[^.\[]*)$", "", name)
    return places.get(name)


class _Reader:
    """Walks the YAML nodes together with the message's descriptor."""

    def __init__(self, path: Path, text: str) -> None:
        self._path, self._text = path, text
        self._wrong: list[_Wrong] = []
        self.places: dict[str, tuple[int, int]] = {}

    def read(self, spec: Message) -> None:
        """Fills the spec.

        Raises:
            InvalidArgumentError: with everything that is wrong.
        """
        self._loader = yaml.SafeLoader(self._text)
        try:
            node = self._loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = (mark.line + 1, mark.column + 1) if mark else None
            raise _error([(self._path, place, "", f"not valid YAML: {error.problem or error.context}.")]) from error
        except yaml.YAMLError as error:
            raise _error([(self._path, None, "", f"not valid YAML: {error}.")]) from error
        finally:
            self._loader.dispose()
        if node is None:
            raise _error([(self._path, None, "", "is empty; copy pipelines/headlines.yaml to begin.")])
        self._message(spec, node, "")
        if self._wrong:
            raise _error(self._wrong)

    def _refuse(self, node: yaml.Node, name: str, description: str) -> None:
        self._wrong.append((self._path, _mark(node), name, description))

    def _expected(self, node: yaml.Node, name: str, what: str) -> None:
        kind = _KINDS.get(node.tag.removeprefix(_TAG), node.tag)
        self._refuse(node, name, f"expected {what}, found {kind}.")

    def _message(self, message: Message, node: yaml.Node, path: str) -> None:
        if isinstance(message, struct_pb2.Struct):
            self._struct(message, node, path)
            return
        if isinstance(message, struct_pb2.Value):
            self._value(message, node, path)
            return
        if isinstance(message, OperatorSpec):
            node = self._operator(node)
        if isinstance(message, SearchRange) and isinstance(node, yaml.SequenceNode):
            at = (node.start_mark, node.end_mark)
            node = yaml.MappingNode(f"{_TAG}map", [(_word("values", *at), node)], *at)
        if not isinstance(node, yaml.MappingNode):
            self._expected(node, path, "a mapping with " + ", ".join(f.name for f in message.DESCRIPTOR.fields))
            return
        known: dict[str, Any] = {f.name: f for f in message.DESCRIPTOR.fields}
        for key, value, name in self._pairs(node, path, known):
            descriptor = known.get(key)
            if descriptor is not None:
                self._field(message, descriptor, value, name)
        self._relative_to_file(message)

    def _pairs(
        self, node: yaml.MappingNode, path: str, known: Iterable[str] | None
    ) -> Iterable[tuple[str, yaml.Node, str]]:
        self._loader.flatten_mapping(node)
        seen: dict[str, int] = {}
        for key_node, value in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse(key_node, path, "a key must be a plain word, without quotes or lists.")
                continue
            key = key_node.value
            name = f"{path}.{key}" if path else key
            if known is not None and key not in known:
                self._refuse(key_node, path, f"unknown field {key!r}{nearest(key, known)}")
                continue
            if key in seen:
                self._refuse(key_node, name, f"is given twice; the first is in line {seen[key]}.")
                continue
            seen[key] = key_node.start_mark.line + 1
            self.places[name] = _mark(key_node)
            yield key, value, name

    def _field(self, message: Message, descriptor: FieldDescriptor, node: yaml.Node, name: str) -> None:
        oneof = descriptor.containing_oneof
        if oneof is not None and (other := message.WhichOneof(oneof.name)) not in (None, descriptor.name):
            self._refuse(node, name, f"cannot be combined with {other!r}; give one of the two.")
            return
        if node.tag == f"{_TAG}null":
            return
        if descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry:
            self._map(getattr(message, descriptor.name), descriptor, node, name)
        elif descriptor.is_repeated:
            self._repeated(getattr(message, descriptor.name), descriptor, node, name)
        elif descriptor.message_type is not None:
            child = getattr(message, descriptor.name)
            child.SetInParent()
            self._message(child, node, name)
        else:
            self._scalar(descriptor, node, name, lambda value: setattr(message, descriptor.name, value))

    def _repeated(self, target: Any, descriptor: FieldDescriptor, node: yaml.Node, name: str) -> None:
        if not isinstance(node, yaml.SequenceNode):
            self._expected(node, name, "a list")
            return
        for number, item in enumerate(node.value):
            item_name = f"{name}[{number}]"
            self.places[item_name] = _mark(item)
            if descriptor.message_type is not None:
                self._message(target.add(), item, item_name)
            else:
                self._scalar(descriptor, item, item_name, target.append)

    def _map(self, target: Any, descriptor: FieldDescriptor, node: yaml.Node, name: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            self._expected(node, name, "a mapping")
            return
        entry: Any = descriptor.message_type
        value_type = entry.fields_by_name["value"]
        for key, value, value_name in self._pairs(node, name, None):
            # As errors of the validation name it.
            self.places[f"{name}[{key!r}]"] = self.places[value_name]
            if value_type.message_type is not None:
                self._message(target[key], value, value_name)
            else:
                self._scalar(value_type, value, value_name, lambda item, key=key: target.__setitem__(key, item))  # type: ignore[misc]

    def _struct(self, message: struct_pb2.Struct, node: yaml.Node, name: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            self._expected(node, name, "a mapping of parameters")
            return
        value = self._plain(node, name)
        try:
            json_format.ParseDict(value, message)
        except json_format.ParseError as error:
            self._refuse(node, name, str(error))

    def _value(self, message: struct_pb2.Value, node: yaml.Node, name: str) -> None:
        if not isinstance(node, yaml.ScalarNode) or node.tag == f"{_TAG}null":
            self._expected(node, name, "text, a number, or true or false")
            return
        json_format.ParseDict(self._plain(node, name), message)

    def _plain(self, node: yaml.Node, name: str) -> Any:
        """A value without a declared type, as JSON."""
        if isinstance(node, yaml.MappingNode):
            return {key: self._plain(value, value_name) for key, value, value_name in self._pairs(node, name, None)}
        if isinstance(node, yaml.SequenceNode):
            items = []
            for number, item in enumerate(node.value):
                self.places[f"{name}[{number}]"] = _mark(item)
                items.append(self._plain(item, f"{name}[{number}]"))
            return items
        assert isinstance(node, yaml.ScalarNode)
        resolved = self._expanded(node, name)
        if resolved is None:
            return None
        value = self._loader.construct_object(resolved)
        # JSON has no dates: a date stays the text of the file.
        return value if value is None or isinstance(value, str | int | float | bool) else resolved.value

    def _scalar(self, descriptor: FieldDescriptor, node: yaml.Node, name: str, give: Callable[[Any], None]) -> None:
        if not isinstance(node, yaml.ScalarNode):
            what = "text" if descriptor.type == FieldDescriptor.TYPE_STRING else "a single value"
            self._expected(node, name, what)
            return
        resolved = self._expanded(node, name)
        if resolved is None:
            return
        tag = resolved.tag.removeprefix(_TAG)
        match descriptor.type:
            case FieldDescriptor.TYPE_STRING if node.tag == f"{_TAG}str":
                give(resolved.value)
            case FieldDescriptor.TYPE_STRING:
                self._refuse(node, name, f"expected text, found {_KINDS.get(tag, tag)}; write it in quotes.")
            case FieldDescriptor.TYPE_BOOL if tag == "bool":
                give(self._loader.construct_object(resolved))
            case FieldDescriptor.TYPE_BOOL:
                self._expected(resolved, name, "true or false")
            case FieldDescriptor.TYPE_ENUM:
                enum: Any = descriptor.enum_type
                self._enum(enum, resolved, name, give)
            case FieldDescriptor.TYPE_DOUBLE | FieldDescriptor.TYPE_FLOAT:
                number = _number(resolved.value)
                if number is None:
                    self._expected(resolved, name, "a number")
                else:
                    give(number)
            case _:
                self._integer(descriptor, resolved, name, give)

    def _integer(
        self, descriptor: FieldDescriptor, node: yaml.ScalarNode, name: str, give: Callable[[Any], None]
    ) -> None:
        limit = _INTEGERS[descriptor.type]
        number = self._loader.construct_object(node) if node.tag == f"{_TAG}int" else None
        if number is None:
            whole = "a whole number" if node.tag == f"{_TAG}float" else "a number"
            self._refuse(node, name, f"expected {whole}, found {node.value!r}.")
        elif not -limit <= number < limit:
            self._refuse(node, name, f"{number} is out of range.")
        else:
            give(number)

    def _enum(self, descriptor: EnumDescriptor, node: yaml.ScalarNode, name: str, give: Callable[[Any], None]) -> None:
        prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
        short = enum_values(descriptor)
        wanted = node.value.lower().removeprefix(prefix.lower())
        if wanted in short:
            give(short[wanted])
        else:
            self._refuse(node, name, f"{node.value!r} is not a valid value{nearest(wanted, short)}")

    def _expanded(self, node: yaml.ScalarNode, name: str) -> yaml.ScalarNode | None:
        """The node with its variables replaced; None if a variable is not set."""
        if "${" not in node.value:
            return node
        missing = [
            match.group(1)
            for match in _VARIABLE.finditer(node.value)
            if _variable(match.group(1), match.group(2)) is None
        ]
        if missing:
            self._refuse(
                node, name, f"the variable {missing[0]} is not set; set it, or write ${{{missing[0]}:-default}}."
            )
            return None
        value = _VARIABLE.sub(lambda match: _variable(match.group(1), match.group(2)) or "", node.value)
        # After the replacement a number counts as a number where one is expected; braces need quotes.
        resolve: Any = self._loader.resolve
        tag = resolve(yaml.ScalarNode, value, (True, False))
        return yaml.ScalarNode(tag, value, node.start_mark, node.end_mark, node.style)

    @staticmethod
    def _operator(node: yaml.Node) -> yaml.Node:
        """The long form of `- name` and `- name: {parameter: value}`."""
        at = (node.start_mark, node.end_mark)
        if isinstance(node, yaml.ScalarNode):
            return yaml.MappingNode(f"{_TAG}map", [(_word("name", *at), node)], *at)
        if isinstance(node, yaml.MappingNode) and len(node.value) == 1 and node.value[0][0].value != "name":
            name, params = node.value[0]
            given = [] if params.tag == f"{_TAG}null" else [(_word("params", *at), params)]
            return yaml.MappingNode(f"{_TAG}map", [(_word("name", *at), name), *given], *at)
        return node

    def _relative_to_file(self, message: Message) -> None:
        if not isinstance(message, SourceSpec):
            return
        kind: Any = getattr(message, message.WhichOneof("kind") or "text_folder")
        if "uri" in kind.DESCRIPTOR.fields_by_name and kind.uri and not urlparse(kind.uri).scheme:
            kind.uri = str(self._path.absolute().parent / Path(kind.uri).expanduser())


def _word(text: str, start: yaml.Mark, end: yaml.Mark) -> yaml.ScalarNode:
    return yaml.ScalarNode(f"{_TAG}str", text, start, end)


def _mark(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _number(text: str) -> float | None:
    # YAML 1.1 reads 1e-3 as text; everyone else reads it as a number.
    try:
        return float(text.replace("_", ""))
    except ValueError:
        return None


def _variable(name: str, default: str | None) -> str | None:
    found = os.environ.get(name) or default
    if found is None and name == "TIDEMILL_DATA":
        return str(home_dir() / "data")
    return found


def enum_values(descriptor: EnumDescriptor) -> Mapping[str, int]:
    """The numbers of an enum's values, by their names as a file has them: in lower case, without the enum's name."""
    prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {value.name.removeprefix(prefix).lower(): value.number for value in descriptor.values if value.number}


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: what may have been meant."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; choose from {', '.join(names)}."
