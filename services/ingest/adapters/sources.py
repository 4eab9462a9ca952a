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
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import PurePosixPath

from services.ingest.adapters.crawl.page_store import SqlPageStore
from services.ingest.adapters.crawl.web_crawl import WebCrawl
from services.ingest.adapters.log_tail import LogTail
from services.ingest.adapters.rest_pages import RestPages
from services.ingest.adapters.source_files.http import HttpFile
from services.ingest.adapters.source_files.local import LocalFiles
from services.ingest.adapters.source_files.port import (
    FilePlace,
    FolderPlace,
    FoundFile,
    ReadLimits,
    wrong,
)
from services.ingest.adapters.source_files.roots import SourceRoots
from services.ingest.adapters.source_files.s3 import S3Files, endpoint_address
from services.ingest.adapters.source_files.secrets import SourceSecrets
from services.ingest.adapters.source_files.unpacking import is_packed, unpacked
from services.ingest.app.interrupt import Interrupt, InterruptedReadError
from services.ingest.app.ports import Position, SourceFile, Survey
from services.ingest.domain.record import RawRecord, RecordRefusedError, Refusal
from services.ingest.domain.source_import import SourceSpec, check_spec
from services.ingest.domain.source_uri import parse_uri, shown
from services.ingest.engine.attributes import NOTES_ATTRIBUTE
from services.ingest.engine.file_format import AnyFormat, BadContentError, FileFormat, FolderFormat, ReadFile
from services.ingest.engine.formats.log_files import LogFiles
from services.ingest.engine.formats.rest_api import RestApi
from services.ingest.engine.formats.web_pages import WebPages
from services.kit.errors import FailedPreconditionError, TidemillError
from services.kit.network_rules import NetworkRules
from services.kit.network_wall import LookUp, NetworkWall, system_look_up

logger = logging.getLogger(__name__)

# Small files that are fetched in parallel if the place supports it; with a format's `head_bytes` this bounds memory.
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
        pages: SqlPageStore,
        *,
        limits: ReadLimits | None = None,
        s3_endpoint: str = "",
        look_up: LookUp = system_look_up,
        secrets: SourceSecrets | None = None,
    ) -> None:
        """Opens no connection yet.

        Args:
            compared_bytes: sources up to this size are hashed to detect unchanged content.
            roots: below which folders and URLs sources may be.
            rules: which hosts and addresses they may be fetched from.
            look_ups: threads for resolving host names.
            pages: keeps crawls.
            limits: limits of a source; defaults when None.
            s3_endpoint: URL of the S3 store; Amazon's if empty.
            look_up: resolves host and port to addresses.
            secrets: of APIs; none when None.
        """
        self._compared_bytes = compared_bytes
        self._roots = roots
        self._rules = rules
        self._look_ups = look_ups
        self._pages = pages
        self._limits = limits or ReadLimits()
        self._s3_endpoint = s3_endpoint
        self._look_up = look_up
        self._secrets = secrets or SourceSecrets()

    def survey(self, spec: SourceSpec, interrupt: Interrupt) -> Survey:
        """See the port."""
        kind = _format(spec)
        with _reading(spec), self._place(spec, interrupt) as place:
            if isinstance(place, RestPages | WebCrawl):
                place.check()
                # Only reading all pages would show whether they changed.
                return Survey([], 0, "")
            listing = _folder(place).find(kind.pattern) if isinstance(kind, FolderFormat) else place.match()
            files = [SourceFile(path, listing[path].size or 0) for path in sorted(listing)]
            if kind.incremental:
                # What is being written to cannot be compared; an import of nothing new costs little.
                return Survey(files, 0, "")
            digest, lines = self._digest(kind, place, files, listing)
            return Survey(files, {"files": len(files), "lines": lines}.get(kind.pieces, 0), digest)

    def read(
        self, spec: SourceSpec, survey: Survey, interrupt: Interrupt, position: Position | None = None
    ) -> Iterator[RawRecord | Refusal]:
        """See the port."""
        noted = 0
        with _reading(spec), self._place(spec, interrupt) as place:
            if isinstance(spec.kind, LogFiles):
                tail = LogTail(spec, spec.kind, place, self._limits, position or Position())
                pieces = tail.pieces([file.path for file in survey.files])
            elif isinstance(place, RestPages | WebCrawl):
                pieces = place.pieces(position or Position())
            else:
                pieces = self._in_files(spec, place, survey.files)
            for piece in pieces:
                noted += isinstance(piece, RawRecord) and NOTES_ATTRIBUTE in piece.attributes
                yield piece
        if noted:
            logger.warning(
                "%d records of %s could not be kept completely; the attribute %s of each says what is missing",
                noted,
                shown(spec.kind.uri),
                NOTES_ATTRIBUTE,
            )

    def _in_files(
        self, spec: SourceSpec, place: FilePlace, files: Sequence[SourceFile]
    ) -> Iterator[RawRecord | Refusal]:
        """Records and refusals of all files, whatever their format."""
        kind, budget = _format(spec), _Budget(self._limits.import_bytes)
        for path, content in self._contents(kind, place, files):
            location, number = place.location(path), 0
            try:
                with content as chunks:
                    file = ReadFile(place.below(path), PurePosixPath(path).parent.name, budget.of(chunks))
                    for number, piece in kind.split(file):
                        try:
                            yield kind.record(spec.source, file, piece)
                        except RecordRefusedError as error:
                            where = f"{location}:{number}" if number else location
                            yield Refusal(where, error.reason, error.message, kind.content(piece))
            except (BadContentError, OSError) as error:
                if not (isinstance(kind, FolderFormat) and isinstance(error, _UNREADABLE)):
                    raise _unreadable(location, number, error, kind.unit) from error
                yield Refusal(location, "UNREADABLE_FILE", f"The file cannot be read ({type(error).__name__}).", b"")

    def _contents(
        self, kind: AnyFormat, place: FilePlace, files: Sequence[SourceFile]
    ) -> Iterator[tuple[str, AbstractContextManager[Iterable[bytes]]]]:
        """Paths of files in order, each with its content or, if that is enough for the format, its beginning."""
        if not kind.head_bytes:
            for file in files:
                yield file.path, self._unpacked(place, file.path)
            return
        rest = iter(files)
        while batch := [file.path for file in islice(rest, _FETCHED_AT_ONCE)]:
            yield from zip(batch, map(_head, _folder(place).heads(batch, kind.head_bytes)), strict=True)

    @contextmanager
    def _unpacked(self, place: FilePlace, path: str) -> Iterator[Iterable[bytes]]:
        with place.open(path) as chunks:
            yield unpacked(chunks, place.below(path), self._limits)

    @contextmanager
    def _place(self, spec: SourceSpec, interrupt: Interrupt) -> Iterator[FilePlace]:
        interrupt.check()
        # A stored spec may be older than the rules, so it is checked like a new one.
        check_spec(spec)
        uri = parse_uri(spec.kind.uri)
        place: FilePlace
        if uri.scheme == "file":
            place = LocalFiles(spec, uri.path, self._roots, self._limits, interrupt)
        elif uri.is_http and isinstance(spec.kind, FolderFormat):
            message = (
                "HTTP cannot list folders. Give one file as json_lines, or a folder of this machine or of an s3:// "
                "bucket."
            )
            raise wrong(spec, message, "NOT_A_FOLDER")
        elif isinstance(spec.kind, RestApi):
            wall = NetworkWall(self._rules, self._look_up, self._look_ups)
            place = RestPages(spec, spec.kind, self._roots, wall, self._limits, interrupt, self._secrets)
        elif isinstance(spec.kind, WebPages):
            wall = NetworkWall(self._rules, self._look_up, self._look_ups)
            place = WebCrawl(spec, spec.kind, self._roots, wall, self._limits, interrupt, self._pages)
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
        kind: AnyFormat,
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
                if not isinstance(kind, FolderFormat):
                    raise
                content, count, size = "unreadable", 0, 0
            left -= size
            if left < 0:
                return "", 0
            lines += count
            total.update(f"{name}\0{content}\n".encode("utf-8", "surrogateescape"))
        packed = any(is_packed(place.below(file.path)) for file in files)
        return total.hexdigest(), 0 if packed else lines


def _format(spec: SourceSpec) -> AnyFormat:
    assert isinstance(spec.kind, FileFormat), "plugins are read by their packages"
    return spec.kind


def _folder(place: FilePlace) -> FolderPlace:
    assert isinstance(place, FolderPlace), "a folder at an HTTP address is refused before anything is opened"
    return place


@contextmanager
def _head(content: bytes | OSError) -> Iterator[Iterable[bytes]]:
    """The beginning of a file that was fetched, or the error of fetching it."""
    if isinstance(content, OSError):
        raise content
    yield [content]


class _Budget:
    """The bytes that one import may still read."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    def of(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks, each taken from the budget; see `take`."""
        for chunk in chunks:
            self.take(len(chunk))
            yield chunk

    def take(self, size: int) -> None:
        """Takes `size` bytes from the budget.

        Raises:
            BadContentError: the budget is exceeded.
        """
        self._left -= size
        if self._left < 0:
            raise BadContentError(
                "SOURCE_TOO_LARGE",
                f"the source contains more than {self._limit} bytes; import it in parts, or raise "
                "TIDEMILL_SOURCE_IMPORT_BYTES",
            )


def _digest_file(place: FilePlace, path: str, limit: int) -> tuple[str, int, int]:
    """sha256 of a file, its number of lines and of bytes; stops reading when it is too large to compare."""
    content, lines, last, size = hashlib.sha256(), 0, b"", 0
    try:
        with place.open(path) as chunks:
            for chunk in chunks:
                content.update(chunk)
                lines += chunk.count(b"\n")
                last = chunk[-1:]
                size += len(chunk)
                if size > limit:
                    break
    except BadContentError as error:
        raise _unreadable(place.location(path), 0, error) from error
    return content.hexdigest(), lines + (last not in (b"", b"\n")), size


def _unreadable(
    location: str, line: int, error: BadContentError | OSError, unit: str = "line"
) -> FailedPreconditionError:
    """The error for a file that cannot be read further, with the last line or row that was read."""
    where = f"{location}: after {unit} {line}" if line else location
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
