"""Rejects texts with too few letters of the wanted scripts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Final

from pydantic import Field

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.batch import Column
from services.cleaning.engine.operator import Filter, FilterParams, ParamsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# Code-point ranges, both ends included.
_SCRIPTS: Final[dict[str, tuple[tuple[int, int], ...]]] = {
    "latin": ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x1E00, 0x1EFF)),
    "han": ((0x3007, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
    "kana": ((0x3041, 0x30FF), (0x31F0, 0x31FF)),
    "hangul": ((0x1100, 0x11FF), (0x3131, 0x318E), (0xAC00, 0xD7A3)),
    "cyrillic": ((0x400, 0x52F),),
    "greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "arabic": ((0x600, 0x6FF), (0x750, 0x77F)),
    "hebrew": ((0x590, 0x5FF),),
    "devanagari": ((0x900, 0x97F),),
    "thai": ((0xE00, 0xE7F),),
}


class ScriptFilterParams(FilterParams):
    """`scripts`: allowed scripts; `min_ratio`: their minimal share of a text's letters, without digits and symbols."""

    scripts: list[str] = Field(min_length=1)
    min_ratio: float = Field(0.5, ge=0, le=1)


class ScriptFilter(Filter[ScriptFilterParams]):
    """Drops texts in other scripts: a cheap filter for languages with different scripts."""

    params_type = ScriptFilterParams

    def __init__(self, params: ScriptFilterParams) -> None:
        super().__init__(params)
        for script in params.scripts:
            if script not in _SCRIPTS:
                raise ParamsError("scripts", f"contains {script!r}, which is not one of {', '.join(_SCRIPTS)}")

    def judge(self, column: Column) -> Mapping[int, Rejection]:
        """Rejects with the reason `wrong_script`."""
        import numpy as np

        points = column.code_points()
        wanted = _membership(tuple(sorted(set(self.params.scripts))))[points.codes]
        letters = _letters()[points.codes]
        found: dict[int, Rejection] = {}
        ends = np.stack([points.starts, points.starts + points.lengths])
        share = [np.concatenate(([0], np.cumsum(mask)))[ends] for mask in (wanted, letters)]
        inside, total = (part[1] - part[0] for part in share)
        limit = self.params.min_ratio
        for position in np.flatnonzero(inside < limit * total).tolist():
            ratio = inside[position] / total[position]
            found[position] = Rejection("wrong_script", f"script_ratio={ratio:.3f} < min_ratio={limit:g}")
        for position in np.flatnonzero(total == 0).tolist():
            found[position] = Rejection("wrong_script", "letters=0")
        return found


@cache
def _membership(scripts: tuple[str, ...]) -> NDArray[np.bool_]:
    import numpy as np

    table = np.zeros(0x110000, dtype=bool)
    for script in scripts:
        for first, last in _SCRIPTS[script]:
            table[first : last + 1] = True
    # The ranges also contain digits and signs; only letters count, here and in the total.
    return np.logical_and(table, _letters())


@cache
def _letters() -> NDArray[np.bool_]:
    import numpy as np

    return np.fromiter((chr(code).isalpha() for code in range(0x110000)), dtype=bool, count=0x110000)
