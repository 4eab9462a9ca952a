"""Repair of mojibake, control and invisible characters, widths and quotes: ftfy's rules and rules for Chinese text.

ftfy is slow. Most texts have only characters that none of its rules changes (or that two of them map one to one); a
table of code points finds those texts for a whole batch at once, and a test compares the two on generated text.
Chinese, Japanese and Korean text keeps its full-width punctuation, which belongs to the script.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Final, Literal

import ftfy

from services.cleaning.engine.batch import Column
from services.cleaning.engine.invisible import visible
from services.cleaning.engine.marks import bounded_marks
from services.cleaning.engine.mojibake import MAX_COMMON_BEFORE, MIN_HAN, chinese_tables, repair_encoding
from services.cleaning.engine.operator import TextMap, TextMapParams
from services.masking.code_points import CodePoints
from services.masking.invisible import INVISIBLE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Characters that ftfy's rules keep or map one to one, independently of their neighbours: no control characters, and
# none that ftfy's mojibake categories call "bad" next to another of these. Currency signs are bad next to curly quotes,
# so that pair is excluded.
_PLAIN: Final = "\t\n\x20-\x7e\u2013\u2014\u2026\u3001-\u3029\u3041-\u3096\u30a1-\u30fa\u30fc\u3400-\u4dbf\u4e00-\u9fff"
_QUOTES: Final = "\u2018\u2019\u201c\u201d"
_WIDE: Final = "\u3000\uff01-\uff5e"
_CURRENCY: Final = "\xa3\u20ac"
_UNUSUAL: Final = re.compile(f"[^{_PLAIN}{_QUOTES}{_WIDE}{_CURRENCY}]")
_CURRENCY_BESIDE_QUOTE: Final = re.compile(f"[{_QUOTES}][{_CURRENCY}]|[{_CURRENCY}][{_QUOTES}]")
_UNUSUAL_ASCII: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_CJK_RANGES: Final = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7a3"
_CJK: Final = re.compile(f"[{_CJK_RANGES}]")
_ENTITY: Final = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
# Full-width signs inside a number or a name: １２：３０, ３．１４, ａ＠ｂ．ｃｏｍ, １００％.
_WIDE_SIGN: Final = re.compile(
    "(?<=[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a])[\uff03\uff06\uff0b\uff0d-\uff0f\uff1a\uff1d\uff20\uff3f]"
    "(?=[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a])"
    "|(?<=[\uff10-\uff19])\uff0c(?=[\uff10-\uff19]{3})|(?<=[\uff10-\uff19])\uff05"
)
_WIDE_LETTER: Final = re.compile("[\uff21-\uff3a\uff41-\uff5a]")
_APOSTROPHE: Final = re.compile("(?<=[A-Za-z])[\u2018\u2019](?=[A-Za-z])")
_LETTERS: Final = {
    code: chr(code - 0xFEE0)
    for first, last in ((0xFF10, 0xFF19), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A))
    for code in range(first, last + 1)
} | {0x3000: " "}
_SIGNS: Final = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | {
    0x3000: " ",
    0xFF5F: "\u2985",
    0xFF60: "\u2986",
}
_HALF: Final = re.compile("[\uff61-\uffee]")

# Bits of a code point; a text has the bits of all its code points.
_WORK, _WIDE_BIT, _QUOTE_BIT, _CURRENCY_BIT, _CJK_BIT = 1, 2, 4, 8, 16


class FixUnicodeParams(TextMapParams):
    """`normalization`: Unicode normal form of the result; `straighten_quotes`: curly quotes become straight ones.

    `width`: `letters` makes full-width letters and digits narrow and keeps the punctuation of Chinese, Japanese and
    Korean text; `all` makes everything narrow; `keep` makes nothing narrow.
    """

    normalization: Literal["NFC", "NFKC"] = "NFC"
    straighten_quotes: bool = True
    width: Literal["letters", "all", "keep"] = "letters"


class FixUnicode(TextMap[FixUnicodeParams]):
    """Repairs what ftfy repairs, and text in a wrong Chinese encoding; removes invisible characters.

    Entities become characters, except those of `<`, `>`, `&` and quotes, which `strip_html` decodes: decoded here,
    `&lt;b&gt;` would be a tag there.
    """

    version = 4
    params_type = FixUnicodeParams

    def __init__(self, params: FixUnicodeParams) -> None:
        super().__init__(params)
        self._config = ftfy.TextFixerConfig(
            normalization=None,
            unescape_html=False,
            uncurl_quotes=False,
            fix_character_width=False,
            explain=False,
        )
        # NFKC also changes characters of this list, such as the ellipsis.
        self._fast = params.normalization == "NFC"

    def map_column(self, column: Column) -> Sequence[str]:
        """Repairs the texts whose code points may need it."""
        if not self._fast:
            return super().map_column(column)
        return self.map_at(column, _may_need_repair(column.code_points(), self.params))

    def map(self, text: str) -> str:
        """The repaired text."""
        if "&" in text and "<" not in text:
            text = _ENTITY.sub(_character, text)
        text = repair_encoding(text)
        if text.isascii():
            text = text.replace("\r\n", "\n")
            return self._repair(text) if _UNUSUAL_ASCII.search(text) else text
        if not self._fast or _UNUSUAL.search(text) or _CURRENCY_BESIDE_QUOTE.search(text):
            text = self._repair(text)
        return self._narrow(text)

    def _repair(self, text: str) -> str:
        # ftfy splits lines at the line feed, and would take the carriage return for a control character.
        text = text.replace("\r\n", "\n")
        while True:
            # Marks are bounded between ftfy and the normalization, since a repair can bring more of them.
            repaired: str = bounded_marks(ftfy.fix_text(bounded_marks(text), self._config))
            text = unicodedata.normalize(self.params.normalization, repaired)
            if text == repaired:
                break
        seen = bounded_marks(visible(text))
        return seen if seen is text else unicodedata.normalize(self.params.normalization, seen)

    def _narrow(self, text: str) -> str:
        """Widths and quotes."""
        if text.isascii():
            return text
        cjk = _CJK.search(text) is not None
        width = self.params.width
        if width != "keep":
            if _HALF.search(text):
                halves = _HALF.sub(lambda match: unicodedata.normalize("NFKC", match.group()), text)
                text = unicodedata.normalize(self.params.normalization, halves)
            # Wide punctuation is Chinese, whatever is around it, unless the letters are wide, too.
            if width == "all" or (not cjk and _WIDE_LETTER.search(text)):
                text = text.translate(_SIGNS)
            else:
                text = _WIDE_SIGN.sub(lambda match: chr(ord(match.group()) - 0xFEE0), text).translate(_LETTERS)
        if self.params.straighten_quotes:
            # Chinese quotes are curly, so in Chinese text only apostrophes are straightened.
            text = _APOSTROPHE.sub("'", text) if cjk else ftfy.fixes.uncurl_quotes(text)
        return text


def _character(match: re.Match[str]) -> str:
    found = html.unescape(match.group())
    return match.group() if found in "<>&\"'" else found


def _may_need_repair(points: CodePoints, params: FixUnicodeParams) -> list[int]:
    """Positions of the texts that a repair may change."""
    import numpy as np

    if not len(points.codes):
        return []
    held = np.flatnonzero(points.lengths)
    starts = points.starts[held]
    bits = np.bitwise_or.reduceat(_table()[points.codes], starts)
    work = (bits & _WORK) > 0
    work |= (bits & (_QUOTE_BIT | _CURRENCY_BIT)) == (_QUOTE_BIT | _CURRENCY_BIT)
    if params.width == "all":
        work |= (bits & _WIDE_BIT) > 0
    if params.straighten_quotes:
        work |= (bits & _QUOTE_BIT) > 0
    chinese = np.flatnonzero((bits & _CJK_BIT) > 0)
    if len(chinese):
        han, common = (
            np.add.reduceat(table[points.codes], starts, dtype=np.int64)[chinese] for table in chinese_tables()
        )
        work[chinese[(han >= MIN_HAN) & (common < MAX_COMMON_BEFORE * han)]] = True
    candidates: list[int] = held[work].tolist()
    return candidates


@cache
def _table() -> NDArray[np.uint8]:
    """Bits of each code point, uint8 [0x110000]."""
    import numpy as np

    table = np.full(0x110000, _WORK, dtype=np.uint8)
    for ranges, bits in (
        (_PLAIN, 0),
        (_QUOTES, _QUOTE_BIT),
        ("\uff01-\uff5e", _WIDE_BIT),
        (_CURRENCY, _CURRENCY_BIT),
        ("\u3000\uff10-\uff19\uff21-\uff3a\uff41-\uff5a&~\u221a", _WORK),
        (INVISIBLE, _WORK),
    ):
        for first, last in _ranges(ranges):
            table[first : last + 1] = bits
    for first, last in _ranges(_CJK_RANGES):
        table[first : last + 1] |= _CJK_BIT
    return table


def _ranges(inside: str) -> list[tuple[int, int]]:
    """The code-point ranges in the inside of a character class."""
    found = re.findall("(.)(?:-(.))?", inside, re.DOTALL)
    return [(ord(first), ord(last or first)) for first, last in found]
