"""Exchanges words (Wei & Zou 2019, EDA)."""

from __future__ import annotations

from collections.abc import Sequence

from services.cleaning.engine.augmenter import Augmenter, AugmenterParams, Draw, share_of
from services.cleaning.engine.words import Word, movable


class RandomSwap(Augmenter[AugmenterParams]):
    """Lets two words of the same language change places, some times."""

    def vary(self, words: Sequence[Word], draw: Draw) -> str | None:
        """See the base class."""
        places = movable(words)
        texts = [word.text for word in words]
        for _ in range(share_of(self.params.rate, len(places))):
            if not places:
                return None
            one = draw.pick(places)
            others = [at for at in places if words[at].language == words[one].language and texts[at] != texts[one]]
            if others:
                other = draw.pick(others)
                texts[one], texts[other] = texts[other], texts[one]
        return "".join(texts)
