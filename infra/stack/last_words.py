"""What a child says of its own end: a file in memory that it inherits, so that a full disk does not silence it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

_MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Word:
    """Why a process ended."""

    reason: str
    """As in google.rpc.ErrorInfo."""
    message: str
    permanent: bool
    """Whether starting it again changes nothing before a person did something."""


class LastWords:
    """The file of one start of a child; close it after the child has ended."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("tidemill-last-words")

    @property
    def path(self) -> str:
        """Where the child, which inherits the descriptor, finds it."""
        return f"/proc/self/fd/{self.descriptor}"

    def read(self) -> Word | None:
        """What it said; None where it said nothing that can be read."""
        try:
            value = json.loads(os.pread(self.descriptor, _MOST_BYTES, 0))
            return Word(str(value["reason"]), str(value["message"]), bool(value["permanent"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def close(self) -> None:
        """Gives its memory back."""
        os.close(self.descriptor)
