"""Inserts synonyms of its words into a text (Wei & Zou 2019, EDA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.cleaning.engine.augmenter import Augmenter, Draw, Tables, share_of
from services.cleaning.engine.synonyms import SynonymParams, Synonyms
from services.cleaning.engine.words import Word, movable


class RandomInsertion(Augmenter[SynonymParams]):
    """Inserts synonyms of some of a text's words before other words of the same language."""

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
        places = movable(words)
        texts = [word.text for word in words]
        of = {language: [at for at in places if words[at].language == language] for language in ("zh", "en")}
        changed = False
        for source in draw.some(list(found), share_of(self.params.rate, len(places))):
            language = words[source].language
            if targets := of[language]:
                at = draw.pick(targets)
                texts[at] = draw.pick(found[source]) + (" " if language == "en" else "") + texts[at]
                changed = True
        return "".join(texts) if changed else None
