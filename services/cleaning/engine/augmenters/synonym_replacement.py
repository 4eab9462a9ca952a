"""Replaces words by synonyms (Wei & Zou 2019, EDA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.cleaning.engine.augmenter import Augmenter, Draw, Tables, share_of
from services.cleaning.engine.synonyms import SynonymParams, Synonyms
from services.cleaning.engine.words import Word


class SynonymReplacement(Augmenter[SynonymParams]):
    """Replaces words by synonyms of the same part of speech.

    A word whose meaning is in doubt is left: one that a table has in several groups of its part of speech.
    """

    params_type = SynonymParams

    def __init__(self, params: SynonymParams, tables: Tables) -> None:
        super().__init__(params, tables)
        self._synonyms = Synonyms(params, tables)

    @property
    def digests(self) -> Mapping[str, str]:
        """Of the tables."""
        return self._synonyms.digests

    def vary(self, words: Sequence[Word], draw: Draw) -> str | None:
        """See the base class."""
        found = {at: synonyms for at in range(len(words)) if (synonyms := self._synonyms.of(words, at))}
        if not found:
            return None
        texts = [word.text for word in words]
        count = share_of(self.params.rate, sum(word.free for word in words))
        for at in draw.some(list(found), count):
            texts[at] = draw.pick(found[at])
        return "".join(texts)
