"""Leaves words out (Wei & Zou 2019, EDA)."""

from __future__ import annotations

from collections.abc import Sequence

from services.cleaning.engine.augmenter import Augmenter, AugmenterParams, Draw, share_of
from services.cleaning.engine.words import Word, movable


class RandomDeletion(Augmenter[AugmenterParams]):
    """Leaves some words out, never more than half of those that may go."""

    def vary(self, words: Sequence[Word], draw: Draw) -> str | None:
        """See the base class."""
        places = movable(words)
        count = min(share_of(self.params.rate, len(places)), len(places) // 2)
        if not count:
            return None
        texts = [word.text for word in words]
        for at in draw.some(places, count):
            texts[at] = ""
            # With one of the two spaces around it.
            for space in (at + 1, at - 1):
                if 0 <= space < len(texts) and texts[space] == " ":
                    texts[space] = ""
                    break
        return "".join(texts)
