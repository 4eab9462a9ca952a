"""Classes of characters (letters and digits, CJK, signs) as tables over all code points, and counting of words."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING

from services.masking.code_points import CodePoints

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# Han and kana are written without spaces: each of them counts as a word.
_CJK_RANGES = (
    (0x3005, 0x3007),
    (0x3041, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)

CJK = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in _CJK_RANGES) + "]")


def count_words(text: str) -> int:
    """Number of words between white space; every Chinese or Japanese character counts as a word."""
    if text.isascii():
        return len(text.split())
    spaced, characters = CJK.subn(" ", text)
    return characters + sum(any(char.isalnum() for char in word) for word in spaced.split())


@cache
def alnum_table() -> NDArray[np.bool_]:
    """Whether a code point is a letter or a digit, as `str.isalnum` says; bool [0x110000]."""
    import numpy as np

    return np.fromiter((chr(code).isalnum() for code in range(0x110000)), dtype=bool, count=0x110000)


@cache
def space_table() -> NDArray[np.bool_]:
    """Whether a code point is white space; bool [0x110000]."""
    import numpy as np

    return np.fromiter((chr(code).isspace() for code in range(0x110000)), dtype=bool, count=0x110000)


@cache
def cjk_table() -> NDArray[np.bool_]:
    """Whether a code point counts as a word of its own; bool [0x110000]."""
    import numpy as np

    table = np.zeros(0x110000, dtype=bool)
    for first, last in _CJK_RANGES:
        table[first : last + 1] = True
    return table


@cache
def digit_table() -> NDArray[np.bool_]:
    """Whether a code point is a digit; bool [0x110000]."""
    import numpy as np

    return np.fromiter((chr(code).isdigit() for code in range(0x110000)), dtype=bool, count=0x110000)


@cache
def sign_table() -> NDArray[np.bool_]:
    """Whether a code point is a sign with a meaning of its own: emoji, symbols, `+`, `#`, `%`; bool [0x110000]."""
    import numpy as np

    kinds = ("So", "Sm", "Sc")
    table = np.fromiter(
        (unicodedata.category(chr(code)) in kinds for code in range(0x110000)), dtype=bool, count=0x110000
    )
    # Frames of tables, arrows of lists and brackets of mark-up are often layout: `meaning_signs` looks at their place.
    table[0x2190:0x2200] = table[0x2500:0x2600] = False
    table[[ord(char) for char in "<>|~=^`"]] = False
    table[[ord(char) for char in "#%"]] = True
    return table


_MINUSES = (0x2D, 0x2013, 0x2212)
_LINE_END = 0x0A


def meaning_signs(points: CodePoints) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which characters of folded texts mean something though they are neither letters nor digits; bool [total] each.

    The first are the minuses of numbers. The second are all signs: those of `sign_table`, minuses, comparisons (`>140`,
    `a != b`), arrows beside a word, and emoticons. The same characters are layout elsewhere: bullets, quotes of mail,
    lines under a title.
    """
    import numpy as np

    codes = points.codes
    signs = sign_table()[codes]
    if not len(codes):
        return signs, signs.copy()
    edges = np.zeros(len(codes), dtype=bool)
    edges[points.starts[points.lengths > 0]] = True
    before, after = _shifted(codes, edges, 1), _shifted(codes, edges, -1)
    latin = alnum_table()[before] & ~cjk_table()[before]
    minus = np.isin(codes, _MINUSES) & digit_table()[after] & ~latin & ~sign_table()[before]
    arrows = (codes >= 0x2190) & (codes < 0x2200) & (alnum_table()[before] | alnum_table()[after])
    signs = signs | minus | arrows
    # The rest is rare, so it is looked at one by one.
    rare = np.flatnonzero(np.isin(codes, (0x3C, 0x3D, 0x3E, 0x3A, 0x3B)))
    if len(rare):
        owners = np.searchsorted(points.starts, rare, side="right") - 1
        for owner in np.unique(owners).tolist():
            start = int(points.starts[owner])
            part = codes[start : start + int(points.lengths[owner])]
            text = part.tobytes().decode("utf-32-le", "surrogatepass")
            for match in _RARE_SIGNS.finditer(text):
                signs[start + match.start() : start + match.end()] = True
    return minus, signs


_RARE_SIGNS = re.compile(
    # Comparisons, between words or before a number; a longer run is a line.
    r"(?<![<>=!])(?:[<>]=?|[=!]==?|=[<>]?|<>)(?![<>=!])(?:(?<=\w[<>=])(?=\w|[ ]\w)|(?<=\w[<>=!][<>=])(?=\w|[ ]\w)"
    r"|(?<=\w[ ][<>=])(?=[ ]?\w)|(?<=\w[ ][<>=!][<>=])(?=[ ]?\w)|(?=[0-9]))"
    # Emoticons: not the colon and the bracket of `note: (one)`.
    r"|[:;=]['^-]?[()\[\]](?!\w)"
)


def _shifted(codes: NDArray[np.uint32], edges: NDArray[np.bool_], by: int) -> NDArray[np.uint32]:
    """The character before (1) or after (-1) each one; a line end at the edge of a text."""
    import numpy as np

    found = np.roll(codes, by)
    outside = edges if by > 0 else np.roll(edges, -1)
    found[outside] = _LINE_END
    if by > 0:
        found[0] = _LINE_END
    else:
        found[-1] = _LINE_END
    return found


def kept_between(points: CodePoints) -> NDArray[np.bool_]:
    """Which characters belong to a number: `1.5`, `10:30`, `1/2`, `3-1`, a power; bool [total]."""
    import numpy as np

    codes = points.codes
    if not len(codes):
        return np.zeros(0, dtype=bool)
    edges = np.zeros(len(codes), dtype=bool)
    edges[points.starts[points.lengths > 0]] = True
    before, after = _shifted(codes, edges, 1), _shifted(codes, edges, -1)
    inside = np.isin(codes, [ord(char) for char in ".,:/-"]) & digit_table()[before]
    raised = np.isin(codes, [ord(char) for char in "^_"]) & alnum_table()[before]
    return (inside | raised) & digit_table()[after]
