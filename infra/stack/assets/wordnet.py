"""Synonyms from WordNet: words that mostly mean the same thing, by how often its texts use each meaning."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

# `ss_type` in a sense key: noun, verb, adjective, adverb, and the adjectives around another one.
_CLASSES = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
_SENSE = re.compile(r"([a-z]+)%([1-5])\S* (\d{8}) \d+ (\d+)")
# A word mostly means what it means in at least this share of its uses, of which there must be a few.
_SHARE, _USES = 0.6, 3
_ENDINGS = ("s", "es", "d", "ed", "ing")


def groups_of(index_sense: str) -> Iterator[tuple[str, list[str]]]:
    """Groups of two words and more, each with a code that begins with the part of speech.

    Args:
        index_sense: WordNet's `index.sense`: sense key, synset, number of the sense, uses in the tagged texts.
    """
    uses: dict[str, Counter[str]] = defaultdict(Counter)
    for line in index_sense.splitlines():
        if found := _SENSE.fullmatch(line):
            word, kind, synset, count = found.groups()
            uses[word][f"{_CLASSES[kind]}{synset}"] += int(count)
    groups: dict[str, list[str]] = defaultdict(list)
    for word, counts in sorted(uses.items()):
        (code, most), *_ = counts.most_common(1)
        # Its other forms are not in the index: `reserves` (militia) is mostly one of `reserve`.
        stem = max((uses[form].total() for form in _stems(word) if form in uses), default=0)
        if most >= _USES and most >= _SHARE * counts.total() and counts.total() >= stem:
            groups[code].append(word)
    yield from ((code, words) for code, words in sorted(groups.items()) if len(words) > 1)


def _stems(word: str) -> list[str]:
    return [word.removesuffix(ending) for ending in _ENDINGS if word.endswith(ending)]
