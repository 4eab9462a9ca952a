"""Exports of Langfuse to records: traces, observations and items of datasets; no I/O."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from services.ingest.domain.record import RawRecord, RecordRefusedError, check_record
from services.ingest.engine.attributes import Attributes
from services.ingest.engine.conversations import is_conversation, read_conversation
from services.ingest.engine.file_format import FileFormat, ReadFile
from services.ingest.engine.json_items import split_items
from services.ingest.engine.members import fitted_id

# The same in its exports, its API and its older releases.
_TIMES = ("timestamp", "startTime", "start_time", "createdAt", "created_at")
_OUTPUTS = ("output", "expectedOutput", "expected_output")
_READ = frozenset({"id", "input", "scores", *_OUTPUTS})
# Members under which a text is usual, where input or output is an object.
_TEXTS = ("text", "content", "query", "question", "prompt", "answer", "response", "completion", "output")


@dataclass(frozen=True)
class LangfuseExport(FileFormat[Mapping[str, Any]]):
    """JSON exports of Langfuse; a piece is an object."""

    field = "langfuse_export"

    def split(self, file: ReadFile) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """See `split_items`."""
        return split_items(file.chunks)

    def record(self, source: str, file: ReadFile, piece: Mapping[str, Any]) -> RawRecord:
        """See `FileFormat`. Conversations are read as the files of OpenAI are; other objects stay JSON."""
        attributes = Attributes()
        text, system, answered = _asked(_opened(piece.get("input")))
        if not text:
            raise RecordRefusedError("The member `input` has no text.", reason="MISSING_TEXT")
        output = next((piece[name] for name in _OUTPUTS if piece.get(name) is not None), None)
        answer = _answer(_opened(output)) or answered
        for name, value in (("output", answer), ("system", system)):
            if value:
                attributes.add(name, value)
        for name, score in _scores(piece.get("scores")):
            attributes.add(f"score_{name}", score)
        for name, value in piece.items():
            if name not in _READ:
                attributes.add(name, value)
        given = piece.get("id")
        record_id = fitted_id(given, "id", attributes) if isinstance(given, str | int) and given != "" else ""
        record = RawRecord(source, text, attributes.result(), record_id, _time(piece))
        check_record(record)
        return record.identified()

    def content(self, piece: Mapping[str, Any]) -> bytes:
        """See `FileFormat`."""
        return json.dumps(piece, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")


FORMAT = LangfuseExport


def _opened(value: Any) -> Any:
    """CSV-like exports hold JSON as text."""
    if isinstance(value, str) and value[:1] in "[{" and value:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _asked(value: Any) -> tuple[str, str, str]:
    """Text, instruction and, of a whole conversation, the last answer."""
    if isinstance(value, Mapping) and is_conversation(value.get("messages")):
        value = value["messages"]
    if is_conversation(value):
        found = read_conversation(value, "input")
        return found.asked, found.system, found.answer
    return _text(value), "", ""


def _answer(value: Any) -> str:
    if isinstance(value, Mapping) and value.get("role") == "assistant":
        value = value.get("content")
    if is_conversation(value):
        return "\n".join(_text(message.get("content")) for message in value if message["role"] == "assistant")
    return _text(value)


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, Mapping):
        texts = [value[name] for name in _TEXTS if isinstance(value.get(name), str)]
        if len(texts) == 1:
            return str(texts[0])
    return json.dumps(value, ensure_ascii=False, default=str)


def _scores(value: Any) -> Iterator[tuple[str, Any]]:
    """Scores by name: a list of objects, or an object of lists."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield str(name), item[0] if isinstance(item, list) and len(item) == 1 else item
    for item in value if isinstance(value, list) else ():
        if isinstance(item, Mapping) and isinstance(item.get("name"), str):
            found = item.get("value")
            yield item["name"], item.get("stringValue") if found is None else found


def _time(piece: Mapping[str, Any]) -> datetime | None:
    for name in _TIMES:
        value = piece.get(name)
        if isinstance(value, str):
            try:
                moment = datetime.fromisoformat(value)
                return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
            except (ValueError, OverflowError):
                continue
    return None
