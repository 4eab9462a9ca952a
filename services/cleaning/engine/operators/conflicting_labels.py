"""Rejects records with equal content whose labels differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.operator import FIELD_NAME, Params, SetOperator, SetRecord

if TYPE_CHECKING:
    pass
from services.cleaning.engine.content_keys import words_keys


class ConflictingLabelsParams(Params):
    """`field`: the attribute with the label."""

    field: str = Field("label", pattern=FIELD_NAME)


class ConflictingLabels(SetOperator[ConflictingLabelsParams]):
    """Drops all records of a text that has different labels: it is unknown which one is right.

    Texts that differ only in punctuation, case, white space or invisible characters count as equal.
    """

    version = 3
    params_type = ConflictingLabelsParams

    @property
    def columns(self) -> Sequence[str]:
        """The label."""
        return (self.params.field,)

    def judge(self, records: Sequence[SetRecord]) -> Mapping[int, Rejection]:
        """Drops with the reason `conflicting_labels`; the detail counts the labels."""
        labels: dict[str, set[str]] = defaultdict(set)
        keys = words_keys([record.text for record in records])
        for key, record in zip(keys, records, strict=True):
            labels[key].add(record.attributes.get(self.params.field, ""))
        return {
            position: Rejection("conflicting_labels", f"labels={len(labels[key])}")
            for position, key in enumerate(keys)
            if len(labels[key]) > 1
        }
