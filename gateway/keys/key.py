"""API keys, `tm_<id>_<secret>`, of which only a digest is stored. Independent of database and transport.

The secret has 256 random bits, so a plain sha256 is enough: a slow hash only protects secrets that can be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

_PATTERN = re.compile(r"^tm_([0-9a-f]{12})_([0-9a-f]{64})$")


class Role(StrEnum):
    """What the holder of a key may do; `gateway.access` names the roles of every call."""

    READ = "read"
    """See models, cycles, data sets, records, logs and traces."""
    PREDICT = "predict"
    """Use models and rate their answers."""
    INGEST = "ingest"
    """Send records."""
    OPERATE = "operate"
    """Start and cancel cycles, imports and data sets; choose what serves."""
    ADMIN = "admin"
    """All of it."""


USUAL_ROLES = frozenset({Role.READ, Role.PREDICT, Role.INGEST})
"""Default roles of a key: what a product's backend needs."""


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """Limits of a key over all processes of a gateway on one machine; None means no limit."""

    requests_per_s: float | None = None
    concurrent: int | None = None
    """Concurrent requests, streams included."""
    tokens_per_day: int | None = None
    """Tokens of prompts and answers together, in a day of UTC."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored key."""

    key_id: str
    name: str
    digest: str
    """sha256 of the key's text, hexadecimal."""
    create_time: datetime
    revoke_time: datetime | None = None
    roles: frozenset[Role] = frozenset()
    expire_time: datetime | None = None
    last_use_time: datetime | None = None
    """Written periodically, not at every request."""
    tenant: str = ""
    limits: KeyLimits = KeyLimits()

    def allows(self, roles: Iterable[Role]) -> bool:
        """Whether it has one of these roles; ADMIN has them all."""
        return Role.ADMIN in self.roles or not self.roles.isdisjoint(roles)

    def expired(self, now: datetime) -> bool:
        """Whether it has expired."""
        return self.expire_time is not None and self.expire_time <= now


def generate_key() -> tuple[str, str]:
    """A new key: its id and its text. The text is shown once and never stored."""
    key_id = secrets.token_hex(6)
    return key_id, f"tm_{key_id}_{secrets.token_hex(32)}"


def digest_key(text: str) -> str:
    """The stored form of a key."""
    return hashlib.sha256(text.encode()).hexdigest()


def id_of(text: str) -> str | None:
    """The id inside a key's text; None if the text is not a key."""
    found = _PATTERN.match(text)
    return found.group(1) if found else None


def matches(key: ApiKey, text: str) -> bool:
    """Whether the text is that key, compared in constant time."""
    return hmac.compare_digest(key.digest, digest_key(text))
