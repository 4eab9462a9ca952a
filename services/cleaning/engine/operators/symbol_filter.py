"""Rejects texts with too many symbols or digits."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.batch import Column
from services.cleaning.engine.characters import alnum_table, digit_table, space_table
from services.cleaning.engine.operator import Filter, FilterParams, ParamsError


class SymbolFilterParams(FilterParams):
    """Limits of the shares of symbols and of digits among the characters that are not white space.

    Symbols are all characters other than letters and digits, punctuation included. At least one must be given.
    """

    max_symbols: float | None = Field(None, ge=0, le=1)
    max_digits: float | None = Field(None, ge=0, le=1)


class SymbolFilter(Filter[SymbolFilterParams]):
    """Drops texts with many symbols or many digits, such as tables of numbers, logs and remains of code."""

    params_type = SymbolFilterParams

    def __init__(self, params: SymbolFilterParams) -> None:
        super().__init__(params)
        if params.max_symbols is None and params.max_digits is None:
            raise ParamsError("max_symbols", "must be given, or max_digits")

    def judge(self, column: Column) -> Mapping[int, Rejection]:
        """Rejects with the reason `many_symbols` or `many_digits`; a text of white space has none of both."""
        import numpy as np

        points = column.code_points()
        seen = ~space_table()[points.codes]
        symbols, digits = seen & ~alnum_table()[points.codes], digit_table()[points.codes]
        running = [np.concatenate(([0], np.cumsum(mask))) for mask in (seen, symbols, digits)]
        total, *counts = (each[points.starts + points.lengths] - each[points.starts] for each in running)
        found: dict[int, Rejection] = {}
        limits = (("digits", self.params.max_digits, counts[1]), ("symbols", self.params.max_symbols, counts[0]))
        for what, limit, count in limits:
            if limit is not None:
                for position in np.flatnonzero(count > limit * total).tolist():
                    ratio = count[position] / total[position]
                    found[position] = Rejection(f"many_{what}", f"{what}_ratio={ratio:.3f} > max_{what}={limit:g}")
        return found
