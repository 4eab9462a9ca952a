"""What goes into a snapshot: the set operators' verdicts, the split, the contamination check, the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from services.cleaning.app.ports import RejectedRow, SnapshotContent, SnapshotRow
from services.cleaning.domain.dataset import SNAPSHOT_FORMAT, DatasetSpec, dataset_id, snapshot_digest
from services.cleaning.domain.record import Cleaned, RawRecord, Rejection
from services.cleaning.domain.split import SURPLUS_REASON, split
from services.cleaning.engine.compiler import CompiledRecipe
from services.cleaning.engine.contamination import measure_contamination
from services.cleaning.engine.operator import SetRecord
from services.cleaning.engine.operators.duplicates import content_key
from services.kit.errors import InternalError


def compose_snapshot(
    dataset: str, spec: DatasetSpec, recipe: CompiledRecipe, judged: Sequence[tuple[RawRecord, Cleaned]]
) -> SnapshotContent:
    """Composes a snapshot; the same arguments give the same content in any order.

    Args:
        dataset: `datasets/{dataset}`.
        spec: what it is made of.
        recipe: the spec's recipe.
        judged: every raw record that belongs to it, with what the single-record operators made of it.

    Raises:
        InternalError: the same text stands on both sides of the split.
    """
    digest = snapshot_digest(
        dataset, spec, recipe.digest, {record.record_id: record.content_digest for record, _ in judged}
    )
    rejections: dict[str, Rejection] = {r.record_id: c.rejection for r, c in judged if c.rejection is not None}
    alive = [SetRecord(r.record_id, c.text, c.attributes) for r, c in judged if c.rejection is None]
    rejections |= recipe.judge_set(alive)
    kept = {record.record_id: record for record in alive if record.record_id not in rejections}
    keys = {record_id: content_key(record.text) for record_id, record in kept.items()}
    sides = split(keys, spec.holdout, dataset_id(dataset))
    for record_id in sides.surplus:
        rejections[record_id] = Rejection(SURPLUS_REASON, f"max_records={spec.holdout.max_records}")
    contamination = measure_contamination(
        [kept[record_id].text for record_id in sides.train], [kept[record_id].text for record_id in sides.holdout]
    )
    if contamination.exact_overlap:
        raise InternalError(
            f"{contamination.exact_overlap} texts stand on both sides of the split of {dataset}.",
            reason="CONTAMINATED_SPLIT",
        )
    source_of = {record.record_id: record.source for record, _ in judged}

    def rows(record_ids: Sequence[str]) -> list[SnapshotRow]:
        return [SnapshotRow(i, source_of[i], kept[i].text, kept[i].attributes) for i in record_ids]

    rejected = [RejectedRow(i, source_of[i], r.reason, r.detail) for i, r in sorted(rejections.items())]
    manifest: dict[str, Any] = {
        "format": SNAPSHOT_FORMAT,
        "dataset": dataset,
        "digest": digest,
        "recipe": {"digest": recipe.digest, "operators": list(recipe.canonical)},
        "columns": list(recipe.columns),
        "holdout": {"fraction": spec.holdout.fraction, "max_records": spec.holdout.max_records},
        "sources": dict(sorted(Counter(source_of.values()).items())),
        "counts": {
            "records_in": len(judged),
            "kept": len(sides.train) + len(sides.holdout),
            "train": len(sides.train),
            "holdout": len(sides.holdout),
            "rejected": len(rejected),
            "rejected_by_reason": dict(sorted(Counter(row.reason for row in rejected).items())),
        },
        "contamination": {
            "exact_overlap": contamination.exact_overlap,
            "near_overlap": contamination.near_overlap,
            "near_threshold": contamination.near_threshold,
        },
    }
    return SnapshotContent(
        dataset, digest, tuple(recipe.columns), rows(sides.train), rows(sides.holdout), rejected, manifest
    )
