"""What runs compute on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Machine:
    """The memory that a run may take: of the machine itself, or of each of its `devices` GPUs, in bytes.

    `half`: whether the device computes in bfloat16 by itself. `cores`: of the processor, that the service may use.

    A cluster is described as one machine: `memory_bytes` are those of its smallest node or GPU, `devices` and `cores`
    those of all nodes, `cores` in processes that have their CPUs; `together` of these fit on one node. It is 0 where
    there is no cluster.
    """

    kind: Literal["cpu", "cuda"]
    memory_bytes: int
    devices: int = 1
    half: bool = False
    cores: int = 1
    together: int = 0

    @property
    def max_processes(self) -> int:
        """The most processes of a training: one for each GPU, or else for each core."""
        return self.devices if self.kind == "cuda" else self.cores

    def sharing(self, processes: int) -> int:
        """How many of a training's processes share `memory_bytes`; the most of a node, where several may have some."""
        if self.kind == "cuda":
            return 1
        return min(processes, self.together or processes)

    @property
    def counted(self) -> str:
        """What limits the processes, as it follows the word there."""
        if self.together:
            return f"are {'GPUs' if self.kind == 'cuda' else 'CPUs'} for {self.max_processes} on the cluster"
        name = "GPU" if self.kind == "cuda" else "core"
        return f"is 1 {name}" if self.max_processes == 1 else f"are {self.max_processes} {name}s"
