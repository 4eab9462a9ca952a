"""Finds the shared library of the running Python, which Triton's Python backend links."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def library_name(major: int = sys.version_info.major, minor: int = sys.version_info.minor) -> str:
    """`libpython3.X.so.1.0`; for the running Python when none is named."""
    return f"libpython{major}.{minor}.so.1.0"


def candidate_folders() -> Iterator[Path]:
    """Possible locations of the library, the most likely first."""
    configured = [sysconfig.get_config_var(name) for name in ("LIBDIR", "LIBPL")]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    yield Path(sys.base_prefix) / "lib"
    yield from (Path(folder) for folder in configured if folder)
    for root in (Path("/usr/lib"), Path("/lib"), Path("/usr/local/lib")):
        if multiarch:
            yield root / multiarch
        yield root
    yield Path("/usr/lib64")


def find_libpython() -> Path | None:
    """The library's path, or None: a Python built without it cannot run Triton's Python models."""
    name = library_name()
    return next((folder / name for folder in candidate_folders() if os.access(folder / name, os.R_OK)), None)
