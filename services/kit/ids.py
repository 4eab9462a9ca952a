"""Ids: time-ordered for resources, derived from content where the same input must give the same id."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from typing import Any

ID_PATTERN = "[0-9a-f]{26}"
"""The format of `new_id`, as a regular expression."""


NEWEST = (1 << 31) - 1
"""Above the number of every version, and still an INTEGER of PostgreSQL."""


def new_id() -> str:
    """26 hexadecimal digits, sortable by creation time to the millisecond (48 bits time, 56 bits random)."""
    return f"{int(time.time() * 1000):012x}{secrets.randbits(56):014x}"


def made_at_ms(made_id: str) -> int | None:
    """Creation time of an id of `new_id`, in milliseconds since 1970; None for any other id."""
    return int(made_id[:12], 16) if re.fullmatch(ID_PATTERN, made_id) else None


def sha256_hex(*parts: str | bytes) -> str:
    """sha256 over length-prefixed parts, so that ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def content_digest(value: Any) -> str:
    """sha256 of a JSON-like value in canonical form (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def record_name(source: str, record_id: str) -> str:
    """Resource name of a record: `sources/{source}/records/{record}`."""
    return f"sources/{source}/records/{record_id}"


def parts_of_record_name(name: str) -> tuple[str, str] | None:
    """Source and id in a name of `record_name`; None if it is not one. An id may contain slashes, a source may not."""
    source, middle, record_id = name.removeprefix("sources/").partition("/records/")
    return (source, record_id) if name.startswith("sources/") and middle else None


def derived_record_id(content_digest: str) -> str:
    """Id of a record that came without one: equal content from the same source is the same record."""
    return f"rec_{content_digest[:32]}"
