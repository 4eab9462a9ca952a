"""Rejects texts by the words of a list that they have: too many unwanted ones, or too few that every text has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import Field

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.batch import Column
from services.cleaning.engine.characters import CJK
from services.cleaning.engine.operator import Filter, FilterParams, ParamsError

_MAX_WORDS: Final = 10_000
_WORD: Final = re.compile(r"\w+(?:['’]\w+)*")


class WordFilterParams(FilterParams):
    """`words`, in any case; Chinese and Japanese ones are found within a text, others as whole words.

    `max_count`: how many of them a text may have, each as often as it occurs; `min_count`: how many it must have.
    """

    words: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(min_length=1, max_length=_MAX_WORDS)
    max_count: int | None = Field(None, ge=0)
    min_count: int | None = Field(None, ge=1)


class WordFilter(Filter[WordFilterParams]):
    """Drops texts with unwanted words (`max_count: 0`), or with too few of the words that every text has (`min_count`).

    The words are never shown: a rejection has their number only.
    """

    params_type = WordFilterParams

    def __init__(self, params: WordFilterParams) -> None:
        super().__init__(params)
        low, high = params.min_count, params.max_count
        if low is None and high is None:
            raise ParamsError("max_count", "must be given, or min_count")
        if low is not None and high is not None and low > high:
            raise ParamsError("min_count", f"is {low}, more than max_count={high}")
        words = {word.strip().casefold() for word in params.words}
        if "" in words:
            raise ParamsError("words", "contains an empty word")
        self._inside = sorted((word for word in words if CJK.search(word)), key=lambda word: (-len(word), word))
        self._found = re.compile("|".join(map(re.escape, self._inside))) if self._inside else None
        self._whole = frozenset(word for word in words if " " not in word and not CJK.search(word))
        several = sorted(words - self._whole - set(self._inside), key=lambda word: (-len(word), word))
        self._phrases = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, several))})(?!\w)") if several else None

    def judge(self, column: Column) -> Mapping[int, Rejection]:
        """Rejects with the reason `listed_words` or `few_listed_words`."""
        low, high = self.params.min_count, self.params.max_count
        found: dict[int, Rejection] = {}
        for position, text in enumerate(column.texts):
            count = self._count(text.casefold())
            if high is not None and count > high:
                found[position] = Rejection("listed_words", f"listed_words={count} > max_count={high}")
            elif low is not None and count < low:
                found[position] = Rejection("few_listed_words", f"listed_words={count} < min_count={low}")
        return found

    def _count(self, text: str) -> int:
        count = 0
        if self._whole:
            count += sum(word in self._whole for word in _WORD.findall(text))
        for pattern in (self._found, self._phrases):
            if pattern is not None:
                count += sum(1 for _ in pattern.finditer(text))
        return count
