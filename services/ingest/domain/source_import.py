"""Imports: what is pulled, states, what may follow on what."""

from __future__ import annotations

import codecs
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import Enum

from services.ingest.domain.record import is_attribute_name
from services.ingest.domain.source_uri import UriRefusedError, check_pattern, parse_uri
from services.kit.errors import FieldViolation, InvalidArgumentError
from services.kit.failure import Failure
from services.kit.ids import content_digest
from services.kit.progress import Progress

DEFAULT_PATTERN = "**/*.txt"
DEFAULT_ENCODING = "utf-8"
DEFAULT_TEXT_FIELD = "text"
PATH_ATTRIBUTE = "path"


@dataclass(frozen=True, slots=True)
class TextFolder:
    """A folder tree of text files, one record a file; the attribute `path` is the file's path below the folder."""

    uri: str
    pattern: str = DEFAULT_PATTERN
    folder_attribute: str = ""
    encoding: str = DEFAULT_ENCODING


@dataclass(frozen=True, slots=True)
class JsonLines:
    """Files with one JSON object a line; without `attribute_fields` every other member becomes an attribute."""

    uri: str
    text_field: str = DEFAULT_TEXT_FIELD
    id_field: str = ""
    attribute_fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """What to pull; `max_records` 0 is all."""

    source: str
    kind: TextFolder | JsonLines
    max_records: int = 0

    @property
    def origin(self) -> str:
        """What is pulled, whichever way it is read: sha256 over the source's name, its address and its pattern.

        Imports of one origin follow each other: what the newest does not bring is gone.
        """
        place = self.kind.uri.removeprefix("file://").rstrip("/")
        pattern = self.kind.pattern if isinstance(self.kind, TextFolder) else ""
        return content_digest([self.source, type(self.kind).__name__, place, pattern])

    @property
    def field(self) -> str:
        """Path of the kind in a request, for messages about it."""
        return "spec.text_folder" if isinstance(self.kind, TextFolder) else "spec.json_lines"

    @property
    def digest(self) -> str:
        """Equal for specs that pull the same way from the same place."""
        return content_digest({"kind": type(self.kind).__name__, "spec": asdict(self)})


def check_spec(spec: SourceSpec) -> None:
    """Holds a spec against what can be known without looking at the source.

    Raises:
        InvalidArgumentError: names each field that is wrong and what to do.
    """
    kind, found = spec.kind, []
    try:
        parse_uri(kind.uri)
    except UriRefusedError as error:
        found.append(FieldViolation(f"{spec.field}.uri", f"{error}."))
    if isinstance(kind, TextFolder):
        try:
            check_pattern(kind.pattern)
        except UriRefusedError as error:
            found.append(FieldViolation(f"{spec.field}.pattern", f"{error}."))
        if kind.folder_attribute:
            found += _name_violations(f"{spec.field}.folder_attribute", kind.folder_attribute)
            if kind.folder_attribute == PATH_ATTRIBUTE:
                message = "`path` already is the path of the file; choose another name."
                found.append(FieldViolation(f"{spec.field}.folder_attribute", message))
        if not _is_text_encoding(kind.encoding):
            message = f"{kind.encoding!r} is no text encoding; for example utf-8, gb18030 or latin-1."
            found.append(FieldViolation(f"{spec.field}.encoding", message))
    else:
        for number, name in enumerate(kind.attribute_fields):
            if not name:
                message = "it is empty; name a member, or members on the way to one with dots between them."
                found.append(FieldViolation(f"{spec.field}.attribute_fields[{number}]", message))
    if found:
        text = "; ".join(f"{violation.field}: {violation.description}" for violation in found)
        raise InvalidArgumentError(text, reason="INVALID_SOURCE", violations=found)


def _name_violations(path: str, name: str) -> list[FieldViolation]:
    if is_attribute_name(name):
        return []
    message = f"{name!r} cannot name an attribute: lower-case letters, digits and _, a letter first, at most 64."
    return [FieldViolation(path, message)]


def _is_text_encoding(name: str) -> bool:
    try:
        # What decodes bytes to bytes (base64, zlib) is listed among the codecs too.
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
        """Whether nothing follows."""
        return self is not ImportState.RUNNING


@dataclass(frozen=True, slots=True)
class Differences:
    """How an origin differs from what earlier imports of it brought, in records."""

    added: int = 0
    changed: int = 0
    gone: int = 0


@dataclass(frozen=True, slots=True)
class Import:
    """The pulling of one source; `name` is `imports/{import}`.

    `source_digest` stands for the content that it pulled; empty where the content is not known for sure, and then
    no later request is answered with this import. `not_synchronized` says why what is gone from the origin was not
    withdrawn (`max_records`, `refused`, `changed`): the whole of it was not seen.
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
    differences: Differences = field(default_factory=Differences)
    not_synchronized: str = ""

    def holds(self, spec: SourceSpec, source_digest: str) -> bool:
        """Whether it pulled this content by this spec."""
        same = self.spec.digest == spec.digest and self.source_digest == source_digest
        return self.state is ImportState.SUCCEEDED and same and bool(source_digest)
