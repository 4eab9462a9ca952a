"""Looks up words that may stand for another: of its own part of speech, and only where its meaning is not in doubt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from pydantic import Field, model_validator

from services.cleaning.engine.augmenter import AugmenterParams, Tables, tables_of
from services.cleaning.engine.words import FUNCTION_WORDS, Word, negates

_VOWELS: Final = frozenset("aeiou")
# A Chinese word of one character means too many things.
_SHORTEST: Final = {"zh": 2, "en": 3}
# A synonym that is rarer than this, relative to the word, is hardly ever meant.
_RARE: Final = 0.1


class SynonymParams(AugmenterParams):
    """`tables`: names of tables of synonyms, such as `cilin` (Chinese) and `wordnet` (English).

    `groups`: lists of your own words that may stand for each other. `rate`: share of the words that are changed.
    """

    tables: list[str] = Field(default=[], max_length=8)
    groups: list[list[str]] = Field(default=[], max_length=10_000)

    @model_validator(mode="after")
    def _some(self) -> SynonymParams:
        if not self.tables and not self.groups:
            raise ValueError("give `tables`, such as [cilin] or [wordnet], or `groups` of your own words")
        return self


class Synonyms:
    """The synonyms of words. A word with several meanings of its part of speech has none."""

    def __init__(self, params: SynonymParams, tables: Tables) -> None:
        """Reads the tables.

        Raises:
            ParamsError: a table is not there.
        """
        found = tables_of(params.tables, tables)
        self.digests: Mapping[str, str] = {name: table.digest for name, table in found.items()}
        groups: list[tuple[str, Sequence[str]]] = [("", group) for group in params.groups]
        groups += [group for table in found.values() for group in table.groups]
        self._of: dict[str, list[tuple[str, Sequence[str]]]] = defaultdict(list)
        for kind, words in groups:
            for word in words:
                self._of[word].append((kind, words))

    def of(self, words: Sequence[Word], at: int) -> list[str]:
        """The words that may replace the one at this place; none if it is not free."""
        word = words[at]
        if not word.free or len(word.text) < _SHORTEST.get(word.language, 1):
            return []
        found = self._unambiguous(word.text, word.kind)
        # Without a part of speech, a Chinese word is replaced by what you declare only.
        if found is None or (word.language == "zh" and not word.kind and found[0]):
            return []
        kind, group = found
        return [
            each
            for each in group
            if each != word.text and self._stands_for(word, kind, each) and _suits(words, at, each)
        ]

    def _unambiguous(self, word: str, kind: str) -> tuple[str, Sequence[str]] | None:
        """The only group of a word, of its part of speech where this is known."""
        groups = [group for group in self._of.get(word, ()) if not (group[0] and kind) or group[0] == kind]
        return groups[0] if len(groups) == 1 else None

    def _stands_for(self, word: Word, kind: str, synonym: str) -> bool:
        """Whether a word of the same group is sure and common; what you declare yourself is."""
        if not kind:
            return True
        if len(synonym) < _SHORTEST.get(word.language, 1) or negates(synonym) or synonym in FUNCTION_WORDS:
            return False
        if self._unambiguous(synonym, word.kind) is None:
            return False
        return word.language != "zh" or _frequency(synonym) >= _RARE * _frequency(word.text)


@lru_cache(maxsize=1 << 16)
def _frequency(word: str) -> int:
    """How often jieba's corpus has a Chinese word; 0 of one that it does not know."""
    import rjieba

    return rjieba.suggest_freq(word) if rjieba.has_word(word) else 0


def _suits(words: Sequence[Word], at: int, synonym: str) -> bool:
    """Whether the article before an English word stays right."""
    article = words[at - 2].text.lower() if at >= 2 and words[at - 1].text == " " else ""
    return article not in ("a", "an") or (words[at].text[0] in _VOWELS) == (synonym[0] in _VOWELS)
