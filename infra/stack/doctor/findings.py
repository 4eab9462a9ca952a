"""What the doctor finds: a fault or a notice, each with what to do about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from services.kit.errors import TidemillError


class Level(StrEnum):
    """How bad a finding is."""

    FAULT = "fault"
    """Something does not work, or will not; the exit status is 1."""
    NOTICE = "notice"
    """An operator should know it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or worth knowing."""

    check: str
    """Which check found it, such as `disk`."""
    level: Level
    message: str
    remedy: str = ""
    """What a person can do."""
    repair: Callable[[], None] | None = None
    """Mends it; safe to run while the mesh is as it was found."""
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """A look at one thing; `look` yields what it finds."""

    name: str
    look: Callable[[], Iterable[Finding]]


def examine(checks: Sequence[Check], *, repair: bool = False) -> list[Finding]:
    """Runs all checks; one that fails itself is a finding, too.

    Args:
        checks: in their order.
        repair: repair what can be repaired safely.
    """
    found: list[Finding] = []
    for check in checks:
        try:
            seen = list(check.look())
        except (OSError, TidemillError) as error:
            seen = [Finding(check.name, Level.FAULT, f"This could not be checked: {error}")]
        found += [_repaired(each) if repair and each.repair else each for each in seen]
    return found


def _repaired(finding: Finding) -> Finding:
    assert finding.repair is not None
    try:
        finding.repair()
    except (OSError, TidemillError) as error:
        return dataclasses.replace(finding, remedy=f"The repair failed: {error}. {finding.remedy}")
    return dataclasses.replace(finding, repaired=True)
