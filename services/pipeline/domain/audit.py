"""The audit trail: who did what to which resource, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from services.kit.ids import new_id

MESH = "mesh"
"""Actor of what the mesh decides by itself."""
INSIDE = "inside"
"""Actor of a call that came without an API key, from inside the mesh."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One decision or action; it is never changed."""

    entry_id: str
    create_time: datetime
    actor: str
    action: str
    resource: str
    reason: str
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`auditEntries/{entry}`."""
        return f"auditEntries/{self.entry_id}"


def entry(
    now: datetime, actor: str, action: str, resource: str, reason: str, facts: Mapping[str, str] | None = None
) -> AuditEntry:
    """A new entry."""
    return AuditEntry(new_id(), now, actor, action, resource, reason, facts or {})


def actor_of(api_key: str) -> str:
    """The actor of a call; `api_key` is the id of its key, if it had one."""
    return f"key:{api_key}" if api_key else INSIDE
