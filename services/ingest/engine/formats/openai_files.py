"""Files for OpenAI's fine-tuning to records: conversations, pairs of prompt and completion, preferences; no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.ingest.domain.record import RawRecord, RecordRefusedError, check_record
from services.ingest.engine.attributes import Attributes
from services.ingest.engine.conversations import read_conversation
from services.ingest.engine.file_format import FileFormat, ReadFile
from services.ingest.engine.formats.json_lines import JsonLines, object_of
from services.ingest.engine.json_items import member

_READ = frozenset({"messages", "prompt", "completion", "input", "preferred_output", "non_preferred_output"})


@dataclass(frozen=True)
class OpenAiFiles(FileFormat[bytes]):
    """JSON lines as OpenAI's fine-tuning takes them; a piece is a line."""

    field = "openai_files"
    pieces = "lines"

    def split(self, file: ReadFile) -> Iterator[tuple[int, bytes]]:
        """See `JsonLines`."""
        return JsonLines(self.uri).split(file)

    def record(self, source: str, file: ReadFile, piece: bytes) -> RawRecord:
        """See `FileFormat`: supervised, preference and the older prompt with completion, by their members."""
        value = object_of(piece)
        attributes = Attributes()
        asked, given = "", dict[str, str]()
        if "messages" in value:
            found = read_conversation(member(value, "messages", list))
            asked, given = found.asked, {"completion": found.answer, "system": found.system}
        elif "preferred_output" in value:
            asked, given = _preference(value)
        elif "prompt" in value:
            asked, given = member(value, "prompt", str), {"completion": member(value, "completion", str)}
        else:
            known = "messages, prompt with completion, or input with preferred_output"
            raise RecordRefusedError(f"The line has none of {known}.", reason="MISSING_TEXT")
        for name, text in given.items():
            if text:
                attributes.add(name, text)
        for name, item in value.items():
            if name not in _READ:
                attributes.add(name, item)
        record = RawRecord(source, asked, attributes.result())
        check_record(record)
        return record.identified()


FORMAT = OpenAiFiles


def _preference(value: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    messages = member(member(value, "input", dict), "messages", list, "input.")
    asked = read_conversation(messages, "input.messages")
    outputs = {}
    for name, wanted in (("chosen", "preferred_output"), ("rejected", "non_preferred_output")):
        output = member(value, wanted, list)
        # An answer alone: the question comes from the input.
        outputs[name] = read_conversation([*messages, *output], f"input.messages and {wanted}").answer
        if not outputs[name]:
            raise RecordRefusedError(f"{wanted} must end with a message of the role assistant.", reason="WRONG_MEMBER")
    return asked.asked, {"completion": outputs["chosen"], **outputs, "system": asked.system}
