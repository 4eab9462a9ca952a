"""Which lines of logs are new, through rotation, truncation and compression.

A file is recognised by its content, not by its name: what was read of it is an offset and the sha256 of everything
before. A file that has such a beginning continues there, whatever it is called now. One that has none is new. So a
renamed or compressed file is not read twice, one that was truncated is read from its start, and a copy of what was read
brings nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.ingest.adapters.source_files.port import FilePlace, ReadLimits
from services.ingest.adapters.source_files.unpacking import unpacked
from services.ingest.app.ports import Position
from services.ingest.domain.record import RawRecord, RecordRefusedError, Refusal
from services.ingest.domain.source_import import SourceSpec
from services.ingest.engine.file_format import BadContentError, ReadFile
from services.ingest.engine.formats.log_files import LogFiles, LogLine
from services.ingest.engine.members import MAX_LINE_BYTES

# What is written to changes while it is read: its complete lines count, and the next import continues.
_CHANGED = "SOURCE_CHANGED"
_FIRST_BYTES = 4096


@dataclass(slots=True)
class _Read:
    """What was read of one file."""

    offset: int = 0
    lines: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def take(self, line: bytes) -> None:
        """Counts a line with its end."""
        self.offset += len(line)
        self.lines += 1
        self.digest.update(line)


class LogTail:
    """Reads the new lines of a source once."""

    def __init__(
        self, spec: SourceSpec, kind: LogFiles, place: FilePlace, limits: ReadLimits, position: Position
    ) -> None:
        self._spec, self._kind, self._place, self._limits = spec, kind, place, limits
        # Offset and lines by digest. Those of files that are not found again are dropped at the end.
        self._known: dict[str, tuple[int, int]] = {
            digest: (int(offset), int(lines)) for digest, offset, lines in position.begin.get("files", ())
        }
        self._kept = set[str]()
        self._files: list[_Read] = []
        self._complete = False
        self._left = limits.import_bytes
        position.reached = self._reached

    def pieces(self, paths: Sequence[str]) -> Iterator[RawRecord | Refusal]:
        """Records and refusals of the new lines.

        Raises:
            BadContentError: a file cannot be read.
        """
        for path in paths:
            yield from self._file(path)
        self._complete = True

    def _reached(self) -> Mapping[str, Any]:
        """The position after the lines that were taken."""
        files = {read.digest.hexdigest(): (read.offset, read.lines) for read in self._files if read.offset}
        untouched = self._known if not self._complete else {}
        left = {digest: state for digest, state in untouched.items() if digest not in self._kept}
        return {"files": [[digest, *state] for digest, state in sorted({**left, **files}.items())]}

    def _file(self, path: str) -> Iterator[RawRecord | Refusal]:
        read, first = self._find(path)
        if read is None:
            return
        self._files.append(read)
        location, file = self._place.location(path), ReadFile(self._place.below(path), "", ())
        for line in self._lines(path, read.offset):
            start = read.offset
            read.take(line)
            content = line.strip()
            if not content:
                continue
            piece = LogLine(content, f"{first}:{start}")
            try:
                yield self._kind.record(self._spec.source, file, piece)
            except RecordRefusedError as error:
                yield Refusal(f"{location}:{read.lines}", error.reason, error.message, content)

    def _find(self, path: str) -> tuple[_Read | None, str]:
        """What was read of a file before, and the digest of its first line; None while it has no complete line."""
        read, best, beginning = _Read(), None, b""
        offsets = sorted({offset for offset, _ in self._known.values()})
        for chunk in self._chunks(path):
            beginning = beginning if len(beginning) >= _FIRST_BYTES else (beginning + chunk)[:_FIRST_BYTES]
            at = 0
            while offsets and offsets[0] <= read.offset + len(chunk) - at:
                end = at + offsets.pop(0) - read.offset
                read.digest.update(chunk[at:end])
                read.offset, at = read.offset + end - at, end
                known = self._known.get(read.digest.hexdigest())
                if known is not None and known[0] == read.offset:
                    best = _Read(read.offset, known[1], read.digest.copy())
            if not offsets and len(beginning) == _FIRST_BYTES:
                break
            read.digest.update(chunk[at:])
            read.offset += len(chunk) - at
        line, ended, _ = beginning.partition(b"\n")
        if not ended and len(beginning) < _FIRST_BYTES:
            return None, ""
        if best is not None:
            self._kept.add(best.digest.hexdigest())
        return best or _Read(), hashlib.sha256(line).hexdigest()

    def _lines(self, path: str, offset: int) -> Iterator[bytes]:
        """Complete lines with their ends, from an offset; the parts of one that is too long come as lines."""
        skipped, rest = 0, b""
        for chunk in self._chunks(path):
            if skipped < offset:
                cut = min(len(chunk), offset - skipped)
                skipped += cut
                chunk = chunk[cut:]
            self._left -= len(chunk)
            if self._left < 0:
                raise BadContentError(
                    "SOURCE_TOO_LARGE",
                    f"the new lines have more than {self._limits.import_bytes} bytes; raise "
                    "TIDEMILL_SOURCE_IMPORT_BYTES",
                )
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line + b"\n"
            while len(rest) > MAX_LINE_BYTES:
                yield rest[: MAX_LINE_BYTES + 1]
                rest = rest[MAX_LINE_BYTES + 1 :]

    def _chunks(self, path: str) -> Iterator[bytes]:
        try:
            with self._place.open(path) as chunks:
                yield from unpacked(chunks, self._place.below(path), self._limits)
        except FileNotFoundError:
            # Rotated away since it was listed: its new name is read by the next import.
            return
        except BadContentError as error:
            if error.reason != _CHANGED:
                raise
