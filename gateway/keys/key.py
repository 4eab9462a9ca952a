"""What an API key is: `tm_<id>_<secret>`, of which only a digest is kept. It knows no database and no transport.

The secret has 256 bits of chance, so a plain sha256 is enough: there is nothing to guess that a slow hash would slow.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime

_PATTERN = re.compile(r"^tm_([0-9a-f]{12})_([0-9a-f]{64})$")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is kept."""

    key_id: str
    name: str
    digest: str
    """sha256 of the whole key, hexadecimal."""
    create_time: datetime
    revoke_time: datetime | None = None


def generate_key() -> tuple[str, str]:
    """A new key: its id and its text. The text is shown once and kept nowhere."""
    key_id = secrets.token_hex(6)
    return key_id, f"tm_{key_id}_{secrets.token_hex(32)}"


def digest_key(text: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(text.encode()).hexdigest()


def id_of(text: str) -> str | None:
    """The id inside a key's text; None where the text is no key at all."""
    found = _PATTERN.match(text)
    return found.group(1) if found else None


def matches(key: ApiKey, text: str) -> bool:
    """Whether the text is that key, in a time that does not depend on where they differ."""
    return hmac.compare_digest(key.digest, digest_key(text))
