"""Rejects texts that are too short or too long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.batch import Column
from services.cleaning.engine.operator import Filter, FilterParams, ParamsError

if TYPE_CHECKING:
    pass
from services.cleaning.engine.characters import count_words


class LengthFilterParams(FilterParams):
    """Inclusive limits; at least one must be given."""

    min_chars: int | None = Field(None, ge=0)
    max_chars: int | None = Field(None, ge=1)
    min_words: int | None = Field(None, ge=0)
    max_words: int | None = Field(None, ge=1)


class LengthFilter(Filter[LengthFilterParams]):
    """Drops texts that are too short or too long."""

    params_type = LengthFilterParams

    def __init__(self, params: LengthFilterParams) -> None:
        super().__init__(params)
        if not params.model_dump(exclude_none=True, exclude={"fields"}):
            raise ParamsError("min_chars", "must be given, or another limit")
        for unit in ("chars", "words"):
            low, high = getattr(params, f"min_{unit}"), getattr(params, f"max_{unit}")
            if low is not None and high is not None and low > high:
                raise ParamsError(f"min_{unit}", f"is {low}, more than max_{unit}={high}")
        self._words = params.min_words is not None or params.max_words is not None

    def judge(self, column: Column) -> Mapping[int, Rejection]:
        """Rejects with the reason `too_short` or `too_long`."""
        p = self.params
        found = self._outside(list(map(len, column.texts)), "chars", p.min_chars, p.max_chars)
        if self._words:
            words = [count_words(text) for text in column.texts]
            found = self._outside(words, "words", p.min_words, p.max_words) | found
        return found

    @staticmethod
    def _outside(sizes: list[int], unit: str, low: int | None, high: int | None) -> dict[int, Rejection]:
        found: dict[int, Rejection] = {}
        for position, size in enumerate(sizes):
            if low is not None and size < low:
                found[position] = Rejection("too_short", f"{unit}={size} < min_{unit}={low}")
            elif high is not None and size > high:
                found[position] = Rejection("too_long", f"{unit}={size} > max_{unit}={high}")
        return found
