"""Rejects texts that repeat themselves, in characters or in words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import filterfalse
from operator import mul
from typing import TYPE_CHECKING

from pydantic import Field

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.batch import Column
from services.cleaning.engine.characters import CJK, cjk_table
from services.cleaning.engine.operator import Filter, FilterParams
from services.masking.code_points import CodePoints, code_points

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# Gopher's limits: share of repeated parts, and share of characters in repeated parts, in the commonest n-gram and in
# repeated n-grams.
_MAX_REPEATED_PARTS = 0.3

_MAX_REPEATED_PART_CHARS = 0.2

_MAX_TOP_NGRAM = {2: 0.2, 3: 0.18, 4: 0.16}

_MAX_REPEATED_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
# Longer runs of words repeat only where the shorter ones do, so the smallest limit decides whether to look further.
_FEW_REPEATED = min(_MAX_REPEATED_NGRAMS.values())

# A text is checked for repeated words if one of these shares of its n-grams of characters is reached: repeats among the
# long ones, repeats among the short ones, the commonest short one. The last for Chinese follows from Gopher's limits
# (eight characters that are 16 % of the text); ordinary texts of an alphabet repeat short ones more often.
_REPEATING_LONG = 0.08
_SHORT = 4
_REPEATING_SHORT = 0.3
_COMMONEST_SHORT, _COMMONEST_SHORT_CJK = 0.04, 0.02

# A text that repeats one short piece is spam at any length: the longest such piece, and how often it may stand.
_LONGEST_PERIOD = 32
_MAX_PERIODS = 5
_FEWEST_CHARS = 12
_HEAD = 6


# Characters of the texts whose n-grams are counted together.
_TOGETHER = 1 << 16

# A Chinese or Japanese character, or a run of other characters without white space.
_WORD = re.compile(rf"{CJK.pattern}|[^\s{CJK.pattern[1:-1]}]+")


class RepetitionFilterParams(FilterParams):
    """`ngram`: length of the n-grams in characters; `max_ratio`: the limit for the share of the commonest n-grams.

    `words`: whether Gopher's limits on repeated lines, paragraphs and runs of words apply, too, to texts of at least
    `min_words` words.
    """

    ngram: int = Field(10, ge=2, le=64)
    max_ratio: float = Field(0.5, ge=0, le=1)
    words: bool = True
    min_words: int = Field(50, ge=1)


class RepetitionFilter(Filter[RepetitionFilterParams]):
    """Drops texts that repeat themselves.

    The ratio is that of ROOTS (Laurençon et al. 2022, "The BigScience ROOTS Corpus"): occurrences of the repeated
    n-grams among the sqrt(distinct) commonest ones, divided by all occurrences. Counting every n-gram would cost more
    than all other operators together. But repeated n-grams occur at least twice, so at most 2·(all - distinct)
    occurrences are repeats, and counting the distinct ones by hash (never too many) is enough for nearly every text.

    Repeated words also repeat n-grams of characters, so Gopher's limits (Rae et al. 2021, "Scaling Language Models",
    table A1) are checked only if such counts show repeats. A text that is one short piece repeated is dropped at any
    length.
    """

    version = 3
    params_type = RepetitionFilterParams

    def judge(self, column: Column) -> Mapping[int, Rejection]:
        """Rejects with the reason `repetitive`."""
        limit = self.params.max_ratio
        found = {
            position: Rejection("repetitive", f"periods={count} > {_MAX_PERIODS}")
            for position, text in enumerate(column.texts)
            if (count := periods(text)) > _MAX_PERIODS
        }
        candidates, repeating = self._candidates(column)
        for position in candidates:
            if position in found:
                continue
            ratio = repetition_ratio(column.texts[position], self.params.ngram)
            if ratio > limit:
                found[position] = Rejection("repetitive", f"repetition_ratio={ratio:.3f} > max_ratio={limit:g}")
        for position in repeating if self.params.words else ():
            if position not in found and (detail := repeated_words(column.texts[position], self.params.min_words)):
                found[position] = Rejection("repetitive", detail)
        return found

    def _candidates(self, column: Column) -> tuple[list[int], list[int]]:
        import numpy as np

        size = self.params.ngram
        points = column.code_points()
        totals = np.maximum(points.lengths - size + 1, 0)
        if not totals.any():
            return [], []
        totals, repeats, _ = _repeats(points, size)
        candidates: list[int] = np.flatnonzero(2 * repeats > self.params.max_ratio * totals).tolist()
        if not self.params.words:
            return candidates, []
        repeating = repeats > _REPEATING_LONG * totals
        long = np.flatnonzero((points.lengths >= 2 * self.params.min_words) & ~repeating)
        if len(long):
            texts = [column.texts[position] for position in long.tolist()]
            short = code_points(texts)
            totals, repeats, commonest = _repeats(short, _SHORT)
            running = np.concatenate(([0], np.cumsum(cjk_table()[short.codes])))
            cjk = 2 * (running[short.starts + short.lengths] - running[short.starts]) > short.lengths
            # Twice is not enough for any limit in texts of this length.
            often = (commonest > 2) & (commonest > np.where(cjk, _COMMONEST_SHORT_CJK, _COMMONEST_SHORT) * totals)
            repeating[long[often | (~cjk & (repeats > _REPEATING_SHORT * totals))]] = True
        repeating &= points.lengths >= 2 * self.params.min_words
        return candidates, np.flatnonzero(repeating).tolist()


def _repeats(points: CodePoints, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """For each text, its n-grams of characters, how many of them repeat another, and how often the commonest occurs.

    N-grams are equal if their hashes of 64 bits are.
    """
    import numpy as np

    totals = np.maximum(points.lengths - size + 1, 0)
    repeats, commonest = np.zeros_like(totals), np.zeros_like(totals)
    # Several texts at a time, so that their table fits into a processor's cache.
    ends = points.starts + points.lengths
    first = 0
    while first < len(totals):
        last = max(first + 1, int(np.searchsorted(ends, points.starts[first] + _TOGETHER, side="right")))
        part = slice(first, last)
        codes = points.codes[points.starts[first] : ends[last - 1]]
        repeats[part], commonest[part] = _repeats_of(codes, points.lengths[part], totals[part], size)
        first = last
    return totals, repeats, commonest


def _repeats_of(
    codes: NDArray[np.uint32], lengths: NDArray[np.int64], totals: NDArray[np.int64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The second and third figure of `_repeats`, of texts that follow one another."""
    import numpy as np

    offsets = np.concatenate(([0], np.cumsum(totals)))
    if not offsets[-1]:
        return totals, totals
    hashes = _ngram_hashes(codes.astype(np.uint64), size)
    # The text is part of the hash, so one table serves all texts.
    hashes += np.repeat(np.arange(len(totals), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15), lengths)[: len(hashes)]
    # Without n-grams that reach into the next text.
    within = np.ones(len(hashes) + size, dtype=bool)
    ends = np.cumsum(lengths)
    for back in range(1, size):
        within[np.maximum(ends - back, 0)[lengths >= back]] = False
    mixed = hashes[within[: len(hashes)]]
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    order = np.arange(len(mixed), dtype=np.int32)
    counts = np.zeros(len(mixed), dtype=np.int64)
    while len(mixed):
        bits = max(10, len(mixed).bit_length() + 1)
        buckets = (mixed >> np.uint64(64 - bits)).astype(np.int64)
        # Each bucket keeps the n-gram that was written last. Those equal to it are counted; others in the same bucket
        # are tried again with another hash.
        table = np.empty(1 << bits, dtype=np.int32)
        places = np.arange(len(mixed), dtype=np.int32)
        table[buckets] = places
        held = table[buckets]
        equal = mixed[held] == mixed
        counts += np.bincount(order[held[equal]], minlength=len(counts))
        order, mixed = order[~equal], mixed[~equal] * np.uint64(0xD6E8FEB86659FD93)
    repeats, commonest = totals.copy(), np.zeros_like(totals)
    some = np.flatnonzero(totals)
    begins = offsets[:-1][some]
    repeats[some] -= np.add.reduceat(counts > 0, begins, dtype=np.int64)
    commonest[some] = np.maximum.reduceat(counts, begins)
    return repeats, commonest


def periods(text: str) -> int:
    """How often a text repeats the short piece that it consists of; 0 for other texts."""
    if text[:1].isspace() or text[-1:].isspace():
        text = text.strip()
    if len(text) < _FEWEST_CHARS:
        return 0
    head, period = text[:_HEAD], 0
    while (period := text.find(head, period + 1, _LONGEST_PERIOD + _HEAD)) > 0:
        if text.startswith(text[period : 2 * period + _HEAD]) and text[period:] == text[:-period]:
            return -(-len(text) // period)
    return 0


def repeated_words(text: str, min_words: int) -> str:
    """Which of Gopher's limits a text exceeds, with figure and limit; empty if none, or if it has fewer words."""
    folded = text.casefold()
    # `split` and the expression treat white space alike.
    spaced = folded.isascii() or CJK.search(folded) is None
    words = folded.split() if spaced else _WORD.findall(folded)
    counts = Counter(words)
    if signs := {word for word in filterfalse(str.isalnum, counts) if not any(map(str.isalnum, word))}:
        words = [word for word in words if word not in signs]
    # A Chinese word has about two characters.
    scale = 1 if spaced or 2 * len(CJK.findall(text)) <= len(words) else 2
    if len(words) < scale * min_words:
        return ""
    for name, separator in (("line", "\n"), ("paragraph", "\n\n")):
        parts = [part for part in map(str.strip, text.split(separator)) if part]
        if len(set(parts)) == len(parts):
            continue
        again = [part for part, count in Counter(parts).items() for _ in range(count - 1)]
        if len(again) > _MAX_REPEATED_PARTS * len(parts):
            return f"duplicate_{name}s={len(again) / len(parts):.3f} > {_MAX_REPEATED_PARTS:g}"
        share = sum(map(len, again)) / max(sum(map(len, parts)), 1)
        if share > _MAX_REPEATED_PART_CHARS:
            return f"duplicate_{name}_chars={share:.3f} > {_MAX_REPEATED_PART_CHARS:g}"
    chars = sum(map(len, words))
    # A word occurs at least as often as an n-gram that it is in. So all occurrences of an n-gram together have at most
    # as many characters as those of the `heaviest` word, times the number of words in it.
    heaviest = max(map(mul, counts.values(), map(len, counts)))
    for words_in, limit in _MAX_TOP_NGRAM.items():
        size = scale * words_in
        if len(words) < size or size * heaviest <= limit * chars:
            continue
        gram, count = Counter(_ngrams(words, size)).most_common(1)[0]
        share = count * sum(map(len, gram)) / chars
        if count > 1 and share > limit:
            return f"top_{words_in}gram={share:.3f} > {limit:g}"
    for words_in, limit in _MAX_REPEATED_NGRAMS.items():
        if _most_repeated_chars(words, scale * words_in) <= _FEW_REPEATED * chars:
            break
        share = _repeated_chars(words, scale * words_in) / chars
        if share > limit:
            return f"duplicate_{words_in}grams={share:.3f} > {limit:g}"
        if share <= _FEW_REPEATED:
            break
    return ""


def _ngrams(words: list[str], size: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(size)), strict=False)


def _most_repeated_chars(words: list[str], size: int) -> int:
    """At least as much as `_repeated_chars`, at a fraction of its cost."""
    count = max(len(words) - size + 1, 0)
    return (count - len(set(_ngrams(words, size)))) * size * max(map(len, words))


def _repeated_chars(words: list[str], size: int) -> int:
    """Characters of words in n-grams that occurred earlier in the text; each word counts once."""
    seen: set[tuple[str, ...]] = set()
    total = end = 0
    for start in range(len(words) - size + 1):
        gram = tuple(words[start : start + size])
        if gram in seen:
            total += sum(map(len, words[max(start, end) : start + size]))
            end = start + size
        seen.add(gram)
    return total


def repetition_ratio(text: str, size: int) -> float:
    """Share of the commonest repeated n-grams of `size` characters; 0 for a shorter text."""
    counts = Counter(text[start : start + size] for start in range(len(text) - size + 1))
    if not counts:
        return 0.0
    frequencies = sorted(counts.values(), reverse=True)
    repeated = sum(frequency > 1 for frequency in frequencies)
    common = min(math.isqrt(len(frequencies)), repeated)
    return sum(frequencies[:common]) / sum(frequencies)


def _ngram_hashes(codes: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """Polynomial hash of every window of `size` codes, in log2(size) steps; uint64 [total - size + 1]."""
    import numpy as np

    base = 0x100000001B3
    mask = (1 << 64) - 1
    # `power` holds windows of length `span`; `hashes` grows to the binary digits of size.
    power, span = codes, 1
    hashes: NDArray[np.uint64] | None = None
    length = 0
    rest = size
    while rest:
        if rest & 1:
            if hashes is None:
                hashes, length = power, span
            else:
                shifted = power[length:]
                shift = np.uint64(pow(base, length, 1 << 64) & mask)
                count = min(len(hashes), len(shifted))
                hashes = hashes[:count] + shifted[:count] * shift
                length += span
        rest >>= 1
        if rest:
            shift = np.uint64(pow(base, span, 1 << 64))
            count = max(len(power) - span, 0)
            power = power[:count] + power[span : span + count] * shift
            span *= 2
    assert hashes is not None
    return hashes
