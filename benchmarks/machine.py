"""What a reader must know of the machine that figures come from."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

_SHOWN_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def described(packages: tuple[str, ...]) -> list[str]:
    """Lines of Markdown: processor, memory, versions of packages, and how busy the machine was."""
    info = Path("/proc/cpuinfo").read_text()
    flags = set(next(line for line in info.splitlines() if line.startswith("flags")).split())
    model = next(line for line in info.splitlines() if line.startswith("model name")).partition(": ")[2]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return [
        f"- {datetime.now(UTC):%Y-%m-%d}, {model}, {len(os.sched_getaffinity(0))} of its processors, {memory:.0f} GiB; "
        f"{', '.join(name for name in _SHOWN_FLAGS if name in flags)}",
        f"- Linux {platform.release()}, Python {platform.python_version()}, {versions}",
        f"- load average at the start {os.getloadavg()[0]:.1f}: where it is above 0, others computed at the same time; "
        "read the ratios",
    ]


def resident_bytes(which: str) -> int:
    """Of this process: `VmRSS` now, or `VmHWM`, its greatest size since `/proc/self/clear_refs` was written."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1]) * 1024
