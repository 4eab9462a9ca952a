"""The installable client, out of a wheel as it is published."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

_CLIENT = Path(__file__).parents[1] / "clients" / "python"
_MAKE = "from hatchling.cli import hatchling; hatchling()"


def build_wheel(folder: Path) -> Path:
    """Builds it into a folder."""
    command = [sys.executable, "-c", _MAKE, "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=_CLIENT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@contextmanager
def imported(wheel: Path) -> Iterator[ModuleType]:
    """`tidemill_client`, for the length of the block."""
    sys.path.insert(0, str(wheel))
    try:
        yield importlib.import_module("tidemill_client")
    finally:
        sys.path.remove(str(wheel))
