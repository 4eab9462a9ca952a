"""What reading a source needs from the place where its files are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from fsspec.utils import glob_translate

from services.ingest.domain.source_import import SourceSpec
from services.ingest.domain.source_uri import shown
from services.kit.errors import FieldViolation, InvalidArgumentError, PermissionDeniedError

CHUNK_BYTES = 1024 * 1024

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Limits of a source; if one is exceeded, the import fails and names it."""

    connect_s: float = 10.0
    silence_s: float = 30.0
    file_bytes: int = 8 * 1024**3
    import_bytes: int = 64 * 1024**3
    files: int = 200_000
    # Largest ratio of a file's unpacked size to its compressed size, beyond `unpacked_bytes`: JSON logs reach 30,
    # compression bombs a thousand.
    unpacked_ratio: int = 200
    unpacked_bytes: int = 16 * 1024**2


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file: its size (None: not reported) and its strong ETag (empty: none)."""

    size: int | None
    etag: str = ""


class FilePlace(Protocol):
    """The files of one source, for one thread. Each method checks access before it opens anything."""

    def match(self) -> Mapping[str, FoundFile]:
        """The file at the address, or the files that match it as a glob."""
        ...

    def below(self, path: str) -> str:
        """A file's path below the source's folder; its name if the source is a file or a glob."""
        ...

    def location(self, path: str) -> str:
        """A file's address, for messages."""
        ...

    def open(self, path: str) -> AbstractContextManager[Iterator[bytes]]:
        """The bytes of a file, chunk by chunk.

        Raises:
            BadContentError: while reading: it changed, or no more data arrived.
            OSError: it cannot be opened.
        """
        ...

    def close(self) -> None:
        """Closes its connections."""
        ...


@runtime_checkable
class FolderPlace(FilePlace, Protocol):
    """A place that has folders."""

    def find(self, pattern: str) -> Mapping[str, FoundFile]:
        """Files below a folder by path, those that match the pattern."""
        ...

    def heads(self, paths: Sequence[str], size: int) -> Sequence[bytes | OSError]:
        """The first bytes of several files, or the error for those that cannot be read."""
        ...


def wrong(spec: SourceSpec, message: str, reason: str = "NO_SUCH_SOURCE", field: str = "uri") -> InvalidArgumentError:
    """The error for a source that does not exist or is not what its spec says."""
    path = f"{spec.field}.{field}"
    return InvalidArgumentError(
        f"{path}: {message}",
        reason=reason,
        metadata={"uri": shown(spec.kind.uri)},
        violations=[FieldViolation(path, message)],
    )


def no_folder(spec: SourceSpec, remedy: str = "create it or correct the path") -> InvalidArgumentError:
    """The error for a folder that does not exist."""
    return wrong(spec, f"The folder {spec.kind.uri} does not exist; {remedy}.")


def not_a_folder(spec: SourceSpec) -> InvalidArgumentError:
    """The error for a file where a folder is needed."""
    return wrong(spec, f"{spec.kind.uri} is a file; give the folder that contains it.", "NOT_A_FOLDER")


def not_a_file(spec: SourceSpec) -> InvalidArgumentError:
    """The error for a folder where a file is needed."""
    uri = spec.kind.uri
    message = f"{uri} is a folder; give a file in it, or a glob such as {uri.rstrip('/')}/*.jsonl."
    return wrong(spec, message, "NOT_A_FILE")


def matching(spec: SourceSpec, found: Mapping[str, V], pattern: str, below: Callable[[str], str]) -> dict[str, V]:
    """Those files, by path, whose path below the folder matches the pattern.

    Raises:
        InvalidArgumentError: none does.
    """
    matches = re.compile(glob_translate(pattern)).match
    files = {path: info for path, info in found.items() if matches(below(path))}
    if not files:
        message = f"None of the {len(found)} files below {spec.kind.uri} matches {pattern!r}; correct the pattern."
        raise wrong(spec, message, field="pattern")
    return files


def forbidden(spec: SourceSpec, message: str) -> PermissionDeniedError:
    """The error for a source that this service must not read; does not reveal whether it exists."""
    path = f"{spec.field}.uri"
    return PermissionDeniedError(
        f"{path}: {message}",
        reason="SOURCE_NOT_ALLOWED",
        metadata={"uri": shown(spec.kind.uri)},
        violations=[FieldViolation(path, message)],
    )
