"""Composes a snapshot: the set operators' verdicts, the split, the contamination check, the manifest."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from services.cleaning.app import augment
from services.cleaning.app.feedback import COLUMNS, card, counts, near_holdout, set_aside
from services.cleaning.app.ports import RejectedRow, SnapshotContent, SnapshotRow
from services.cleaning.domain.dataset import SNAPSHOT_FORMAT, DatasetSpec, dataset_id, snapshot_digest
from services.cleaning.domain.originals import DATA_CLASS, NOT_KEPT
from services.cleaning.domain.record import Cleaned, RawRecord, Rejection
from services.cleaning.domain.split import SURPLUS_REASON, split
from services.cleaning.engine.augmentation import Augmentation
from services.cleaning.engine.compiler import CompiledRecipe
from services.cleaning.engine.contamination import measure_contamination
from services.cleaning.engine.content_keys import content_keys
from services.cleaning.engine.operator import SetRecord
from services.cleaning.engine.rewriter import Answers
from services.kit.errors import FailedPreconditionError, InternalError

# Id before source, as in earlier releases: the order decides which of several duplicates is kept.
_Key = tuple[str, str]


def _key(record: RawRecord) -> _Key:
    return record.record_id, record.source


def _digest(record: RawRecord, cleaned: Cleaned) -> str:
    """As `RecordStore.content_digests` gives it."""
    return NOT_KEPT.reason if cleaned.rejection is NOT_KEPT else record.content_digest


def compose_snapshot(
    dataset: str,
    spec: DatasetSpec,
    recipe: CompiledRecipe,
    judged: Sequence[tuple[RawRecord, Cleaned]],
    augmentation: Augmentation | None = None,
    answers: Answers | None = None,
) -> SnapshotContent:
    """Composes a snapshot; the same arguments give the same content in any order.

    If an answer of a model is missing afterwards (`answers.missing`), it is not whole: ask, and compose it again.

    Args:
        dataset: `datasets/{dataset}`.
        spec: the data set's spec.
        recipe: the spec's compiled recipe.
        judged: every raw record of the data set, with the result of the single-record operators.
        augmentation: makes the variants of the training part; None without one.
        answers: what models wrote for it.

    Raises:
        FailedPreconditionError: an operator names an attribute that no record has.
        InternalError: the same text is on both sides of the split.
    """
    _check_fields(recipe, judged)
    digest = snapshot_digest(
        dataset,
        spec,
        recipe.digest,
        ((record.record_id, _digest(record, cleaned)) for record, cleaned in judged),
        augmentation.digest if augmentation else "",
    )
    rejections: dict[_Key, Rejection] = {_key(r): c.rejection for r, c in judged if c.rejection is not None}
    alive = {
        _key(r): SetRecord(r.record_id, c.text, c.attributes, r.source, r.source in spec.feedback_sources)
        for r, c in judged
        if c.rejection is None
    }
    passed = alive
    aside = set_aside(dataset, spec, alive)
    rejections |= aside.rejections
    alive = {key: record for key, record in alive.items() if key not in aside.rejections and key not in aside.held_back}
    dropped = recipe.judge_set(list(alive.values()))
    rejections |= {key: dropped[record.name] for key, record in alive.items() if record.name in dropped}
    kept = {key: record for key, record in alive.items() if key not in rejections}
    keys = content_keys([record.text for record in kept.values()])
    sides = split(dict(zip(kept, keys, strict=True)), spec.holdout, dataset_id(dataset))
    for key in sides.surplus:
        rejections[key] = Rejection(SURPLUS_REASON, f"max_records={spec.holdout.max_records}")
    near = near_holdout({key: kept[key] for key in sides.train}, [kept[key].text for key in sides.holdout])
    rejections |= near
    sides = replace(sides, train=[key for key in sides.train if key not in near])
    contamination = measure_contamination(
        [kept[key].text for key in sides.train], [kept[key].text for key in sides.holdout]
    )
    if contamination.exact_overlap:
        raise InternalError(
            f"{contamination.exact_overlap} texts are both in the training set and in the hold-out of {dataset}.",
            reason="CONTAMINATED_SPLIT",
        )

    def rows(keys: Sequence[_Key]) -> list[SnapshotRow]:
        return [SnapshotRow(*key, kept[key].text, kept[key].attributes) for key in keys]

    learnt = [kept[key] for key in sides.train]
    train, holdout = rows(sides.train), rows(sides.holdout)
    variants = augment.Variants()
    if augmentation is not None:
        unseen = [*(row.text for row in holdout), *(record.text for record in aside.held_back.values())]
        private = {record.key for record, _ in judged if record.attributes.get(DATA_CLASS) == "private"}
        variants = augment.make_variants(augmentation, train, unseen, passed.values(), answers, private)
        train = sorted([*train, *variants.rows], key=lambda row: (row.record_id, row.source))
    of_feedback = sum(source in spec.feedback_sources for _, source in rejections)

    rejected = [
        RejectedRow(*key, rejection.reason, rejection.detail, rejection.operator)
        for key, rejection in sorted(rejections.items())
    ]
    columns = tuple(recipe.columns)
    if spec.feedback_sources:
        columns += tuple(name for name in COLUMNS if name not in columns)
    if augmentation is not None:
        columns += tuple(name for name in augment.COLUMNS if name not in columns)
    manifest: dict[str, Any] = {
        "format": SNAPSHOT_FORMAT,
        "dataset": dataset,
        "digest": digest,
        "recipe": {"digest": recipe.digest, "operators": list(recipe.canonical)},
        "columns": list(columns),
        "holdout": {"fraction": spec.holdout.fraction, "max_records": spec.holdout.max_records},
        "sources": dict(sorted(Counter(record.source for record, _ in judged).items())),
        "counts": {
            "records_in": len(judged),
            "kept": len(sides.train) + len(sides.holdout),
            "train": len(train),
            "holdout": len(sides.holdout),
            "rejected": len(rejected),
            "rejected_by_reason": dict(sorted(Counter(row.reason for row in rejected).items())),
            "rejected_by_operator": dict(sorted(Counter(row.operator for row in rejected if row.operator).items())),
            **({"feedback": counts(learnt, len(aside.held_back), of_feedback)} if spec.feedback_sources else {}),
        },
        **({"feedback": card(learnt)} if spec.feedback_sources else {}),
        **({"augmentation": augment.described(augmentation, variants)} if augmentation else {}),
        "contamination": {
            "exact_overlap": contamination.exact_overlap,
            "near_overlap": contamination.near_overlap,
            "near_threshold": contamination.near_threshold,
        },
    }
    held_back = [SnapshotRow(*key, record.text, record.attributes) for key, record in sorted(aside.held_back.items())]
    return SnapshotContent(
        dataset,
        digest,
        columns,
        train,
        holdout,
        rejected,
        manifest,
        corrections=held_back if spec.feedback_sources else None,
    )


def _check_fields(recipe: CompiledRecipe, judged: Sequence[tuple[RawRecord, Cleaned]]) -> None:
    unseen = set(recipe.fields)
    known: set[str] = set()
    for record, cleaned in judged:
        if not unseen:
            return
        known.update(record.attributes, cleaned.attributes)
        unseen -= known
    if judged:
        refuse_unknown_fields(recipe, known)


def refuse_unknown_fields(recipe: CompiledRecipe, known: Collection[str]) -> None:
    """Refuses an operator on an attribute that no record has: a misspelt name would otherwise go unnoticed.

    Args:
        recipe: the recipe.
        known: the attributes that the records had before, or have after cleaning.

    Raises:
        FailedPreconditionError: names the operator, the attribute and what was probably meant.
    """
    unseen = [(name, place) for name, place in recipe.fields.items() if name not in known]
    if not unseen:
        return
    name, place = unseen[0]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    have = f" (they have: {', '.join(sorted(known)[:20]) or 'none'})"
    raise FailedPreconditionError(
        f"{place} names the attribute {name!r}, which no record of the data set has{hint}{have}",
        reason="UNKNOWN_FIELD",
        metadata={"field": name},
    )
