"""The normal form of texts: equal for texts that differ only in case, white space, compatible or invisible characters.

Unicode's normalization is slow, but for nearly all characters it replaces one character by another, independently of
the neighbours. A table does that for many texts at once. Texts with any other character are normalised by Python's
unicodedata, and a test compares the two.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

from services.cleaning.engine.invisible import visible
from services.cleaning.engine.marks import bounded_marks
from services.masking.code_points import code_points
from services.masking.invisible import INVISIBLE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Marks a code point that the table cannot replace.
_LONG_WAY: Final = 0xFFFFFFFF
_CHARS_AT_ONCE: Final = 1 << 18
_PARTS_OF_SYLLABLES: Final = (range(0x1100, 0x1200), range(0xA960, 0xA980), range(0xD7B0, 0xD800))
# The table covers, besides the basic plane, emoji and other pictures and the plane of rare ideographs.
_PICTURES: Final = range(0x1F000, 0x1FC00)
_IDEOGRAPHS: Final = range(0x20000, 0x2F800)


def normal_form(text: str) -> str:
    """The normal form of one text."""
    return " ".join(folded(text).split())


def folded(text: str) -> str:
    """The normal form, but with its white space kept."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", bounded_marks(visible(text)).translate(_raised()))
    return text.casefold()


@cache
def _raised() -> dict[int, str]:
    """Superscript and subscript digits and signs, with a mark before each: 10⁵ is not 105."""
    found: dict[int, str] = {}
    for code in (0xB2, 0xB3, 0xB9, *range(0x2070, 0x20A0)):
        kind, _, plain = unicodedata.decomposition(chr(code)).partition(" ")
        if kind in ("<super>", "<sub>") and not chr(int(plain, 16)).isalpha():
            found[code] = ("^" if kind == "<super>" else "_") + chr(int(plain, 16))
    return found


def all_folded(texts: Sequence[str]) -> list[str]:
    """`folded` of every text."""
    found: list[str] = []
    part: list[int] = []
    size = 0
    for position, text in enumerate(texts):
        if text.isascii():
            found.append(text.casefold())
            continue
        found.append(text)
        part.append(position)
        size += len(text)
        if size >= _CHARS_AT_ONCE:
            _fold(found, part)
            part, size = [], 0
    _fold(found, part)
    return found


def _fold(texts: list[str], positions: Sequence[int]) -> None:
    """Folds some of the texts, in place."""
    import numpy as np

    # The ellipsis becomes three characters, which the table cannot do, and is common in Chinese text.
    given = [texts[position].replace("\u2026", "...") for position in positions]
    points = code_points(given)
    mapped = _table()[points.codes]
    long_way = np.flatnonzero(mapped == _LONG_WAY)
    mapped[long_way] = 0x20
    together = mapped.tobytes().decode("utf-32-le", "surrogatepass")
    for position, start, length in zip(positions, points.starts.tolist(), points.lengths.tolist(), strict=True):
        texts[position] = together[start : start + length]
    for place in np.unique(np.searchsorted(points.starts, long_way, side="right") - 1).tolist():
        texts[positions[place]] = folded(given[place])


@cache
def _table() -> NDArray[np.uint32]:
    """The replacement of each code point, or `_LONG_WAY` if it depends on neighbours; uint32 [0x110000]."""
    import numpy as np

    table = np.full(0x110000, _LONG_WAY, dtype=np.uint32)
    codes = [*range(0x10000), *_PICTURES]
    # Characters that may combine with the one before them.
    seconds = {second for code in codes if (second := _second_of_pair(code))}
    parts = {code for syllables in _PARTS_OF_SYLLABLES for code in syllables}
    hidden = re.compile(f"[{INVISIBLE}]")
    raised = _raised()
    for code in codes:
        char = chr(code)
        # Surrogates and unassigned code points stay unchanged.
        made = unicodedata.normalize("NFKC", char).casefold()
        if len(made) == 1 and not hidden.match(char) and code not in raised:
            final = ord(unicodedata.normalize("NFKC", char))
            melts = unicodedata.combining(chr(final)) or final in seconds or final in parts
            if not melts:
                table[code] = ord(made)
    table[_IDEOGRAPHS.start : _IDEOGRAPHS.stop] = np.arange(_IDEOGRAPHS.start, _IDEOGRAPHS.stop, dtype=np.uint32)
    return table


def _second_of_pair(code: int) -> int:
    parts = unicodedata.decomposition(chr(code)).split()
    return int(parts[1], 16) if len(parts) == 2 and not parts[0].startswith("<") else 0
