"""Lines of logs to records: JSON objects, or lines that match an expression with named groups; no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from services.ingest.domain.record import RawRecord, RecordRefusedError
from services.ingest.engine.file_format import ReadFile
from services.ingest.engine.formats.json_lines import JsonLines, object_of
from services.ingest.engine.members import MAX_LINE_BYTES, MemberFormat
from services.ingest.engine.named_groups import compiled, wrong_pattern
from services.kit.ids import sha256_hex


@dataclass(frozen=True, slots=True)
class LogLine:
    """A complete line without its end; `place` identifies it within all logs of the source."""

    content: bytes
    place: str


@dataclass(frozen=True)
class LogFiles(MemberFormat[LogLine]):
    """Logs; a piece is a line. `services.ingest.adapters.log_tail` decides which lines are new."""

    text_field: str = "message"
    line_pattern: str = ""
    time_field: str = ""
    field = "log_files"

    @property
    def incremental(self) -> bool:
        """See `SourceKind`."""
        return True

    def violations(self) -> Iterator[tuple[str, str]]:
        """See `FileFormat`."""
        yield from super().violations()
        if self.uri.lower().startswith(("http:", "https:")):
            yield "uri", "logs are read from this machine or an s3:// bucket; push those of other machines."
        if not self.line_pattern:
            return
        if wrong := wrong_pattern(self.line_pattern):
            yield "line_pattern", wrong
            return
        groups = compiled(self.line_pattern).groupindex
        for name, value in (
            ("text_field", self.text_field),
            ("id_field", self.id_field),
            ("time_field", self.time_field),
        ):
            if value and value not in groups:
                yield name, f"line_pattern has no group {value!r}; name it by (?P<{value}>…)."

    def split(self, file: ReadFile) -> Iterator[tuple[int, LogLine]]:
        """All lines of a file, without regard to what was read before."""
        for number, line in JsonLines(self.uri).split(file):
            yield number, LogLine(line, f"{file.path}:{number}")

    def record(self, source: str, file: ReadFile, piece: LogLine) -> RawRecord:
        """See `FileFormat`."""
        members = self._matched(piece.content) if self.line_pattern else object_of(piece.content)
        record = self.record_of_members(source, members)
        record_id = record.record_id if self.id_field else f"log_{sha256_hex(piece.place, piece.content)[:32]}"
        return replace(record, record_id=record_id, event_time=_time(members, self.time_field))

    def content(self, piece: LogLine) -> bytes:
        """See `FileFormat`."""
        return piece.content

    def _matched(self, line: bytes) -> Mapping[str, Any]:
        if len(line) > MAX_LINE_BYTES:
            raise RecordRefusedError(f"The line has more than {MAX_LINE_BYTES} bytes.", reason="LINE_TOO_LONG")
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise RecordRefusedError(f"The line is not UTF-8 (byte {error.start}).", reason="NOT_DECODABLE") from error
        found = compiled(self.line_pattern).fullmatch(text)
        if found is None:
            raise RecordRefusedError("The line does not match line_pattern.", reason="NO_MATCH")
        return {name: value for name, value in found.groupdict().items() if value is not None}


FORMAT = LogFiles


def _time(members: Mapping[str, Any], name: str) -> datetime | None:
    """The event time of a line.

    Raises:
        RecordRefusedError: it is missing, or not a time.
    """
    if not name:
        return None
    value = members.get(name)
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        if moment is not None:
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise RecordRefusedError(f"The field {name!r} is not an RFC 3339 time.", reason="INVALID_TIME")
