"""Exports of Label Studio to records: what annotators chose, and the parts of a text that they marked; no I/O."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.ingest.domain.record import RawRecord, RecordRefusedError, check_record
from services.ingest.engine.attributes import Attributes
from services.ingest.engine.file_format import FileFormat, ReadFile
from services.ingest.engine.json_items import member, split_items
from services.ingest.engine.members import fitted_id

_SPANS = ("labels", "hypertextlabels")


@dataclass(frozen=True)
class LabelStudioExport(FileFormat[Mapping[str, Any]]):
    """JSON exports of Label Studio; a piece is a task. Predictions and cancelled annotations are left out."""

    text_field: str = "text"
    field = "label_studio_export"

    def split(self, file: ReadFile) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """See `split_items`."""
        return split_items(file.chunks)

    def record(self, source: str, file: ReadFile, piece: Mapping[str, Any]) -> RawRecord:
        """See `FileFormat`: `label`, `spans` and `correction`, each the one of most annotators.

        Raises:
            RecordRefusedError: it is not a task, or the annotators disagree without a majority.
        """
        data = member(piece, "data", dict)
        text = member(data, self.text_field, str, "data.")
        annotations = piece.get("annotations", piece.get("completions")) or []
        if not isinstance(annotations, list) or not all(isinstance(item, Mapping) for item in annotations):
            raise RecordRefusedError("annotations must be a list of objects.", reason="WRONG_MEMBER")
        counted = [item for item in annotations if not item.get("was_cancelled")]
        attributes = Attributes()
        read = [_decided(item.get("result"), f"annotations[{number}]", text) for number, item in enumerate(counted)]
        for name in ("label", "correction", "spans"):
            values = [each[name] for each in read if name in each]
            if values:
                attributes.add(name, _majority(values, name))
        if counted:
            attributes.add("annotators", len(counted))
        for name, value in data.items():
            if name != self.text_field:
                attributes.add(name, value)
        given = piece.get("id")
        record_id = fitted_id(given, "id", attributes) if isinstance(given, str | int) and given != "" else ""
        record = RawRecord(source, text, attributes.result(), record_id)
        check_record(record)
        return record.identified()

    def content(self, piece: Mapping[str, Any]) -> bytes:
        """See `FileFormat`."""
        return json.dumps(piece, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")


FORMAT = LabelStudioExport


def _decided(result: Any, place: str, text: str) -> dict[str, str]:
    """What one annotator decided, by the attribute that it becomes."""
    if not isinstance(result, list) or not all(isinstance(item, Mapping) for item in result):
        raise RecordRefusedError(f"{place}.result must be a list of objects.", reason="WRONG_MEMBER")
    chosen: list[str] = []
    written: list[str] = []
    spans: list[dict[str, Any]] = []
    for number, item in enumerate(result):
        value, kind = item.get("value"), item.get("type")
        where = f"{place}.result[{number}].value"
        if not isinstance(value, Mapping):
            continue
        if kind == "choices":
            chosen += _texts(value.get("choices"), f"{where}.choices")
        elif kind == "textarea":
            written += _texts(value.get("text"), f"{where}.text")
        elif kind in _SPANS:
            spans += _spans(value, kind, where, text)
    spans.sort(key=lambda span: (span["start"], span["end"]))
    found = {"label": ",".join(chosen), "correction": "\n".join(written)}
    if spans:
        found["spans"] = json.dumps(spans, ensure_ascii=False)
    return {name: value for name, value in found.items() if value}


def _spans(value: Mapping[str, Any], kind: str, where: str, text: str) -> Iterator[dict[str, Any]]:
    start, end = value.get("start"), value.get("end")
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text)):
        raise RecordRefusedError(
            f"{where}: start and end must be characters of the text, of {len(text)}.", reason="WRONG_MEMBER"
        )
    for label in _texts(value.get(kind), f"{where}.{kind}"):
        yield {"start": start, "end": end, "label": label}


def _texts(value: Any, where: str) -> list[str]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise RecordRefusedError(f"{where} must be text or a list of texts.", reason="WRONG_MEMBER")
    return found


def _majority(values: Sequence[str], name: str) -> str:
    counts = Counter(values).most_common(2)
    if len(counts) == 2 and counts[0][1] == counts[1][1]:
        raise RecordRefusedError(
            f"{len(values)} annotators disagree about the {name}, none has a majority; decide it in Label Studio.",
            reason="ANNOTATORS_DISAGREE",
        )
    return counts[0][0]
