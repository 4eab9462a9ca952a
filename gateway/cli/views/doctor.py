"""Shows the findings of `tidemill doctor`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from infra.stack.doctor.findings import Finding

_MARKS = {"fault": ("✗", "red"), "notice": ("!", "yellow")}


def report(checks: Sequence[str], found: Sequence[Finding], versions: Mapping[str, str]) -> Text:
    """A line for each check without findings, and each finding with its remedy."""
    text = Text()
    for check in checks:
        own = [each for each in found if each.check == check]
        if not own:
            text.append("✓ ", "green").append(f"{check}\n")
        for each in own:
            mark, color = ("✓", "green") if each.repaired else _MARKS[each.level.value]
            named = f" ({each.reason})" if each.reason else ""
            text.append(f"{mark} ", color).append(f"{check}: {each.message}{named}\n")
            if each.repaired:
                text.append("  repaired\n", "green")
            elif each.remedy:
                text.append(f"  → {each.remedy}\n", "bright_black")
    text.append(", ".join(f"{name} {version}" for name, version in versions.items()), "bright_black")
    return text
