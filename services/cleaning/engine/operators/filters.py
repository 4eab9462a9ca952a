"""Filters by measures of a text: length, letters, repetition. Each rejection has the measure and the limit."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from pydantic import Field

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.batch import Column
from services.cleaning.engine.operator import Filter, FilterParams, ParamsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Han and kana are written without spaces: each of them counts as a word.
_CJK_RANGES = (
    (0x3005, 0x3007),
    (0x3041, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)
# Gopher's limits: shares of parts, and of characters in parts, in the commonest n-gram, in repeated n-grams.
_MAX_REPEATED_PARTS = 0.3
_MAX_REPEATED_PART_CHARS = 0.2
_MAX_TOP_NGRAM = {2: 0.2, 3: 0.18, 4: 0.16}
_MAX_REPEATED_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
# Below this share of repeated pieces of characters no limit on words is reached but by very short words.
_REPEATING = 0.12
_CJK = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in _CJK_RANGES) + "]")


def count_words(text: str) -> int:
    """Words between white space; in Chinese and Japanese every character is one."""
    if text.isascii():
        return len(text.split())
    spaced, characters = _CJK.subn(" ", text)
    return characters + sum(any(char.isalnum() for char in word) for word in spaced.split())


class LengthFilterParams(FilterParams):
    """Inclusive limits; at least one must be given."""

    min_chars: int | None = Field(None, ge=0)
    max_chars: int | None = Field(None, ge=1)
    min_words: int | None = Field(None, ge=0)
    max_words: int | None = Field(None, ge=1)


class LengthFilter(Filter[LengthFilterParams]):
    """Drops texts that are too short or too long."""

    params_type = LengthFilterParams

    def __init__(self, params: LengthFilterParams) -> None:
        super().__init__(params)
        if not params.model_dump(exclude_none=True, exclude={"fields"}):
            raise ParamsError("min_chars", "or another limit must be given")
        for unit in ("chars", "words"):
            low, high = getattr(params, f"min_{unit}"), getattr(params, f"max_{unit}")
            if low is not None and high is not None and low > high:
                raise ParamsError(f"min_{unit}", f"is {low}, more than max_{unit}={high}")
        self._words = params.min_words is not None or params.max_words is not None

    def judge(self, column: Column) -> Mapping[int, Rejection]:
        """Rejects with the reason `too_short` or `too_long`."""
        p = self.params
        found = self._outside(list(map(len, column.texts)), "chars", p.min_chars, p.max_chars)
        if self._words:
            words = [count_words(text) for text in column.texts]
            found = self._outside(words, "words", p.min_words, p.max_words) | found
        return found

    @staticmethod
    def _outside(sizes: list[int], unit: str, low: int | None, high: int | None) -> dict[int, Rejection]:
        found: dict[int, Rejection] = {}
        for position, size in enumerate(sizes):
            if low is not None and size < low:
                found[position] = Rejection("too_short", f"{unit}={size} < min_{unit}={low}")
            elif high is not None and size > high:
                found[position] = Rejection("too_long", f"{unit}={size} > max_{unit}={high}")
        return found


class AlnumFilterParams(FilterParams):
    """Limits of the share of letters and digits among all characters."""

    min_ratio: float = Field(0.25, ge=0, le=1)
    max_ratio: float = Field(1.0, ge=0, le=1)


class AlnumFilter(Filter[AlnumFilterParams]):
    """Drops texts with few letters and digits: tables of symbols, ASCII art, remains of markup."""

    params_type = AlnumFilterParams

    def judge(self, column: Column) -> Mapping[int, Rejection]:
        """Rejects with the reason `low_alnum` or `high_alnum`; empty text has the share 0."""
        import numpy as np

        points = column.code_points()
        running = np.concatenate(([0], np.cumsum(alnum_table()[points.codes])))
        counts = running[points.starts + points.lengths] - running[points.starts]
        ratios = counts / np.maximum(points.lengths, 1)
        low, high = self.params.min_ratio, self.params.max_ratio
        found: dict[int, Rejection] = {}
        for position in np.flatnonzero(ratios < low).tolist():
            found[position] = Rejection("low_alnum", f"alnum_ratio={ratios[position]:.3f} < min_ratio={low:g}")
        for position in np.flatnonzero(ratios > high).tolist():
            found[position] = Rejection("high_alnum", f"alnum_ratio={ratios[position]:.3f} > max_ratio={high:g}")
        return found


@cache
def alnum_table() -> NDArray[np.bool_]:
    """Whether a code point is a letter or a digit, as `str.isalnum` says; bool [0x110000]."""
    import numpy as np

    return np.fromiter((chr(code).isalnum() for code in range(0x110000)), dtype=bool, count=0x110000)


@cache
def cjk_table() -> NDArray[np.bool_]:
    """Whether a code point is a character that is a word of its own; bool [0x110000]."""
    import numpy as np

    table = np.zeros(0x110000, dtype=bool)
    for first, last in _CJK_RANGES:
        table[first : last + 1] = True
    return table


@cache
def digit_table() -> NDArray[np.bool_]:
    """Whether a code point is a digit; bool [0x110000]."""
    import numpy as np

    return np.fromiter((chr(code).isdigit() for code in range(0x110000)), dtype=bool, count=0x110000)


@cache
def sign_table() -> NDArray[np.bool_]:
    """Whether a code point is a sign that means something by itself: emoji, symbols, `+`, `#`, `%`; bool [0x110000]."""
    import numpy as np

    kinds = ("So", "Sm", "Sc")
    table = np.fromiter(
        (unicodedata.category(chr(code)) in kinds for code in range(0x110000)), dtype=bool, count=0x110000
    )
    # Frames of tables, arrows of lists and brackets of mark-up are layout.
    table[0x2190:0x2200] = table[0x2500:0x2600] = False
    table[[ord(char) for char in "<>|~=^`"]] = False
    table[[ord(char) for char in "#%"]] = True
    return table


class RepetitionFilterParams(FilterParams):
    """`ngram`: length of the pieces in characters; `max_ratio`: the limit for the share of its most common pieces.

    `words`: Gopher's limits on repeated lines, paragraphs and runs of words hold, too, in texts of `min_words` words.
    """

    ngram: int = Field(10, ge=2, le=64)
    max_ratio: float = Field(0.5, ge=0, le=1)
    words: bool = True
    min_words: int = Field(50, ge=1)


class RepetitionFilter(Filter[RepetitionFilterParams]):
    """Drops texts that repeat themselves.

    The ratio is ROOTS's (Laurençon et al. 2022, "The BigScience ROOTS Corpus"): occurrences of the repeated
    n-grams among the sqrt(distinct) commonest, over all occurrences. Counting every n-gram costs more than all
    other operators together; but repeated ones occur twice at least, so they make up at most 2·(all - distinct) of
    all, and a count of distinct ones by hash (never too high) clears nearly every text.

    Words that repeat make pieces of characters repeat as well, so Gopher's limits (Rae et al. 2021, "Scaling Language
    Models", table A1) are looked at only where the same count shows that some do.
    """

    version = 2
    params_type = RepetitionFilterParams

    def judge(self, column: Column) -> Mapping[int, Rejection]:
        """Rejects with the reason `repetitive`."""
        limit = self.params.max_ratio
        found: dict[int, Rejection] = {}
        suspects, repeating = self._suspects(column)
        for position in suspects:
            ratio = repetition_ratio(column.texts[position], self.params.ngram)
            if ratio > limit:
                found[position] = Rejection("repetitive", f"repetition_ratio={ratio:.3f} > max_ratio={limit:g}")
        for position in repeating if self.params.words else ():
            if position not in found and (detail := repeated_words(column.texts[position], self.params.min_words)):
                found[position] = Rejection("repetitive", detail)
        return found

    def _suspects(self, column: Column) -> tuple[list[int], list[int]]:
        import numpy as np

        size = self.params.ngram
        points = column.code_points()
        totals = np.maximum(points.lengths - size + 1, 0)
        if not totals.any():
            return [], []
        hashes = _ngram_hashes(points.codes.astype(np.uint64), size)
        owner = np.repeat(np.arange(len(totals)), totals)
        offsets = np.concatenate(([0], np.cumsum(totals)))
        places = np.repeat(points.starts, totals) + np.arange(offsets[-1]) - np.repeat(offsets[:-1], totals)
        bits = max(10, int(offsets[-1]).bit_length() + 3)
        # The record is part of the hash, so one table serves all; each bucket remembers who wrote last.
        mixed = hashes[places] + owner.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
        mixed *= np.uint64(0xD6E8FEB86659FD93)
        buckets = mixed >> np.uint64(64 - bits)
        order = np.arange(offsets[-1], dtype=np.int32)
        table = np.empty(1 << bits, dtype=np.int32)
        table[buckets] = order
        running = np.concatenate(([0], np.cumsum(table[buckets] == order)))
        distinct = running[offsets[1:]] - running[offsets[:-1]]
        suspects: list[int] = np.flatnonzero(2 * (totals - distinct) > self.params.max_ratio * totals).tolist()
        repeating: list[int] = np.flatnonzero(
            (totals - distinct > _REPEATING * totals) & (points.lengths >= 2 * self.params.min_words)
        ).tolist()
        return suspects, repeating


def repeated_words(text: str, min_words: int) -> str:
    """Which of Gopher's limits a text breaks, with figure and limit; empty if none, or if it has fewer words."""
    words = [word for word in _CJK.sub(r" \g<0> ", text.casefold()).split() if any(map(str.isalnum, word))]
    # A Chinese word has about two characters.
    scale = 2 if 2 * len(_CJK.findall(text)) > len(words) else 1
    if len(words) < scale * min_words:
        return ""
    for name, separator in (("line", "\n"), ("paragraph", "\n\n")):
        parts = [part for part in map(str.strip, text.split(separator)) if part]
        again = [part for part, count in Counter(parts).items() for _ in range(count - 1)]
        if len(again) > _MAX_REPEATED_PARTS * len(parts):
            return f"duplicate_{name}s={len(again) / len(parts):.3f} > {_MAX_REPEATED_PARTS:g}"
        share = sum(map(len, again)) / max(sum(map(len, parts)), 1)
        if share > _MAX_REPEATED_PART_CHARS:
            return f"duplicate_{name}_chars={share:.3f} > {_MAX_REPEATED_PART_CHARS:g}"
    chars = sum(map(len, words))
    for words_in, limit in _MAX_TOP_NGRAM.items():
        size = scale * words_in
        gram, count = Counter(zip(*(words[start:] for start in range(size)), strict=False)).most_common(1)[0]
        share = count * sum(map(len, gram)) / chars
        if count > 1 and share > limit:
            return f"top_{words_in}gram={share:.3f} > {limit:g}"
    for words_in, limit in _MAX_REPEATED_NGRAMS.items():
        share = _repeated_chars(words, scale * words_in) / chars
        if share > limit:
            return f"duplicate_{words_in}grams={share:.3f} > {limit:g}"
        if share <= min(_MAX_REPEATED_NGRAMS.values()):
            # What repeats in longer runs repeats in these, too.
            break
    return ""


def _repeated_chars(words: list[str], size: int) -> int:
    """Characters of the words in n-grams that stood in the text before; no word counts twice."""
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
    """Share of the commonest repeated n-grams of `size` characters; 0 for a text shorter than one."""
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
