"""Typing errors in words of Latin letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.cleaning.engine.augmenter import Augmenter, AugmenterParams, Draw, share_of
from services.cleaning.engine.words import Word

_ROWS: Final = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# A word of fewer letters is easily another word.
_SHORTEST: Final = 4


def _neighbours() -> dict[str, str]:
    """The keys beside each key, in its row."""
    return {key: row[max(0, at - 1) : at] + row[at + 1 : at + 2] for row in _ROWS for at, key in enumerate(row)}


_BESIDE: Final = _neighbours()


class KeyboardNoise(Augmenter[AugmenterParams]):
    """Makes one typing error in some words of four or more letters.

    An error is a letter left out, two letters exchanged, or the key beside; the first letter stays.
    """

    def vary(self, words: Sequence[Word], draw: Draw) -> str | None:
        """See the base class."""
        texts = [word.text for word in words]
        places = [
            at for at, word in enumerate(words) if word.free and len(word.text) >= _SHORTEST and word.text.isascii()
        ]
        if not places:
            return None
        for at in draw.some(places, share_of(self.params.rate, len(places))):
            texts[at] = _mistyped(texts[at], draw)
        return "".join(texts)


def _mistyped(word: str, draw: Draw) -> str:
    at = 1 + draw.below(len(word) - 1)
    kind = draw.below(3)
    if kind == 0:
        return word[:at] + word[at + 1 :]
    if kind == 1 and at + 1 < len(word) and word[at] != word[at + 1]:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    beside = _BESIDE.get(word[at])
    return word[:at] + (draw.pick(beside) if beside else "") + word[at + 1 :]
