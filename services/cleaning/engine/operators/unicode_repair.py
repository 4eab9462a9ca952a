"""Repair of mojibake, control characters, widths and quotes, as ftfy does it, at a fraction of its cost.

ftfy looks at every character many times. Most text holds only characters that none of its rules touches (or that
two of them map one to one), and one regular expression finds that out; a test compares the two on generated text.
"""

from __future__ import annotations

import re
from typing import Literal

import ftfy

from services.cleaning.engine.operator import TextMap, TextMapParams

# Characters that ftfy's rules leave alone or map one to one, whatever stands beside them. Not `&` (entities), no
# control characters, nothing of ftfy's mojibake categories that is "bad" beside another of these; currency signs
# are, beside curly quotes, so that pair is excluded.
_PLAIN = (
    "\t\n\x20-\x25\x27-\x7e\u2013\u2014\u2026\u3001-\u3029\u3041-\u3096\u30a1-\u30fa\u30fc\u3400-\u4dbf\u4e00-\u9fff"
)
_QUOTES = "\u2018\u2019\u201c\u201d"
_WIDE = "\u3000\uff01-\uff05\uff07-\uff5e"
_CURRENCY = "\xa3\u20ac"
_UNUSUAL = re.compile(f"[^{_PLAIN}{_QUOTES}{_WIDE}{_CURRENCY}]")
_CURRENCY_BESIDE_QUOTE = re.compile(f"[{_QUOTES}][{_CURRENCY}]|[{_CURRENCY}][{_QUOTES}]")
_UNUSUAL_ASCII = re.compile(r"[\x00-\x08\x0b-\x1f\x7f&]")
_MAPPED = re.compile(f"[{_QUOTES}{_WIDE}]")


class FixUnicodeParams(TextMapParams):
    """`normalization`: Unicode normal form of the result; `straighten_quotes`: curly quotes become straight ones."""

    normalization: Literal["NFC", "NFKC"] = "NFC"
    straighten_quotes: bool = True


class FixUnicode(TextMap[FixUnicodeParams]):
    """Gives what `ftfy.fix_text` gives."""

    params_type = FixUnicodeParams

    def __init__(self, params: FixUnicodeParams) -> None:
        super().__init__(params)
        self._config = ftfy.TextFixerConfig(
            normalization=params.normalization, uncurl_quotes=params.straighten_quotes, explain=False
        )
        mapping = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
        mapping[0x3000] = " "
        if params.straighten_quotes:
            mapping |= {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'}
        self._mapping = mapping
        # NFKC changes more than this list of characters allows for (the ellipsis, for one).
        self._fast = params.normalization == "NFC"

    def map(self, text: str) -> str:
        """The repaired text."""
        if text.isascii():
            return self._repair(text) if _UNUSUAL_ASCII.search(text) else text
        if not self._fast or _UNUSUAL.search(text):
            return self._repair(text)
        if ("\xa3" in text or "\u20ac" in text) and _CURRENCY_BESIDE_QUOTE.search(text):
            return self._repair(text)
        return text.translate(self._mapping) if _MAPPED.search(text) else text

    def _repair(self, text: str) -> str:
        repaired: str = ftfy.fix_text(text, self._config)
        return repaired
