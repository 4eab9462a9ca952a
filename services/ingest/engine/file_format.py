"""What a format of files implements; reading the files and counting bytes and refusals is done for all in one place."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from services.ingest.domain.record import RawRecord, is_attribute_name
from services.ingest.domain.source_uri import UriRefusedError, check_pattern, parse_uri
from services.ingest.engine.attributes import Attributes

PATH_ATTRIBUTE = "path"
DEFAULT_ENCODING = "utf-8"
BOM = b"\xef\xbb\xbf"

P = TypeVar("P")


class BadContentError(Exception):
    """A file whose content cannot be read as expected; the caller adds its name and line."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class ReadFile:
    """A file that is being read: its path below the source's folder, the name of the folder it is in, its bytes."""

    path: str
    folder: str
    chunks: Iterable[bytes]


@dataclass(frozen=True)
class FileFormat(ABC, Generic[P]):
    """Files of one format; `P` is the piece of a file that becomes one record, such as a line."""

    uri: str
    field: ClassVar[str]
    """Its field in `SourceSpec.kind`."""
    pieces: ClassVar[str] = ""
    """What the records of a source are counted by, for the progress: `lines`, `files`, or nothing that is known."""
    unit: ClassVar[str] = "line"
    """What the numbers of pieces count, for messages: `line` or `row`."""
    head_bytes: ClassVar[int] = 0
    """The beginning of a file that is enough to read it, if it is so short that many are fetched at once."""

    @property
    def incremental(self) -> bool:
        """See `SourceKind`."""
        return False

    @property
    def folder_pattern(self) -> str:
        """Which files of the folder are read; empty for a file or a glob."""
        return ""

    def violations(self) -> Iterator[tuple[str, str]]:
        """What is wrong with the options: the field, and a message that says what to do."""
        try:
            parse_uri(self.uri)
        except UriRefusedError as error:
            yield "uri", f"{error}."

    @abstractmethod
    def split(self, file: ReadFile) -> Iterator[tuple[int, P]]:
        """The pieces of a file, each with its line, or 0 if the piece is the whole file.

        Raises:
            BadContentError: the rest of the file cannot be read.
        """

    @abstractmethod
    def record(self, source: str, file: ReadFile, piece: P) -> RawRecord:
        """The record of a piece.

        Raises:
            RecordRefusedError: it is not a valid record.
        """

    def content(self, piece: P) -> bytes:
        """The bytes of a refused piece, about as they are in the file."""
        assert isinstance(piece, bytes)
        return piece


AnyFormat: TypeAlias = FileFormat[Any]


@dataclass(frozen=True)
class FolderFormat(FileFormat[P]):
    """A folder tree of files; others are one file, or those that match a glob.

    The attribute `path` of a record is its file's path below the folder.
    """

    pattern: str = "**/*"
    folder_attribute: str = ""

    @property
    def folder_pattern(self) -> str:
        """See `FileFormat`."""
        return self.pattern

    def violations(self) -> Iterator[tuple[str, str]]:
        """See `FileFormat`."""
        yield from super().violations()
        try:
            check_pattern(self.pattern)
        except UriRefusedError as error:
            yield "pattern", f"{error}."
        name = self.folder_attribute
        if name and not is_attribute_name(name):
            yield (
                "folder_attribute",
                f"{name!r} is not a valid attribute name: use a-z, 0-9 and _, starting with a letter, at most 64.",
            )
        if name == PATH_ATTRIBUTE:
            yield "folder_attribute", "`path` is reserved for the path of the file; choose another name."

    def file_attributes(self, file: ReadFile) -> Attributes:
        """The attributes that a record has from its file."""
        attributes = Attributes()
        attributes.add(PATH_ATTRIBUTE, file.path)
        if self.folder_attribute:
            attributes.add(self.folder_attribute, file.folder)
        return attributes


def encoding_violations(encoding: str) -> Iterator[tuple[str, str]]:
    """A violation of the field `encoding` if Python does not know it as an encoding of text."""
    try:
        # Codecs from bytes to bytes (base64, zlib) are listed as well.
        if isinstance(codecs.decode(b"", encoding), str):
            return
    except (LookupError, ValueError):
        pass
    yield "encoding", f"{encoding!r} is not a known text encoding; use, for example, utf-8, gb18030 or latin-1."
