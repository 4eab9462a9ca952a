"""Why a long-running thing failed: what its store keeps, its RPCs tell and its events carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Failure:
    """Reason (UPPER_SNAKE, as in google.rpc.ErrorInfo), a sentence for a person, and facts by name."""

    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
