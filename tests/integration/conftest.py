"""What shares its parts stays together: run side by side, a folder's tests go to one worker, the longest first."""

from __future__ import annotations

from pathlib import Path

import pytest

_FOLDER = Path(__file__).parent
# By the time that they take: what begins last should not last longest. The others follow in their order.
_LONGEST = ("training", "inference", "stack", "cleaning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups tests by folder, in the order in which `--dist loadgroup --no-loadscope-reorder` hands them out."""
    for item in items:
        if _FOLDER in item.path.parents:
            item.add_marker(pytest.mark.xdist_group(_folder(item)))
    items.sort(key=lambda item: _LONGEST.index(_folder(item)) if _folder(item) in _LONGEST else len(_LONGEST))


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(_FOLDER).parts[0] if _FOLDER in item.path.parents else ""
