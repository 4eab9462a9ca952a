"""Imports: what is pulled, and the states and their transitions."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from datetime import datetime
from enum import Enum
from typing import Any, ClassVar

from services.ingest.domain.record import is_attribute_name
from services.ingest.domain.source_uri import UriRefusedError, check_pattern, parse_uri
from services.kit.errors import FieldViolation, InvalidArgumentError
from services.kit.failure import Failure
from services.kit.ids import content_digest
from services.kit.progress import Progress

DEFAULT_PATTERN = "**/*.txt"
DEFAULT_ENCODING = "utf-8"
DEFAULT_TEXT_FIELD = "text"
DEFAULT_MAIL_PATTERN = "**/*"
PATH_ATTRIBUTE = "path"
_NO_DELIMITERS = ('"', "\n", "\r", "\0", " ")
# Header names that are attribute names, too.
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")


@dataclass(frozen=True, slots=True)
class TextFolder:
    """A folder tree of text files, one record per file; the attribute `path` is the path below the folder."""

    uri: str
    pattern: str = DEFAULT_PATTERN
    folder_attribute: str = ""
    encoding: str = DEFAULT_ENCODING
    field: ClassVar[str] = "text_folder"


@dataclass(frozen=True, slots=True)
class JsonLines:
    """Files with one JSON object per line; without `attribute_fields` all other members become attributes."""

    uri: str
    text_field: str = DEFAULT_TEXT_FIELD
    id_field: str = ""
    attribute_fields: tuple[str, ...] = ()
    field: ClassVar[str] = "json_lines"


@dataclass(frozen=True, slots=True)
class PluginSource:
    """A source of another package: the name of its entry point, and what it is given."""

    name: str
    config: Mapping[str, Any] = dataclass_field(default_factory=dict)
    field: ClassVar[str] = "plugin"

    @property
    def uri(self) -> str:
        """The address for messages; distinguishes origins."""
        return f"plugin:{self.name}/{content_digest(dict(self.config))[:16]}"


@dataclass(frozen=True, slots=True)
class MailFolder:
    """A folder tree of mail messages, a file each or many in an mbox, one record per message.

    `headers` names those that become attributes; the usual ones where it is empty.
    """

    uri: str
    pattern: str = DEFAULT_MAIL_PATTERN
    folder_attribute: str = ""
    headers: tuple[str, ...] = ()
    field: ClassVar[str] = "mail_folder"


@dataclass(frozen=True, slots=True)
class CsvFiles:
    """CSV files whose first row names the columns, one record per row; columns are as members of `JsonLines`.

    `delimiter` is a comma where it is empty, and a tab in files called `.tsv`.
    """

    uri: str
    text_field: str = DEFAULT_TEXT_FIELD
    id_field: str = ""
    attribute_fields: tuple[str, ...] = ()
    delimiter: str = ""
    encoding: str = DEFAULT_ENCODING
    field: ClassVar[str] = "csv_files"


FileKind = TextFolder | JsonLines | MailFolder | CsvFiles
"""What is read from files."""
SourceKind = FileKind | PluginSource
"""What can be pulled."""


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """What to pull; `max_records` 0 means all."""

    source: str
    kind: SourceKind
    max_records: int = 0

    @property
    def origin(self) -> str:
        """Identifies what is pulled, whichever way it is read: sha256 over source name, address and pattern.

        Imports of one origin supersede each other: what the newest does not bring is gone.
        """
        place = self.kind.uri.removeprefix("file://").rstrip("/")
        pattern = self.kind.pattern if isinstance(self.kind, TextFolder | MailFolder) else ""
        return content_digest([self.source, type(self.kind).__name__, place, pattern])

    @property
    def field(self) -> str:
        """Field path of the kind in a request, for messages."""
        return f"spec.{self.kind.field}"

    @property
    def digest(self) -> str:
        """Equal for specs that pull the same place in the same way."""
        return content_digest({"kind": type(self.kind).__name__, "spec": asdict(self)})


def check_spec(spec: SourceSpec) -> None:
    """Checks a spec as far as possible without accessing the source.

    Raises:
        InvalidArgumentError: names each field that is wrong and what to do.
    """
    kind, found = spec.kind, []
    if isinstance(kind, PluginSource):
        # Its package checks it.
        return
    try:
        parse_uri(kind.uri)
    except UriRefusedError as error:
        found.append(FieldViolation(f"{spec.field}.uri", f"{error}."))
    if isinstance(kind, TextFolder | MailFolder):
        try:
            check_pattern(kind.pattern)
        except UriRefusedError as error:
            found.append(FieldViolation(f"{spec.field}.pattern", f"{error}."))
        if kind.folder_attribute:
            found += _name_violations(f"{spec.field}.folder_attribute", kind.folder_attribute)
            if kind.folder_attribute == PATH_ATTRIBUTE:
                message = "`path` is reserved for the path of the file; choose another name."
                found.append(FieldViolation(f"{spec.field}.folder_attribute", message))
    if isinstance(kind, TextFolder | CsvFiles) and not _is_text_encoding(kind.encoding):
        message = f"{kind.encoding!r} is not a known text encoding; use, for example, utf-8, gb18030 or latin-1."
        found.append(FieldViolation(f"{spec.field}.encoding", message))
    if isinstance(kind, CsvFiles) and (len(kind.delimiter) > 1 or kind.delimiter in _NO_DELIMITERS):
        message = f"{kind.delimiter!r} cannot stand between cells; use one character, for example `;` or a tab."
        found.append(FieldViolation(f"{spec.field}.delimiter", message))
    if isinstance(kind, MailFolder):
        for number, name in enumerate(kind.headers):
            if _HEADER.fullmatch(name) is None:
                message = f"{name!r} is not the name of a header; write it as a mail does, for example X-Label."
                found.append(FieldViolation(f"{spec.field}.headers[{number}]", message))
    elif isinstance(kind, JsonLines | CsvFiles):
        for number, name in enumerate(kind.attribute_fields):
            if not name:
                message = "must not be empty; name a member, or a nested one by its path with dots."
                found.append(FieldViolation(f"{spec.field}.attribute_fields[{number}]", message))
    if found:
        text = "; ".join(f"{violation.field}: {violation.description}" for violation in found)
        raise InvalidArgumentError(text, reason="INVALID_SOURCE", violations=found)


def _name_violations(path: str, name: str) -> list[FieldViolation]:
    if is_attribute_name(name):
        return []
    message = f"{name!r} is not a valid attribute name: use a-z, 0-9 and _, starting with a letter, at most 64."
    return [FieldViolation(path, message)]


def _is_text_encoding(name: str) -> bool:
    try:
        # Codecs from bytes to bytes (base64, zlib) are listed as well.
        return isinstance(codecs.decode(b"", name), str)
    except (LookupError, ValueError):
        return False


class ImportState(Enum):
    """State of an import."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether this is a final state."""
        return self is not ImportState.RUNNING


@dataclass(frozen=True, slots=True)
class Differences:
    """Differences between an origin and what earlier imports of it brought, in records."""

    added: int = 0
    changed: int = 0
    gone: int = 0


@dataclass(frozen=True, slots=True)
class Import:
    """The pulling of one source; `name` is `imports/{import}`.

    `source_digest` identifies the content that it pulled; it is empty if the content is not known for sure, and then
    the import is never reused for a later request. `not_synchronized` says why nothing was withdrawn
    (`max_records`, `refused`, `changed`): the source was not read completely.
    """

    name: str
    spec: SourceSpec
    state: ImportState
    create_time: datetime
    update_time: datetime
    record_count: int = 0
    rejected_count: int = 0
    digest: str = ""
    source_digest: str = ""
    progress: Progress | None = None
    failure: Failure | None = None
    traceparent: str = ""
    differences: Differences = dataclass_field(default_factory=Differences)
    not_synchronized: str = ""

    def holds(self, spec: SourceSpec, source_digest: str) -> bool:
        """Whether it pulled this content by an equal spec."""
        same = self.spec.digest == spec.digest and self.source_digest == source_digest
        return self.state is ImportState.SUCCEEDED and same and bool(source_digest)
