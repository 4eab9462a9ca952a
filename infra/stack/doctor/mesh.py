"""The machine, the state folder and what runs: processes, files they left, disk, permissions, health, Triton."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil

from infra.stack import client, preflight, triton
from infra.stack import process as processes
from infra.stack.doctor.findings import Check, Finding, Level
from infra.stack.errors import StackError
from infra.stack.layout import Layout
from infra.stack.ports import is_free
from infra.stack.state import ChildPhase, StackPhase, parse_state, read_state, write_state
from infra.stack.topology import specs
from services.kit.bus.losses import forget_losses, noted_losses
from services.kit.config import disk_reserve
from services.kit.storage.disk import disk_space

IMAGE_VERSION = "2.73.0"
"""Triton in the image that infra/compose builds on."""
# NVIDIA's security bulletins of August and September 2025.
_FIXED_IN = (2, 59)
_OPEN_HOLES = "CVE-2025-23310, CVE-2025-23311 (HTTP), CVE-2025-23319, CVE-2025-23320, CVE-2025-23334 (shared memory)"


def checks(layout: Layout) -> list[Check]:
    """All checks of a mesh, in a sensible order."""
    looks: dict[str, Callable[[Layout], Iterator[Finding]]] = {
        "machine": _machine,
        "disk": _disk,
        "losses": _losses,
        "permissions": _permissions,
        "state": _state,
        "leftovers": _leftovers,
        "ports": _ports,
        "health": _health,
        "walls": _walls,
        "triton": _triton,
    }
    return [Check(name, partial(look, layout)) for name, look in looks.items()]


def _machine(layout: Layout) -> Iterator[Finding]:
    for sentence in preflight.problems(preflight.gather(layout)):
        yield Finding("machine", Level.FAULT, sentence)


def _disk(layout: Layout) -> Iterator[Finding]:
    space = disk_space(layout.state.root, disk_reserve())
    if space.scarce or space.reason:
        said = {
            "DISK_FULL": f"The disk is full, nothing can be written: {space}.",
            "DISK_LOW": f"The disk is nearly full, new records are refused: {space}.",
        }
        yield Finding(
            "disk",
            Level.FAULT if space.reason else Level.NOTICE,
            said.get(space.reason, f"The disk will be full soon: {space}."),
            f"Free some space; old logs are in {layout.state.logs}, old runs in {layout.state.artifacts}/runs.",
            reason=space.reason,
        )


def _losses(layout: Layout) -> Iterator[Finding]:
    root = layout.state.root
    for loss in noted_losses(root):
        remedy = f"{loss.remedy} Then `--repair` clears this notice."
        yield Finding("losses", Level.FAULT, str(loss), remedy, partial(forget_losses, root))


def _permissions(layout: Layout) -> Iterator[Finding]:
    root = layout.state.root
    if not root.exists():
        return
    found = root.stat()
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        yield Finding(
            "permissions",
            Level.FAULT,
            f"Other users of this machine can read {root} (mode {mode:04o}), which contains records and keys.",
            f"chmod 700 {root}",
            partial(root.chmod, 0o700),
        )
    if os.geteuid() not in (0, found.st_uid):
        yield Finding(
            "permissions",
            Level.FAULT,
            f"{root} belongs to the user {found.st_uid}, not to this one ({os.geteuid()}).",
            "Run the mesh as its owner, or set TIDEMILL_STATE to a folder of your own.",
        )


def _state(layout: Layout) -> Iterator[Finding]:
    file = layout.state.file
    if not file.exists():
        return
    stack = read_state(layout)
    if parse_state(layout) is None:
        yield Finding(
            "state",
            Level.FAULT,
            f"{file} cannot be read: it is damaged, or of another version.",
            "Remove it; `tidemill up` writes it again.",
            partial(_set_aside, file),
        )
    elif stack.phase is StackPhase.CRASHED:
        stopped = dataclasses.replace(stack, phase=StackPhase.STOPPED, pid=None, pid_ticks=None)
        yield Finding(
            "state",
            Level.FAULT,
            f"The supervisor was killed; {file} still says that it runs.",
            "`tidemill up` starts the mesh again and continues where it stopped.",
            partial(write_state, file, stopped),
        )
    elif stack.phase is StackPhase.FAILED:
        yield Finding("state", Level.FAULT, f"The mesh could not start: {stack.error}", "`tidemill up` tries again.")
    if stack.running:
        for name, child in stack.children.items():
            if child.pid is not None and processes.start_ticks(child.pid) is None:
                yield Finding(
                    "state",
                    Level.FAULT,
                    f"{file} names process {child.pid} for {name}, which does not exist.",
                    "Wait: the supervisor restarts it. If that does not help, run `tidemill down` and `tidemill up`.",
                )


def _leftovers(layout: Layout) -> Iterator[Finding]:
    """Files that only a running mesh may have."""
    if read_state(layout).running or _held(layout):
        return
    if left := processes.tagged(layout.state.root):
        names = ", ".join(sorted({f"{_name(process)} ({process.pid})" for process in left}))
        yield Finding(
            "leftovers",
            Level.FAULT,
            f"The mesh is stopped, but these of its processes are still running: {names}.",
            "`tidemill down` ends them.",
            lambda: _end(layout),
        )
    shared = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies
    found = [
        *shared.glob(f"{triton.shared_memory_prefix(layout)}*"),
        *layout.state.root.glob(".stack.json.*.partial"),
        *_sockets(layout),
    ]
    if found:
        yield Finding(
            "leftovers",
            Level.NOTICE,
            f"{len(found)} files that processes left when they were killed, such as {found[0]}.",
            "They do no harm; `tidemill doctor --repair` removes them.",
            lambda: _remove(found),
        )


def _ports(layout: Layout) -> Iterator[Finding]:
    stack = read_state(layout)
    if stack.running or _held(layout):
        return
    for spec in specs(layout):
        for use, usual in spec.ports.items():
            port = stack.ports.get(use, usual)
            if not is_free(port):
                yield Finding(
                    "ports",
                    Level.NOTICE,
                    f"Port {port} of {use} is in use by another process.",
                    "Another one will be chosen, and `tidemill status` shows it; callers with a fixed address need it.",
                )


def _health(layout: Layout) -> Iterator[Finding]:
    stack = client.status(layout.state.root, layout.home.root)
    if not stack.running:
        yield Finding("health", Level.NOTICE, "The mesh does not run.", "`tidemill up` starts it.")
        return
    for name, child in stack.children.items():
        if not child.healthy:
            why = child.health or child.last_error or child.phase.value
            remedy = f"Its log is {child.log}; the supervisor starts it again if it does not answer."
            reason = "BUS_AWAY" if name == "kafka" else ""
            yield Finding("health", Level.FAULT, f"{name} is not healthy: {why}", remedy, reason=reason)
        elif child.restarts:
            yield Finding(
                "health",
                Level.NOTICE,
                f"{name} was started again {child.restarts} times; the last reason: {child.last_error}.",
                f"Its log is {child.log}; earlier logs are next to it.",
            )


def _walls(layout: Layout) -> Iterator[Finding]:
    for message, remedy in read_state(layout).warnings:
        yield Finding("walls", Level.NOTICE, message, remedy)


def _triton(layout: Layout) -> Iterator[Finding]:
    try:
        version = triton.server_version()
    except StackError as error:
        yield Finding("triton", Level.FAULT, error.message)
        return
    if version and tuple(int(part) for part in version.split(".")[:2]) < _FIXED_IN:
        yield Finding(
            "triton",
            Level.NOTICE,
            f"Triton {version} has known vulnerabilities: {_OPEN_HOLES}. They are fixed in 2.59, for which there is no "
            "package yet.",
            f"Its HTTP and metrics ports are off and shared memory is refused, so they cannot be reached. The image of "
            f"infra/compose has Triton {IMAGE_VERSION}. See docs/security.md.",
        )
    child = read_state(layout).children.get("triton")
    if child is None or child.pid is None or child.phase is ChildPhase.STOPPED:
        return
    with contextlib.suppress(psutil.Error):
        if open_doors := doors_open(psutil.Process(child.pid).cmdline()):
            yield Finding(
                "triton",
                Level.FAULT,
                f"The running Triton has dangerous interfaces enabled: {', '.join(open_doors)}.",
                "It was started by another version of Tidemill: `tidemill down`, then `tidemill up`.",
            )


def doors_open(command: list[str]) -> list[str]:
    """The dangerous interfaces that a server with this command line offers."""
    values = dict(part.split("=", 1) for part in command if part.startswith("--") and "=" in part)
    found = [
        what
        for option, what in (("--allow-http", "HTTP"), ("--allow-metrics", "metrics"))
        if values.get(option, "true").lower() not in ("false", "0")
    ]
    restricted = values.get("--grpc-restricted-protocol", "").split(":")[0].split(",")
    found += [name for name in ("shared-memory", "trace", "logging") if name not in restricted]
    if not values.get("--grpc-address", "").startswith("unix:") and values.get("--grpc-use-ssl-mutual") != "true":
        found.append("gRPC on a port without TLS")
    return found


def _held(layout: Layout) -> bool:
    """Whether a supervisor has locked the state folder, whatever its file says."""
    try:
        with layout.state.lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _sockets(layout: Layout) -> list[Path]:
    folder = layout.state.root / "sockets"
    return [path for path in folder.iterdir() if path.is_socket()] if folder.is_dir() else []


def _set_aside(file: Path) -> None:
    file.replace(file.with_name(f"{file.name}.damaged"))


def _end(layout: Layout) -> None:
    processes.end_tagged(layout.state.root)


def _remove(paths: list[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return "?"
