"""Starts, stops and inspects the stack from another process, such as the command line.

The supervisor runs in a session of its own: ctrl-C in the terminal reaches only the caller. It is controlled through
its state file and signals.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import psutil

from infra.stack import process as processes
from infra.stack.__main__ import EXIT_ALREADY_RUNNING
from infra.stack.addresses import Addresses
from infra.stack.child import ChildSpec
from infra.stack.errors import StackError
from infra.stack.guard import RUN
from infra.stack.layout import Layout, python_path
from infra.stack.lifecycle import Timeouts
from infra.stack.mesh_user import is_root
from infra.stack.private import UMASK, private_folder
from infra.stack.probes import ProbeError
from infra.stack.state import ChildPhase, ChildState, StackPhase, StackState, read_state, write_state
from infra.stack.topology import NAMES, specs
from services.kit.errors import TidemillError

OnProgress = Callable[[str, ChildState], None]
"""Called with the name and state of a child whenever it changes."""

_POLL_S = 0.1
_STOP_TIMEOUT_S = 120.0


def _silent(name: str, child: ChildState) -> None:
    """A progress that is not shown."""


def up(
    state: Path,
    home: Path,
    only: Iterable[str] | None = None,
    on_progress: OnProgress = _silent,
    timeout_s: float | None = None,
) -> StackState:
    """Starts the stack, unless it already runs, and waits until it is completely ready.

    Interrupted (KeyboardInterrupt), a stack that this call started is stopped again in order.

    Args:
        state: the mesh's state folder.
        home: prepared parts; see `infra.stack.assets.prepare`.
        only: names of children; all when None.
        on_progress: called with each change of a child.
        timeout_s: how long to wait; a little more than the supervisor's own timeouts when None.

    Raises:
        StackError: it could not start, or another selection of children runs; the message says what to do.
    """
    layout = Layout.of(home, state)
    wanted = set(NAMES if only is None else only)
    specs(layout, wanted)  # check the names here, where the caller gets the error
    found = read_state(layout)
    if found.phase is StackPhase.STOPPING:
        _wait_stopped(layout, found, _STOP_TIMEOUT_S)
        found = read_state(layout)
    daemon = None if found.running else _Daemon.start(layout, wanted)
    if daemon is None:
        _check_selection(found, wanted)
    try:
        return _wait_ready(layout, daemon, on_progress, timeout_s or Timeouts().start_s + 30)
    except KeyboardInterrupt:
        if daemon is not None:
            down(state, home)
        raise


def _check_selection(found: StackState, wanted: set[str]) -> None:
    if missing := wanted - found.children.keys():
        raise StackError(
            f"A stack without {', '.join(sorted(missing))} runs on {found.state}: run `tidemill down` first."
        )


class _Daemon:
    """The supervisor as a child of this process, as long as it waits for the stack."""

    def __init__(self, process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
        self.process = process
        self._output = output

    @classmethod
    def start(cls, layout: Layout, wanted: set[str]) -> _Daemon:
        """Starts it, in a session of its own."""
        if not is_root():
            private_folder(layout.state.root)
        only = [name for name in NAMES if name in wanted]
        command = [sys.executable, "-m", "infra.stack", "--log", "--state", str(layout.state.root)]
        # Its output until it opens its log itself: root must not open a file of the mesh's user.
        output = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object
        process = subprocess.Popen(
            [*command, "--home", str(layout.home.root), "--only", ",".join(only)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(),
            start_new_session=True,
            umask=UMASK,
        )
        return cls(process, output)

    def last_output(self, log: Path) -> str:
        """The end of its output, or of its log if it had opened that."""
        self._output.seek(0)
        first = self._output.read().decode("utf-8", "replace").splitlines()
        return "\n".join(f"  {line}" for line in [*first[-15:], *(processes.last_lines(log) if not first else [])])


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in (processes.TAG, RUN)}
    return kept | {"PYTHONPATH": python_path(), "PYTHONUNBUFFERED": "1"}


def _wait_ready(layout: Layout, daemon: _Daemon | None, on_progress: OnProgress, timeout_s: float) -> StackState:
    reported: dict[str, ChildState] = {}
    end = time.monotonic() + timeout_s
    while True:
        code = None if daemon is None else daemon.process.poll()
        if code == EXIT_ALREADY_RUNNING:  # another `up` was quicker
            daemon = code = None
        stack = read_state(layout)
        if daemon is None or stack.pid == daemon.process.pid:
            for name, child in stack.children.items():
                if reported.get(name) != child:
                    reported[name] = child
                    on_progress(name, child)
            if stack.phase is StackPhase.READY:
                return stack
            if stack.phase is StackPhase.FAILED:
                raise StackError(stack.error)
        if code is not None or (daemon is None and not stack.running):
            log = layout.state.logs / "supervisor.log"
            lines = daemon.last_output(log) if daemon is not None else ""
            raise StackError(f"The supervisor ended before the stack was ready. The end of {log}:\n{lines}")
        if time.monotonic() > end:
            raise StackError(
                f"The stack was not ready within {timeout_s:.0f} s: `tidemill status` shows what is missing."
            )
        time.sleep(_POLL_S)


def down(state: Path, home: Path, on_progress: OnProgress = _silent) -> StackState:
    """Stops everything in order, including leftovers of a killed supervisor; does nothing if nothing runs."""
    layout = Layout.of(home, state)
    found = read_state(layout)
    if found.running and found.pid is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(found.pid).terminate()
        _wait_stopped(layout, found, _STOP_TIMEOUT_S, on_progress)
    processes.end_tagged(layout.state.root)
    left = read_state(layout)
    if left.phase in (StackPhase.STOPPED, StackPhase.FAILED):
        return left
    stopped = dataclasses.replace(left, phase=StackPhase.STOPPED, pid=None, pid_ticks=None)
    write_state(layout.state.file, stopped)
    return stopped


def _wait_stopped(layout: Layout, found: StackState, timeout_s: float, on_progress: OnProgress = _silent) -> None:
    assert found.pid is not None
    reported = dict(found.children)

    def report_changes() -> None:
        for name, child in read_state(layout).children.items():
            if reported.get(name) != child:
                reported[name] = child
                on_progress(name, child)

    end = time.monotonic() + timeout_s
    while processes.is_alive(found.pid, found.pid_ticks):
        report_changes()
        if time.monotonic() > end:
            psutil.Process(found.pid).kill()
            processes.wait_gone(found.pid, found.pid_ticks, 5.0)
            return
        time.sleep(_POLL_S)
    # The supervisor may write its last change and end between two reads.
    report_changes()


def status(state: Path, home: Path) -> StackState:
    """The state of the stack with a current probe of each child; does not fail if the stack is down."""
    layout = Layout.of(home, state)
    stack = read_state(layout)
    if not stack.running:
        return stack
    by_name = {spec.name: spec for spec in specs(stack.layout, running=stack.children.keys())}
    with ThreadPoolExecutor(max_workers=max(1, len(stack.children))) as pool:
        probed = pool.map(
            lambda item: (item[0], _probe(item[1], by_name.get(item[0]), stack.addresses)), stack.children.items()
        )
        return dataclasses.replace(stack, children=dict(probed))


def _probe(child: ChildState, spec: ChildSpec | None, addresses: Addresses) -> ChildState:
    if child.phase is ChildPhase.STANDBY:
        return dataclasses.replace(child, healthy=True)
    if spec is None or child.phase is not ChildPhase.READY:
        return dataclasses.replace(child, healthy=False, health=child.last_error or child.phase.value)
    try:
        spec.probe(addresses)
    except (ProbeError, TidemillError, OSError) as error:  # such as a password that cannot be read
        return dataclasses.replace(child, healthy=False, health=str(error))
    return dataclasses.replace(child, healthy=True)
