"""Adds variants to the training part of a snapshot, and drops those that could teach something wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.cleaning.app.ports import SnapshotRow
from services.cleaning.domain.augmentation import OPERATOR_COLUMN, PARENT_COLUMN, variant_id
from services.cleaning.engine.augmentation import Augmentation
from services.cleaning.engine.contamination import near_to
from services.cleaning.engine.content_keys import content_keys
from services.cleaning.engine.limits import MAX_TEXT_BYTES, utf8_size
from services.cleaning.engine.operator import SetRecord

COLUMNS = (PARENT_COLUMN, OPERATOR_COLUMN)
"""Columns of an augmented data set; empty of records that are not variants."""

# Why there is no variant: no augmenter can change the text; another record or variant has this text; the variant, or
# already its parent, is a near duplicate of a text of the hold-out; a collected record has its id; it is too large; the
# augmenter has a bug.
_UNCHANGED, _DUPLICATE, _NEAR, _PARENT_NEAR = "nothing_to_change", "duplicate", "near_holdout", "parent_near_holdout"
_TAKEN, _TOO_LARGE, _FAILED = "id_taken", "too_large", "augmenter_failed"


@dataclass(frozen=True, slots=True)
class Variants:
    """Rows that are added, and how many variants were dropped for which reason."""

    rows: Sequence[SnapshotRow] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Rows by augmenter."""
        return dict(sorted(Counter(row.attributes[OPERATOR_COLUMN] for row in self.rows).items()))


def make_variants(
    augmentation: Augmentation, train: Sequence[SnapshotRow], unseen: Sequence[str], records: Collection[SetRecord]
) -> Variants:
    """Makes the variants of the training part; the same arguments give the same ones.

    Args:
        augmentation: how.
        train: the training part.
        unseen: texts that are measured on; neither what resembles one nor its variants are learnt.
        records: all that passed the operators on single records; no variant may have the text of one.
    """
    dropped = Counter[str]()
    parents = [row for row in train if augmentation.chosen((row.source, row.record_id))]
    close = near_to(unseen, [row.text for row in parents])
    ids = {(record.source, record.record_id) for record in records}
    made: list[SnapshotRow] = []
    for at, parent in enumerate(parents):
        if at in close:
            dropped[_PARENT_NEAR] += augmentation.spec.per_record
            continue
        for number, augmenter, text in augmentation.variants((parent.source, parent.record_id), parent.text):
            name = variant_id(parent.record_id, number)
            if not text:
                dropped[_FAILED if augmenter else _UNCHANGED] += 1
            elif (parent.source, name) in ids:
                dropped[_TAKEN] += 1
            elif utf8_size(text) > MAX_TEXT_BYTES:
                dropped[_TOO_LARGE] += 1
            else:
                marks = {PARENT_COLUMN: parent.record_id, OPERATOR_COLUMN: augmenter}
                made.append(SnapshotRow(name, parent.source, text, {**parent.attributes, **marks}))
    # The texts of rejected records count, too: one of another label may have been dropped as a conflict.
    known = {*content_keys([record.text for record in records]), *content_keys(unseen)}
    fresh: list[SnapshotRow] = []
    for row, key in zip(made, content_keys([row.text for row in made]), strict=True):
        if key in known:
            dropped[_DUPLICATE] += 1
        else:
            known.add(key)
            fresh.append(row)
    close = near_to(unseen, [row.text for row in fresh])
    if close:
        dropped[_NEAR] += len(close)
    return Variants([row for at, row in enumerate(fresh) if at not in close], dict(sorted(dropped.items())))


def described(augmentation: Augmentation, variants: Variants) -> dict[str, Any]:
    """What the manifest says of it."""
    spec = augmentation.spec
    return {
        "digest": augmentation.digest,
        "operators": list(augmentation.canonical),
        "seed": spec.seed,
        "per_record": spec.per_record,
        "rate": spec.rate,
        "keep": list(spec.keep),
        "variants": variants.counts,
        "dropped": dict(variants.dropped),
    }
