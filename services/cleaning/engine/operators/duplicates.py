"""Exact duplicates and contradictions in a set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import xxhash
from pydantic import Field

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.batch import code_points
from services.cleaning.engine.normal_form import all_folded, normal_form
from services.cleaning.engine.operator import Params, SetOperator, SetRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MINUS = 0x2D
_NAME = r"^[a-z][a-z0-9_]{0,63}$"


def content_key(text: str) -> str:
    """128-bit digest of the normal form, in hex; equal keys are equal texts."""
    return _digest(normal_form(text))


def content_keys(texts: Sequence[str]) -> list[str]:
    """`content_key` of every text."""
    return [_digest(" ".join(text.split())) for text in all_folded(texts)]


def _digest(normal: str) -> str:
    return xxhash.xxh3_128_hexdigest(normal.encode("utf-8", "surrogatepass"))


def words_keys(texts: Sequence[str]) -> list[str]:
    """Digests of the texts' letters, digits and signs: the same for texts that differ in punctuation only."""
    import numpy as np

    from services.cleaning.engine.operators.filters import alnum_table, sign_table

    points = code_points(all_folded(texts))
    codes = points.codes
    kept = alnum_table()[codes] | sign_table()[codes] | (codes == _MINUS)
    running = np.concatenate(([0], np.cumsum(kept)))
    words = codes[kept]
    keys: list[str] = []
    for start, length in zip(points.starts.tolist(), points.lengths.tolist(), strict=True):
        mine = words[running[start] : running[start + length]]
        # A text of punctuation only is known by it, and by it alone.
        keys.append(
            xxhash.xxh3_128_hexdigest((mine if len(mine) else _without_space(codes[start : start + length])).tobytes())
        )
    return keys


def _without_space(codes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    import numpy as np

    text = " ".join(codes.tobytes().decode("utf-32-le", "surrogatepass").split())
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


class ExactDedup(SetOperator[Params]):
    """Keeps the first of the records whose texts differ only in case, white space or invisible characters."""

    version = 2

    def judge(self, records: Sequence[SetRecord]) -> Mapping[int, Rejection]:
        """Drops with the reason `exact_duplicate`; the detail names the record that stays."""
        first: dict[str, str] = {}
        found: dict[int, Rejection] = {}
        keys = content_keys([record.text for record in records])
        for position, (key, record) in enumerate(zip(keys, records, strict=True)):
            name = record.name
            kept = first.setdefault(key, name)
            if kept != name:
                found[position] = Rejection("exact_duplicate", f"duplicate_of={kept}")
        return found


class ConflictingLabelsParams(Params):
    """`field`: the attribute with the label."""

    field: str = Field("label", pattern=_NAME)


class ConflictingLabels(SetOperator[ConflictingLabelsParams]):
    """Drops all records of a text that has different labels: it is unknown which one is right.

    Texts that differ only in punctuation, case, white space or invisible characters count as equal.
    """

    version = 2
    params_type = ConflictingLabelsParams

    @property
    def columns(self) -> Sequence[str]:
        """The label."""
        return (self.params.field,)

    def judge(self, records: Sequence[SetRecord]) -> Mapping[int, Rejection]:
        """Drops with the reason `conflicting_labels`; the detail counts the labels."""
        labels: dict[str, set[str]] = defaultdict(set)
        keys = words_keys([record.text for record in records])
        for key, record in zip(keys, records, strict=True):
            labels[key].add(record.attributes.get(self.params.field, ""))
        return {
            position: Rejection("conflicting_labels", f"labels={len(labels[key])}")
            for position, key in enumerate(keys)
            if len(labels[key]) > 1
        }
