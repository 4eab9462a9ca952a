"""Scripts of writing: conversion between Chinese ones, and a filter by share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Final, Literal

import opencc
from pydantic import Field

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.batch import Column
from services.cleaning.engine.operator import Filter, FilterParams, ParamsError, TextMap, TextMapParams

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


# Words side by side that hold a word of a region between them (少数|组织 holds 数组, in Taiwan 陣列), simplified and,
# by the same table, traditional.
_SIDE_BY_SIDE: Final = (
    "少数|组织 少数|组成 多数|组织 多数|组成 人数|组成 参数|组合 参数|组成 次数|组成 国内|存在 体内|存在 "
    "室内|存放 室内|存在 年内|存在 市内|存在 区内|存在 境内|存在 校内|存在 店内|存放 攻打|印度 攻打|印尼 "
    "电视|频道 电视|频率 监视|频繁 数字|符合 文字|符合 名字|符合 改变|量刑 参数|据此 人数|据说 人数|据统计 "
    "次数|据此 使用|户外 应用|户外 直接|口头 间接|口头 直接|口服 面对|象棋 针对|象征 相信|息息 工程|序列 "
    "过程|序列 课程|序言 日程|序列 官网|络绎 上网|络绎 沉默|认罪 沉默|认错 变质|量大 物质|量大 体质|量表 "
    "素质|量表 作文|件件 论文|件数 坚硬|盘子 坚硬|盘面 攻打|字面 银屏|幕后 荧屏|幕后 公布|局面 宣布|局势 "
    "发布|局长 分布|局部 公布|局部"
)
_BORDER: Final = "\ufdd0"


def _both_scripts(pairs: str) -> dict[str, list[str]]:
    traditional = opencc.OpenCC("s2t").convert(pairs)
    return {pair.replace("|", ""): pair.split("|") for pair in (*pairs.split(), *traditional.split())}


_PARTS: Final = _both_scripts(_SIDE_BY_SIDE)
_BORDERS: Final = re.compile("|".join(_PARTS))


class ConvertScriptParams(TextMapParams):
    """`conversion`: OpenCC's name of it, for example `t2s` for traditional to simplified.

    `s2t` changes characters only; `s2tw` writes them as Taiwan does, `s2twp` uses Taiwan's words, too (软件, 軟體).
    """

    conversion: Literal["t2s", "s2t", "tw2s", "tw2sp", "s2tw", "s2twp", "hk2s", "s2hk", "t2tw", "t2hk"] = "t2s"


class ConvertScript(TextMap[ConvertScriptParams]):
    """Converts between traditional and simplified Chinese, by phrases (OpenCC)."""

    params_type = ConvertScriptParams

    def __init__(self, params: ConvertScriptParams) -> None:
        super().__init__(params)
        self._converter = opencc.OpenCC(params.conversion)
        self._regional = params.conversion in ("s2twp", "tw2sp")

    def map(self, text: str) -> str:
        """The converted text."""
        if text.isascii():
            return text
        if not self._regional:
            converted: str = self._converter.convert(text)
            return converted
        # The words of a region are replaced by the longest match from the left, across the borders of other words.
        parted = _BORDERS.sub(lambda match: _BORDER.join(_PARTS[match.group()]), text)
        regional: str = self._converter.convert(parted)
        return regional.replace(_BORDER, "") if parted is not text else regional


class ScriptFilterParams(FilterParams):
    """`scripts` that count, and the share of a text's letters (not digits or signs) that they must have."""

    scripts: list[str] = Field(min_length=1)
    min_ratio: float = Field(0.5, ge=0, le=1)


class ScriptFilter(Filter[ScriptFilterParams]):
    """Drops texts that are written in another script: a cheap stand-in for language where scripts differ."""

    params_type = ScriptFilterParams

    def __init__(self, params: ScriptFilterParams) -> None:
        super().__init__(params)
        for script in params.scripts:
            if script not in _SCRIPTS:
                raise ParamsError("scripts", f"holds {script!r}, which is none of {', '.join(_SCRIPTS)}")

    def judge(self, column: Column) -> Mapping[int, Rejection]:
        """Finds fault with the reason `wrong_script`."""
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
    # Ranges hold digits and signs too; only letters count on either side.
    return np.logical_and(table, _letters())


@cache
def _letters() -> NDArray[np.bool_]:
    import numpy as np

    return np.fromiter((chr(code).isalpha() for code in range(0x110000)), dtype=bool, count=0x110000)
