"""Exchanges neighbouring clauses of Chinese sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from services.cleaning.engine.augmenter import Augmenter, AugmenterParams, Draw, share_of
from services.cleaning.engine.words import Word

_SENTENCE_ENDS: Final = frozenset("。！？!?\n…")
_COMMAS: Final = frozenset("，,")
# With one of these a clause depends on the one before or after it.
_LINKED: Final = re.compile(
    "但|不过|可是|然而|而|却|因|所以|如果|若|虽|尽管|即使|就|才|然后|于是|并|还|也|又|再|那|这|其|它|只|首先|最后|之后|结果|:|：|、"
)


class ClauseReordering(Augmenter[AugmenterParams]):
    """Exchanges two neighbouring clauses of a Chinese sentence that no conjunction ties to another.

    `rate` is a share of the pairs of such clauses.
    """

    def vary(self, words: Sequence[Word], draw: Draw) -> str | None:
        """See the base class."""
        clauses, free = _clauses(words)
        pairs = [at for at in range(len(clauses) - 1) if free[at] and free[at + 1]]
        if not pairs:
            return None
        moved: set[int] = set()
        for at in draw.some(pairs, share_of(self.params.rate, len(pairs))):
            if not moved & {at, at + 1}:
                moved |= {at, at + 1}
                (one, mark), (two, end) = clauses[at], clauses[at + 1]
                clauses[at], clauses[at + 1] = (two, mark), (one, end)
        return "".join(text + mark for text, mark in clauses)


def _clauses(words: Sequence[Word]) -> tuple[list[tuple[str, str]], list[bool]]:
    """Clauses with the mark at their end, and whether each may be exchanged with the next one that may."""
    clauses: list[tuple[str, str]] = []
    free: list[bool] = []
    text, ordinary = "", True
    for word in (*words, Word("")):
        ends = word.text in _SENTENCE_ENDS
        if word.text and not ends and word.text not in _COMMAS:
            text += word.text
            ordinary = ordinary and (word.language in ("", "zh"))
            continue
        good = bool(text.strip()) and text == text.strip() and ordinary and _LINKED.search(text) is None
        clauses.append((text, word.text))
        free.append(good)
        if ends:
            # Nothing crosses the end of a sentence.
            clauses.append(("", ""))
            free.append(False)
        text, ordinary = "", True
    return clauses, free
