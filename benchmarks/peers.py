"""Installs what Tidemill is compared with, apart from its own environment."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from services.kit.config import home_dir


def installed(name: str, packages: Sequence[str], *, alone: bool = False) -> Path:
    """A folder for `sys.path` with these packages and what they need; installed once, by uv, under TIDEMILL_HOME.

    `alone` leaves out what they need: they use Tidemill's own versions, for a comparison on the same libraries.
    """
    digest = hashlib.sha256("\n".join(packages).encode()).hexdigest()[:12]
    place = home_dir() / "benchmarks" / f"{name}-{digest}-python{sys.version_info.major}.{sys.version_info.minor}"
    if place.is_dir():
        return place
    partial = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    uv = Path(sys.executable).with_name("uv")
    options = ["-q", "--python", sys.executable, "--target", str(partial), *(["--no-deps"] if alone else [])]
    subprocess.run([str(uv), "pip", "install", *options, *packages], check=True)
    partial.rename(place)
    return place
