"""How far a long-running operation is: what its store keeps and its RPCs return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from services.kit.failure import Failure


@dataclass(frozen=True, slots=True)
class Progress:
    """Units done, of a total (0: unknown), units per second, and the time of this state.

    `unit` names one unit, such as `records`. `remaining_s` is set if the operation knows the time left better than its
    rate does. `waiting` says why it does not continue at the moment.
    """

    phase: str
    done: int = 0
    total: int = 0
    rate: float = 0.0
    update_time: datetime | None = None
    unit: str = "records"
    remaining_s: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    waiting: Failure | None = None

    def to_json(self) -> dict[str, Any]:
        """Its JSON form; the time is seconds since 1970."""
        return {**asdict(self), "update_time": self.update_time.timestamp() if self.update_time else None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Progress:
        """Reads the JSON form, also an earlier release's.

        Raises:
            TypeError, ValueError: it is not such a form.
        """
        known = {item.name: value[item.name] for item in fields(cls) if item.name in value}
        moment = known.get("update_time")
        # Earlier releases wrote microseconds.
        seconds = moment / 1e6 if moment is not None and moment > 1e12 else moment
        if known.get("waiting") is not None:
            known["waiting"] = Failure(**known["waiting"])
        return cls(**{**known, "update_time": datetime.fromtimestamp(seconds, UTC) if seconds is not None else None})
