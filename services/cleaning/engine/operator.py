"""What an operator is. Two kinds: on single records, as they arrive; on the whole set, when a version is built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.batch import Batch
from services.kit.ids import record_name


class Params(BaseModel):
    """Parameters of an operator; a name that it does not know is an error, and so is a value of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


P = TypeVar("P", bound=Params)


class Operator(ABC, Generic[P]):
    """An operator with its parameters; building one does all work that does not depend on a record.

    `version` is part of a recipe's digest: raise it when the same parameters give other results than before.
    """

    version: ClassVar[int] = 1
    params_type: ClassVar[type[Params]] = Params

    def __init__(self, params: P) -> None:
        self.params = params

    @property
    def columns(self) -> Sequence[str]:
        """Attributes that it makes or judges; they become columns of a data set."""
        return ()


class RecordOperator(Operator[P]):
    """Works on single records."""

    @abstractmethod
    def apply(self, batch: Batch) -> None:
        """Changes or drops records of a batch."""


class TextMap(RecordOperator[P]):
    """Replaces a text by another."""

    @abstractmethod
    def map(self, text: str) -> str:
        """The new text."""

    def apply(self, batch: Batch) -> None:
        """Replaces every text."""
        batch.map_texts(self.map)


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
