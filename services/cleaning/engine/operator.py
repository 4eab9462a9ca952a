"""What an operator is. Two kinds: on single records, as they arrive; on the whole set, when a version is built."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.batch import Batch
from services.kit.ids import record_name


class Params(BaseModel):
    """Parameters of an operator; a name that it does not know is an error, and so is a value of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


TEXT_FIELD: Final = "text"
ALL_FIELDS: Final = "*"
_FIELD = re.compile(r"[a-z][a-z0-9_]{0,63}|\*")


class TextMapParams(Params):
    """`fields`: what it works on, names of attributes, `text` for the record's text, `*` for all of a record."""

    fields: list[str] = Field(default=[TEXT_FIELD], min_length=1, max_length=64)

    @field_validator("fields")
    @classmethod
    def _names(cls, fields: list[str]) -> list[str]:
        for name in fields:
            if _FIELD.fullmatch(name) is None:
                raise ValueError(f"{name!r} is neither `text`, nor `*`, nor a valid name of an attribute")
        return fields


P = TypeVar("P", bound=Params)
M = TypeVar("M", bound=TextMapParams)


class Operator(ABC, Generic[P]):
    """An operator with its parameters; building one does all work that does not depend on a record.

    `version` is part of a recipe's digest: raise it when the same parameters give other results than before.
    """

    version: ClassVar[int] = 1
    params_type: ClassVar[type[Params]] = Params

    def __init__(self, params: P) -> None:
        self.params = params
        # The name that a recipe calls it by; the registry knows it.
        self.name = ""

    @property
    def columns(self) -> Sequence[str]:
        """Attributes that it makes or judges; they become columns of a data set."""
        return ()

    @property
    def memory_bytes(self) -> int:
        """What it may hold, about, where its parameters decide on that."""
        return 0


class RecordOperator(Operator[P]):
    """Works on single records."""

    @abstractmethod
    def apply(self, batch: Batch) -> None:
        """Changes or drops records of a batch."""


class TextMap(RecordOperator[M]):
    """Replaces a text, or attributes, by what it makes of each."""

    params_type: ClassVar[type[Params]] = TextMapParams

    @abstractmethod
    def map(self, text: str) -> str:
        """The new text.

        Raises:
            TextRefusedError: the record is to be dropped.
        """

    def map_texts(self, batch: Batch) -> None:
        """Replaces every text; an operator that can clear many at once does so here."""
        batch.map_texts(self.map)

    def apply(self, batch: Batch) -> None:
        """Replaces every one of its fields."""
        fields = self.params.fields
        everything = ALL_FIELDS in fields
        if everything or TEXT_FIELD in fields:
            self.map_texts(batch)
        if everything:
            batch.map_attributes(self.map)
        elif names := [name for name in fields if name != TEXT_FIELD]:
            batch.map_attributes(self.map, names)


@dataclass(frozen=True, slots=True)
class SetRecord:
    """A cleaned record as set operators see it."""

    record_id: str
    text: str
    attributes: Mapping[str, str]
    source: str = ""

    @property
    def name(self) -> str:
        """What tells it from every other record, also from one of another source with the same id."""
        return record_name(self.source, self.record_id) if self.source else self.record_id


class SetOperator(Operator[P]):
    """Works on a whole set."""

    @abstractmethod
    def judge(self, records: Sequence[SetRecord]) -> Mapping[int, Rejection]:
        """Which records to drop, by position; `records` are in order of their ids, so the answer is always the same."""


class ParamsError(ValueError):
    """A parameter's value that its type allows and the operator does not."""

    def __init__(self, parameter: str, description: str) -> None:
        super().__init__(description)
        self.parameter = parameter
