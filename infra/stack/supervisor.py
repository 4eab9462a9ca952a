"""Starts children in the order of their needs, keeps them running, stops them in reverse order.

One supervisor a state folder (a lock holds it), one asyncio task a child. A child that ends unasked is started again
on the same ports after a pause that doubles each time. While the stack starts for the first time, a child that fails
repeatedly or is not ready in time fails the start as a whole, and everything is stopped again. A child that lives but
answers no probe is reported, not killed: on a busy machine a slow answer is no failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import random
import signal
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from infra.stack import process as processes
from infra.stack.child import ChildSpec, Program
from infra.stack.errors import StackError
from infra.stack.guard import RUN
from infra.stack.layout import Layout
from infra.stack.lock import held
from infra.stack.ports import PortBook
from infra.stack.probes import ProbeError
from infra.stack.state import ChildPhase, ChildState, StackPhase, StackState, read_state, write_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the supervisor waits for what. Seconds."""

    start_s: float = 180.0
    """For all children to be ready for the first time."""
    child_s: float = 120.0
    """For one child to be ready after its start."""
    probe_s: float = 0.2
    """Between two probes of a child that starts."""
    backoff_s: float = 0.5
    """Before the first restart; doubles each time."""
    backoff_limit_s: float = 30.0
    steady_s: float = 60.0
    """A child that lived this long starts anew with the first pause."""
    tries: int = 3
    """Ends of a child before it was ever ready that fail the start."""


class ChildFailedError(StackError):
    """A child cannot be started."""

    default_reason = "STACK_CHILD_FAILED"


@dataclass(slots=True)
class _Child:
    spec: ChildSpec
    state: ChildState
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    process: asyncio.subprocess.Process | None = None
    program: Program | None = None
    failures: int = 0
    """Ends in a row, each after a short life."""
    was_ready: bool = False


def stop_order(specs: Sequence[ChildSpec]) -> list[list[str]]:
    """Groups of children to stop one after the other: whoever uses another goes first.

    Raises:
        StackError: children use each other in a circle.
    """
    names = {spec.name for spec in specs}
    users = {name: {spec.name for spec in specs if name in spec.needs | spec.uses} for name in names}
    order: list[list[str]] = []
    gone: set[str] = set()
    while gone < names:
        group = sorted(name for name in names - gone if users[name] <= gone)
        if not group:
            raise StackError(f"These children use each other in a circle: {', '.join(sorted(names - gone))}.")
        order.append(group)
        gone.update(group)
    return order


class Supervisor:
    """Runs a set of children until it is told to stop."""

    def __init__(self, layout: Layout, specs: Iterable[ChildSpec], patience: Patience | None = None) -> None:
        self._layout = layout
        self._specs = tuple(specs)
        self._order = stop_order(self._specs)
        self._patience = patience or Patience()
        self._stop = asyncio.Event()
        self._failed: asyncio.Future[StackError] | None = None
        self._ports: dict[str, int] = {}
        self._marks: dict[str, str] = {}
        self._phase = StackPhase.STARTING
        self._error = ""
        self._children = {
            spec.name: _Child(spec, ChildState(log=str(layout.state.logs / f"{spec.name}.log"))) for spec in self._specs
        }

    def request_stop(self) -> None:
        """Asks for an orderly stop; returns at once."""
        self._stop.set()

    async def run(self) -> bool:
        """Starts, watches, stops; returns whether the start succeeded.

        Raises:
            AlreadyRunningError: another supervisor has this state folder.
            StackError: no ports.
        """
        self._layout.state.root.mkdir(parents=True, exist_ok=True)
        with held(self._layout.state):
            before = read_state(self._layout)
            if left := await asyncio.to_thread(processes.end_tagged, self._layout.state.root):
                logger.warning("ended %d processes that an earlier supervisor left", left)
            self._layout.state.logs.mkdir(parents=True, exist_ok=True)
            for child in self._children.values():
                processes.rotate(self._log(child))
            book = PortBook()
            try:
                usual = {use: port for spec in self._specs for use, port in spec.ports.items()}
                self._ports = book.assign(usual, before.ports)
                with processes.guarded() as run:
                    self._marks = {processes.TAG: str(self._layout.state.root), RUN: run}
                    return await self._run()
            finally:
                book.release()

    async def _run(self) -> bool:
        self._publish()
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        # A probe blocks for seconds at worst: each child gets a thread of its own.
        loop.set_default_executor(ThreadPoolExecutor(2 * len(self._specs), thread_name_prefix="probe"))
        tasks = [asyncio.create_task(self._tend(child), name=child.spec.name) for child in self._children.values()]
        try:
            error = await self._started()
            if error is not None:
                self._error = error.message
                logger.error("%s", error.message)
            elif not self._stop.is_set():
                self._phase = StackPhase.READY
                self._publish()
                await self._stop.wait()
        finally:
            await self._shut_down(tasks)
        return error is None

    async def _started(self) -> StackError | None:
        """Waits until all children are ready, one failed, time is over, or a stop is asked for."""
        assert self._failed is not None
        everything = asyncio.gather(*(child.ready.wait() for child in self._children.values()))
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait(
            (everything, stop, self._failed), timeout=self._patience.start_s, return_when=asyncio.FIRST_COMPLETED
        )
        stop.cancel()
        late = not everything.done() and not self._stop.is_set()
        everything.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await everything
        if self._failed.done():
            return self._failed.result()
        missing = [child for child in self._children.values() if not child.ready.is_set()]
        if late and missing:
            return self._failure(missing[0], f"was not ready within {self._patience.start_s:.0f} s")
        return None

    async def _tend(self, child: _Child) -> None:
        """One child's life: start, watch, start again."""
        while True:
            for name in child.spec.needs & self._children.keys():
                await self._children[name].ready.wait()
            try:
                reason = await self._live(child)
            except Exception as error:
                reason = f"cannot start: {error}"
                if isinstance(error, StackError) and not child.was_ready:  # trying again changes nothing
                    self._fail(ChildFailedError(f"{child.spec.name} {reason}"))
                elif not isinstance(error, OSError):
                    logger.exception("%s cannot start", child.spec.name)
            self._note_end(child, reason)
            pause = self._pause(child)
            logger.warning("%s %s; it starts again in %.1f s", child.spec.name, reason, pause)
            await asyncio.sleep(pause)

    async def _live(self, child: _Child) -> str:
        """Starts the child and returns, when it has ended, how."""
        self._set(child, phase=ChildPhase.STARTING, started_at=time.time(), ready_at=None)
        program = child.program = await asyncio.to_thread(child.spec.prepare, self._ports)
        if program.before is not None:
            child.process = await self._spawn(child, program, program.before)
            if code := await child.process.wait():
                return f"failed to prepare with code {code}"
        child.process = await self._spawn(child, program, program.command)
        self._set(child, pid=child.process.pid)
        ended = asyncio.create_task(child.process.wait())
        try:
            late = await self._until_ready(child, ended)
            if late is not None:
                await processes.stop(child.process, child.spec.stop_grace_s)
                return late
            code = await ended
        finally:
            ended.cancel()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    async def _spawn(self, child: _Child, program: Program, command: tuple[str, ...]) -> asyncio.subprocess.Process:
        return await processes.spawn(program, command, self._log(child), self._marks)

    async def _until_ready(self, child: _Child, ended: asyncio.Task[int]) -> str | None:
        """Probes until the child is ready or has ended; returns why it must be stopped, if so."""
        end = time.monotonic() + self._patience.child_s
        answer = ""
        while not ended.done():
            try:
                await asyncio.to_thread(child.spec.probe, self._ports)
            except ProbeError as error:
                answer = str(error)
            else:
                if not ended.done():  # else somebody else answers on its port
                    child.was_ready = True
                    child.ready.set()
                    self._set(child, phase=ChildPhase.READY, ready_at=time.time())
                return None
            if time.monotonic() > end:
                return f"was not ready within {self._patience.child_s:.0f} s ({answer})"
            await asyncio.wait((ended,), timeout=self._patience.probe_s)
        return None

    def _note_end(self, child: _Child, reason: str) -> None:
        if child.process is not None:
            processes.kill_group(child.process.pid)
        child.process = None
        child.ready.clear()
        _remove_leftovers(child.program)
        lived = time.time() - (child.state.started_at or 0.0)
        child.failures = 1 if lived > self._patience.steady_s else child.failures + 1
        self._set(child, phase=ChildPhase.RESTARTING, pid=None, restarts=child.state.restarts + 1, last_error=reason)
        if not child.was_ready and child.failures >= self._patience.tries:
            self._fail(self._failure(child, f"{reason} before it was ready, {child.failures} times"))

    def _pause(self, child: _Child) -> float:
        longest = self._patience.backoff_s * 2.0 ** min(child.failures - 1, 16)
        # Children that fell together must not come back together.
        return min(longest, self._patience.backoff_limit_s) * (0.5 + random.random() / 2)  # noqa: S311

    def _failure(self, child: _Child, what: str) -> ChildFailedError:
        log = self._log(child)
        lines = "\n".join(f"  {line}" for line in processes.last_lines(log))
        return ChildFailedError(f"{child.spec.name} {what}. The end of {log}:\n{lines}")

    def _fail(self, error: StackError) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(error)

    async def _shut_down(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        self._phase = StackPhase.STOPPING
        self._publish()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for group in self._order:
            await asyncio.gather(*(self._stop_child(self._children[name]) for name in group))
        self._phase = StackPhase.FAILED if self._error else StackPhase.STOPPED
        self._publish()

    async def _stop_child(self, child: _Child) -> None:
        if child.process is not None:
            orderly = await processes.stop(child.process, child.spec.stop_grace_s)
            if not orderly:
                logger.warning("%s did not end in time and was killed", child.spec.name)
        _remove_leftovers(child.program)
        self._set(child, phase=ChildPhase.STOPPED, pid=None)

    def _log(self, child: _Child) -> Path:
        return self._layout.state.logs / f"{child.spec.name}.log"

    def _set(self, child: _Child, **changes: object) -> None:
        child.state = dataclasses.replace(child.state, **changes)  # type: ignore[arg-type]
        self._publish()

    def _publish(self) -> None:
        write_state(
            self._layout.state.file,
            StackState(
                phase=self._phase,
                home=self._layout.home.root,
                state=self._layout.state.root,
                pid=os.getpid(),
                pid_ticks=processes.start_ticks(os.getpid()),
                error=self._error,
                ports=self._ports,
                children={name: child.state for name, child in self._children.items()},
            ),
        )


def _remove_leftovers(program: Program | None) -> None:
    if program is not None and program.leftovers is not None:
        folder, pattern = program.leftovers
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                path.unlink()
