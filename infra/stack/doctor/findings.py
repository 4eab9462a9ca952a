"""Findings of the doctor: faults and notices, each with a remedy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from services.kit.errors import TidemillError


class Level(StrEnum):
    """Severity of a finding."""

    FAULT = "fault"
    """Something does not work or will fail; the exit status is 1."""
    NOTICE = "notice"
    """Worth knowing for an operator."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or worth knowing."""

    check: str
    """Which check found it, such as `disk`."""
    level: Level
    message: str
    remedy: str = ""
    """What to do about it."""
    repair: Callable[[], None] | None = None
    """Repairs it; safe to run as long as the mesh has not changed."""
    repaired: bool = False
    reason: str = ""
    """The reason that callers and cycles get because of it, such as `BUS_AWAY`; empty without one."""


@dataclass(frozen=True, slots=True)
class Check:
    """A check of one thing; `look` yields its findings."""

    name: str
    look: Callable[[], Iterable[Finding]]


def examine(checks: Sequence[Check], *, repair: bool = False) -> list[Finding]:
    """Runs all checks; one that fails is itself a finding.

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
