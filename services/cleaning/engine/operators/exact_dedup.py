"""Keeps one of the records with equal content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.operator import Params, SetOperator, SetRecord

if TYPE_CHECKING:
    pass
from services.cleaning.engine.content_keys import content_keys


class ExactDedup(SetOperator[Params]):
    """Keeps the first of the records whose texts differ only in case, white space or invisible characters."""

    version = 3

    def judge(self, records: Sequence[SetRecord]) -> Mapping[int, Rejection]:
        """Drops with the reason `exact_duplicate`; the detail names the record that stays."""
        first: dict[str, str] = {}
        found: dict[int, Rejection] = {}
        keys = content_keys([record.text for record in records])
        for position, (key, record) in enumerate(zip(keys, records, strict=True)):
            name = record.name
            kept = first.setdefault(key, name)
            if kept != name:
                found[position] = Rejection("exact_duplicate", f"duplicate_of={kept}")
        return found
