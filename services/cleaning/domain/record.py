"""Records, and what a recipe makes of them.

A record is identified by its source and its id within it. Merging the messages about one record does not depend on
their order: the content with the latest event time counts, and of equal times the latest arrival. Whether an origin
(see `RawRecord.origin`) still has the record is decided by that origin's latest message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from services.kit.ids import record_name, sha256_hex

FEEDBACK_PREFIX = "answers."
"""The pipeline service names the sources of feedback so, and no other source."""

RecordKey = tuple[str, str]
"""Identity of a record: its source, and its id within it."""


class Keeping(Enum):
    """How the original of a record is kept once it was cleaned."""

    PLAIN = "plain"
    ENCRYPTED = "encrypted"
    NONE = "none"


class _OfRecord:
    """Something about one record."""

    __slots__ = ()
    record_id: str
    source: str

    @property
    def key(self) -> RecordKey:
        """Identity of the record."""
        return self.source, self.record_id

    @property
    def name(self) -> str:
        """Name of the record: `sources/{source}/records/{record}`."""
        return record_name(self.source, self.record_id)


@dataclass(frozen=True, slots=True)
class RawRecord(_OfRecord):
    """A record as it was collected; `import_name` is empty when it was pushed.

    `event_time` and `arrival` are microseconds since 1970. `origin` is the digest of what it was pulled from; empty
    when it was pushed, or pulled by a release that did not store it. `tenant` is whose it is, or empty. What was stored
    with `keeping` NONE has no text, and of its attributes those that say how it may be used.
    """

    record_id: str
    source: str
    text: str
    attributes: Mapping[str, str]
    import_name: str = ""
    event_time: int = 0
    arrival: int = 0
    origin: str = ""
    tenant: str = ""
    keeping: Keeping = Keeping.PLAIN
    _digest: str = field(default="", init=False, repr=False, compare=False)

    @property
    def recency(self) -> tuple[int, int, str]:
        """Sorting key: of several contents of a record, the one with the greatest key counts."""
        return self.event_time, self.arrival, self.content_digest

    @property
    def content_digest(self) -> str:
        """sha256 over source, text and attributes: records with equal digests are cleaned to equal results."""
        if not self._digest:
            flat = [part for pair in sorted(self.attributes.items()) for part in pair]
            # Order, row and verdict each need it, and a text may be long.
            object.__setattr__(self, "_digest", sha256_hex(self.source, self.text, *flat))
        return self._digest


@dataclass(frozen=True, slots=True)
class Withdrawal(_OfRecord):
    """A record that an import no longer found at the origin that it had been pulled from."""

    record_id: str
    source: str
    import_name: str
    origin: str
    arrival: int


@dataclass(frozen=True, slots=True)
class Erased:
    """Which records of feedback are erased: those of a person (a pseudonym), and those of answers (ids of records)."""

    person: str
    answers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a record was dropped: a stable reason, and the figures behind it, never the text itself.

    `operator` is the name of the operator that dropped it; empty if the record itself was too large, or was empty at
    the end of the recipe.
    """

    reason: str
    detail: str = ""
    operator: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """Result of a recipe's single-record operators for one record; `text` is empty if it was rejected."""

    text: str
    attributes: Mapping[str, str]
    rejection: Rejection | None = None


@dataclass(frozen=True, slots=True)
class Verdict(_OfRecord):
    """Result of a data set's recipe for one record; `keeping` is that of its original."""

    record_id: str
    source: str
    dataset: str
    recipe_digest: str
    content_digest: str
    cleaned: Cleaned
    keeping: Keeping = field(default=Keeping.PLAIN, compare=False)
