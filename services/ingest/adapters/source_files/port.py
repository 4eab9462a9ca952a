"""What reading a source needs of the place that its files lie in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from services.ingest.domain.source_import import SourceSpec
from services.ingest.domain.source_uri import shown
from services.kit.errors import FieldViolation, InvalidArgumentError, PermissionDeniedError

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Bounds of what a source may bring; beyond one of them its import fails and says which."""

    connect_s: float = 10.0
    silence_s: float = 30.0
    file_bytes: int = 8 * 1024**3
    import_bytes: int = 64 * 1024**3
    files: int = 200_000
    # What a packed file may hold for each byte of it, once it is past `unpacked_bytes`: logs of JSON reach 30, bombs
    # a thousand.
    unpacked_ratio: int = 200
    unpacked_bytes: int = 16 * 1024**2


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that was found: its size (None: not told) and its strong ETag (empty: none)."""

    size: int | None
    etag: str = ""


class BadContentError(Exception):
    """A file that cannot be read as what it is; whoever reads it adds its name and line."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class FilePlace(Protocol):
    """The files of one source; one thread uses it. Each method holds the walls before it opens anything."""

    def find(self, pattern: str) -> Mapping[str, FoundFile]:
        """Files below a folder by path, those that match a glob."""
        ...

    def match(self) -> Mapping[str, FoundFile]:
        """The file that the address names, or the files that it matches as a glob."""
        ...

    def below(self, path: str) -> str:
        """A file's path below the source's folder; its name where the source is a file or a glob."""
        ...

    def location(self, path: str) -> str:
        """A file's address for people."""
        ...

    def open(self, path: str) -> AbstractContextManager[Iterator[bytes]]:
        """The bytes of a file, chunk by chunk.

        Raises:
            BadContentError: within the block: it changed, or stopped coming.
            OSError: it cannot be opened.
        """
        ...

    def heads(self, paths: Sequence[str], size: int) -> Sequence[bytes | OSError]:
        """The first bytes of several files, or why one cannot be read."""
        ...

    def close(self) -> None:
        """Ends its connections."""
        ...


def wrong(spec: SourceSpec, message: str, reason: str = "NO_SUCH_SOURCE", field: str = "uri") -> InvalidArgumentError:
    """The error for a source that is not there, or not what its spec says."""
    path = f"{spec.field}.{field}"
    return InvalidArgumentError(
        f"{path}: {message}",
        reason=reason,
        metadata={"uri": shown(spec.kind.uri)},
        violations=[FieldViolation(path, message)],
    )


def forbidden(spec: SourceSpec, message: str) -> PermissionDeniedError:
    """The error for a source that this service must not read; whether it exists is not said."""
    path = f"{spec.field}.uri"
    return PermissionDeniedError(
        f"{path}: {message}",
        reason="SOURCE_NOT_ALLOWED",
        metadata={"uri": shown(spec.kind.uri)},
        violations=[FieldViolation(path, message)],
    )
