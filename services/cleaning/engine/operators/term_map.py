"""Replaces the spellings of a term by one spelling."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Final

from pydantic import Field, field_validator

from services.cleaning.engine.limits import MAX_TERMS, MAX_TEXT_BYTES, Budget, TextRefusedError, utf8_size
from services.cleaning.engine.operator import ParamsError, TextMap, TextMapParams

_MAX_TERM_CHARS: Final = 128
_MAX_WRITTEN_CHARS: Final = 1024
_MAX_CHARS: Final = 4_000_000
# Up to about this many terms, one regular expression that tries them in turn is faster than the look-up.
_FEW: Final = 64
_BYTES_PER_TERM: Final = 500


class TermMapParams(TextMapParams):
    """`terms`: the replacement for each term; with `whole_words` a term inside a longer word is kept."""

    terms: dict[str, str] = Field(min_length=1, max_length=MAX_TERMS)
    ignore_case: bool = False
    whole_words: bool = False

    @field_validator("terms")
    @classmethod
    def _sizes(cls, terms: dict[str, str]) -> dict[str, str]:
        for term, written in terms.items():
            if not 1 <= len(term) <= _MAX_TERM_CHARS:
                raise ValueError(f"a term must have 1 to {_MAX_TERM_CHARS} characters; {term[:40]!r} has {len(term)}")
            if len(written) > _MAX_WRITTEN_CHARS:
                size = len(written)
                raise ValueError(f"the replacement of {term!r} has {size} characters, more than {_MAX_WRITTEN_CHARS}")
        total = sum(map(len, terms)) + sum(map(len, terms.values()))
        if total > _MAX_CHARS:
            raise ValueError(f"all terms together have {total} characters; at most {_MAX_CHARS} are allowed")
        return terms


class TermMap(TextMap[TermMapParams]):
    """Replaces terms in one pass: the longest term wins, and replacements are not replaced again."""

    version = 2
    params_type = TermMapParams

    def __init__(self, params: TermMapParams) -> None:
        super().__init__(params)
        self._fold: Callable[[str], str] = _lower if params.ignore_case else str
        self._written: dict[str, str] = {}
        for term, written in params.terms.items():
            folded = self._fold(term)
            if self._written.setdefault(folded, written) != written:
                wrong = f"gives two replacements for {folded!r}; upper and lower case are the same here"
                raise ParamsError("terms", wrong)
        lengths: dict[str, set[int]] = defaultdict(set)
        for term in self._written:
            lengths[term[0]].add(len(term))
        # Lengths of the terms by first character, longest first: the number of look-ups does not grow with the terms.
        self._lengths = {first: sorted(sizes, reverse=True) for first, sizes in lengths.items()}
        self._first = re.compile("[" + "".join(map(re.escape, self._lengths)) + "]")
        choice = "|".join(re.escape(term) for term in sorted(self._written, key=lambda term: (-len(term), term)))
        few = len(self._written) <= _FEW
        bounded = rf"(?<!\w)(?:{choice})(?!\w)" if params.whole_words else choice
        self._few = re.compile(bounded) if few else None
        self._grows = any(len(written.encode()) > len(term.encode()) for term, written in params.terms.items())

    @property
    def memory_bytes(self) -> int:
        """Memory of the table."""
        return _BYTES_PER_TERM * len(self._written)

    def map(self, text: str) -> str:
        """The text with its terms replaced."""
        folded = self._fold(text)
        found = self._first.search(folded) if self._few is None else self._few.search(folded)
        if found is None:
            return text
        pieces: list[str] = []
        end, size = 0, utf8_size(text)
        budget = Budget()
        while found is not None:
            start = found.start()
            stop = found.end() if self._few is not None else self._end_of_term(folded, start)
            if stop > start:
                written = self._written[folded[start:stop]]
                if self._grows:
                    size += utf8_size(written) - utf8_size(text[start:stop])
                    if size > MAX_TEXT_BYTES:
                        raise TextRefusedError.too_large(size)
                pieces += (text[end:start], written)
                end = stop
            budget.check()
            after = max(stop, start + 1)
            found = self._first.search(folded, after) if self._few is None else self._few.search(folded, after)
        if not pieces:
            return text
        pieces.append(text[end:])
        return "".join(pieces)

    def _end_of_term(self, folded: str, start: int) -> int:
        """End of the longest term that begins at `start`; `start` if none does."""
        whole = self.params.whole_words
        if whole and start and _is_word(folded[start - 1]):
            return start
        for length in self._lengths[folded[start]]:
            stop = start + length
            if stop > len(folded) or folded[start:stop] not in self._written:
                continue
            if not whole or stop == len(folded) or not _is_word(folded[stop]):
                return stop
        return start


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def _lower(text: str) -> str:
    """Lower case, character by character, so that positions stay the same."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)
