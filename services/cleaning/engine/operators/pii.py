"""Masking of personal data by pattern: fast, checked by check digits where a kind has them.

It finds what has a shape (addresses, numbers); names of persons and places have none and stay. A few cheap looks
decide which patterns run at all, because most text holds none of this.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import Final, Literal

from pydantic import Field

from services.cleaning.engine.operator import ALL_FIELDS, ParamsError, TextMap, TextMapParams

Kind = Literal["url", "email", "id_card", "bank_card", "ip", "phone"]

_TOKENS: Final[dict[str, str]] = {
    "url": "[URL]",
    "email": "[EMAIL]",
    "id_card": "[ID]",
    "bank_card": "[CARD]",
    "ip": "[IP]",
    "phone": "[PHONE]",
}
_NUMERIC: Final = ("id_card", "bank_card", "ip", "phone")
# Seven digits or more with signs between them that numbers of people are written with.
_LONG_NUMBER = re.compile(r"[0-9][0-9 ().\-]{5,}[0-9Xx]")
_PATTERNS: Final[dict[str, re.Pattern[str]]] = {
    # Ends before Chinese text, brackets and the punctuation of the sentence around it.
    "url": re.compile(
        r"(?:(?:https?|ftp)://|(?<![\w.@-])www\.(?=[\w-]+\.))[^\s<>\"'\u3000-\u303f\u3400-\u9fff\uff00-\uffef]+(?<![.,;:!?)\]])"
    ),
    "email": re.compile(
        r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
    ),
    # China's resident identity card, then the social security number of the United States, as it is written there
    "id_card": re.compile(
        r"(?<![0-9A-Za-z])[1-9][0-9]{5} ?(?:18|19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:[0-2][0-9]|3[01])"
        r" ?[0-9]{3}[0-9Xx](?![0-9A-Za-z])"
        r"|(?<![0-9A-Za-z.-])(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}(?![0-9A-Za-z-])"
    ),
    # In fours, the last of them of one to seven digits; American Express in 4, 6 and 5
    "bank_card": re.compile(
        r"(?<![0-9A-Za-z.+-])"
        r"(?:[1-9][0-9]{3}(?:[ -]?[0-9]{4}){2,3}(?:[ -]?[0-9]{1,7})?|3[47][0-9]{2}[ -][0-9]{6}[ -][0-9]{5})"
        r"(?![0-9A-Za-z-])"
    ),
    "ip": re.compile(
        r"(?<![0-9.])(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})\.){3}(?:25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})(?![0-9]|\.[0-9])"
    ),
    "phone": re.compile(
        r"(?<![0-9A-Za-z])(?:"
        # China: mobile, then area code and number, then service numbers
        r"(?:(?:\+|00)?86[ -]?)?1[3-9][0-9](?:[ -]?[0-9]{4}){2}"
        r"|\(?0[1-9][0-9]{1,2}\)?[ -]?[0-9]{3,4}[ -]?[0-9]{4}(?:-[0-9]{1,6})?"
        r"|[48]00-?[0-9]{3}-?[0-9]{4}"
        # North America, Britain, anything with a country code
        r"|(?:(?:\+|00)?1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])[0-9]{3}[ .-][0-9]{4}"
        r"|\(?0[1-9][0-9]{1,4}\)?(?:[ -][0-9]{3,8}){1,3}"
        r"|\+[1-9](?:[ ().-]{0,2}[0-9]){7,14}"
        r")(?: ?(?:[Xx]|[Ee]xt\.?) ?[0-9]{1,6})?(?![0-9A-Za-z])"
    ),
}
_IPV6: Final = re.compile(r"(?<![0-9A-Za-z:.])(?:[0-9A-Fa-f]{1,4}:){1,7}(?::?[0-9A-Fa-f]{1,4}){1,6}(?![0-9A-Za-z:])")
_ID_WEIGHTS: Final = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


class MaskPiiParams(TextMapParams):
    """`kinds` to mask, and `tokens` to write for them where other ones than `[EMAIL]`, `[PHONE]`… are wanted."""

    # What is masked in the text must not stand in an attribute that a model learns to write.
    fields: list[str] = Field(default=[ALL_FIELDS], min_length=1, max_length=64)
    kinds: list[Kind] = Field(default=["email", "id_card", "bank_card", "ip", "phone"], min_length=1)
    tokens: dict[str, str] = Field(default_factory=dict)


class MaskPii(TextMap[MaskPiiParams]):
    """Replaces personal data by a token of its kind."""

    version = 2
    params_type = MaskPiiParams

    def __init__(self, params: MaskPiiParams) -> None:
        super().__init__(params)
        for kind in params.tokens:
            if kind not in _TOKENS:
                raise ParamsError("tokens", f"holds {kind!r}, which is none of {', '.join(_TOKENS)}")
        self._tokens = {**_TOKENS, **params.tokens}
        self._url, self._email, self._ip = (kind in params.kinds for kind in ("url", "email", "ip"))
        # The table's order: the longer and stricter shape first, so that a phone number is not seen in a card's.
        self._numeric = [kind for kind in _NUMERIC if kind in params.kinds]

    def map(self, text: str) -> str:
        """The text with tokens."""
        if self._url and ("://" in text or "www." in text):
            text = self._mask("url", text)
        if self._email and "@" in text:
            text = self._mask("email", text)
        if self._numeric and _LONG_NUMBER.search(text):
            for kind in self._numeric:
                text = self._mask(kind, text)
        if self._ip and ("::" in text or text.count(":") > 6):
            token = self._tokens["ip"]
            text = _IPV6.sub(lambda match: token if _is_ipv6(match.group()) else match.group(), text)
        return text

    def _mask(self, kind: str, text: str) -> str:
        token, check = self._tokens[kind], _CHECKS.get(kind)
        if check is None:
            return _PATTERNS[kind].sub(lambda _: token, text)
        return _PATTERNS[kind].sub(lambda match: token if check(match.group()) else match.group(), text)


def _is_id_card(number: str) -> bool:
    if "-" in number:
        return True
    number = number.replace(" ", "")
    total = sum(weight * int(digit) for weight, digit in zip(_ID_WEIGHTS, number, strict=False))
    return "10X98765432"[total % 11] == number[-1].upper()


def _is_bank_card(number: str) -> bool:
    digits = [int(char) for char in number if char.isdigit()]
    if not 13 <= len(digits) <= 19:
        return False
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_ipv6(address: str) -> bool:
    # Times of day and MAC addresses have colons too; three groups at least, for `::1` and `a::b` are nobody's.
    if len(re.findall(r"[0-9A-Fa-f]+", address)) < 3:
        return False
    try:
        return bool(IPv6Address(address))
    except ValueError:
        return False


_CHECKS: Final[dict[str, Callable[[str], bool]]] = {"id_card": _is_id_card, "bank_card": _is_bank_card}
