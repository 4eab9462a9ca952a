"""What is left out of training: feedback that is not trusted, and people who are erased."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum


class ExclusionKind(Enum):
    """What was done."""

    QUARANTINE = "quarantine"
    ERASURE = "erasure"


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A quarantine or an erasure of an API key or of a person, who is named by pseudonym only.

    `removed` counts what an erasure deleted, `ordered` are the pipelines of which it ordered a cycle, `rewritten` the
    data-set versions whose files no longer hold what the person taught. It is complete when these cycles have their
    data sets, and nothing is left in cleaning.
    """

    exclusion_id: str
    kind: ExclusionKind
    create_time: datetime
    api_key: str = ""
    person: str = ""
    reason: str = ""
    removed: Mapping[str, int] = field(default_factory=dict)
    ordered: tuple[str, ...] = ()
    lift_time: datetime | None = None
    rewritten: tuple[str, ...] = ()
    complete_time: datetime | None = None

    @property
    def name(self) -> str:
        """`exclusions/{exclusion}`."""
        return f"exclusions/{self.exclusion_id}"


@dataclass(frozen=True, slots=True)
class Affected:
    """A cycle that learnt from data that is excluded now, and the resources that it created; empty names for none."""

    cycle: str
    dataset_version: str
    run: str
    model_version: str
    records: int
