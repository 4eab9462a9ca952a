"""Operators: on single records, as they arrive, or on the whole set, when a version is built."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.batch import Batch, Column
from services.kit.ids import record_name

FIELD_NAME = r"^[a-z][a-z0-9_]{0,63}$"
"""Pattern of the name of a record's field."""


class Params(BaseModel):
    """Parameters of an operator; an unknown name is an error, and so is a value of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


TEXT_FIELD: Final = "text"
ALL_FIELDS: Final = "*"
_FIELD = re.compile(r"[a-z][a-z0-9_]{0,63}|\*")


class FieldParams(Params):
    """`fields`: what it applies to: names of attributes, `text` for the record's text, `*` for the whole record."""

    fields: list[str] = Field(default=[TEXT_FIELD], min_length=1, max_length=64)

    @field_validator("fields")
    @classmethod
    def _names(cls, fields: list[str]) -> list[str]:
        for name in fields:
            if _FIELD.fullmatch(name) is None:
                raise ValueError(f"{name!r} is neither `text`, nor `*`, nor a valid name of an attribute")
        return fields

    @property
    def parts(self) -> tuple[bool, Sequence[str] | None]:
        """Whether the text is included, and the names of the attributes; None means every attribute."""
        if ALL_FIELDS in self.fields:
            return True, None
        return TEXT_FIELD in self.fields, tuple(name for name in self.fields if name != TEXT_FIELD)


class TextMapParams(FieldParams):
    """`fields`: what it changes: names of attributes, `text` for the record's text, `*` for the whole record."""


class FilterParams(FieldParams):
    """`fields`: what it checks: names of attributes, `text` for the record's text, `*` for the whole record.

    A record is dropped if one of them is rejected; an attribute that the record does not have is not checked.
    """


P = TypeVar("P", bound=Params)
M = TypeVar("M", bound=TextMapParams)
F = TypeVar("F", bound=FilterParams)


class Operator(ABC, Generic[P]):
    """An operator with its parameters; the constructor does all work that does not depend on a record.

    `version` is part of a recipe's digest: increase it when the same parameters give other results than before.
    """

    version: ClassVar[int] = 1
    params_type: ClassVar[type[Params]] = Params

    def __init__(self, params: P) -> None:
        self.params = params
        # Its name in recipes, and the id of the key that it uses, if any; both set by the registry.
        self.name = ""
        self.key_id = ""

    def use_key(self, key: bytes) -> str:
        """Takes the mesh's secret key, before the first record; for operators that derive something from it.

        Args:
            key: empty where the service has none.

        Returns:
            An id of this key, as part of the recipe's digest; empty if the key is not used.

        Raises:
            ParamsError: a parameter needs a key, and there is none.
        """
        return ""

    @property
    def columns(self) -> Sequence[str]:
        """Attributes that it creates or checks; they become columns of a data set."""
        return ()

    @property
    def memory_bytes(self) -> int:
        """Approximate memory that it may use, if that depends on its parameters."""
        return 0


class RecordOperator(Operator[P]):
    """Works on single records."""

    @abstractmethod
    def apply(self, batch: Batch) -> None:
        """Changes or drops records of a batch."""


class TextMap(RecordOperator[M]):
    """Replaces the text, or attributes, each by a new text."""

    params_type: ClassVar[type[Params]] = TextMapParams

    @abstractmethod
    def map(self, text: str) -> str:
        """The new text.

        Raises:
            TextRefusedError: the record must be dropped.
        """

    def map_column(self, column: Column) -> Sequence[str]:
        """Replaces every text of a column. Override it if it is cheap to find the texts that do not change.

        Raises:
            TextRefusedError: a record must be dropped; each text is then mapped alone.
        """
        return [self.map(text) for text in column.texts]

    def map_at(self, column: Column, positions: Sequence[int]) -> Sequence[str]:
        """Replaces the texts of a column at these positions; for a `map_column` that leaves all others unchanged."""
        if not positions:
            return column.texts
        texts = list(column.texts)
        for position in positions:
            texts[position] = self.map(texts[position])
        return texts

    def apply(self, batch: Batch) -> None:
        """Replaces every one of its fields."""
        text, names = self.params.parts
        if text:
            batch.map_texts(self.map_column)
        if names is None or names:
            batch.map_attributes(self.map_column, names)


class Filter(RecordOperator[F]):
    """Drops records because of their text or of attributes."""

    params_type: ClassVar[type[Params]] = FilterParams

    @property
    def columns(self) -> Sequence[str]:
        """The attributes that it checks."""
        return self.params.parts[1] or ()

    @abstractmethod
    def judge(self, column: Column) -> Mapping[int, Rejection]:
        """Rejections by position; the detail has the measured value and the limit, never the text."""

    def apply(self, batch: Batch) -> None:
        """Drops records with a rejected field."""
        text, names = self.params.parts
        if text:
            batch.judge_texts(self.judge)
        if names is None or names:
            batch.judge_attributes(self.judge, names)


@dataclass(frozen=True, slots=True)
class SetRecord:
    """A cleaned record, as passed to set operators."""

    record_id: str
    text: str
    attributes: Mapping[str, str]
    source: str = ""
    feedback: bool = False
    """Whether it comes from feedback: of equal records it is the one that goes."""

    @property
    def name(self) -> str:
        """Unique name: records of several sources may have the same id."""
        return record_name(self.source, self.record_id) if self.source else self.record_id


class SetOperator(Operator[P]):
    """Works on a whole set."""

    @abstractmethod
    def judge(self, records: Sequence[SetRecord]) -> Mapping[int, Rejection]:
        """Records to drop, by position. `records` are sorted by id, so that the result is reproducible."""


class ParamsError(ValueError):
    """A parameter has a value of the right type that the operator does not accept."""

    def __init__(self, parameter: str, description: str) -> None:
        super().__init__(description)
        self.parameter = parameter
