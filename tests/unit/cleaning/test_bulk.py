"""Cleaning in bulk: what is read, refused, kept, rejected, written and continued."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tidemill.ingest.v1.record_pb2 import Record

from services.cleaning.adapters import bulk_files
from services.cleaning.adapters.bulk_engines import BulkJob, ProcessEngine, RayEngine, attempt, recipe_of
from services.cleaning.adapters.bulk_files import BulkFolder, PartCleaner, input_files, plan
from services.cleaning.adapters.bulk_rows import Columns, layout_of, rows_of
from services.cleaning.app.bulk import BulkSummary, Part, PartReport, clean_in_bulk
from services.cleaning.domain.dataset import DatasetSpec
from services.kit.errors import (
    AbortedError,
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    from_plain,
)
from services.kit.grpc.validation import validate
from tests.recipes import parse_operators


@dataclass
class OwnProcess:
    """Cleans parts in this process; `fails_after` of them it ends as if it were killed."""

    job: BulkJob
    fails_after: int | None = None
    cleaned: list[int] = field(default_factory=list)

    def run(self, parts: Sequence[Part]) -> Iterator[PartReport]:
        for part in parts:
            if self.fails_after is not None and len(self.cleaned) >= self.fails_after:
                raise KeyboardInterrupt
            outcome = attempt(self.job, part)
            if "error" in outcome:
                raise from_plain(outcome["error"])
            self.cleaned.append(part.number)
            yield PartReport(**outcome["report"])


def run(
    source: Path,
    output: Path,
    recipe: Sequence[Any] = ("normalize_whitespace",),
    columns: Columns | None = None,
    required: Sequence[str] = (),
    fails_after: int | None = None,
) -> tuple[BulkSummary, OwnProcess]:
    spec = DatasetSpec(("bulk",), tuple(parse_operators(recipe)), required_attributes=tuple(required))
    compiled, columns = recipe_of(spec, b""), columns or Columns()
    parts, folder = plan(source, columns, compiled.digest), BulkFolder(output)
    with folder.opened():
        job = BulkJob(spec, compiled.digest, PartCleaner(str(source), str(folder.partial), columns))
        engine = OwnProcess(job, fails_after)
        return clean_in_bulk(compiled, parts, folder, engine, lambda *_: None), engine


def write(path: Path, rows: Sequence[dict[str, Any]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), **options), path)
    return path


def read(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.parquet")):
        rows += pq.read_table(path).to_pylist()
    for row in rows:
        if "attributes" in row:
            row["attributes"] = dict(row["attributes"])
    return rows


def test_other_columns_become_attributes_as_ingest_writes_them(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": " a  text ", "label": "good", "stars": 5, "share": 0.5, "seen": True, "topic": None},
        {"text": "another", "label": None, "stars": None, "share": None, "seen": None, "topic": None},
    ]
    summary, _ = run(write(tmp_path / "in.parquet", rows), tmp_path / "out")
    assert (summary.records, summary.kept, summary.rejected_by_reason) == (2, 2, {})
    assert read(tmp_path / "out" / "kept") == [
        {
            "record_id": "in.parquet:0000000000",
            "source": "bulk",
            "text": "a text",
            "attributes": {"label": "good", "stars": "5", "share": "0.5", "seen": "true"},
        },
        {"record_id": "in.parquet:0000000001", "source": "bulk", "text": "another", "attributes": {}},
    ]
    assert not list(tmp_path.glob(".*"))


def test_the_output_of_a_run_is_the_input_of_another(tmp_path: Path) -> None:
    rows = [{"record_id": "a", "source": "s", "text": " one ", "label": "x"}]
    run(write(tmp_path / "in.parquet", rows), tmp_path / "once")
    run(tmp_path / "once" / "kept", tmp_path / "twice")
    assert read(tmp_path / "once" / "kept") == read(tmp_path / "twice" / "kept")
    assert read(tmp_path / "twice" / "kept") == [
        {"record_id": "a", "source": "s", "text": "one", "attributes": {"label": "x"}}
    ]


def test_a_struct_of_attributes_and_named_columns_are_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"body": "one", "attributes": {"label": "x", "n": 1}, "extra": [1], "Number": 12}]
    file = write(tmp_path / "in.parquet", rows)
    run(file, tmp_path / "nested", columns=Columns("body"))
    assert read(tmp_path / "nested" / "kept")[0]["attributes"] == {"label": "x", "n": "1"}
    rows = [{"body": "one", "id": 12, "extra": [1], "label": "x"}]
    run(write(tmp_path / "b.parquet", rows), tmp_path / "named", columns=Columns("body", "id", ("label",), "mine"))
    assert read(tmp_path / "named" / "kept") == [
        {"record_id": "12", "source": "mine", "text": "one", "attributes": {"label": "x"}}
    ]


def test_rejected_records_name_operator_and_figures_and_no_text(tmp_path: Path) -> None:
    rows = [{"record_id": "short", "text": "a b"}, {"record_id": "long", "text": "long enough to be kept"}]
    recipe = ["normalize_whitespace", {"length_filter": {"min_chars": 10}}]
    summary, _ = run(write(tmp_path / "in.parquet", rows), tmp_path / "out", recipe)
    assert read(tmp_path / "out" / "rejected") == [
        {
            "record_id": "short",
            "source": "bulk",
            "reason": "too_short",
            "detail": "chars=3 < min_chars=10",
            "operator": "length_filter",
        }
    ]
    assert (summary.rejected_by_reason, summary.rejected_by_operator) == ({"too_short": 1}, {"length_filter": 1})
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["counts"]["kept"] == 1
    assert [each["name"] for each in manifest["recipe"]["operators"]] == ["normalize_whitespace", "length_filter"]
    assert sorted(manifest["files"]) == ["kept/part-00000.parquet", "rejected/part-00000.parquet"]


def test_operators_on_the_whole_set_see_all_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "in" / f"{name}.parquet", [{"text": "The same text", "label": name}, {"text": f"only {name}"}])
    summary, _ = run(tmp_path / "in", tmp_path / "dedup", ["normalize_whitespace", "exact_dedup"])
    assert [row["text"] for row in read(tmp_path / "dedup" / "kept")] == ["The same text", "only a", "only b"]
    (gone,) = read(tmp_path / "dedup" / "rejected")
    assert (gone["record_id"], gone["operator"]) == ("b.parquet:0000000000", "exact_dedup")
    assert gone["detail"] == "duplicate_of=sources/bulk/records/a.parquet:0000000000"
    assert summary.set_operators == ("exact_dedup",)
    run(tmp_path / "in", tmp_path / "labels", ["conflicting_labels", "exact_dedup"])
    assert [row["text"] for row in read(tmp_path / "labels" / "kept")] == ["only a", "only b"]
    assert {row["reason"] for row in read(tmp_path / "labels" / "rejected")} == {"conflicting_labels"}


@pytest.mark.parametrize(
    ("values", "detail"),
    [
        ({"text": None}, "column=text: is empty"),
        ({"text": ""}, "column=text: is empty"),
        ({"text": "é" * 300_000}, "column=text: has 600000 bytes; the limit is 524288"),
        ({"text": "a", "record_id": "an id"}, "column=record_id: does not match [A-Za-z0-9._:/-]{1,128}"),
        ({"text": "a", "record_id": None}, "column=record_id: is missing"),
        ({"text": "a", "source": "Wrong Source"}, "column=source: does not match [a-z0-9][a-z0-9._-]{0,63}"),
        ({"text": "a", "label": "x" * 20_000}, "column=label: has 20000 bytes; the limit of an attribute is 16384"),
        ({"text": "a", "share": float("nan")}, "column=share: has a value that is neither text nor a number (float)"),
    ],
)
def test_a_row_that_is_no_record_is_rejected_and_stops_nothing(
    tmp_path: Path, values: dict[str, Any], detail: str
) -> None:
    good: dict[str, Any] = {"record_id": "good", "source": "s", "text": "fine", "label": "x", "share": 0.5}
    file = write(tmp_path / "in.parquet", [good, {**good, "record_id": "bad", **values}])
    summary, _ = run(file, tmp_path / "out")
    assert summary.rejected_by_reason == {"invalid_record": 1}
    assert [row["record_id"] for row in read(tmp_path / "out" / "kept")] == ["good"]
    (bad,) = read(tmp_path / "out" / "rejected")
    assert bad["detail"] == f"file=in.parquet row=1 {detail}"


def test_a_text_with_a_nul_is_cleaned_and_one_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    texts = pa.array([b"a\x00b", b"\xff\xfe", b"fine"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 3, texts.buffers())}), tmp_path / "in.parquet")
    summary, _ = run(tmp_path / "in.parquet", tmp_path / "out", ["fix_unicode"])
    assert [row["text"] for row in read(tmp_path / "out" / "kept")] == ["ab", "fine"]
    assert summary.rejected_by_reason == {"invalid_record": 1}
    assert read(tmp_path / "out" / "rejected")[0]["detail"] == "file=in.parquet row=1 column=text: is not UTF-8"


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("Source", "source"),
        ("s" * 65, "source"),
        ("an id", "record_id"),
        ("i" * 129, "record_id"),
        ("", "text"),
        ("x" * 524_289, "text"),
        ("x" * 16_385, "label"),
        ("fine", "label"),
        ("s-1.x_y", "source"),
        ("A/b:c.d_e-f", "record_id"),
    ],
)
def test_the_limits_are_those_of_the_contract(value: str, key: str) -> None:
    row: dict[str, Any] = {"record_id": "r", "source": "s", "text": "text", "label": "x", key: value}
    columns = Columns()
    batch = pa.RecordBatch.from_pylist([row])
    layout = layout_of(batch.schema, columns, "in")
    (read_row,) = rows_of(batch, layout, columns, "in", 0)
    record = Record(
        record_id=row["record_id"], source=row["source"], text=row["text"], attributes={"label": row["label"]}
    )
    try:
        validate(record)
    except InvalidArgumentError:
        assert read_row.wrong is not None
    else:
        assert read_row.wrong is None


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        ({"body": ["a"]}, Columns(), "column 'text': there is no such column; name the one with the text"),
        ({"text": [1]}, Columns(), "column 'text': has the type int64, not text"),
        ({"text": ["a"], "n": [[1]]}, Columns(), "column 'n': has the type list<element: int64>; an attribute is text"),
        ({"text": ["a"], "__index": [1]}, Columns(), "column '__index': is not a name of an attribute"),
        ({"text": ["a"]}, Columns(record_id="key"), "column 'key': there is no such column; name the one with the id"),
        ({"text": ["a"], "key": [0.5]}, Columns(record_id="key"), "column 'key': has the type double; an id is text"),
        ({"text": ["a"]}, Columns(attributes=("label",)), "column 'label': there is no such column; choose"),
        ({"text": ["a"], "source": [1]}, Columns(), "column 'source': has the type int64, not text"),
    ],
)
def test_a_wrong_column_is_refused_before_anything_is_cleaned(
    tmp_path: Path, table: dict[str, Any], columns: Columns, message: str
) -> None:
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table(table), file)
    with pytest.raises(InvalidArgumentError) as caught:
        run(file, tmp_path / "out", columns=columns)
    assert caught.value.message.startswith(f"{file}: {message}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet"]


def test_files_that_are_not_whole_parquet_are_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "in" / "a.parquet", [{"text": f"text {n}"} for n in range(1000)])
    (tmp_path / "in" / "b.parquet").write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(InvalidArgumentError, match=r"b\.parquet: cannot be read as Parquet.*copy it again"):
        run(tmp_path / "in", tmp_path / "out")
    content = bytearray(whole.read_bytes())
    content[4:1000] = bytes(996)
    (tmp_path / "in" / "b.parquet").write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=r"b\.parquet: row 0 or one after it \(row groups \[0\]\) cannot"):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_input_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="does not exist"):
        input_files(tmp_path / "nothing")
    write(tmp_path / "_temporary" / "a.parquet", [{"text": "a"}])
    with pytest.raises(InvalidArgumentError, match=r"no \.parquet files"):
        input_files(tmp_path)


def test_an_output_that_has_something_is_refused_and_an_empty_folder_is_filled(tmp_path: Path) -> None:
    file = write(tmp_path / "in.parquet", [{"text": "a"}])
    (tmp_path / "empty").mkdir()
    run(file, tmp_path / "empty")
    assert len(read(tmp_path / "empty" / "kept")) == 1
    for taken in (tmp_path / "empty", file):
        with pytest.raises(AlreadyExistsError, match="exists and is not empty"):
            run(file, taken)


def test_two_runs_do_not_write_the_same_output(tmp_path: Path) -> None:
    file = write(tmp_path / "in.parquet", [{"text": "a"}])
    with (
        BulkFolder(tmp_path / "out").opened(),
        pytest.raises(AbortedError, match="Another run is writing"),
    ):
        run(file, tmp_path / "out")


def test_records_with_one_id_are_refused_where_duplicates_are_found_by_it(tmp_path: Path) -> None:
    file = write(tmp_path / "in.parquet", [{"record_id": "x", "text": "a"}, {"record_id": "x", "text": "b"}])
    with pytest.raises(InvalidArgumentError, match="sources/bulk/records/x occurs twice"):
        run(file, tmp_path / "out", ["exact_dedup"])


def test_an_attribute_that_no_record_has_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "in.parquet", [{"text": "a", "label": "x"}])
    with pytest.raises(FailedPreconditionError, match="'lable', which no record of the data set has; did you mean"):
        run(file, tmp_path / "out", [{"normalize_whitespace": {"fields": ["lable"]}}])


def test_an_interrupted_run_continues_and_gives_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_files, "_PART_ROWS", 10)
    rows = pa.Table.from_pylist([{"text": f" text {n % 30} "} for n in range(50)])
    pq.write_table(rows, tmp_path / "in.parquet", row_group_size=10)
    recipe = ["normalize_whitespace", "exact_dedup"]
    run(tmp_path / "in.parquet", tmp_path / "at-once", recipe)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "in.parquet", tmp_path / "out", recipe, fails_after=2)
    assert not (tmp_path / "out").exists()
    summary, engine = run(tmp_path / "in.parquet", tmp_path / "out", recipe)
    assert (summary.reused_parts, engine.cleaned) == (2, [2, 3, 4])
    at_once, continued = ((tmp_path / name / "manifest.json").read_text() for name in ("at-once", "out"))
    assert at_once == continued
    assert summary.kept == 30


def test_a_changed_file_or_recipe_is_cleaned_again(tmp_path: Path) -> None:
    file = write(tmp_path / "in.parquet", [{"text": " A  b "}])
    damaged = [{"normalize_whitespace": {"fields": ["nothing"]}}]
    with pytest.raises(FailedPreconditionError):
        run(file, tmp_path / "out", damaged)
    summary, _ = run(file, tmp_path / "out")
    assert summary.reused_parts == 0
    assert read(tmp_path / "out" / "kept")[0]["text"] == "A b"


def test_lost_files_of_an_interrupted_run_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "in.parquet", [{"text": "a"}])
    recipe = ["exact_dedup"]
    monkeypatch.setattr(BulkFolder, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(file, tmp_path / "out", recipe)
    monkeypatch.undo()
    (tmp_path / ".out.partial" / "kept" / "part-00000.parquet").unlink()
    with pytest.raises(DataLossError, match=r"Delete .*\.out\.partial and run the command again"):
        run(file, tmp_path / "out", recipe)


def test_a_process_with_another_recipe_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "in.parquet", [{"text": "a"}])
    spec = DatasetSpec(("bulk",), tuple(parse_operators(["fix_unicode"])))
    (part,) = plan(file, Columns(), "other")
    outcome = attempt(BulkJob(spec, "other", PartCleaner(str(file), str(tmp_path), Columns())), part)
    assert outcome["error"]["reason"] == "RECIPE_DIFFERS"


def test_errors_cross_processes_with_their_fields(tmp_path: Path) -> None:
    file = write(tmp_path / "in.parquet", [{"text": "a"}])
    parts = plan(file, Columns(), "digest")
    file.unlink()
    spec = DatasetSpec(("bulk",), tuple(parse_operators(["fix_unicode"])))
    job = BulkJob(spec, recipe_of(spec, b"").digest, PartCleaner(str(file), str(tmp_path), Columns()))
    with pytest.raises(InvalidArgumentError) as caught:
        list(ProcessEngine(job, 1).run(parts))
    assert (caught.value.reason, caught.value.metadata) == ("NO_INPUT", {"file": str(file)})


def test_the_secret_is_not_shown() -> None:
    job = BulkJob(DatasetSpec(()), "d" * 64, PartCleaner("in", "out", Columns()), b"secret key")
    assert "secret" not in repr(job)


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setitem(sys.modules, "ray", None)
    file = write(tmp_path / "in.parquet", [{"text": "a"}])
    job = BulkJob(DatasetSpec(()), "digest", PartCleaner(str(file), str(tmp_path), Columns()))
    with pytest.raises(FailedPreconditionError, match=r"Install tidemill\[bulk\], or leave out --ray-address"):
        list(RayEngine(job, 1, "127.0.0.1:1").run(plan(file, Columns(), "digest")))


def test_a_full_disk_is_said_and_leaves_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writes of the first part fail as on a full disk."""
    file = write(tmp_path / "in.parquet", [{"text": "a"}])

    def refuse(path: Path, _text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(bulk_files, "replace_text", refuse)
    with pytest.raises(ResourceExhaustedError) as caught:
        run(file, tmp_path / "out")
    assert caught.value.reason == "DISK_FULL"
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert run(file, tmp_path / "out")[0].kept == 1


def test_ray_is_never_started_here(tmp_path: Path) -> None:
    file = write(tmp_path / "in.parquet", [{"text": "a"}])
    job = BulkJob(DatasetSpec(()), "digest", PartCleaner(str(file), str(tmp_path), Columns()))
    for address in ("local", "auto"):
        with pytest.raises(InvalidArgumentError, match="give host:port"):
            list(RayEngine(job, 1, address).run(plan(file, Columns(), "digest")))
