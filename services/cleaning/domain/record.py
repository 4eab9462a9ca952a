"""Records and what a recipe makes of them. Knows no operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.kit.ids import sha256_hex


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A record as it was collected; `import_name` is empty when it was pushed."""

    record_id: str
    source: str
    text: str
    attributes: Mapping[str, str]
    import_name: str = ""

    @property
    def content_digest(self) -> str:
        """sha256 over source, text and attributes: equal digests clean to equal records."""
        flat = [part for pair in sorted(self.attributes.items()) for part in pair]
        return sha256_hex(self.source, self.text, *flat)


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a record was dropped: a stable reason, and the figures behind it, never the text itself."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What the single-record operators of a recipe made of one text; text is empty when it was rejected."""

    text: str
    attributes: Mapping[str, str]
    rejection: Rejection | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the recipe of one data set made of one record."""

    record_id: str
    source: str
    dataset: str
    recipe_digest: str
    content_digest: str
    cleaned: Cleaned
