"""Sources: folders and files of this machine, files by HTTP, objects of S3 buckets.

Each source is checked before any of it is opened, and again at each opening (`source_files`). Files are read in the
order of their paths. To detect unchanged content, sources up to a size are compared by sha256 over names and contents,
larger ones by the ETags of their store; without ETags the content counts as unknown.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from itertools import islice
from pathlib import PurePosixPath

from services.ingest.adapters.source_files.http import HttpFile
from services.ingest.adapters.source_files.local import LocalFiles
from services.ingest.adapters.source_files.network import LookUp, NetworkWall, system_look_up
from services.ingest.adapters.source_files.port import (
    BadContentError,
    FilePlace,
    FoundFile,
    ReadLimits,
)
from services.ingest.adapters.source_files.roots import SourceRoots
from services.ingest.adapters.source_files.s3 import S3Files, endpoint_address
from services.ingest.adapters.source_files.unpacking import is_packed, unpacked
from services.ingest.app.interrupt import Interrupt, InterruptedReadError
from services.ingest.app.ports import SourceFile, Survey
from services.ingest.domain.network_rules import NetworkRules
from services.ingest.domain.record import RawRecord, RecordRefusedError, Refusal
from services.ingest.domain.source_import import (
    CsvFiles,
    FileKind,
    JsonLines,
    MailFolder,
    PluginSource,
    SourceSpec,
    TextFolder,
    check_spec,
)
from services.ingest.domain.source_uri import parse_uri, shown
from services.ingest.engine.attributes import NOTES_ATTRIBUTE
from services.ingest.engine.mail import record_of_message, split_messages
from services.ingest.engine.parsing import MAX_FILE_BYTES, record_of_file, record_of_line, split_lines
from services.ingest.engine.tables import BadHeaderError, BadRow, record_of_row, rows_of
from services.kit.errors import FailedPreconditionError, TidemillError

logger = logging.getLogger(__name__)

# Small files that are fetched in parallel if the place supports it; with MAX_FILE_BYTES this bounds memory.
_FETCHED_AT_ONCE = 32
# Such a file in a folder is refused by name, like one that is not text; any other error may be transient, so it
# fails the import.
_UNREADABLE = (FileNotFoundError, PermissionError)


class FileSources:
    """Implements `services.ingest.app.ports.Sources`. Thread-safe."""

    def __init__(
        self,
        compared_bytes: int,
        roots: SourceRoots,
        rules: NetworkRules,
        look_ups: Executor,
        *,
        limits: ReadLimits | None = None,
        s3_endpoint: str = "",
        look_up: LookUp = system_look_up,
    ) -> None:
        """Opens no connection yet.

        Args:
            compared_bytes: sources up to this size are hashed to detect unchanged content.
            roots: below which folders and URLs sources may be.
            rules: which hosts and addresses they may be fetched from.
            look_ups: threads for resolving host names.
            limits: limits of a source; defaults when None.
            s3_endpoint: URL of the S3 store; Amazon's if empty.
            look_up: resolves host and port to addresses.
        """
        self._compared_bytes = compared_bytes
        self._roots = roots
        self._rules = rules
        self._look_ups = look_ups
        self._limits = limits or ReadLimits()
        self._s3_endpoint = s3_endpoint
        self._look_up = look_up

    def survey(self, spec: SourceSpec, interrupt: Interrupt) -> Survey:
        """See the port."""
        with _reading(spec), self._place(spec, interrupt) as place:
            kind = _of_files(spec)
            listing = place.match() if isinstance(kind, JsonLines | CsvFiles) else place.find(kind.pattern)
            files = [SourceFile(path, listing[path].size or 0) for path in sorted(listing)]
            digest, lines = self._digest(kind, place, files, listing)
            # How many messages a mailbox has is not known before it is read.
            total = len(files) if isinstance(kind, TextFolder) else lines if isinstance(kind, JsonLines) else 0
            return Survey(files, total, digest)

    def read(self, spec: SourceSpec, survey: Survey, interrupt: Interrupt) -> Iterator[RawRecord | Refusal]:
        """See the port."""
        noted = 0
        with _reading(spec), self._place(spec, interrupt) as place:
            for piece in self._pieces(spec, place, survey.files):
                noted += isinstance(piece, RawRecord) and NOTES_ATTRIBUTE in piece.attributes
                yield piece
        if noted:
            logger.warning(
                "%d records of %s could not be kept completely; the attribute %s of each says what is missing",
                noted,
                shown(spec.kind.uri),
                NOTES_ATTRIBUTE,
            )

    def _pieces(self, spec: SourceSpec, place: FilePlace, files: Sequence[SourceFile]) -> Iterator[RawRecord | Refusal]:
        budget = _Budget(self._limits.import_bytes)
        kind = _of_files(spec)
        if isinstance(kind, TextFolder):
            return _read_folder(spec.source, kind, place, files, budget)
        if isinstance(kind, MailFolder):
            return self._read_mail(spec.source, kind, place, files, budget)
        if isinstance(kind, CsvFiles):
            return self._read_rows(spec.source, kind, place, files, budget)
        return self._read_lines(spec.source, kind, place, files, budget)

    @contextmanager
    def _place(self, spec: SourceSpec, interrupt: Interrupt) -> Iterator[FilePlace]:
        interrupt.check()
        # A stored spec may be older than the rules, so it is checked like a new one.
        check_spec(spec)
        uri = parse_uri(spec.kind.uri)
        place: FilePlace
        if uri.scheme == "file":
            place = LocalFiles(spec, uri.path, self._roots, self._limits, interrupt)
        elif uri.is_http:
            wall = NetworkWall(self._rules, self._look_up, self._look_ups)
            place = HttpFile(spec, self._roots, wall, self._limits, interrupt)
        else:
            own = endpoint_address(self._s3_endpoint)
            wall = NetworkWall(self._rules, self._look_up, self._look_ups, own)
            place = S3Files(spec, uri, self._roots, wall, self._s3_endpoint, self._limits, interrupt)
        try:
            yield place
        finally:
            place.close()

    def _digest(
        self,
        kind: FileKind,
        place: FilePlace,
        files: Sequence[SourceFile],
        listing: Mapping[str, FoundFile],
    ) -> tuple[str, int]:
        """Digest of the content and number of lines; empty and 0 if unknown."""
        total = hashlib.sha256()
        etags = [listing[file.path].etag for file in files]
        if all(etags):
            for file, etag in zip(files, etags, strict=True):
                total.update(f"{place.below(file.path)}\0etag {etag} {file.size}\n".encode("utf-8", "surrogateescape"))
            return total.hexdigest(), 0
        left = self._compared_bytes
        if sum(file.size for file in files) > left:
            return "", 0
        lines = 0
        for file in files:
            name = place.below(file.path)
            try:
                content, count, size = _digest_file(place, file.path, left)
            except _UNREADABLE:
                if isinstance(kind, JsonLines | CsvFiles):
                    raise
                content, count, size = "unreadable", 0, 0
            left -= size
            if left < 0:
                return "", 0
            lines += count
            total.update(f"{name}\0{content}\n".encode("utf-8", "surrogateescape"))
        packed = any(is_packed(place.below(file.path)) for file in files)
        return total.hexdigest(), 0 if packed else lines

    def _read_lines(
        self, source: str, kind: JsonLines, place: FilePlace, files: Sequence[SourceFile], budget: _Budget
    ) -> Iterator[RawRecord | Refusal]:
        for file in files:
            location, number = place.location(file.path), 0
            try:
                with place.open(file.path) as chunks:
                    for number, line in split_lines(unpacked(chunks, place.below(file.path), self._limits)):
                        budget.take(len(line) + 1)
                        try:
                            yield record_of_line(source, kind, line)
                        except RecordRefusedError as error:
                            yield Refusal(f"{location}:{number}", error.reason, error.message, line)
            except (BadContentError, OSError) as error:
                raise _unreadable(location, number, error) from error

    def _read_rows(
        self, source: str, kind: CsvFiles, place: FilePlace, files: Sequence[SourceFile], budget: _Budget
    ) -> Iterator[RawRecord | Refusal]:
        for file in files:
            location, number = place.location(file.path), 0
            below = place.below(file.path)
            try:
                with place.open(file.path) as chunks:
                    for number, row in rows_of(budget.of(unpacked(chunks, below, self._limits)), kind, below):
                        if isinstance(row, BadRow):
                            yield Refusal(f"{location}:{number}", row.reason, row.message, row.content)
                            continue
                        try:
                            yield record_of_row(source, kind, row)
                        except RecordRefusedError as error:
                            content = BadRow(error.reason, error.message, list(row.values())).content
                            yield Refusal(f"{location}:{number}", error.reason, error.message, content)
            except BadHeaderError as error:
                raise _unreadable(location, number, BadContentError(error.reason, error.message)) from error
            except (BadContentError, OSError) as error:
                raise _unreadable(location, number, error) from error

    def _read_mail(
        self, source: str, kind: MailFolder, place: FilePlace, files: Sequence[SourceFile], budget: _Budget
    ) -> Iterator[RawRecord | Refusal]:
        for file in files:
            location, number = place.location(file.path), 0
            below, folder = place.below(file.path), PurePosixPath(file.path).parent.name
            try:
                with place.open(file.path) as chunks:
                    for number, message in split_messages(unpacked(chunks, below, self._limits)):
                        budget.take(len(message))
                        try:
                            yield record_of_message(source, kind, below, folder, message)
                        except RecordRefusedError as error:
                            yield Refusal(f"{location}:{number}", error.reason, error.message, message)
            except _UNREADABLE as error:
                message_text = f"The file cannot be read ({type(error).__name__})."
                yield Refusal(location, "UNREADABLE_FILE", message_text, b"")
            except (BadContentError, OSError) as error:
                raise _unreadable(location, number, error) from error


def _of_files(spec: SourceSpec) -> FileKind:
    assert not isinstance(spec.kind, PluginSource), "plugins are read by their packages"
    return spec.kind


class _Budget:
    """The bytes that one import may still read."""

    def __init__(self, most: int) -> None:
        self._most = self._left = most

    def of(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks, each taken from the budget; see `take`."""
        for chunk in chunks:
            self.take(len(chunk))
            yield chunk

    def take(self, size: int) -> None:
        """Takes `count` bytes from the budget.

        Raises:
            BadContentError: the budget is exceeded.
        """
        self._left -= size
        if self._left < 0:
            raise BadContentError(
                "SOURCE_TOO_LARGE",
                f"the source contains more than {self._most} bytes; import it in parts, or raise "
                "TIDEMILL_SOURCE_IMPORT_BYTES",
            )


def _digest_file(place: FilePlace, path: str, most: int) -> tuple[str, int, int]:
    """sha256 of a file, its number of lines and of bytes; stops reading when it is too large to compare."""
    content, lines, last, size = hashlib.sha256(), 0, b"", 0
    try:
        with place.open(path) as chunks:
            for chunk in chunks:
                content.update(chunk)
                lines += chunk.count(b"\n")
                last = chunk[-1:]
                size += len(chunk)
                if size > most:
                    break
    except BadContentError as error:
        raise _unreadable(place.location(path), 0, error) from error
    return content.hexdigest(), lines + (last not in (b"", b"\n")), size


def _read_folder(
    source: str, kind: TextFolder, place: FilePlace, files: Sequence[SourceFile], budget: _Budget
) -> Iterator[RawRecord | Refusal]:
    rest = iter(files)
    while batch := [file.path for file in islice(rest, _FETCHED_AT_ONCE)]:
        # One byte beyond the limit identifies a long file without reading all of it.
        for path, content in zip(batch, place.heads(batch, MAX_FILE_BYTES + 1), strict=True):
            location = place.location(path)
            if isinstance(content, _UNREADABLE):
                message = f"The file cannot be read ({type(content).__name__})."
                yield Refusal(location, "UNREADABLE_FILE", message, b"")
                continue
            if isinstance(content, OSError):
                raise _unreadable(location, 0, content)
            budget.take(len(content))
            try:
                yield record_of_file(source, kind, place.below(path), PurePosixPath(path).parent.name, content)
            except RecordRefusedError as error:
                yield Refusal(location, error.reason, error.message, content)


def _unreadable(location: str, line: int, error: BadContentError | OSError) -> FailedPreconditionError:
    """The error for a file that cannot be read further, with the last line that was read."""
    where = f"{location}: after line {line}" if line else location
    if isinstance(error, FileNotFoundError):
        reason, why = "SOURCE_GONE", "the file no longer exists; restore it, or import what is there now"
    elif isinstance(error, BadContentError):
        reason, why = error.reason, error.message
    else:
        reason, why = "SOURCE_UNREADABLE", f"it cannot be read ({type(error).__name__}: {error.strerror or error})"
    return FailedPreconditionError(
        f"{where}: {why}.", reason=reason, metadata={"location": location, "line": str(line)}
    )


@contextmanager
def _reading(spec: SourceSpec) -> Iterator[None]:
    """Translates the errors of a file place, OSError and those of its client library."""
    try:
        yield
    except (TidemillError, GeneratorExit, InterruptedReadError):
        raise
    except BadContentError as error:
        raise _unreadable(shown(spec.kind.uri), 0, error) from error
    except Exception as error:
        uri = shown(spec.kind.uri)
        message = str(error).replace(spec.kind.uri, uri)
        raise FailedPreconditionError(
            f"Cannot read {uri} ({type(error).__name__}: {message}). Check that the service may read it, "
            "then import again.",
            reason="SOURCE_UNREADABLE",
            metadata={"uri": uri, "field": f"{spec.field}.uri"},
        ) from error
