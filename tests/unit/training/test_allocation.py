"""A training takes its tensors from a heap where the machine has room, and maps them one by one where it has not."""

from __future__ import annotations

import math
import subprocess
import sys

from services.training.engine.allocation import Allocation, free_memory

_LOOKS = """
import os, torch
from services.training.engine.allocation import Allocation

def faults():
    import resource
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.ones(1 << 20).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

free = 1 << 60
allocation = Allocation(free=lambda: free)
found = [faults()]
allocation.after_step()
assert allocation.heap
faults()
found.append(faults())
free = 0
allocation.after_step()
assert not allocation.heap
found.append(faults())
print(*found)
"""


def test_tensors_come_from_a_heap_as_long_as_there_is_room() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOOKS],
        env={"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    mapped, heap, again = map(int, done.stdout.split())
    # Pages that the system had to clear: those of every tensor, those of none, and those of every tensor again.
    assert heap * 10 < min(mapped, again)


def test_without_room_nothing_changes() -> None:
    for allocation in (Allocation(room=math.inf), Allocation(free=lambda: 0)):
        allocation.after_step()
        assert not allocation.heap


def test_the_free_memory_is_some_of_the_machines() -> None:
    assert 0 < free_memory() < 1 << 50
