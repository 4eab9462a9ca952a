"""Why a child ended, in its own words: an inherited file in memory, which works even when the disk is full."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

_MAX_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class ExitReport:
    """Why a process ended."""

    reason: str
    """As in google.rpc.ErrorInfo."""
    message: str
    permanent: bool
    """Whether a restart would fail again until a person acts."""


class ExitReportFile:
    """The report file of one start of a child; close it after the child has ended."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("tidemill-exit-report")

    @property
    def path(self) -> str:
        """The path by which the child, which inherits the descriptor, opens it."""
        return f"/proc/self/fd/{self.descriptor}"

    def read(self) -> ExitReport | None:
        """The report; None if the child wrote none, or none that can be read."""
        try:
            value = json.loads(os.pread(self.descriptor, _MAX_BYTES, 0))
            return ExitReport(str(value["reason"]), str(value["message"]), bool(value["permanent"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def close(self) -> None:
        """Frees the memory."""
        os.close(self.descriptor)
