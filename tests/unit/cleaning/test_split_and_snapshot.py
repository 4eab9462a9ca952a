"""The split is frozen by content; a snapshot's digest and bytes follow from its content alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from services.cleaning.adapters.snapshots import FolderSnapshots
from services.cleaning.app.ports import SnapshotContent
from services.cleaning.app.snapshot import compose_snapshot
from services.cleaning.domain.dataset import DatasetSpec, HoldoutSpec, snapshot_digest
from services.cleaning.domain.record import RawRecord
from services.cleaning.domain.split import split
from services.cleaning.engine.compiler import compile_recipe
from services.cleaning.engine.registry import default_registry
from services.kit.errors import FailedPreconditionError
from services.kit.storage.artifacts import ArtifactStore
from tests.recipes import parse_operators

SPEC = DatasetSpec(
    ("news",),
    tuple(
        parse_operators(
            [
                "normalize_whitespace",
                {"first_line_to_field": {"field": "headline"}},
                {"length_filter": {"min_chars": 12}},
                "exact_dedup",
            ]
        )
    ),
    HoldoutSpec(0.3),
    ("topic",),
)


def raw(number: int, text: str | None = None) -> RawRecord:
    text = text if text is not None else f"Head {number}\nThe body of article number {number}."
    return RawRecord(f"r{number:03}", "news", text, {"topic": "t", "path": f"/{number}"})


def compose(records: list[RawRecord], spec: DatasetSpec = SPEC, dataset: str = "datasets/news") -> SnapshotContent:
    recipe = compile_recipe(default_registry(), spec.operators, spec.required_attributes)
    cleaned = recipe.clean_batch((r.text, r.attributes) for r in records)
    return compose_snapshot(dataset, spec, recipe, list(zip(records, cleaned, strict=True)))


def sides(content: SnapshotContent) -> Mapping[str, str]:
    return {row.record_id: side for side in ("train", "holdout") for row in getattr(content, side)}


def test_a_record_keeps_its_side_when_others_come_and_go() -> None:
    few, many = sides(compose([raw(n) for n in range(0, 60, 2)])), sides(compose([raw(n) for n in range(200)]))
    assert {key: many[key] for key in few} == few
    assert 30 <= sum(side == "holdout" for side in many.values()) <= 90


def test_two_data_sets_hold_out_different_records() -> None:
    records = [raw(n) for n in range(100)]
    assert sides(compose(records)) != sides(compose(records, dataset="datasets/other"))


def test_what_exceeds_the_limit_goes_to_neither_side() -> None:
    spec = replace(SPEC, holdout=HoldoutSpec(0.3, 10))
    free, limited = compose([raw(n) for n in range(100)]), compose([raw(n) for n in range(100)], spec)
    assert limited.train == free.train
    assert len(limited.holdout) == 10
    assert {r.record_id for r in limited.holdout} < {r.record_id for r in free.holdout}
    surplus = [r for r in limited.rejected if r.reason == "holdout_surplus"]
    assert len(surplus) == len(free.holdout) - 10
    more = compose([raw(n) for n in range(200)], spec)
    assert not {r.record_id for r in more.train} & {r.record_id for r in free.holdout}


def test_equal_content_goes_to_one_side() -> None:
    keys = {f"r{n}": f"content {n % 20}" for n in range(100)}
    result = split(keys, HoldoutSpec(0.5), "salt")
    assert not {keys[i] for i in result.train} & {keys[i] for i in result.holdout}
    assert result.train
    assert result.holdout


def test_every_record_is_accounted_for() -> None:
    records = [
        *(raw(n) for n in range(40)),
        raw(900, "Head\ntiny"),
        raw(901, "no second line"),
        raw(902, records_text(3)),
    ]
    content = compose(records)
    counts = content.manifest["counts"]
    assert counts["records_in"] == 43
    assert counts["rejected_by_reason"] == {"exact_duplicate": 1, "no_first_line": 1, "too_short": 1}
    assert counts["train"] + counts["holdout"] + counts["rejected"] == 43
    assert content.manifest["contamination"]["exact_overlap"] == 0
    assert {row.record_id: row.detail for row in content.rejected}["r902"] == "duplicate_of=sources/news/records/r003"


def records_text(number: int) -> str:
    return f"Another head\n the body of  article number {number}."


def test_the_digest_follows_from_content_recipe_and_split() -> None:
    records = [raw(n) for n in range(20)]
    digest = compose(records).digest
    assert compose(records[::-1]).digest == digest
    assert compose(records[:-1]).digest != digest
    assert compose([*records[:-1], replace(records[-1], text="Head\nAnother body entirely.")]).digest != digest
    assert compose([*records[:-1], replace(records[-1], attributes={"topic": "u"})]).digest != digest
    assert compose(records, replace(SPEC, holdout=HoldoutSpec(0.4))).digest != digest
    assert compose(records, replace(SPEC, operators=SPEC.operators[:-1])).digest != digest
    assert compose(records, dataset="datasets/other").digest != digest
    recipe = compile_recipe(default_registry(), SPEC.operators, SPEC.required_attributes)
    digests = [(r.record_id, r.content_digest) for r in records]
    assert snapshot_digest("datasets/news", SPEC, recipe.digest, digests) == digest


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    records = [raw(n) for n in range(30)]
    folders = []
    for name, order in (("one", records), ("two", records[::-1])):
        summary = FolderSnapshots(ArtifactStore(f"file://{tmp_path}/{name}")).write(compose(order))
        folders.append(Path(summary.uri.removeprefix("file://")))
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == ["holdout.parquet", "manifest.json", "rejected.parquet", "train.parquet"]
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_a_written_snapshot_is_found_and_holds_what_was_composed(tmp_path: Path) -> None:
    snapshots = FolderSnapshots(ArtifactStore(f"file://{tmp_path}"))
    content = compose([raw(n) for n in range(30)])
    assert snapshots.find("datasets/news", content.digest) is None
    summary = snapshots.write(content)
    assert snapshots.find("datasets/news", content.digest) == summary
    assert summary.uri == f"file://{tmp_path}/datasets/news/{content.digest[:16]}"
    folder = Path(summary.uri.removeprefix("file://"))
    train = pq.read_table(folder / "train.parquet").to_pylist()
    assert list(train[0]) == ["record_id", "source", "text", "topic", "headline"]
    assert [row["headline"] for row in train] == [f"Head {int(row['record_id'][1:])}" for row in train]
    assert len(train) == summary.train_count
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["train.parquet"]["rows"] == summary.train_count
    assert manifest["recipe"]["operators"][1]["params"]["field"] == "headline"
    assert manifest["sources"] == {"news": 30}


def test_an_object_store_gets_the_manifest_last_and_half_a_folder_is_not_a_version() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    snapshots = FolderSnapshots(ArtifactStore("memory://bucket/state"))
    content = compose([raw(n) for n in range(10)])
    summary = snapshots.write(content)
    assert snapshots.find("datasets/news", content.digest) == summary
    memory.rm(f"{summary.uri.removeprefix('memory:/')}/manifest.json")
    assert snapshots.find("datasets/news", content.digest) is None


def test_a_folder_of_another_digest_is_refused(tmp_path: Path) -> None:
    snapshots = FolderSnapshots(ArtifactStore(f"file://{tmp_path}"))
    digest = snapshots.write(compose([raw(1)])).digest
    with pytest.raises(FailedPreconditionError):
        snapshots.find("datasets/news", digest[:16] + "0" * 48)


def test_an_empty_data_set_is_a_snapshot_too(tmp_path: Path) -> None:
    summary = FolderSnapshots(ArtifactStore(f"file://{tmp_path}")).write(compose([]))
    assert (summary.train_count, summary.holdout_count, summary.records_in) == (0, 0, 0)


def test_an_operator_on_an_attribute_that_no_record_has_is_a_named_error() -> None:
    operators = parse_operators([{"length_filter": {"min_chars": 1, "fields": ["topik"]}}])
    spec = DatasetSpec(("news",), tuple(operators), HoldoutSpec(0.3))
    with pytest.raises(
        FailedPreconditionError, match=r"operators\[0\].params.fields.*'topik'.*did you mean 'topic'"
    ) as e:
        compose([raw(1), raw(2)], spec)
    assert e.value.reason == "UNKNOWN_FIELD"
    assert compose([], spec).train == []
    known = replace(spec, operators=tuple(parse_operators([{"mask_pii": {"fields": ["path"]}}])))
    assert compose([raw(1), raw(2)], known).rejected == []


def test_a_dropped_record_names_its_operator(tmp_path: Path) -> None:
    content = compose([raw(1), raw(2), replace(raw(1), record_id="r003"), raw(4, "Head\nshort")])
    assert {(row.reason, row.operator) for row in content.rejected} == {
        ("exact_duplicate", "exact_dedup"),
        ("too_short", "length_filter"),
    }
    assert content.manifest["counts"]["rejected_by_operator"] == {"exact_dedup": 1, "length_filter": 1}
    store = FolderSnapshots(ArtifactStore(str(tmp_path)))
    table = pq.read_table(store.write(content).uri.removeprefix("file://") + "/rejected.parquet")
    assert set(table["operator"].to_pylist()) == {"exact_dedup", "length_filter"}
