"""Rejects records that lack a field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.batch import Batch
from services.cleaning.engine.operator import FIELD_NAME, Params, RecordOperator


class DropIfMissingFieldParams(Params):
    """`fields`: names of attributes that must be present and not blank."""

    fields: list[Annotated[str, Field(pattern=FIELD_NAME)]] = Field(min_length=1, max_length=64)


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
