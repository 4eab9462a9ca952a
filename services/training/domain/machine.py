"""What runs compute on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Machine:
    """The memory that a run may take: of the machine itself, or of each of its `devices` GPUs, in bytes.

    `half`: whether the device computes in bfloat16 by itself. `cores`: of the processor, that the service may use.
    """

    kind: Literal["cpu", "cuda"]
    memory_bytes: int
    devices: int = 1
    half: bool = False
    cores: int = 1

    @property
    def max_processes(self) -> int:
        """The most processes of a training: one for each GPU, or else for each core."""
        return self.devices if self.kind == "cuda" else self.cores

    @property
    def counted(self) -> str:
        """What limits the processes, as it follows the word there."""
        name = "GPU" if self.kind == "cuda" else "core"
        return f"is 1 {name}" if self.max_processes == 1 else f"are {self.max_processes} {name}s"
