"""Runs of combining marks, which Unicode's normalization sorts in quadratic time."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Final

from services.masking.code_points import code_points

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_MARKS: Final = 30
"""Marks on one character; no language uses more (Unicode's Stream-Safe Text Format, UAX #15)."""


def bounded_marks(text: str) -> str:
    """The text without the marks after the first `MAX_MARKS` on a character."""
    if len(text) <= MAX_MARKS or text.isascii():
        return text
    # Counting is much faster than the expression, and nearly every text has few marks.
    if int(_table()[code_points([text]).codes].sum()) <= MAX_MARKS:
        return text
    return _too_many().sub(r"\1", text)


@cache
def _too_many() -> re.Pattern[str]:
    inside = "".join(map(chr, _table().nonzero()[0].tolist()))
    return re.compile(f"([{inside}]{{{MAX_MARKS}}})[{inside}]+")


@cache
def _table() -> NDArray[np.bool_]:
    """Whether a code point is a mark, or becomes nothing but marks in a normal form; bool [0x110000]."""
    import numpy as np

    table = np.zeros(0x110000, dtype=bool)
    for code in range(0x300, 0x20000):
        char = chr(code)
        if unicodedata.combining(char) or unicodedata.decomposition(char):
            table[code] = all(map(unicodedata.combining, unicodedata.normalize("NFKD", char)))
    return table
