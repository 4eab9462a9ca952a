"""Moves the first line of a text, such as a headline, to a field."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.batch import Batch
from services.cleaning.engine.operator import FIELD_NAME, Params, RecordOperator


class FirstLineToFieldParams(Params):
    """`field`: the attribute for the first line; with `keep_line` it also stays in the text."""

    field: str = Field(pattern=FIELD_NAME)
    keep_line: bool = False


class FirstLineToField(RecordOperator[FirstLineToFieldParams]):
    """Moves the first line that is not empty to an attribute, for example a headline.

    A text whose attribute is there already stays as it is: feedback comes without that line.
    """

    version = 2
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
            if batch.attributes[position].get(self.params.field):
                texts.append(text)
                continue
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
