"""The speed of the machine: measured once in a process of its own, and kept until it or the runtime changes."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.kit.errors import UnavailableError
from services.kit.ids import content_digest
from services.kit.whole_files import replace_text
from services.training.adapters.machine import main_memory
from services.training.domain.device import HERE, Device, Speed
from services.training.domain.tasks import Architecture

logger = logging.getLogger(__name__)

_VERSION = 1
"""Increased when what is measured changes."""
_PATIENCE_S = 540.0


class MeasuredMachine:
    """Implements `services.training.app.ports.MeasuredDevice`."""

    def __init__(self, folder: Path) -> None:
        """`folder` keeps what was measured, a file for each architecture."""
        self._folder = folder
        self._measuring = threading.Lock()

    def device(self, architecture: Architecture) -> Device:
        """See the port."""
        # Two at the same time would measure each other.
        with self._measuring:
            found = self._kept(architecture)
            if found is None:
                found = _measure(architecture)
                self._keep(architecture, found)
        speeds = {name: Speed(**values) for name, values in found["speeds"].items()}
        cores = len(os.sched_getaffinity(0))
        source = f"measured on this machine ({cores} cores, {_processor()})"
        return Device(HERE, main_memory(), cores, {architecture: speeds}, float(found["tail"]), source, measured=True)

    def _file(self, architecture: Architecture) -> Path:
        identity = {
            "version": _VERSION,
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "runtime": importlib.metadata.version("openvino"),
        }
        return self._folder / f"{architecture}-{content_digest(identity)[:16]}.json"

    def _kept(self, architecture: Architecture) -> dict[str, Any] | None:
        file = self._file(architecture)
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return found if isinstance(found["speeds"], dict) and float(found["tail"]) >= 1 else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be read and is measured again: %s", file, error)
            return None

    def _keep(self, architecture: Architecture, found: Mapping[str, Any]) -> None:
        file = self._file(architecture)
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(found))


def _measure(architecture: Architecture) -> dict[str, Any]:
    logger.info("measuring how fast this machine runs builds (once, about a minute)")
    command = [sys.executable, "-m", "services.training.worker.calibration", architecture]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(
            f"This machine was not measured within {_PATIENCE_S:.0f} s, so it is too busy; ask again later, or name a "
            "class of devices.",
            reason="CALIBRATION_SLOW",
        ) from error
    if done.returncode:
        logger.error("the calibration ended with %s: %s", done.returncode, done.stderr[-2000:])
        raise UnavailableError(
            f"This machine could not be measured (exit {done.returncode}); the log of training has the reason.",
            reason="CALIBRATION_FAILED",
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")
