"""`tidemill dataset`, `explain` and `clean preview`: what they show of messages, and what they read and write."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from google.protobuf.json_format import ParseDict
from rich.console import Console
from tidemill.cleaning.v1.cleaning_service_pb2 import CleanTextResponse, ExplainRecordResponse, OriginalKeeping
from tidemill.cleaning.v1.dataset_pb2 import DatasetVersion

from gateway.cli.clean_commands import Sample, read_samples, recipe_file
from gateway.cli.dataset_commands import WRITERS, differences, print_version, replaced
from gateway.cli.record_changes import RecordChanges, record_changes
from gateway.cli.views.record import explanation, preview, shown, shown_changes
from services.kit.errors import InvalidArgumentError

EFFECTS: list[dict[str, Any]] = [
    {
        "position": 1,
        "operator": "strip_html",
        "changes": [{"field": "text", "edits": [{"start": 0, "end": 3, "before": "<p>", "after": ""}]}],
    },
    {
        "position": 2,
        "operator": "mask_pii",
        "changes": [
            {
                "field": "text",
                "edits": [{"start": n, "end": n + 12, "before": "630-555-0187", "after": "[PHONE]"} for n in range(7)],
            },
            {"field": "caller", "removed": True},
            {"field": "kind", "added": True, "edits": [{"after": "ticket"}]},
        ],
        "omitted_edits": 3,
    },
]


def printed(what: Any, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width, markup=False, emoji=False).print(what)
    return out.getvalue()


def test_a_preview_names_the_operator_of_each_change() -> None:
    cleaned = ParseDict({"text": "Call [PHONE]", "effects": EFFECTS}, CleanTextResponse())
    text = printed(preview("line 3", "<p>Call 630-555-0187", cleaned, 100))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[:4] == [
        "line 3",
        "before <p>Call 630-555-0187",
        "after Call [PHONE]",
        "strip_html text at 0 deletes “<p>”",
    ]
    assert "mask_pii text at 0 “630-555-0187” → “[PHONE]”" in lines
    assert "text and 2 edits more" in lines
    assert "caller removed" in lines
    assert "kind added at 0 inserts “ticket”" in lines
    assert "and 3 edits more" in lines


def test_a_rejected_text_is_shown_with_the_figures_behind_it() -> None:
    rejected = CleanTextResponse(rejected_reason="too_short", rejected_detail="3 characters, at least 4")
    assert "rejected: too_short (3 characters, at least 4)" in printed(preview("line 1", "abc", rejected, 80))
    assert "the same text" in printed(preview("line 1", "abc", CleanTextResponse(text="abc"), 80))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("\u200b", "“\\u200b”"),
        ("a\nb", "“a\\nb”"),
        ("  ", "“  ”"),
        ("x" * 60, "“" + "x" * 47 + "…”"),
        ("患者", "“患者”"),
    ],
)
def test_what_cannot_be_seen_is_shown_by_its_code(text: str, wanted: str) -> None:
    assert shown(text) == wanted


def test_an_explanation_follows_a_record_to_the_models_that_learnt_from_it() -> None:
    found = ParseDict(
        {
            "name": "sources/tickets/records/7",
            "record_id": "7",
            "source": "tickets",
            "import_name": "imports/a",
            "datasets": [
                {
                    "dataset": "datasets/a",
                    "text": "Call [PHONE]",
                    "effects": EFFECTS,
                    "attributes": {"label": "bad"},
                    "dataset_version": "datasets/a/versions/2",
                    "placement": "PLACEMENT_TRAIN",
                },
                {
                    "dataset": "datasets/b",
                    "text": "Call",
                    "dataset_version": "datasets/b/versions/1",
                    "placement": "PLACEMENT_REJECTED",
                    "rejected_reason": "near_duplicate",
                    "rejected_detail": "of 3",
                    "rejected_operator": "near_dedup",
                },
                {"dataset": "datasets/c", "text": "Call"},
            ],
        },
        ExplainRecordResponse(),
    )
    text = printed(explanation(found, {"datasets/a/versions/2": ["models/m/versions/4", "models/m/versions/5"]}))
    assert "source tickets, brought by imports/a" in text
    assert "datasets/a/versions/2: in the training part" in text
    assert "taught models/m/versions/4, models/m/versions/5" in text
    assert "label  bad" in text
    assert "rejected: near_duplicate (of 3) by near_dedup" in text
    assert "There is no version yet." in text
    # As in a mesh without inference.
    assert "in the training part" in printed(explanation(found, None))
    assert "no model has learnt" not in printed(explanation(found, None))
    found.withdrawn = True
    del found.datasets[:]
    text = printed(explanation(found, {}), 200)
    assert "gone from its source, so no later version contains it" in text
    assert "No data set takes this source." in text


def test_a_recipe_is_read_from_a_file_without_a_training(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(
        "name: shop\nsources:\n  - source: tickets\n    json_lines: {uri: tickets.jsonl}\n"
        "dataset:\n  name: datasets/shop\n  operators:\n    - mask_pii: {}\n"
    )
    found = recipe_file(str(file))
    assert found is not None
    assert [each.name for each in found.spec.dataset.operators] == ["mask_pii"]
    assert recipe_file("shop") is None


def test_an_explanation_says_how_the_original_is_kept_and_whose_the_record_is() -> None:
    found = ExplainRecordResponse(name="sources/s/records/1", source="s", tenant="acme")
    found.datasets.add(dataset="datasets/d", text="cleaned")
    assert "its original" not in printed(explanation(found, {}), 200)
    assert "no operator changed it" in printed(explanation(found, {}), 200)
    assert "source s, pushed by a caller, of the tenant acme" in printed(explanation(found, {}), 200)
    found.original = OriginalKeeping.ORIGINAL_KEEPING_ENCRYPTED
    assert "its original is stored encrypted" in printed(explanation(found, {}), 200)
    found.original = OriginalKeeping.ORIGINAL_KEEPING_NONE
    text = printed(explanation(found, {}), 200)
    assert "its original is not kept" in text
    assert "what each operator did is not known" in text
    assert "no operator changed it" not in text


def version(**changed: Any) -> DatasetVersion:
    value: dict[str, Any] = {
        "name": "datasets/a/versions/1",
        "spec": {
            "sources": ["s"],
            "operators": [{"name": "exact_dedup"}, {"name": "length_filter", "params": {"min_chars": 4}}],
            "holdout": {"fraction": 0.1},
        },
        "records_in": 10,
        "train_count": 8,
        "rejected_by_reason": {"duplicate": 2},
    }
    return ParseDict(value | changed, DatasetVersion())


def test_variants_stand_beside_their_parents(capsys: pytest.CaptureFixture[str]) -> None:
    print_version(version(train_count=8, variant_counts={"random_swap": 3}, dropped_variant_counts={"duplicate": 1}))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "5 50.0% for training" in lines
    assert "3 30.0% variants by random_swap" in lines
    assert "dropped variants: duplicate 1" in lines
    found = ParseDict(
        {
            "name": "sources/s/records/r1",
            "variant_id": "r1~1",
            "datasets": [
                {
                    "dataset": "datasets/d",
                    "dataset_version": "datasets/d/versions/1",
                    "placement": "PLACEMENT_TRAIN",
                    "variants": [{"record_id": "r1~1", "augmenter": "random_swap", "text": "b a"}],
                }
            ],
        },
        ExplainRecordResponse(),
    )
    text = printed(explanation(found, {}))
    assert "r1~1 is a variant of a record:" in text
    assert "variant r1~1 by random_swap  b a" in text
    tried = ParseDict({"text": "a b", "variants": [{"augmenter": "random_swap", "text": "b a"}]}, CleanTextResponse())
    assert "b a  random_swap" in printed(preview("line 1", "a b", tried, 80))


def test_two_versions_differ_by_recipe_sources_and_counts() -> None:
    old = version()
    assert list(differences(old, version())) == []
    new = version(
        spec={
            "sources": ["s", "t"],
            "operators": [{"name": "exact_dedup"}, {"name": "length_filter", "params": {"min_chars": 9}}],
            "holdout": {"fraction": 0.2},
        },
        train_count=5,
        holdout_count=1,
        rejected_by_reason={"too_short": 4},
        feedback_counts={"correction": 3},
        variant_counts={"random_swap": 2},
    )
    assert list(differences(old, new)) == [
        ("sources", "s", "s, t"),
        ("operators", 'length_filter {"min_chars": 4.0}', 'length_filter {"min_chars": 9.0}'),
        ("hold-out", '{"fraction": 0.1}', '{"fraction": 0.2}'),
        ("for training", 8, 5),
        ("held out", 0, 1),
        ("rejected: duplicate", 2, 0),
        ("rejected: too_short", 0, 4),
        ("feedback: correction", 0, 3),
        ("variants: random_swap", 0, 2),
    ]
    new.spec.augment.operators.add(name="random_swap")
    assert list(differences(old, new))[3] == ("augment", "", '{"operators": [{"name": "random_swap"}]}')
    # Comparing leaves the messages as they were.
    assert old == version()


def part(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows)


OLD = {
    "train": [
        {"record_id": "1", "source": "s", "text": "same", "label": "a"},
        {"record_id": "2", "source": "s", "text": "a long text that is the same for a while, then OLD", "label": "a"},
        {"record_id": "3", "source": "s", "text": "goes", "label": "a"},
        {"record_id": "4", "source": "s", "text": "becomes a duplicate", "label": "a"},
        {"record_id": "5", "source": "s", "text": "moves", "label": "a"},
        {"record_id": "6", "source": "s", "text": "relabelled", "label": "a"},
    ],
    "rejected": [
        {"record_id": "7", "source": "s", "reason": "too_short", "detail": "3", "operator": "length_filter"},
        {"record_id": "8", "source": "s", "reason": "too_short", "detail": "3", "operator": "length_filter"},
    ],
}
NEW = {
    "train": [
        {"record_id": "1", "source": "s", "text": "same", "label": "a"},
        {"record_id": "2", "source": "s", "text": "a long text that is the same for a while, then NEW", "label": "a"},
        {"record_id": "6", "source": "s", "text": "relabelled", "label": "b"},
        {"record_id": "7", "source": "s", "text": "is taken now", "label": "a"},
        {"record_id": "1", "source": "t", "text": "comes from another source", "label": "a"},
    ],
    "holdout": [{"record_id": "5", "source": "s", "text": "moves", "label": "a"}],
    "rejected": [
        {"record_id": "4", "source": "s", "reason": "exact_duplicate", "detail": "of 1", "operator": "exact_dedup"},
        {"record_id": "8", "source": "s", "reason": "too_short", "detail": "4", "operator": "length_filter"},
    ],
}


def changes_of(old: dict[str, list[dict[str, Any]]], new: dict[str, list[dict[str, Any]]]) -> RecordChanges:
    def reader(parts: dict[str, list[dict[str, Any]]]) -> Callable[[str], pa.Table | None]:
        return lambda name: part(parts[name]) if name in parts else None

    return record_changes(reader(old), reader(new))


def test_each_record_that_differs_between_two_versions_has_one_kind() -> None:
    found = changes_of(OLD, NEW)
    assert found.counts == {"added": 1, "removed": 1, "changed": 2, "moved": 1, "rejected": 1, "accepted": 1}
    named = [(each.kind, each.source, each.record_id) for each in found.first(5)]
    assert named == [
        ("added", "t", "1"),
        ("removed", "s", "3"),
        ("changed", "s", "2"),
        ("changed", "s", "6"),
        ("moved", "s", "5"),
        ("rejected", "s", "4"),
        ("accepted", "s", "7"),
    ]
    assert [each.record_id for each in found.first(1) if each.kind == "changed"] == ["2"]
    assert not any(changes_of(OLD, OLD).counts.values())


def test_a_person_sees_where_records_differ() -> None:
    lines = "".join(printed(each, 120) for each in shown_changes(changes_of(OLD, NEW), 3)).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "records: 1 added, 1 removed, 2 changed, 1 moved, 1 rejected, 1 accepted",
        "added t/1 for training “comes from another source”",
        "removed s/3 for training “goes”",
        "changed s/2 text “…while, then OLD” → “…while, then NEW”",
        "changed s/6 label “a” → “b”",
        "moved s/5 for training → held out",
        "rejected s/4 for training → rejected: exact_duplicate (of 1)",
        "“becomes a duplicate”",
        "accepted s/7 rejected → for training",
        "“is taken now”",
    ]
    [same] = shown_changes(changes_of(NEW, NEW), 3)
    assert "are the same" in printed(same)


def test_the_same_operators_in_another_order_are_a_difference() -> None:
    other = version()
    other.spec.operators.reverse()
    (found,) = differences(version(), other)
    assert found == (
        "operators",
        'exact_dedup\nlength_filter {"min_chars": 4.0}',
        'length_filter {"min_chars": 4.0}\nexact_dedup',
    )


def test_records_are_written_in_each_format(tmp_path: Path) -> None:
    table = pa.table({"record_id": ["1", "2"], "text": ["Über, “x”", 'a\n"b"'], "label": ["good", None]})
    for suffix, write in WRITERS.items():
        out = tmp_path / f"records{suffix}"
        out.write_bytes(b"x" * 100_000)  # a longer file of before is replaced whole
        with replaced(out) as file:
            write(table, file)
    lines = (tmp_path / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == table.to_pylist()
    assert pq.read_table(tmp_path / "records.parquet").to_pylist() == table.to_pylist()
    read = pc.read_csv(tmp_path / "records.csv", parse_options=pc.ParseOptions(newlines_in_values=True)).to_pylist()
    assert [(row["text"], row["label"]) for row in read] == [("Über, “x”", "good"), ('a\n"b"', "")]


def test_a_file_that_could_not_be_written_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), replaced(tmp_path / "new.jsonl"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_texts_come_from_json_lines_with_their_attributes_or_from_plain_lines(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text(
        '{"id": 1, "text": "one", "label": "good", "stars": 5, "no": null}\n\n{"text": "two\u2028three"}\n'
    )
    assert list(read_samples(str(lines))) == [
        Sample(1, "one", {"label": "good", "stars": "5"}),
        Sample(3, "two\u2028three"),
    ]
    plain = tmp_path / "a.txt"
    plain.write_text("one\n\n{two}\n")
    assert list(read_samples(str(plain))) == [Sample(1, "one"), Sample(3, "{two}")]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b'{"text": "one"}\n{"text": 2}\n', r"a\.jsonl, line 2: `text` must be a text that is not empty"),
        (b'{"text": "one"}\n{\n', r"a\.jsonl, line 2 is not JSON"),
        (b'{"text": "\xff"}\n', r"a\.jsonl is not UTF-8 \(byte 10\)"),
    ],
)
def test_a_line_that_is_not_valid_is_named(tmp_path: Path, content: bytes, wanted: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=wanted):
        list(read_samples(str(file)))
    with pytest.raises(InvalidArgumentError, match="cannot be read: No such file"):
        list(read_samples(str(tmp_path / "missing.jsonl")))
