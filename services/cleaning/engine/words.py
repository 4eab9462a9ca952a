"""Splits a text into words that augmentation may change, and everything that it must keep.

Kept are placeholders such as [PHONE], addresses, whatever has a digit, declared terms, names, acronyms and negations.
Chinese is split and tagged by jieba; in English a capital letter marks a name, and there is no tagger.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

_HAN: Final = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# In this order: what is kept, a run of Chinese, a word of letters; anything else is a single character. What is read
# before it is known to be one of them is short, so that the time is linear.
_PIECE: Final = re.compile(
    rf"(?P<kept>\[[^\[\]\s]{{1,64}}\]|(?:[A-Za-z]{{2,12}}://|www\.)[^\s{_HAN}]+"
    rf"|[^\W{_HAN}][^\s@{_HAN}]{{0,63}}@[\w-]{{1,63}}\.[^\s{_HAN}]+|[^\W{_HAN}]{{0,32}}\d(?:[^\W{_HAN}]|[.,:/%-](?=\d))*%?)"
    rf"|(?P<han>[{_HAN}]+)|(?P<word>[^\W\d_{_HAN}]+(?:['’][^\W\d_{_HAN}]+)*)|(?P<other>.)",
    re.DOTALL,
)
_WORD_INSIDE: Final = re.compile(rf"[^\W{_HAN}]{{2}}")
_NEGATION_WORDS: Final = """
no not never none nor neither without cannot hardly barely scarcely 非 别 否 休 甭
"""
_NEGATIONS: Final = frozenset(_NEGATION_WORDS.split())
_NEGATING: Final = re.compile("[不没未无勿莫毋]|n['’]t$|^no(?:thing|body|where)$")
# A negation reaches to the next word with a meaning, at most this many words later.
_REACH: Final = 3
# What jieba calls them: nouns without names (nr, ns, nt, nz), verbs, adjectives, adverbs.
_CLASSES: Final = {"n": "n", "v": "v", "a": "a", "d": "r", "vn": "v", "vd": "v", "vi": "v", "ad": "a", "an": "a"}
_FUNCTION: Final = """
a about above after again against all also am an and any are as at be because been before being below between both but
by can could did do does doing down during each few for from further had has have having he her here hers him his how i
if in into is it its just me may might more most much must my of off on once only or other our out over own same shall
she should so some such than that the their them then there these they this those through to too under until up us very
was we were what when where which while who whom why will with would you your
"""
FUNCTION_WORDS: Final = frozenset(_FUNCTION.split())
"""English words that are neither replaced nor written for another."""


@dataclass(frozen=True, slots=True)
class Word:
    """A piece of a text. All pieces together are the text."""

    text: str
    language: str = ""
    """`zh`, `en` (any Latin or other alphabet), or empty of what is not a word."""
    kind: str = ""
    """`n`, `v`, `a`, `r` (adverb) as jieba tags it; empty where it is not known."""
    free: bool = False
    """Whether it may be replaced."""
    fixed: bool = True
    """Whether it must stay where it is: what is kept, and what a negation refers to."""


class Terms:
    """Finds declared terms, the longest first, in a time that does not grow with their number."""

    def __init__(self, terms: Collection[str]) -> None:
        self._terms = frozenset(term for term in terms if term)
        lengths: dict[str, set[int]] = defaultdict(set)
        for term in self._terms:
            lengths[term[0]].add(len(term))
        self._lengths = {first: sorted(sizes, reverse=True) for first, sizes in lengths.items()}

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where the terms are, in order, without overlaps."""
        at = 0
        while self._terms and at < len(text):
            sizes = self._lengths.get(text[at], ())
            size = next(
                (size for size in sizes if text[at : at + size] in self._terms and _whole(text, at, at + size)), 0
            )
            if size:
                yield at, at + size
            at += size or 1


def _whole(text: str, start: int, end: int) -> bool:
    """Whether a term of letters neither begins nor ends inside a longer word; Chinese has no such borders."""
    return not (start and _WORD_INSIDE.fullmatch(text[start - 1 : start + 1])) and not (
        end < len(text) and _WORD_INSIDE.fullmatch(text[end - 1 : end + 1])
    )


def split_words(text: str, terms: Terms) -> list[Word]:
    """The pieces of a text, in order."""
    pieces: list[Word] = []
    end = 0
    for start, stop in (*terms.spans(text), (len(text), len(text))):
        pieces += _split(text[end:start])
        if stop > start:
            pieces.append(Word(text[start:stop]))
        end = stop
    return _bound(pieces)


def kept_parts(text: str, terms: Terms) -> Counter[str]:
    """What a variant must have as often as its parent: placeholders, addresses, numbers and declared terms."""
    found = Counter(text[start:stop] for start, stop in terms.spans(text))
    found.update(piece[0] for piece in _PIECE.finditer(text) if piece.lastgroup == "kept")
    return found


def _split(text: str) -> Iterator[Word]:
    for found in _PIECE.finditer(text):
        piece = found[0]
        if found.lastgroup == "han":
            yield from _chinese(piece)
        elif found.lastgroup == "word":
            yield _latin(piece)
        else:
            yield Word(piece)


def _chinese(run: str) -> Iterator[Word]:
    import rjieba

    for word, tag in rjieba.tag(run):
        kind = _CLASSES.get(tag, "")
        if negates(word):
            yield Word(word, "zh")
        elif tag.startswith(("nr", "ns", "nt", "nz", "m", "q", "t")):
            yield Word(word)
        else:
            yield Word(word, "zh", kind, free=True, fixed=False)


def _latin(word: str) -> Word:
    lower = word.lower()
    if negates(lower):
        return Word(word, "en")
    if word != lower:
        # A name, an acronym, or the first word of a sentence, which a parser only could separate from it.
        return Word(word)
    return Word(word, "en", free=lower not in FUNCTION_WORDS and len(word) > 1, fixed=False)


def negates(word: str) -> bool:
    """Whether a word in small letters says no."""
    return word in _NEGATIONS or _NEGATING.search(word) is not None


def _bound(pieces: Sequence[Word]) -> list[Word]:
    """Fixes the words that a negation reaches and the units of numbers: nothing comes between or takes their place."""
    bound: list[Word] = []
    left = 0
    for piece in pieces:
        if piece.language == "zh" and bound and bound[-1].text[-1:].isdecimal():
            # The unit of a number.
            piece = Word(piece.text)
        if piece.language and not piece.free and negates(piece.text.lower()):
            left = _REACH
        elif left and not piece.fixed:
            left = 0 if piece.kind in ("n", "v", "a") or (piece.language == "en" and piece.free) else left - 1
            piece = Word(piece.text, piece.language, piece.kind, piece.free)
        elif piece.text in "，。！？；,.!?;\n":
            left = 0
        bound.append(piece)
    return bound


def movable(words: Sequence[Word]) -> list[int]:
    """Places of the words that may be left out, moved, or get another word before them."""
    return [at for at, word in enumerate(words) if word.language and not word.fixed]
