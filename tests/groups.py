"""Which tests run in the same worker (`-n 3 --dist loadgroup`), and which start first.

Tests that share real parts stay together: all of e2e, each folder of contract and integration tests, each file of fault
tests. A free worker takes the next group, so the longest groups start first and the workers end at about the same time.

xdist's own groups do not work with pytest 9.2: xdist writes the group's name into a field that pytest no longer reads.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

FOLDER = Path(__file__).parent
LONGEST = (
    "tests/e2e",
    "tests/integration/training",
    "tests/integration/inference",
    "tests/integration/telemetry",
    "tests/integration/cleaning",
    "tests/integration/ingest",
    "tests/integration/stack",
)
"""In this order before all others."""
_DEPTH = {"e2e": 2, "contract": 3, "integration": 3, "faults": 3}
"""How many parts of a test's id name its group."""


def group(test: str) -> str:
    """The group of a test, by its id; a unit test shares nothing and is a group of its own."""
    parts = test.partition("::")[0].split("/")
    return "/".join(parts[: _DEPTH[parts[1]]]) if len(parts) > 1 and parts[1] in _DEPTH else test


def arrange(items: list[pytest.Item]) -> None:
    """Puts the longest groups first."""
    ranks = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(group(item.nodeid), len(ranks)))


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each worker a whole group, in the order in which they were arranged."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)
