"""The memory of the machine: of its GPUs if it has some, else of the processor, within the limit of a container."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from services.training.domain.machine import Machine

_LIMIT = Path("/sys/fs/cgroup/memory.max")
_HALF = frozenset({"avx512_bf16", "amx_bf16"})
_PATIENCE_S = 20.0


class LocalMachine:
    """Implements `services.training.app.ports.MachineView`; loads no torch, which would take the service's memory."""

    def __init__(self, memory_bytes: int = 0) -> None:
        """`memory_bytes`: what runs may take of each device; all of it when zero."""
        self._memory = memory_bytes

    def look(self) -> Machine:
        """See the port."""
        gpus = _gpus()
        if gpus:
            return Machine("cuda", self._memory or min(gpus), len(gpus), half=True)
        cores = len(os.sched_getaffinity(0))
        return Machine("cpu", self._memory or main_memory(), half=_computes_in_16_bits(), cores=cores)


def _gpus() -> list[int]:
    """Bytes of memory of each GPU that NVIDIA's driver shows."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=_PATIENCE_S).stdout
        return [int(line) * 2**20 for line in found.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        # A driver without a GPU: workers then compute on the processor, too.
        return []


def main_memory() -> int:
    """Bytes of the machine, or of the container if that has less."""
    first = Path("/proc/meminfo").read_text(encoding="utf-8").split()
    memory = int(first[1]) * 1024
    try:
        return min(memory, int(_LIMIT.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        # No control group, or one without a limit ("max").
        return memory


def _computes_in_16_bits() -> bool:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return bool(_HALF.intersection(flags.split()))
