"""The ranges in `search` of a pipeline file: checked against its training before anything starts, then applied to it.

It knows nothing of how values are chosen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from tidemill.pipeline.v1.search_pb2 import SearchRange
from tidemill.training.v1.run_pb2 import TrainingSpec

from gateway.cli.pipeline_file import PipelineFile, enum_values, nearest
from services.kit.errors import FieldViolation, InvalidArgumentError
from services.kit.grpc.validation import validate

Value = bool | int | float | str
Values = Mapping[str, Value]
"""A value for each searched field, by its name in `training`; of an enum its name in lower case."""

_NOT_LEARNT = ("dataset", "model_name", "compression", "evaluation", "strategy", "processes")
_PROMPT, _ANSWER = "prompt_template", "max_target_tokens"
_WHOLE = (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64)
_DIGITS = 3


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers between `low` and `high`, both included; or `values`, where there are any."""

    name: str
    whole: bool
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    values: tuple[Value, ...] = ()

    def rounded(self, value: Value) -> Value:
        """A number of the range with three digits, as people write it in a file; other values as they are."""
        if self.values or self.whole or not isinstance(value, float):
            return value
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)

    def holds(self, value: Value) -> bool:
        """Whether a value is in the range."""
        return (
            value in self.values if self.values else isinstance(value, int | float) and self.low <= value <= self.high
        )


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The ranges of a file, and the training that they belong to."""

    training: TrainingSpec
    ranges: tuple[Range, ...]

    @property
    def own(self) -> Values | None:
        """The values that the file's training has; None if one of them is outside of its range."""
        found: dict[str, Value] = {each.name: _get(self.training, each.name) for each in self.ranges}
        return found if all(each.holds(found[each.name]) for each in self.ranges) else None

    def combinations(self, limit: int) -> list[Values] | None:
        """All combinations of values; None if there are more than `limit`."""
        choices = [_choices(each, limit) for each in self.ranges]
        if any(not each for each in choices) or math.prod(map(len, choices)) > limit:
            return None
        names = [each.name for each in self.ranges]
        return [dict(zip(names, found, strict=True)) for found in itertools.product(*choices)]

    def spec(self, values: Values) -> TrainingSpec:
        """The training with these values."""
        found = TrainingSpec()
        found.CopyFrom(self.training)
        for name, value in values.items():
            _set(found, name, value)
        return found


def search_space(file: PipelineFile) -> SearchSpace:
    """The search that a file describes.

    Raises:
        InvalidArgumentError: it has none, or a range does not suit its training; with the lines of the file.
    """
    if not file.spec.HasField("search"):
        wrong = (
            "is missing; name the fields to search, such as `search: {ranges: {optimization.learning_rate: "
            "{low: 1e-4, high: 1e-2, log: true}}, trials: 12}`."
        )
        raise file.locate(InvalidArgumentError("The file has no search.", violations=[FieldViolation("search", wrong)]))
    training, ranges, wrongs = file.spec.training, [], []
    for name, given in file.spec.search.ranges.items():
        try:
            found = _range(training, name, given)
            _check_ends(SearchSpace(training, (found,)), found)
            ranges.append(found)
        except ValueError as error:
            wrongs.append(FieldViolation(f"search.ranges.{name}", str(error)))
    if wrongs:
        raise file.locate(InvalidArgumentError("The search cannot be made.", violations=wrongs))
    # By name: a map has no order, and the choices that follow from the seed must.
    return SearchSpace(training, tuple(sorted(ranges, key=lambda each: each.name)))


def shown(values: Values) -> str:
    """Values on one line."""
    return ", ".join(f"{name}={word(value)}" for name, value in values.items())


def word(value: Value) -> str:
    """A value as people read it."""
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _range(training: TrainingSpec, name: str, given: SearchRange) -> Range:
    field = _field(training, name)
    whole = field.type in _WHOLE
    if given.values:
        values = tuple(dict.fromkeys(_converted(field, _plain(each)) for each in given.values))
        return Range(name, whole, values=values)
    if not whole and field.type != FieldDescriptor.TYPE_DOUBLE:
        raise ValueError("is not a number; name its values in a list.")
    if whole and not (given.low.is_integer() and given.high.is_integer()):
        raise ValueError("is a whole number; name whole numbers as low and high.")
    return Range(name, whole, given.low, given.high, given.log)


def _field(training: TrainingSpec, name: str) -> FieldDescriptor:
    """The field of the training.

    Raises:
        ValueError: there is none that can be searched, and why.
    """
    first, *_ = parts = name.split(".")
    if first in _NOT_LEARNT:
        raise ValueError("does not change what is learnt.")
    message: Message = training
    *way, last = parts
    for part in way:
        field = _named(message.DESCRIPTOR, part)
        oneof = field.containing_oneof
        if field.message_type is None or field.message_type is Struct.DESCRIPTOR or field.is_repeated:
            raise ValueError(f"{part} has no fields that can be searched.")
        if oneof is not None and (chosen := message.WhichOneof(oneof.name)) != part:
            raise ValueError(f"the {oneof.name} of this training is {chosen}, not {part}.")
        message = getattr(message, part)
    field = _named(message.DESCRIPTOR, last)
    if field.message_type is not None or field.is_repeated:
        raise ValueError("is not a single value; name a field of it.")
    if way and first == training.WhichOneof("task"):
        measured = field.type == FieldDescriptor.TYPE_STRING and last != _PROMPT
        if measured or last == _ANSWER:
            raise ValueError("changes what is measured, so that trials could not be compared.")
    return field


def _named(message: Any, name: str) -> FieldDescriptor:
    fields: Mapping[str, Any] = message.fields_by_name
    if name not in fields:
        raise ValueError(f"unknown field {name!r}{nearest(name, list(fields))}")
    found: FieldDescriptor = fields[name]
    return found


def _converted(field: FieldDescriptor, value: Value) -> Value:
    """A value of the file as one of the field.

    Raises:
        ValueError: the field does not take it.
    """
    if field.enum_type is not None:
        known = enum_values(field.enum_type)
        if str(value).lower() not in known:
            raise ValueError(f"{value!r} is not a valid value{nearest(str(value), list(known))}")
        return str(value).lower()
    if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BOOL):
        wanted, what = (str, "text") if field.type == FieldDescriptor.TYPE_STRING else (bool, "true or false")
        if not isinstance(value, wanted):
            raise ValueError(f"expected {what}, found {value!r}.")
        return value
    try:
        # YAML 1.1 reads 1e-3 as text.
        number = math.nan if isinstance(value, bool) else float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"expected a number, found {value!r}.")
    if field.type in _WHOLE:
        if not number.is_integer():
            raise ValueError(f"expected a whole number, found {value!r}.")
        return int(number)
    return number


def _check_ends(space: SearchSpace, found: Range) -> None:
    """Checks what a range ends at, or each of its values, by the rules of a training."""
    for value in _ends(found):
        try:
            validate(space.spec({found.name: value}))
        except InvalidArgumentError as error:
            why = "; ".join(each.description for each in error.violations) or error.message
            raise ValueError(f"{value}: {why}") from error
        except ValueError as error:
            # The field has fewer bits.
            raise ValueError(f"{value} is out of range.") from error


def _ends(found: Range) -> Iterator[Value]:
    if found.values:
        yield from found.values
    else:
        yield from (int(end) if found.whole else end for end in (found.low, found.high))


def _choices(found: Range, limit: int) -> Sequence[Value]:
    """All values of a range; none if it has more than `limit`."""
    if found.values:
        return found.values
    count = found.high - found.low + 1
    return range(int(found.low), int(found.high) + 1) if found.whole and count <= limit else ()


def _plain(value: Any) -> Value:
    plain: Value = getattr(value, value.WhichOneof("kind"))
    return plain


def _get(training: TrainingSpec, name: str) -> Value:
    *way, last = name.split(".")
    message: Message = training
    for part in way:
        message = getattr(message, part)
    value: Value = getattr(message, last)
    enum: Any = message.DESCRIPTOR.fields_by_name[last].enum_type
    if enum is not None:
        return next((short for short, number in enum_values(enum).items() if number == value), "")
    return value


def _set(training: TrainingSpec, name: str, value: Value) -> None:
    *way, last = name.split(".")
    message: Message = training
    for part in way:
        message = getattr(message, part)
    enum: Any = message.DESCRIPTOR.fields_by_name[last].enum_type
    setattr(message, last, value if enum is None else enum_values(enum)[str(value)])
