"""What shares its parts stays together: run side by side, a folder's tests go to one worker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Groups tests by folder for `--dist loadgroup`."""
    for item in items:
        if _FOLDER in item.path.parents:
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(_FOLDER).parts[0]))
