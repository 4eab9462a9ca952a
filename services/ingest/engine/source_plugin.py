"""What a package implements to bring a source: entry point group `tidemill.sources`, name = "package.module:Class"."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict


class SourceParams(BaseModel):
    """Base of a source's parameters: what an import gives as `config`; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


P = TypeVar("P", bound=SourceParams)


@dataclass(frozen=True, slots=True)
class PulledRecord:
    """A record of a source; without an id it is identified by its content."""

    text: str
    record_id: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    event_time: datetime | None = None


class Source(ABC, Generic[P]):
    """A source with its parameters. An instance is made for each look and each pull, in a thread of its own.

    An error that it raises fails the import with its text; a `TidemillError` keeps its reason.
    """

    params_type: ClassVar[type[BaseModel]]

    def __init__(self, params: P) -> None:
        self.params = params

    def digest(self) -> str:
        """Identifies the content: equal content is not pulled again. Empty if that is too expensive to find out."""
        return ""

    @abstractmethod
    def records(self) -> Iterator[PulledRecord]:
        """All records, in an order that does not change while the content does not."""
