"""Turns Chinese sentences with 把 into sentences with 被, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.cleaning.engine.augmenter import Augmenter, AugmenterParams, Draw, share_of
from services.cleaning.engine.words import Word

_OTHER: Final = {"把": "被", "被": "把"}
_PRONOUN_WORDS: Final = "我 你 您 他 她 它 我们 你们 他们 她们 它们 咱们 大家 别人 人家"
_PRONOUNS: Final = frozenset(_PRONOUN_WORDS.split())
_BORDERS: Final = frozenset("，。！？；：、,.!?;:\n ")


class BaBei(Augmenter[AugmenterParams]):
    """Rewrites 司机把我们送到酒店 as 我们被司机送到酒店, and the other way round.

    Only where a clause consists of a noun or pronoun, 把 or 被, a noun or pronoun, and a verb with what follows.
    `rate` is a share of such clauses.
    """

    def vary(self, words: Sequence[Word], draw: Draw) -> str | None:
        """See the base class."""
        texts = [word.text for word in words]
        places = [at for at, word in enumerate(words) if word.text in _OTHER and _fits(words, at)]
        if not places:
            return None
        for at in draw.some(places, share_of(self.params.rate, len(places))):
            texts[at - 1], texts[at], texts[at + 1] = texts[at + 1], _OTHER[texts[at]], texts[at - 1]
        return "".join(texts)


def _fits(words: Sequence[Word], at: int) -> bool:
    begins = at == 1 or (at > 1 and words[at - 2].text in _BORDERS)
    return (
        begins
        and at + 2 < len(words)
        and all(_is_thing(words[place]) for place in (at - 1, at + 1))
        and words[at + 2].language == "zh"
        and words[at + 2].kind == "v"
    )


def _is_thing(word: Word) -> bool:
    return word.language == "zh" and word.free and (word.kind == "n" or word.text in _PRONOUNS)
