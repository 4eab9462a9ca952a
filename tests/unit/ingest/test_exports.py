"""JSON exports of OpenAI, Langfuse and Label Studio: their records, and what is refused by its line."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.domain.record import RawRecord, RecordRefusedError, Refusal
from services.ingest.domain.source_import import SourceSpec
from services.ingest.engine.file_format import AnyFormat, BadContentError, ReadFile
from services.ingest.engine.formats import make_format
from services.ingest.engine.json_items import split_items
from services.kit.errors import FailedPreconditionError
from tests.sources import file_sources, pull

EXPORTS = ("openai_files", "langfuse_export", "label_studio_export")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "id",
                    "input",
                    "output",
                    "messages",
                    "role",
                    "content",
                    "data",
                    "text",
                    "annotations",
                    "result",
                    "value",
                ]
            )
            | st.text(max_size=6),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)
OBJECTS = st.dictionaries(st.text(max_size=8), JSON, max_size=5)


def records(folder: Path, name: str, content: str, **options: Any) -> list[RawRecord | Refusal]:
    file = folder / "export.json"
    file.write_text(content, encoding="utf-8")
    return pull(file_sources(folder), SourceSpec("s", make_format(name, {"uri": str(file), **options})))


def only(found: list[RawRecord | Refusal]) -> RawRecord:
    (record,) = found
    assert isinstance(record, RawRecord), record
    return record


@given(st.lists(OBJECTS, max_size=5), st.integers(1, 50), st.booleans(), st.sampled_from([None, 2]))
def test_items_do_not_depend_on_form_and_chunks(items: list[Any], size: int, array: bool, indent: int | None) -> None:
    lines = [json.dumps(item, ensure_ascii=False, indent=indent) for item in items]
    text = "[\n" + ",\n".join(lines) + "\n]\n" if array else "\n".join(lines)
    content = text.encode("utf-8", "surrogatepass")
    try:
        content.decode()
    except UnicodeDecodeError:
        content = json.dumps(items).encode()
        text = content.decode()
        array = True
    chunks = [content[at : at + size] for at in range(0, len(content), size)]
    found = list(split_items(chunks))
    assert [value for _, value in found] == items
    starts = [number for number, _ in found]
    assert starts == sorted(starts)
    assert all(1 <= number <= text.count("\n") + 1 for number in starts)


@given(st.binary(max_size=80) | st.text('[]{}",:1 \n', max_size=40).map(str.encode), st.integers(1, 7))
def test_any_bytes_are_items_or_an_error_that_names_the_line(content: bytes, size: int) -> None:
    chunks = [content[at : at + size] for at in range(0, len(content), size)]
    wrong = None
    try:
        assert all(isinstance(value, dict) for _, value in split_items(chunks))
    except BadContentError as error:
        wrong = error
    assert wrong is None or wrong.reason == "NOT_DECODABLE" or wrong.message.startswith("line ")


@pytest.mark.parametrize("name", EXPORTS)
@given(
    value=OBJECTS
    | st.fixed_dictionaries({"data": OBJECTS, "annotations": JSON})
    | st.fixed_dictionaries({"input": JSON})
)
def test_any_object_is_a_record_or_is_refused(name: str, value: Any) -> None:
    made: AnyFormat = make_format(name, {"uri": "/x"})
    file = ReadFile("a.json", "", [json.dumps(value).encode()])
    for _, piece in made.split(file):
        with contextlib.suppress(RecordRefusedError):
            assert made.record("s", file, piece).text
        assert made.content(piece)


def test_the_three_forms_of_openai(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4"},
    ]
    longer = [*turns, {"role": "user", "content": [{"type": "text", "text": "And 3 + 3?"}]}]
    preferred = [{"role": "assistant", "content": "6"}]
    lines = [
        {"messages": turns, "tools": []},
        {"prompt": "Say hi", "completion": "hi"},
        {
            "input": {"messages": longer},
            "preferred_output": preferred,
            "non_preferred_output": [{"role": "assistant", "content": "7"}],
        },
    ]
    content = "\n".join(map(json.dumps, lines))
    chat, pair, preference = records(tmp_path, "openai_files", content)
    assert isinstance(chat, RawRecord)
    assert (chat.text, chat.attributes) == (
        "What is 2 + 2?",
        {"completion": "4", "system": "Be short.", "tools": "[]"},
    )
    assert isinstance(pair, RawRecord)
    assert (pair.text, pair.attributes) == ("Say hi", {"completion": "hi"})
    assert isinstance(preference, RawRecord)
    assert preference.text == "user: What is 2 + 2?\n\nassistant: 4\n\nuser: And 3 + 3?"
    assert preference.attributes == {"completion": "6", "chosen": "6", "rejected": "7", "system": "Be short."}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"messages": []}, "no message of the role user"),
        ({"messages": "hi"}, "messages must be a list"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role must be one of system"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content must be text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content has no part"),
        ({"prompt": "x"}, "completion must be text"),
        ({"text": "x"}, "none of messages"),
        (
            {"input": {"messages": [{"role": "user", "content": "x"}]}, "preferred_output": []},
            "preferred_output must end",
        ),
    ],
)
def test_a_bad_line_of_openai_is_refused_by_its_line_and_member(tmp_path: Path, line: Any, words: str) -> None:
    good = {"prompt": "Say hi", "completion": "hi"}
    _, refused, _ = records(tmp_path, "openai_files", "\n".join(map(json.dumps, [good, line, good])))
    assert isinstance(refused, Refusal)
    assert refused.location.endswith("export.json:2")
    assert words in refused.message


def test_langfuse_traces_observations_and_dataset_items(tmp_path: Path) -> None:
    items = [
        {
            "id": "t1",
            "timestamp": "2026-03-01T10:00:00.000Z",
            "name": "chat",
            "userId": "u1",
            "input": {"messages": [{"role": "user", "content": "房间怎么样"}]},
            "output": {"role": "assistant", "content": "很干净"},
            "scores": [{"name": "helpful", "value": 1}, {"name": "tone", "stringValue": "kind"}],
            "tags": ["prod"],
        },
        {
            "id": "o1",
            "type": "GENERATION",
            "startTime": "2026-03-01T10:00:01Z",
            "input": '[{"role":"user","content":"q"}]',
        },
        {"id": "i1", "input": {"question": "Where?"}, "expectedOutput": "Here", "metadata": {"level": 2}},
        {"id": "e1", "input": None},
    ]
    for content in (json.dumps(items, indent=1, ensure_ascii=False), "\n".join(map(json.dumps, items))):
        trace, observation, item, refused = records(tmp_path, "langfuse_export", content)
        assert isinstance(trace, RawRecord)
        assert (trace.record_id, trace.text) == ("t1", "房间怎么样")
        assert trace.event_time == datetime(2026, 3, 1, 10, tzinfo=UTC)
        assert trace.attributes == {
            "output": "很干净",
            "score_helpful": "1",
            "score_tone": "kind",
            "timestamp": "2026-03-01T10:00:00.000Z",
            "name": "chat",
            "user_id": "u1",
            "tags": '["prod"]',
        }
        assert isinstance(observation, RawRecord)
        assert observation.text == "q"
        assert isinstance(item, RawRecord)
        assert (item.text, item.attributes) == ("Where?", {"output": "Here", "metadata_level": "2"})
        assert isinstance(refused, Refusal)
        assert "`input` has no text" in refused.message


def task(*annotations: Any, text: str = "张三在北京") -> dict[str, Any]:
    return {"id": 7, "data": {"text": text, "origin": "mail"}, "annotations": list(annotations), "predictions": [{}]}


def chosen(*labels: str, cancelled: bool = False) -> dict[str, Any]:
    result = [{"type": "choices", "value": {"choices": list(labels)}}]
    return {"result": result, "was_cancelled": cancelled}


def marked(start: int, end: int, label: str) -> dict[str, Any]:
    return {"type": "labels", "value": {"start": start, "end": end, "text": "?", "labels": [label]}}


def test_label_studio_labels_by_majority_and_spans(tmp_path: Path) -> None:
    one = only(records(tmp_path, "label_studio_export", json.dumps([task(chosen("a"), chosen("b"), chosen("b"))])))
    assert (one.record_id, one.text) == ("7", "张三在北京")
    assert one.attributes == {"label": "b", "annotators": "3", "origin": "mail"}
    spans = task({"result": [marked(3, 5, "place"), marked(0, 2, "person")]})
    one = only(records(tmp_path, "label_studio_export", json.dumps([spans])))
    assert json.loads(one.attributes["spans"]) == [
        {"start": 0, "end": 2, "label": "person"},
        {"start": 3, "end": 5, "label": "place"},
    ]
    one = only(records(tmp_path, "label_studio_export", json.dumps([task(chosen("a", cancelled=True))])))
    assert one.attributes == {"origin": "mail"}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (task(chosen("a"), chosen("b")), "2 annotators disagree about the label"),
        (task({"result": [marked(3, 9, "place")]}), "annotations[0].result[0].value: start and end"),
        (task({"result": "x"}), "annotations[0].result must be a list"),
        ({"data": {"body": "x"}}, "data.text must be text"),
        ({"text": "JSON-MIN"}, "data must be an object"),
    ],
)
def test_a_bad_task_is_refused_by_its_line(tmp_path: Path, wrong: Any, words: str) -> None:
    content = "[\n" + ",\n".join(map(json.dumps, [task(), wrong])) + "\n]"
    _, refused = records(tmp_path, "label_studio_export", content)
    assert isinstance(refused, Refusal)
    assert refused.location.endswith("export.json:3")
    assert words in refused.message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"a": 1},\n{"a": }]', "line 2: not valid JSON"),
        ('[{"input": "x"}', "the file ends within its array"),
        ('[{"input": "x"}] {}', "there is more after the end of the array"),
        ('{"input": "x"}\n"text"', "line 2: expected an object, found '\"text\"'"),
        ("[" * 100_000, "expected an object, found '['"),
        ('{"a":' * 100_000, "not valid JSON: it is nested too deep"),
        ("[3]", "expected an object, found '3]'"),
    ],
)
def test_a_file_that_is_not_an_export_fails_the_import_by_its_line(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        records(tmp_path, "langfuse_export", content)
    assert "export.json" in caught.value.message
    assert words in caught.value.message
