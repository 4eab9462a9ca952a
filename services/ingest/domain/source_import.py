"""Imports: what is pulled, and the states and their transitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from dataclasses import field as dataclass_field
from datetime import datetime
from enum import Enum
from typing import Any, ClassVar, Protocol

from services.kit.errors import FieldViolation, InvalidArgumentError
from services.kit.failure import Failure
from services.kit.ids import content_digest
from services.kit.progress import Progress

LATER: Mapping[str, bool] = {"later": True}
"""Metadata of an option of a kind or a policy that was added after specs were stored; see `SourceSpec.digest`."""


class SourceKind(Protocol):
    """What is pulled: a format of files (`engine/formats`, a module each) or a `PluginSource`, both dataclasses."""

    field: ClassVar[str]
    """Its field in the contract."""

    @property
    def incremental(self) -> bool:
        """Whether an import continues where the last one of its origin ended, and what is gone stays."""
        ...

    @property
    def uri(self) -> str:
        """Address of what is pulled, for messages and to distinguish origins."""
        ...

    @property
    def folder_pattern(self) -> str:
        """Which files of a folder are read; empty if it is not a folder."""
        ...

    def violations(self) -> Iterable[tuple[str, str]]:
        """What is wrong with its options: the field, and a message that says what to do."""
        ...


@dataclass(frozen=True, slots=True)
class PluginSource:
    """A source of another package: the name of its entry point, and what it is given."""

    name: str
    config: Mapping[str, Any] = dataclass_field(default_factory=dict)
    field: ClassVar[str] = "plugin"

    folder_pattern: ClassVar[str] = ""
    incremental: ClassVar[bool] = False

    @property
    def uri(self) -> str:
        """See `SourceKind`."""
        return f"plugin:{self.name}/{content_digest(dict(self.config))[:16]}"

    def violations(self) -> Iterable[tuple[str, str]]:
        """None: its package checks its options."""
        return ()


@dataclass(frozen=True, slots=True)
class PushedSource:
    """A source whose records others push: nothing is pulled."""

    field: ClassVar[str] = "pushed"
    uri: ClassVar[str] = ""
    folder_pattern: ClassVar[str] = ""
    incremental: ClassVar[bool] = False

    def violations(self) -> Iterable[tuple[str, str]]:
        """None: it has no options."""
        return ()


@dataclass(frozen=True, slots=True)
class SourcePolicy:
    """What holds for every record of a source; `mask` is `edge` or empty. Empty values say nothing.

    `originals` is how their originals are kept: `plain`, `encrypted` or `none`. `tenant` is whose they are, unless they
    say it themselves.
    """

    licence: str = ""
    consent: str = ""
    data_class: str = ""
    mask: str = ""
    originals: str = dataclass_field(default="", metadata=LATER)
    tenant: str = dataclass_field(default="", metadata=LATER)

    @property
    def attributes(self) -> Mapping[str, str]:
        """The attributes that its records get."""
        named = {"licence": self.licence, "consent": self.consent, "data_class": self.data_class}
        return {name: value for name, value in named.items() if value}


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """What to pull; `max_records` 0 means all. With `may_be_empty` a source without records is right, else an error."""

    source: str
    kind: SourceKind
    max_records: int = 0
    may_be_empty: bool = False
    policy: SourcePolicy = SourcePolicy()

    @property
    def origin(self) -> str:
        """Identifies what is pulled, whichever way it is read: sha256 over source name, address and pattern.

        Imports of one origin supersede each other: what the newest does not bring is gone.
        """
        place = self.kind.uri.removeprefix("file://").rstrip("/")
        return content_digest([self.source, type(self.kind).__name__, place, self.kind.folder_pattern])

    @property
    def field(self) -> str:
        """Field path of the kind in a request, for messages."""
        return f"spec.{self.kind.field}"

    @property
    def digest(self) -> str:
        """Equal for specs that pull the same place in the same way."""
        spec = asdict(self)
        # Without what says nothing, as in releases that did not have the field, so that their requests are recognised.
        if not self.may_be_empty:
            del spec["may_be_empty"]
        if self.policy == SourcePolicy():
            del spec["policy"]
        values: Mapping[str, Any] = {"kind": self.kind, "policy": self.policy}
        for part, value in values.items():
            for option in fields(value):
                if LATER.items() <= option.metadata.items() and getattr(value, option.name) == option.default:
                    spec.get(part, {}).pop(option.name, None)
        return content_digest({"kind": type(self.kind).__name__, "spec": spec})


def pushed_source(what: str, place: str = "spec") -> InvalidArgumentError:
    """The refusal to pull from a source whose records others push."""
    field = f"{place}.{PushedSource.field}"
    return InvalidArgumentError(f"{field}: {what}.", reason="PUSHED_SOURCE", violations=[FieldViolation(field, what)])


def check_spec(spec: SourceSpec) -> None:
    """Checks a spec as far as possible without accessing the source.

    Raises:
        InvalidArgumentError: names each field that is wrong and what to do.
    """
    found = [FieldViolation(f"{spec.field}.{name}", message) for name, message in spec.kind.violations()]
    if found:
        text = "; ".join(f"{violation.field}: {violation.description}" for violation in found)
        raise InvalidArgumentError(text, reason="INVALID_SOURCE", violations=found)


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
    (`max_records`, `max_pages`, `refused`, `changed`, `incremental`): the source was not read completely.
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
