"""Records, their identity and their limits.

The limits are those of `tidemill.ingest.v1.Record`. They are repeated here because pulled records do not pass through
an entry point that validates messages; a contract test keeps the two equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache

from services.kit.errors import InvalidArgumentError
from services.kit.ids import derived_record_id, record_name, sha256_hex

MAX_TEXT_BYTES = 524_288
MAX_ATTRIBUTES = 64
MAX_ATTRIBUTE_BYTES = 16_384
FEEDBACK_SOURCES = "answers."
"""Beginning of the names of sources that hold feedback; no one may push records of such a source."""

_SOURCE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_RECORD_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_ATTRIBUTE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RecordRefusedError(InvalidArgumentError):
    """A record that cannot be accepted; `reason` is the code."""

    default_reason = "RECORD_REFUSED"


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A record as its producer sent it; without `record_id` until `identified`.

    `tenant` is whose it is, or empty; `originals` is how the policy of its source keeps its original, or empty.
    """

    source: str
    text: str
    attributes: Mapping[str, str]
    record_id: str = ""
    event_time: datetime | None = None
    tenant: str = ""
    originals: str = ""
    _digest: str = field(default="", init=False, repr=False, compare=False)

    @property
    def content_digest(self) -> str:
        """sha256 over source, text and attributes."""
        if not self._digest:
            flat = [part for pair in sorted(self.attributes.items()) for part in pair]
            # Identity, event and ledger each need it, and a text may be long.
            object.__setattr__(self, "_digest", sha256_hex(self.source, self.text, *flat))
        return self._digest

    @property
    def name(self) -> str:
        """`sources/{source}/records/{record}`, unique among all sources."""
        return record_name(self.source, self.record_id)

    def identified(self) -> RawRecord:
        """The record with its final identity: its own id, else one derived from source and content."""
        if self.record_id:
            return self
        made = replace(self, record_id=derived_record_id(self.content_digest))
        object.__setattr__(made, "_digest", self._digest)
        return made


@dataclass(frozen=True, slots=True)
class Refusal:
    """A piece of a source that is not a valid record: its location, the reason, and its (first) bytes."""

    location: str
    reason: str
    message: str
    content: bytes
    identified: bool = False
    """Whether it is known which record this would have been: then what is gone from the source is known, too."""


# Names repeat from line to line: few are looked at more than once.
@lru_cache(maxsize=4096)
def is_attribute_name(name: str) -> bool:
    """Whether this is a valid attribute name."""
    return _ATTRIBUTE.fullmatch(name) is not None


def is_record_id(text: str) -> bool:
    """Whether this is a valid record id."""
    return _RECORD_ID.fullmatch(text) is not None


@lru_cache(maxsize=256)
def is_source_name(text: str) -> bool:
    """Whether this is a valid source name."""
    return _SOURCE.fullmatch(text) is not None


def is_tenant(text: str) -> bool:
    """Whether this is a valid name of a tenant."""
    return _TENANT.fullmatch(text) is not None


def check_record(record: RawRecord) -> None:
    """Checks a record against the limits.

    Raises:
        RecordRefusedError: it breaks one.
    """
    if not is_source_name(record.source):
        raise RecordRefusedError(
            f"{record.source[:80]!a} is not a valid source name: use a-z, 0-9 and . _ -, at most 64 characters.",
            reason="INVALID_SOURCE",
        )
    if not record.text:
        raise RecordRefusedError("The text is empty.", reason="EMPTY_TEXT")
    size = _utf8_size("text", record.text)
    if size > MAX_TEXT_BYTES:
        raise RecordRefusedError(
            f"The text has {size} bytes of UTF-8; the limit is {MAX_TEXT_BYTES}.", reason="TEXT_TOO_LONG"
        )
    if record.record_id and not _RECORD_ID.fullmatch(record.record_id):
        raise RecordRefusedError(
            "The record id is not valid: use A-Z a-z 0-9 . _ : / -, at most 128 characters.", reason="INVALID_ID"
        )
    if record.tenant and not is_tenant(record.tenant):
        raise RecordRefusedError(
            f"{record.tenant[:80]!a} is not a valid tenant: use A-Z a-z 0-9 . _ -, at most 64 characters.",
            reason="INVALID_TENANT",
        )
    if len(record.attributes) > MAX_ATTRIBUTES:
        raise RecordRefusedError(
            f"The record has {len(record.attributes)} attributes; the limit is {MAX_ATTRIBUTES}.",
            reason="TOO_MANY_ATTRIBUTES",
        )
    for name, value in record.attributes.items():
        if not is_attribute_name(name):
            raise RecordRefusedError(
                f"{name[:80]!a} is not a valid attribute name: use a-z, 0-9 and _, starting with a letter.",
                reason="INVALID_ATTRIBUTE_NAME",
            )
        size = _utf8_size(f"attribute {name}", value)
        if size > MAX_ATTRIBUTE_BYTES:
            raise RecordRefusedError(
                f"The attribute {name} has {size} bytes; the limit is {MAX_ATTRIBUTE_BYTES}.",
                reason="ATTRIBUTE_TOO_LONG",
            )


def _utf8_size(what: str, text: str) -> int:
    try:
        return len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise RecordRefusedError(
            f"The {what} is not valid Unicode: half a surrogate pair at character {error.start}.",
            reason="NOT_UNICODE",
        ) from error
