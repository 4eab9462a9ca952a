"""Classes of characters (letters and digits, CJK, signs) as tables over all code points, and counting of words."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING

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
    # Frames of tables, arrows of lists and brackets of mark-up are layout.
    table[0x2190:0x2200] = table[0x2500:0x2600] = False
    table[[ord(char) for char in "<>|~=^`"]] = False
    table[[ord(char) for char in "#%"]] = True
    return table
