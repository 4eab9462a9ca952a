"""Near duplicates: MinHash finds candidates, the exact Jaccard similarity of their shingles decides.

A shingle is a run of words. Each Chinese or Japanese character counts as a word, and a shingle has more of them. Case,
punctuation and white space do not count; signs with a meaning do: emoji, symbols, the plus and the hash of C++ and C#,
the minus of a number.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.normal_form import all_folded
from services.cleaning.engine.operator import Params, ParamsError, SetOperator, SetRecord
from services.masking.code_points import code_points

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SEED = 1
_MINUS = 0x2D
_BASE = 0x100000001B3
# Characters of texts that are turned into shingles at a time; it bounds the memory of the arrays in between.
_CHARS_AT_ONCE = 1 << 18
_ROWS_AT_ONCE = 4096
# Texts made from one template share bands without being duplicates. Each text is compared with at most this many
# others, those with the most shared bands, so that the cost stays linear in the number of texts.
_MAX_CANDIDATES = 32


class NearDedupParams(Params):
    """`threshold`: Jaccard similarity of shingles from which two records are near duplicates.

    `word_shingle` and `char_shingle`: number of words, or of Chinese and Japanese characters, in a shingle.
    `permutations`: length of a MinHash sketch; a longer one finds more of the pairs close to the threshold.
    """

    threshold: float = Field(0.8, ge=0.3, le=1)
    word_shingle: int = Field(3, ge=1, le=16)
    char_shingle: int = Field(4, ge=1, le=32)
    permutations: int = Field(128, ge=16, le=1024)


class NearDedup(SetOperator[NearDedupParams]):
    """Keeps the first of records that are near duplicates; a record is only compared with records that are kept."""

    version = 4
    params_type = NearDedupParams

    def __init__(self, params: NearDedupParams) -> None:
        super().__init__(params)
        self._bands, self._rows = choose_bands(params.threshold, params.permutations)
        if self._bands == 0:
            raise ParamsError("permutations", "are too few for this threshold")

    def judge(self, records: Sequence[SetRecord]) -> Mapping[int, Rejection]:
        """Drops with the reason `near_duplicate`; the detail names the record that stays and the similarity."""
        found: dict[int, Rejection] = {}
        for position, kept, similarity in self.pairs([record.text for record in records]):
            detail = f"duplicate_of={records[kept].name} jaccard={similarity:.3f}"
            found[position] = Rejection("near_duplicate", detail)
        return found

    def pairs(self, texts: Sequence[str]) -> Iterator[tuple[int, int, float]]:
        """Near duplicates as (position, position of an earlier text that is kept, similarity)."""
        import numpy as np

        if len(texts) < 2:
            return
        shingles = shingle_hashes(texts, self.params.word_shingle, self.params.char_shingle)
        sketches = _sketches(shingles, self.params.permutations)
        groups = _shared_bands(sketches, self._bands, self._rows)
        stay: dict[tuple[int, int], list[int]] = defaultdict(list)
        for position in np.flatnonzero((groups >= 0).any(axis=1)).tolist():
            mine = shingles.of(position)
            if not len(mine):
                continue
            places = [stay[band, group] for band, group in enumerate(groups[position].tolist()) if group >= 0]
            shared = Counter(other for place in places for other in place)
            closest = sorted(shared, key=lambda other: (-shared[other], other))[:_MAX_CANDIDATES]
            for other in sorted(closest):
                similarity = _jaccard(mine, shingles.of(other))
                if similarity >= self.params.threshold:
                    yield position, other, similarity
                    break
            else:
                for place in places:
                    # The first texts of a band are kept: later texts resemble them as often as the last ones.
                    if len(place) < _MAX_CANDIDATES:
                        place.append(position)


def choose_bands(threshold: float, permutations: int) -> tuple[int, int]:
    """Bands and rows of the index: the most rows with which a pair at the threshold is found with 95 % probability."""
    best = (0, 0)
    for rows in range(1, permutations + 1):
        bands = permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= 0.95:
            best = (bands, rows)
    return best


@dataclass(frozen=True, slots=True)
class Shingles:
    """Distinct shingles of texts, concatenated: `hashes` uint64 [total] sorted within a text, `offsets` int64 [n+1]."""

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]

    def of(self, position: int) -> NDArray[np.uint64]:
        """Hashes of one text."""
        return self.hashes[self.offsets[position] : self.offsets[position + 1]]


def shingle_hashes(texts: Sequence[str], word_shingle: int, char_shingle: int) -> Shingles:
    """Shingles of every text; a text with fewer words than a shingle is one shingle."""
    import numpy as np

    parts: list[NDArray[np.uint64]] = []
    start, size = 0, 0
    for end, text in enumerate(texts, 1):
        size += len(text)
        if size >= _CHARS_AT_ONCE or end == len(texts):
            parts += _shingles_of(texts[start:end], word_shingle, char_shingle)
            start, size = end, 0
    sizes = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
    return Shingles(np.concatenate(parts), np.concatenate(([0], np.cumsum(sizes))).astype(np.int64))


def _shingles_of(texts: Sequence[str], word_shingle: int, char_shingle: int) -> list[NDArray[np.uint64]]:
    import numpy as np

    words, counts = _word_hashes(all_folded(texts))
    offsets = np.concatenate(([0], np.cumsum(counts)))
    parts: list[NDArray[np.uint64]] = []
    cjk = (words & np.uint64(1)).astype(bool)
    cjk_before = np.concatenate(([0], np.cumsum(cjk)))
    rolled = {size: _rolled(words, size) for size in {word_shingle, char_shingle}}
    for position in range(len(texts)):
        start, end = int(offsets[position]), int(offsets[position + 1])
        most_cjk = 2 * int(cjk_before[end] - cjk_before[start]) > end - start
        size = char_shingle if most_cjk else word_shingle
        count = end - start - size + 1
        parts.append(
            _distinct(rolled[size][start : start + count] if count > 0 else _rolled(words[start:end], end - start))
        )
    return parts


def _rolled(words: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """Hashes of each run of `size` words, uint64 [n - size + 1]; empty for fewer words."""
    import numpy as np

    count = len(words) - size + 1
    if size == 0 or count <= 0:
        return words[:0]
    hashes = words[:count].copy()
    for step in range(1, size):
        hashes *= np.uint64(_BASE)
        hashes += words[step : step + count]
    hashes ^= hashes >> np.uint64(29)
    return hashes


def _distinct(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The distinct hashes, sorted; `np.unique` takes ten times as long for a short text."""
    import numpy as np

    ordered = np.sort(hashes)
    keep = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=keep[1:])
    return ordered[keep]


def _word_hashes(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A hash for each word of all texts, lowest bit set for a CJK character, and the number of words of each text."""
    import numpy as np

    from services.cleaning.engine.characters import alnum_table, cjk_table, meaning_signs

    points = code_points(texts)
    minus, signs = meaning_signs(points)
    codes = np.where(minus, np.uint32(_MINUS), points.codes)
    cjk = cjk_table()[codes]
    alnum = alnum_table()[codes] | signs
    first_of_text = np.zeros(len(codes), dtype=bool)
    first_of_text[points.starts[points.lengths > 0]] = True
    previous = np.concatenate(([False], (alnum & ~cjk & ~signs)[:-1]))
    # A word starts at a CJK character or a sign, and where letters follow something else.
    begins = alnum & (cjk | signs | ~previous | first_of_text)
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.zeros(0, dtype=np.uint64), np.zeros(len(texts), dtype=np.int64)
    word_of = np.cumsum(begins) - 1
    place = np.arange(len(codes)) - starts[np.maximum(word_of, 0)]
    powers = np.ones(256, dtype=np.uint64)
    powers[1:] = np.uint64(_BASE)
    powers = np.multiply.accumulate(powers)
    # Characters before the first word of all have a negative place and belong to no word.
    terms = codes.astype(np.uint64) * powers[np.clip(place, 0, 255)]
    terms[~alnum | (word_of < 0)] = 0
    hashes = np.add.reduceat(terms, starts)
    hashes ^= hashes >> np.uint64(31)
    hashes *= np.uint64(0x9E3779B97F4A7C15)
    hashes = (hashes & ~np.uint64(1)) | cjk[starts].astype(np.uint64)
    ends = points.starts + points.lengths
    running = np.concatenate(([0], np.cumsum(begins)))
    return hashes, (running[ends] - running[points.starts]).astype(np.int64)


def _sketches(shingles: Shingles, permutations: int) -> NDArray[np.uint32]:
    """MinHash sketches, uint32 [n, permutations]."""
    import numpy as np
    from rensa import RMinHash

    offsets = shingles.offsets
    sketches = np.empty((len(offsets) - 1, permutations), dtype=np.uint32)
    # The library returns lists of Python ints, which are ten times as large, so some rows are computed at a time.
    for start in range(0, len(sketches), _ROWS_AT_ONCE):
        mine = offsets[start : start + _ROWS_AT_ONCE + 1]
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            shingles.hashes[mine[0] : mine[-1]], (mine - mine[0]).astype(np.uint64), permutations, _SEED
        )
        sketches[start : start + _ROWS_AT_ONCE] = matrix.to_rows()
    return sketches


def _shared_bands(sketches: NDArray[np.uint32], bands: int, rows: int) -> NDArray[np.int64]:
    """For each text and band, a number that is equal for texts with an equal band; -1 if no other text has it."""
    import numpy as np

    groups = np.empty((len(sketches), bands), dtype=np.int64)
    for band in range(bands):
        hashes = np.zeros(len(sketches), dtype=np.uint64)
        # A hash collision of two bands only adds a candidate, whose similarity is then compared.
        for column in range(band * rows, (band + 1) * rows):
            hashes = (hashes ^ sketches[:, column]) * np.uint64(_BASE)
            hashes ^= hashes >> np.uint64(31)
        _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        groups[:, band] = np.where(counts[inverse] > 1, inverse, -1)
    return groups


def _jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    import numpy as np

    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)
