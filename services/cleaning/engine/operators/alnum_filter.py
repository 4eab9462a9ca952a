"""Rejects texts with too few letters and digits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.batch import Column
from services.cleaning.engine.operator import Filter, FilterParams

if TYPE_CHECKING:
    pass
from services.cleaning.engine.characters import alnum_table


class AlnumFilterParams(FilterParams):
    """Limits of the share of letters and digits among all characters."""

    min_ratio: float = Field(0.25, ge=0, le=1)
    max_ratio: float = Field(1.0, ge=0, le=1)


class AlnumFilter(Filter[AlnumFilterParams]):
    """Drops texts with few letters and digits, such as tables of symbols, ASCII art and remains of markup."""

    params_type = AlnumFilterParams

    def judge(self, column: Column) -> Mapping[int, Rejection]:
        """Rejects with the reason `low_alnum` or `high_alnum`; empty text has the share 0."""
        import numpy as np

        points = column.code_points()
        running = np.concatenate(([0], np.cumsum(alnum_table()[points.codes])))
        counts = running[points.starts + points.lengths] - running[points.starts]
        ratios = counts / np.maximum(points.lengths, 1)
        low, high = self.params.min_ratio, self.params.max_ratio
        found: dict[int, Rejection] = {}
        for position in np.flatnonzero(ratios < low).tolist():
            found[position] = Rejection("low_alnum", f"alnum_ratio={ratios[position]:.3f} < min_ratio={low:g}")
        for position in np.flatnonzero(ratios > high).tolist():
            found[position] = Rejection("high_alnum", f"alnum_ratio={ratios[position]:.3f} > max_ratio={high:g}")
        return found
