"""What runs compute on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Machine:
    """The memory that a run may take: of the machine itself, or of each of its `devices` GPUs, in bytes.

    `half`: whether the device computes in bfloat16 by itself.
    """

    kind: Literal["cpu", "cuda"]
    memory_bytes: int
    devices: int = 1
    half: bool = False
