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
        of = {language: [at for at in places if words[at].language == language] for language in ("zh", "en")}
        if not places:
            return None
        texts = [word.text for word in words]
        for _ in range(share_of(self.params.rate, len(places))):
            one = draw.pick(places)
            # Of a few, for the first may be the same word.
            for other in draw.few(of[words[one].language]):
                if texts[other] != texts[one]:
                    texts[one], texts[other] = texts[other], texts[one]
                    break
        return "".join(texts)
