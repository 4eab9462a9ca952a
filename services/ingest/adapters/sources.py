"""Sources by fsspec: folders and files of this machine, and object stores by URL.

Files come in order of their paths. How a source is compared with what was pulled before: by sha256 over names and
contents up to a size, beyond it by the ETags of its store; where there are none, its content counts as unknown.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fsspec.core import get_compression, url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from services.ingest.app.ports import SourceFile, Survey
from services.ingest.domain.record import RawRecord, RecordRefusedError, Refusal
from services.ingest.domain.source_import import JsonLines, SourceSpec, TextFolder
from services.ingest.engine.parsing import MAX_FILE_BYTES, record_of_file, record_of_line, split_lines
from services.kit.errors import (
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    PermissionDeniedError,
    TidemillError,
)

_CHUNK_BYTES = 1024 * 1024
# Small files that are fetched side by side where the file system can; with MAX_FILE_BYTES this bounds memory.
_FETCHED_AT_ONCE = 32
_GLOB = re.compile(r"[*?\[]")
# A file of a folder that is like this is refused by name, as one that gives no text is; whatever else keeps a file
# from being read may pass, and fails the import.
_UNREADABLE = (FileNotFoundError, PermissionError)


class FsspecSources:
    """Implements `services.ingest.app.ports.Sources`; threads share it."""

    def __init__(self, compared_bytes: int, roots: Sequence[str] = ()) -> None:
        """Takes up no connection yet.

        Args:
            compared_bytes: a source up to this size is hashed to know its content.
            roots: folders, as absolute paths or URLs, below which sources may lie; anywhere when there are none.
        """
        self._compared_bytes = compared_bytes
        self._roots = [_place(*url_to_fs(root)) for root in roots]

    def survey(self, spec: SourceSpec) -> Survey:
        """See the port."""
        with _reading(spec):
            filesystem, root = _open(spec)
            self._check_allowed(spec, filesystem, root)
            listing = _list(spec, filesystem, root)
            for path in listing:
                self._check_allowed(spec, filesystem, path)
            files = [SourceFile(path, int(listing[path].get("size") or 0)) for path in sorted(listing)]
            digest, lines = self._digest(spec.kind, filesystem, root, files, listing)
            return Survey(files, len(files) if isinstance(spec.kind, TextFolder) else lines, digest)

    def read(self, spec: SourceSpec, survey: Survey) -> Iterator[RawRecord | Refusal]:
        """See the port."""
        with _reading(spec):
            filesystem, root = _open(spec)
            if isinstance(spec.kind, TextFolder):
                yield from _read_folder(spec.source, spec.kind, filesystem, root, survey.files)
            else:
                yield from _read_lines(spec.source, spec.kind, filesystem, survey.files)

    def _check_allowed(self, spec: SourceSpec, filesystem: Any, path: str) -> None:
        place = _place(filesystem, path)
        if self._roots and not any(place == root or place.startswith(root.rstrip("/") + "/") for root in self._roots):
            # Not whether it exists: what lies elsewhere is none of the caller's business.
            field = f"{spec.field}.uri"
            message = (
                f"{filesystem.unstrip_protocol(path)} lies outside of the folders that this service may read; whoever "
                "runs it names them in TIDEMILL_SOURCE_ROOTS."
            )
            raise PermissionDeniedError(
                f"{field}: {message}",
                reason="SOURCE_NOT_ALLOWED",
                metadata={"uri": spec.kind.uri},
                violations=[FieldViolation(field, message)],
            )

    def _digest(
        self,
        kind: TextFolder | JsonLines,
        filesystem: Any,
        root: str,
        files: Sequence[SourceFile],
        listing: Mapping[str, Mapping[str, Any]],
    ) -> tuple[str, int]:
        """Digest of the content and number of lines; empty and 0 where they are not known."""
        total = hashlib.sha256()
        etags = [str(listing[file.path].get("ETag") or "") for file in files]
        if all(etags):
            for file, etag in zip(files, etags, strict=True):
                total.update(f"{_below(root, file.path)}\0etag {etag} {file.size}\n".encode("utf-8", "surrogateescape"))
            return total.hexdigest(), 0
        if sum(file.size for file in files) > self._compared_bytes:
            return "", 0
        lines = 0
        for file in files:
            name = _below(root, file.path)
            try:
                content, count = _digest_file(filesystem, file.path)
            except _UNREADABLE:
                if isinstance(kind, JsonLines):
                    raise
                content, count = "unreadable", 0
            lines += count
            total.update(f"{name}\0{content}\n".encode("utf-8", "surrogateescape"))
        packed = any(get_compression(file.path, "infer") for file in files)
        return total.hexdigest(), 0 if packed else lines


def _place(filesystem: Any, path: str) -> str:
    """Where a path leads in the end: links of this machine are followed, `..` never leads out of a root."""
    if isinstance(filesystem, LocalFileSystem):
        return os.path.realpath(path)
    url = str(filesystem.unstrip_protocol(path))
    return "" if ".." in url.split("/") else url


def _digest_file(filesystem: Any, path: str) -> tuple[str, int]:
    """sha256 of a file and its number of lines."""
    content, lines, last = hashlib.sha256(), 0, b""
    with filesystem.open(path, "rb") as stream:
        for chunk in _chunks(stream):
            content.update(chunk)
            lines += chunk.count(b"\n")
            last = chunk[-1:]
    return content.hexdigest(), lines + (last not in (b"", b"\n"))


def _open(spec: SourceSpec) -> tuple[Any, str]:
    """The file system of a source and its path there."""
    try:
        filesystem, path = url_to_fs(spec.kind.uri)
    except (ImportError, ValueError) as error:
        message = (
            f"{spec.kind.uri}: {error}. Of the object stores s3:// needs tidemill[s3]; others need their fsspec driver."
        )
        raise _wrong(spec, message, "UNKNOWN_PROTOCOL") from error
    # A listing that fsspec remembers would hide what has changed since.
    filesystem.invalidate_cache()
    return filesystem, path


def _list(spec: SourceSpec, filesystem: Any, root: str) -> dict[str, Mapping[str, Any]]:
    """Files of a source with what the file system knows of each."""
    kind = spec.kind
    if isinstance(kind, JsonLines):
        if _GLOB.search(root) and not filesystem.exists(root):
            found = filesystem.glob(root, detail=True)
            files = {path: info for path, info in found.items() if _is_file(filesystem, path, info)}
            if not files:
                raise _wrong(spec, f"No file matches {kind.uri}; put one there or correct the glob.", "NO_SUCH_SOURCE")
            return files
        if not filesystem.exists(root):
            raise _wrong(spec, f"{kind.uri} does not exist; give a file or a glob such as /data/*.jsonl.")
        info = filesystem.info(root)
        if not filesystem.isdir(root) and not _is_file(filesystem, root, info):
            raise _wrong(spec, f"{kind.uri} is no regular file; a pipe or a device cannot be imported.", "NOT_A_FILE")
        if filesystem.isdir(root):
            message = f"{kind.uri} is a folder; give a file in it or a glob such as {kind.uri.rstrip('/')}/*.jsonl."
            raise _wrong(spec, message, "NOT_A_FILE")
        return {root: info}
    if not filesystem.exists(root):
        raise _wrong(spec, f"The folder {kind.uri} does not exist; create it or correct the path.")
    if filesystem.isfile(root):
        raise _wrong(spec, f"{kind.uri} is a file; give the folder that it is in.", "NOT_A_FOLDER")
    matches = re.compile(glob_translate(kind.pattern)).match
    found = _files_below(root) if isinstance(filesystem, LocalFileSystem) else filesystem.find(root, detail=True)
    files = {path: info for path, info in found.items() if matches(_below(root, path))}
    if not files:
        message = f"No file below {kind.uri} matches {kind.pattern!r} ({len(found)} files are there); correct it."
        raise _wrong(spec, message, field="pattern")
    return files


def _is_file(filesystem: Any, path: str, info: Mapping[str, Any]) -> bool:
    """Whether it is a file or leads to one: opening a pipe would wait for ever."""
    return bool(info["type"] == "file" or (info.get("islink") and filesystem.isfile(path)))


def _files_below(root: str) -> dict[str, Mapping[str, Any]]:
    """Files below a folder of this machine, also where links lead to folders; each folder is entered once.

    Raises:
        OSError: a folder cannot be looked into, whose files would be missing without a word.
    """

    def fail(error: OSError) -> None:
        raise error

    found: dict[str, Mapping[str, Any]] = {}
    entered: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=fail):
        real = os.path.realpath(folder)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        # Which of two ways to a folder counts must not depend on the file system's order.
        folders.sort()
        for name in names:
            path = Path(folder, name)
            try:
                status = path.stat()
            except OSError:
                # A link to nowhere, for one: reading it says what is wrong with it.
                found[str(path)] = {"size": 0}
                continue
            if stat.S_ISREG(status.st_mode):
                found[str(path)] = {"size": status.st_size}
    return found


def _read_folder(
    source: str, kind: TextFolder, filesystem: Any, root: str, files: Sequence[SourceFile]
) -> Iterator[RawRecord | Refusal]:
    rest = iter(files)
    while batch := [file.path for file in islice(rest, _FETCHED_AT_ONCE)]:
        # One byte more than a record may have tells a long file without reading it whole.
        contents = filesystem.cat_ranges(batch, 0, MAX_FILE_BYTES + 1, on_error="return")
        for path, content in zip(batch, contents, strict=True):
            below, location = _below(root, path), filesystem.unstrip_protocol(path)
            if isinstance(content, _UNREADABLE):
                message = f"The file cannot be read ({type(content).__name__})."
                yield Refusal(location, "UNREADABLE_FILE", message, b"")
                continue
            if isinstance(content, BaseException):
                raise content
            try:
                yield record_of_file(source, kind, below, PurePosixPath(path).parent.name, content)
            except RecordRefusedError as error:
                yield Refusal(location, error.reason, error.message, content)


def _read_lines(
    source: str, kind: JsonLines, filesystem: Any, files: Sequence[SourceFile]
) -> Iterator[RawRecord | Refusal]:
    for file in files:
        location = filesystem.unstrip_protocol(file.path)
        with filesystem.open(file.path, "rb", compression="infer") as stream:
            for number, line in split_lines(_chunks(stream)):
                try:
                    yield record_of_line(source, kind, line)
                except RecordRefusedError as error:
                    yield Refusal(f"{location}:{number}", error.reason, error.message, line)


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk


def _below(root: str, path: str) -> str:
    """A file's path below a root; its name where it is the root itself or the root is a glob."""
    prefix = root.rstrip("/") + "/"
    return path[len(prefix) :] if path.startswith(prefix) else PurePosixPath(path).name


def _wrong(spec: SourceSpec, message: str, reason: str = "NO_SUCH_SOURCE", field: str = "uri") -> InvalidArgumentError:
    path = f"{spec.field}.{field}"
    return InvalidArgumentError(
        f"{path}: {message}",
        reason=reason,
        metadata={"uri": spec.kind.uri},
        violations=[FieldViolation(path, message)],
    )


@contextmanager
def _reading(spec: SourceSpec) -> Iterator[None]:
    """Tells what a file system raises in our terms: drivers raise OSError, and what their client library has."""
    try:
        yield
    except (TidemillError, GeneratorExit):
        raise
    except Exception as error:
        raise FailedPreconditionError(
            f"{spec.kind.uri} cannot be read ({type(error).__name__}: {error}). See that the service may read it, "
            "then import again.",
            reason="SOURCE_UNREADABLE",
            metadata={"uri": spec.kind.uri, "field": f"{spec.field}.uri"},
        ) from error
