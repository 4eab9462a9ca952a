"""Operators that create attributes or check them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.batch import Batch
from services.cleaning.engine.operator import Params, RecordOperator

_NAME = r"^[a-z][a-z0-9_]{0,63}$"


class FirstLineToFieldParams(Params):
    """`field`: the attribute for the first line; with `keep_line` it also stays in the text."""

    field: str = Field(pattern=_NAME)
    keep_line: bool = False


class FirstLineToField(RecordOperator[FirstLineToFieldParams]):
    """Moves the first line that is not empty to an attribute, for example a headline."""

    params_type = FirstLineToFieldParams

    @property
    def columns(self) -> Sequence[str]:
        """The field."""
        return (self.params.field,)

    def apply(self, batch: Batch) -> None:
        """Drops texts with only one line, with the reason `no_first_line`."""
        found: dict[int, Rejection] = {}
        texts: list[str] = []
        for position, text in enumerate(batch.texts):
            head, _, body = text.lstrip().partition("\n")
            body = body.strip()
            if not body:
                found[position] = Rejection("no_first_line", "lines=1")
                texts.append(text)
                continue
            batch.attributes[position][self.params.field] = head.strip()
            texts.append(text if self.params.keep_line else body)
        batch.texts = texts
        batch.attributes_changed = True
        batch.reject(found)


class DropIfMissingFieldParams(Params):
    """`fields`: names of attributes that must be present and not blank."""

    fields: list[Annotated[str, Field(pattern=_NAME)]] = Field(min_length=1, max_length=64)


class DropIfMissingField(RecordOperator[DropIfMissingFieldParams]):
    """Drops records that lack an attribute."""

    params_type = DropIfMissingFieldParams

    @property
    def columns(self) -> Sequence[str]:
        """The fields."""
        return self.params.fields

    def apply(self, batch: Batch) -> None:
        """Drops with the reason `missing_field`."""
        found: dict[int, Rejection] = {}
        for position, attributes in enumerate(batch.attributes):
            missing = [name for name in self.params.fields if not attributes.get(name, "").strip()]
            if missing:
                found[position] = Rejection("missing_field", ",".join(missing))
        batch.reject(found)
