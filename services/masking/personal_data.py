"""Masking of personal data by patterns, confirmed by check digits and by the words next to a number.

It finds data with a recognisable form (addresses, numbers, keys). Names of persons and places have none and stay,
except a patient's name that a report marks as one. Most texts contain no personal data, so one fast pass over many
texts decides which of them are searched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Final

import re2

from services.masking.code_points import CodePoints, code_points
from services.masking.invisible import INVISIBLE
from services.masking.pii_gate import Gate
from services.masking.pii_patterns import KINDS, PROVINCES, Kind, Rule, rules_of
from services.masking.pseudonyms import SUFFIX, Pseudonyms

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TOKENS: Final[dict[str, str]] = {
    "credential": "[SECRET]",
    "url": "[URL]",
    "email": "[EMAIL]",
    "medical_record": "[MEDICAL_ID]",
    "passport": "[PASSPORT]",
    "messenger": "[ACCOUNT]",
    "birth_date": "[BIRTH_DATE]",
    "id_card": "[ID]",
    "bank_card": "[CARD]",
    "plate": "[PLATE]",
    "ip": "[IP]",
    "phone": "[PHONE]",
    "patient": "[PATIENT_INFO]",
}
MASKED_KINDS: Final[tuple[Kind, ...]] = tuple(kind for kind in KINDS if kind != "url")
"""Kinds that are masked unless others are named."""
_MAX_TOKEN_CHARS: Final = 64
# Characters that are matched as another one of the same length: full width as narrow, other hyphens and spaces.
_NARROW: Final = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | {
    0x3000: " ", 0xA0: " ", 0x2010: "-", 0x2011: "-", 0x2012: "-", 0x2013: "-", 0x2212: "-", 0x3002: "。",
}  # fmt: skip
_WIDE: Final = re.compile("[\uff01-\uff5e\u3000\xa0\u2010-\u2013\u2212]")
# This many digits within this many characters may be a personal number.
_DIGITS: Final = 7
_WINDOW: Final = 12
_DIGIT, _WIDE_SIGN, _UPPER, _PROVINCE, _DOT = 1, 2, 3, 4, 5
# Characters around a rule's digits or signs that it may use: words before them, the rest of a number after them.
_BEFORE: Final = 80
_AFTER_DIGITS: Final = 64
_WIDE_ALNUM: Final = re.compile("[\uff0e\uff10-\uff19\uff20-\uff3a\uff41-\uff5a]")
_HIDDEN: Final = re.compile(f"[{INVISIBLE}]+")
_ANY_NUMBER: Final = re.compile(f"[0-9\uff01-\uff5e]|[{PROVINCES}][A-Z]")
_BRACKETS: Final = re.compile(r"\[.+\]|<.+>|\{.+\}|\(.+\)|【.+】", re.DOTALL)
_NO_SIGN: Final = re.compile("[^!-~]")


@dataclass(frozen=True, slots=True)
class Span:
    """Position of personal data in a text; `end` is exclusive."""

    start: int
    end: int
    kind: str


def tokens_of(tokens: Mapping[str, str]) -> Mapping[str, str]:
    """What each kind is replaced by, where `tokens` has replacements of its own."""
    return {**_TOKENS, **tokens}


def wrong_tokens(tokens: Mapping[str, str], pseudonyms: bool = False) -> str:
    """What is wrong with replacements by kind; empty if nothing is. Pseudonyms need brackets around a token."""
    for kind, token in tokens.items():
        if kind not in _TOKENS:
            return f"contains {kind!r}, which is not one of {', '.join(_TOKENS)}"
        if len(token) > _MAX_TOKEN_CHARS:
            return f"contains a token of {len(token)} characters, at most {_MAX_TOKEN_CHARS}"
        if pseudonyms and not _BRACKETS.fullmatch(token):
            return f"contains {token!r}, to which no pseudonym can be added: write it in brackets, such as [EMAIL]"
    return ""


class PersonalData:
    """Finds personal data of some kinds, and replaces it by a token for its kind. Thread-safe."""

    def __init__(
        self,
        kinds: Iterable[Kind] = MASKED_KINDS,
        tokens: Mapping[str, str] | None = None,
        pseudonyms: Pseudonyms | None = None,
    ) -> None:
        """Compiles the patterns.

        Args:
            kinds: what to mask.
            tokens: replacements by kind other than the default `[EMAIL]`, `[PHONE]` and so on; see `wrong_tokens`.
            pseudonyms: makes a token for each thing that is masked; without, all of a kind have the same.
        """
        self._pseudonyms = pseudonyms
        self._tokens = {**_TOKENS, **(tokens or {})}
        self._rules = rules_of(frozenset(kinds))
        self._gate = _gate(self._rules)
        brackets = sorted(
            {token for token in (*_TOKENS.values(), *self._tokens.values()) if _BRACKETS.fullmatch(token)}
        )
        self._placeholders = re.compile(
            "|".join(f"{re.escape(token[:-1])}(?:{SUFFIX})?{re.escape(token[-1])}" for token in brackets)
        )
        # Each rule with the kind of numbers at which it is tried, if any, and the group that it masks.
        self._searches = [(rule, _numbers_of(rule), "value" if rule.has_value else 0) for rule in self._rules]
        signs = {sign.casefold() for rule in self._rules for sign in rule.signs}
        # The longest sign is found at a place, and stands there for those inside of it.
        self._rules_of_sign = {
            sign: [rule for rule in self._rules if any(part.casefold() in sign for part in rule.signs)]
            for sign in signs
        }
        # All signs in one pass: Python's `re` would try them one after another at every position.
        # In whatever case: the patterns say which cases they accept.
        longest_first = "|".join(re2.escape(sign) for sign in sorted(signs, key=lambda sign: (-len(sign), sign)))
        self._signs = re2.compile(f"(?i:{longest_first})") if signs else None

    def candidates(self, texts: Sequence[str]) -> list[int]:
        """Positions of the texts that may contain personal data; the others need not be masked."""
        return self._gate.open_to(texts)

    def mask(self, text: str) -> str:
        """The text with tokens."""
        return self._masked(text, self.find(text))

    def find(self, text: str) -> list[Span]:
        """Personal data in order of position, without overlaps."""
        if not text.isascii() and _HIDDEN.search(text):
            return self._find_hidden(text)
        return self._find(text)

    def _find_hidden(self, text: str) -> list[Span]:
        """Personal data in a text with invisible characters, which are left out while it is searched."""
        kept: list[int] = []
        end = 0
        for match in _HIDDEN.finditer(text):
            kept += range(end, match.start())
            end = match.end()
        kept += range(end, len(text))
        found = self._find("".join([text[place] for place in kept]))
        return [Span(kept[span.start], kept[span.end - 1] + 1, span.kind) for span in found]

    def _find(self, text: str) -> list[Span]:
        shadow = text.translate(_NARROW) if not text.isascii() and _WIDE.search(text) else text
        places = Places.of(shadow)
        signs = self._signs_in(shadow)
        if not (signs or places.digits or places.dots or places.plates):
            return []
        numbers = {
            "digits": _regions(shadow, places.digits, _AFTER_DIGITS),
            "dots": _regions(shadow, places.dots, _AFTER_DIGITS),
            "plates": _regions(shadow, places.plates, _AFTER_DIGITS),
        }
        found: list[Span] = []
        taken = bytearray(len(text))
        # What was masked before is not masked again.
        for match in self._placeholders.finditer(text):
            taken[match.start() : match.end()] = b"\1" * len(match.group())
        for rule, what, group in self._searches:
            if not what and id(rule) not in signs:
                continue
            for start, end in numbers[what] if what else _regions(shadow, signs[id(rule)], rule.reach):
                for match in rule.pattern.finditer(shadow, start, end):
                    if rule.check is not None and not rule.check(match):
                        continue
                    first, last = match.span(group)
                    if (place := taken.find(1, first, last)) >= 0:
                        # What stands before that which is masked already may be personal data by itself.
                        shorter = rule.pattern.match(shadow, match.start(), place) if place > first else None
                        if shorter is None or (rule.check is not None and not rule.check(shorter)):
                            continue
                        first, last = shorter.span(group)
                    if taken.find(1, first, last) < 0:
                        taken[first:last] = b"\1" * (last - first)
                        found.append(Span(first, last, rule.kind))
        return sorted(found, key=lambda span: span.start)

    def _signs_in(self, text: str) -> dict[int, list[int]]:
        """Positions of the signs of each rule, by `id` of the rule."""
        found: dict[int, list[int]] = {}
        if self._signs is None:
            return found
        data = text.encode("utf-8", "surrogatepass")
        chars, seen = 0, 0
        for match in self._signs.finditer(data):
            start = match.start()
            chars += start - seen if len(data) == len(text) else len(data[seen:start].decode("utf-8", "surrogatepass"))
            seen = start
            for rule in self._rules_of_sign[match.group().decode().casefold()]:
                found.setdefault(id(rule), []).append(chars)
        return found

    def _masked(self, text: str, spans: Sequence[Span]) -> str:
        if not spans:
            return text
        pieces: list[str] = []
        end = 0
        for span in spans:
            pieces += (text[end : span.start], self._token(span.kind, text[span.start : span.end]))
            end = span.end
        pieces.append(text[end:])
        return "".join(pieces)

    def _token(self, kind: str, found: str) -> str:
        token = self._tokens[kind]
        return token if self._pseudonyms is None else self._pseudonyms.token(token, kind, found)


@cache
def _gate(rules: tuple[Rule, ...]) -> Gate:
    # Making punctuation narrow creates no new numbers; making digits and letters narrow can.
    # What is invisible may stand inside of anything.
    return Gate([rule.pattern for rule in rules], _NARROW, _WIDE_ALNUM.pattern[1:-1] + INVISIBLE)


@dataclass(frozen=True, slots=True)
class Places:
    """Positions in a text of many digits close together, of numbers with dots, and of possible Chinese plates."""

    digits: list[int] = field(default_factory=list)
    dots: list[int] = field(default_factory=list)
    plates: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, text: str) -> Places:
        """The places of one text."""
        if _ANY_NUMBER.search(text) is None:
            return cls()
        return _number_places(code_points([text])).get(0, cls())


def _numbers_of(rule: Rule) -> str:
    return "digits" if rule.digits else "dots" if rule.dots else "plates" if rule.plate else ""


def _regions(text: str, places: Sequence[int], reach: int) -> list[tuple[int, int]]:
    """Parts of a text around positions, in order: from a little before each to its reach, and to the end of a word."""
    regions: list[tuple[int, int]] = []
    for place in places:
        start, end = max(0, place - _BEFORE), place + reach
        if regions and start <= regions[-1][1]:
            regions[-1] = (regions[-1][0], end)
        else:
            regions.append((start, end))
    return [(start, _end_of_word(text, end)) for start, end in regions]


def _end_of_word(text: str, place: int) -> int:
    found = _NO_SIGN.search(text, place)
    return found.start() if found else len(text)


def _number_places(points: CodePoints) -> dict[int, Places]:
    """The places of each text that has any, by position of the text; a full-width sign counts as digits."""
    import numpy as np

    size = len(points.codes)
    if not size:
        return {}
    kinds = _table()[points.codes]
    digit = kinds == _DIGIT
    # A window may begin in one text and end in the next; searching that text needlessly costs little.
    near = _at_least(digit, _WINDOW, _DIGITS) & digit
    near |= kinds == _WIDE_SIGN
    dot = np.zeros(size, dtype=bool)
    dot[1:-1] = (kinds[1:-1] == _DOT) & digit[:-2] & digit[2:]
    plate = np.zeros(size, dtype=bool)
    plate[:-1] = (kinds[:-1] == _PROVINCE) & (kinds[1:] == _UPPER)
    found: dict[int, Places] = {}
    for name, mask in (("digits", near), ("dots", _at_least(dot, _WINDOW, 3) & dot), ("plates", plate)):
        places = np.flatnonzero(mask)
        owners = np.searchsorted(points.starts, places, side="right") - 1
        for owner, place in zip(owners.tolist(), (places - points.starts[owners]).tolist(), strict=True):
            getattr(found.setdefault(owner, Places()), name).append(place)
    return found


def _at_least(mask: NDArray[np.bool_], window: int, count: int) -> NDArray[np.bool_]:
    """Whether at least `count` values are true in the window that begins at each position."""
    import numpy as np

    running = np.empty(len(mask) + window, dtype=np.int32)
    running[0] = 0
    np.cumsum(mask, out=running[1 : len(mask) + 1])
    running[len(mask) + 1 :] = running[len(mask)]
    reached: NDArray[np.bool_] = running[window:] - running[: len(mask)] >= count
    return reached


@cache
def _table() -> NDArray[np.uint8]:
    """The class of a code point, 0 for none; uint8 [0x110000]."""
    import numpy as np

    table = np.zeros(0x110000, dtype=np.uint8)
    table[0x30:0x3A] = _DIGIT
    table[0x41:0x5B] = _UPPER
    table[0x2E] = _DOT
    table[[ord(char) for char in PROVINCES]] = _PROVINCE
    # Only full-width digits, letters and @: full-width punctuation is everywhere in Chinese text.
    for first, last in ((0xFF10, 0xFF19), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A), (0xFF20, 0xFF20)):
        table[first : last + 1] = _WIDE_SIGN
    return table
