"""Which runtime a build was made for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .engine import RUNTIME


def manifest_of(folder: Path) -> dict[str, Any]:
    """The build's `tidemill.json`.

    Raises:
        ValueError: it was made for another runtime than the one that serves.
    """
    manifest: dict[str, Any] = json.loads((folder / "tidemill.json").read_text(encoding="utf-8"))
    if manifest.get("runtime") != RUNTIME:
        raise ValueError(
            f"This build was made for {manifest.get('runtime')}, and models are served by {RUNTIME}: "
            "train the model again, and publish that."
        )
    return manifest
