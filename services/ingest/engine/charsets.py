"""The text of bytes whose encoding is declared, declared wrongly, or not declared."""

from __future__ import annotations

import codecs
import re

# What programs call by a smaller name than they use.
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "iso8859-1": "cp1252", "ascii": "utf-8", "big5": "cp950"}
_GUESSED_FROM_BYTES = 4096
_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
_FEWEST_HIGH_BYTES = 4
_RELIABLE_GUESSES = frozenset(
    (
        *("gb18030", "gb2312", "gbk", "big5", "cp950", "big5hkscs", "shift_jis", "cp932", "euc_jp", "iso2022_jp"),
        *("euc_kr", "cp949", "johab", "koi8_r", "cp1251", "utf_16", "utf_16_le", "utf_16_be"),
    )
)


def text_of(data: bytes, charset: str) -> tuple[str, str]:
    """The text of bytes, and the encoding that they were read in: the declared one, else what they look like."""
    for name in filter(None, (codec_of(charset), "utf-8")):
        try:
            return data.decode(name), name
        except (UnicodeError, LookupError):
            continue
    # What is ASCII at the beginning, such as the head of a page, says nothing.
    first = _HIGH_BYTES.search(data)
    begin = first.start() if first is not None else 0
    name = _looks_like(data[begin : begin + _GUESSED_FROM_BYTES])
    return data.decode(name, "replace"), name


def _looks_like(data: bytes) -> str:
    """The encoding that bytes seem to be in; that of Western Europe unless they are surely in another."""
    from charset_normalizer import from_bytes

    runs = _HIGH_BYTES.findall(data)
    # Letters with accents stand alone; Chinese, Japanese, Korean and Cyrillic words are runs of such bytes.
    if sum(map(len, runs)) < max(_FEWEST_HIGH_BYTES, 2 * len(runs)):
        return "cp1252"
    best = from_bytes(data).best()
    return best.encoding if best is not None and best.encoding in _RELIABLE_GUESSES else "cp1252"


def codec_of(charset: str) -> str:
    """Python's name of an encoding of text; empty where it has none."""
    try:
        # Codecs from bytes to bytes (base64, zlib) are listed as well.
        if not charset or not isinstance(codecs.decode(b"", charset), str):
            return ""
        name = codecs.lookup(charset).name
    except (LookupError, ValueError):
        return ""
    return _SUPERSETS.get(name, name)
