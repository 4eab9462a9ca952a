"""Starts processes that end with the supervisor, recognises them by id and start time, and ends what they left."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from infra.stack import guard as guards
from infra.stack.child import PrivateNetwork, Program
from infra.stack.launch import CHECK, NETWORK

TAG = "TIDEMILL_STACK"
"""Environment variable that every process of a mesh carries; its value is the mesh's state folder."""

_LAUNCHER = Path(__file__).with_name("launch.py")


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None if it does not exist or is a zombie.

    Together with the id it names one process: ids are used again, and such a later process is not ours.
    """
    try:
        # The name, in parentheses, may contain spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def is_alive(pid: int | None, ticks: int | None) -> bool:
    """Whether the process that had this id and start still lives."""
    return pid is not None and ticks is not None and start_ticks(pid) == ticks


@contextlib.contextmanager
def guarded() -> Iterator[str]:
    """If this process is killed, a second one ends everything marked with the yielded run."""
    run = uuid.uuid4().hex
    # In its own session: a signal that ends the supervisor must not reach it.
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(guards.__file__)), run], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield run
    finally:
        guard.communicate()


@functools.cache
def can_isolate() -> bool:
    """Whether this user may give a program a network of its own."""
    command = [sys.executable, "-I", "-S", str(_LAUNCHER), CHECK]
    return subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


async def spawn(
    program: Program, command: tuple[str, ...], log: Path, marks: Mapping[str, str], inherited: Sequence[int] = ()
) -> asyncio.subprocess.Process:
    """Starts `command` as leader of its own session, its output appended to `log`.

    It dies with the thread that calls this (the supervisor's main thread). `marks` are added to its environment, by
    which it and its children are found again; `inherited` are file descriptors that it keeps.
    """
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", str(_LAUNCHER), str(os.getpid()), *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=program.folder,
            env={**program.environment, **_network(program.network), **marks},
            start_new_session=True,
            pass_fds=tuple(inherited),
        )


def _network(network: PrivateNetwork | None) -> dict[str, str]:
    if network is None:
        return {}
    settings = {"port": network.port, "command": network.guard, "environment": dict(network.environment)}
    return {NETWORK: json.dumps(settings)}


async def stop(process: asyncio.subprocess.Process, grace_s: float) -> bool:
    """SIGTERM to the process, SIGKILL to its group after `grace_s`; returns whether it ended by itself."""
    orderly = True
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            orderly = False
    kill_group(process.pid)
    await process.wait()
    return orderly


def kill_group(leader: int) -> None:
    """Ends the rest of a child's process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def tagged(tag: Path) -> list[psutil.Process]:
    """All processes but this one that carry the tag of a mesh."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(TAG) == str(tag) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end_tagged(tag: Path, grace_s: float = 5.0) -> int:
    """Ends every process that carries the tag: SIGTERM, then SIGKILL; returns how many there were.

    For what a supervisor that was killed left behind, such as the children of its children.
    """
    processes = tagged(tag)
    _signal(processes, signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    _signal(alive, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=grace_s)
    return len(processes)


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def wait_gone(pid: int, ticks: int | None, timeout_s: float) -> bool:
    """Waits until a process is gone; returns whether it is."""
    end = time.monotonic() + timeout_s
    while is_alive(pid, ticks):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def rotate(log: Path, keep: int = 3) -> None:
    """Moves `x.log` to `x.log.1`, that to `x.log.2`, and so on; the oldest goes.

    On a full disk the files stay as they are, and the log is appended to.
    """
    with contextlib.suppress(OSError):
        for number in range(keep - 1, 0, -1):
            older = log.with_name(f"{log.name}.{number}")
            if older.exists():
                older.replace(log.with_name(f"{log.name}.{number + 1}"))
        if log.exists() and log.stat().st_size:
            log.replace(log.with_name(f"{log.name}.1"))


def trim(log: Path, limit: int) -> None:
    """Empties a log of more than `limit` bytes while its process keeps writing; its last eighth is kept as `x.log.1`.

    A line that is written at the same moment may be lost; without trimming, the log could fill the disk.
    """
    with contextlib.suppress(OSError):
        if log.stat().st_size <= limit:
            return
        with log.open("rb") as file:
            file.seek(-limit // 8, os.SEEK_END)
            end = file.read()
        # Emptied first: on a full disk this makes room for the kept part. Writers append (O_APPEND).
        os.truncate(log, 0)
        log.with_name(f"{log.name}.1").write_bytes(end)


def last_lines(log: Path, count: int = 15) -> list[str]:
    """The end of a log, to show why a child failed."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16384))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]
