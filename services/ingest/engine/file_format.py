"""What a format of files implements; reading the files and counting bytes and refusals is done for all in one place."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from services.ingest.domain.record import RawRecord, RecordRefusedError, is_attribute_name
from services.ingest.domain.source_import import LATER
from services.ingest.domain.source_uri import UriRefusedError, check_pattern, parse_uri
from services.ingest.engine.attributes import Attributes
from services.ingest.engine.named_groups import compiled, wrong_pattern

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

    The attribute `path` of a record is its file's path below the folder. The named groups of `path_pattern`, which is
    searched for in that path, are attributes, too.
    """

    pattern: str = "**/*"
    folder_attribute: str = ""
    path_pattern: str = dataclass_field(default="", kw_only=True, metadata=LATER)

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
        yield from self._path_violations()

    def _path_violations(self) -> Iterator[tuple[str, str]]:
        if not self.path_pattern:
            return
        if wrong := wrong_pattern(self.path_pattern):
            yield "path_pattern", wrong
            return
        groups = compiled(self.path_pattern).groupindex
        if not groups:
            yield "path_pattern", "has no named group; name what becomes an attribute: (?P<label>ham|spam)."
        for name in groups:
            if not is_attribute_name(name) or name in (PATH_ATTRIBUTE, self.folder_attribute):
                yield (
                    "path_pattern",
                    f"the group {name!r} is not a free attribute name: use a-z, 0-9 and _, starting with a letter, "
                    "and neither `path` nor the folder_attribute.",
                )

    def file_attributes(self, file: ReadFile) -> Attributes:
        """The attributes that a record has from its file.

        Raises:
            RecordRefusedError: `path_pattern` is not found in its path.
        """
        attributes = Attributes()
        attributes.add(PATH_ATTRIBUTE, file.path)
        if self.folder_attribute:
            attributes.add(self.folder_attribute, file.folder)
        for name, value in self.path_groups(file).items():
            attributes.add(name, value)
        return attributes

    def path_groups(self, file: ReadFile) -> Mapping[str, str]:
        """The named groups of `path_pattern` in a file's path.

        Raises:
            RecordRefusedError: the pattern is not found there.
        """
        if not self.path_pattern:
            return {}
        # Names of files may be any bytes.
        found = compiled(self.path_pattern).search(file.path.encode("utf-8", "replace").decode())
        if found is None:
            raise RecordRefusedError(
                "path_pattern is not found in the file's path; correct it, or leave the file out by `pattern`.",
                reason="NO_PATH_MATCH",
            )
        return {name: value for name, value in found.groupdict().items() if value is not None}


def encoding_violations(encoding: str) -> Iterator[tuple[str, str]]:
    """A violation of the field `encoding` if Python does not know it as an encoding of text."""
    try:
        # Codecs from bytes to bytes (base64, zlib) are listed as well.
        if isinstance(codecs.decode(b"", encoding), str):
            return
    except (LookupError, ValueError):
        pass
    yield "encoding", f"{encoding!r} is not a known text encoding; use, for example, utf-8, gb18030 or latin-1."
