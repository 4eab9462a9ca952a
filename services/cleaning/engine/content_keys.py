"""Keys for comparing texts: equal keys mean equal content, or equal words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import xxhash

from services.cleaning.engine.normal_form import all_folded, normal_form
from services.masking.code_points import code_points

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_MINUS = 0x2D


def content_key(text: str) -> str:
    """128-bit digest of the normal form, in hex; equal texts have equal keys."""
    return _digest(normal_form(text))


def content_keys(texts: Sequence[str]) -> list[str]:
    """`content_key` of every text."""
    return [_digest(" ".join(text.split())) for text in all_folded(texts)]


def _digest(normal: str) -> str:
    return xxhash.xxh3_128_hexdigest(normal.encode("utf-8", "surrogatepass"))


def words_keys(texts: Sequence[str]) -> list[str]:
    """Digests of the texts' letters, numbers and signs: the same for texts that differ in punctuation only."""
    import numpy as np

    from services.cleaning.engine.characters import alnum_table, kept_between, meaning_signs

    points = code_points(all_folded(texts))
    minus, signs = meaning_signs(points)
    codes = np.where(minus, np.uint32(_MINUS), points.codes)
    kept = alnum_table()[codes] | signs | kept_between(points)
    running = np.concatenate(([0], np.cumsum(kept)))
    words = codes[kept]
    keys: list[str] = []
    for start, length in zip(points.starts.tolist(), points.lengths.tolist(), strict=True):
        mine = words[running[start] : running[start + length]]
        # A text of punctuation only is compared by its punctuation.
        keys.append(
            xxhash.xxh3_128_hexdigest((mine if len(mine) else _without_space(codes[start : start + length])).tobytes())
        )
    return keys


def _without_space(codes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    import numpy as np

    text = " ".join(codes.tobytes().decode("utf-32-le", "surrogatepass").split())
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
