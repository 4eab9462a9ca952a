"""How the process of a run asks the system for memory."""

from __future__ import annotations

from collections.abc import Mapping

_MAPPED_FROM = 1 << 20

ALLOCATOR: Mapping[str, str] = {"MALLOC_MMAP_THRESHOLD_": str(_MAPPED_FROM)}
"""Environment in which a process that trains is started.

glibc raises its threshold for mapped blocks to 32 MiB as tensors are freed. From then on tensors of a few megabytes are
cut out of one heap, in whose gaps the next ones do not fit, and which is never given back. A fixed threshold maps every
block from 1 MiB on, so that a freed tensor is free at once (docs/benchmarks.md).
"""
