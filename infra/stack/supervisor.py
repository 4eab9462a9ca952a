"""Starts children in the order of their needs, keeps them running, stops them in reverse order.

One supervisor per state folder (ensured by a lock), one asyncio task per child (`lifecycle`). While the stack starts
for the first time, a child that fails repeatedly or is not ready in time fails the start as a whole, and everything is
stopped again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infra.stack import process as processes
from infra.stack.addresses import Addresses
from infra.stack.autoscaler import Scaling, ScalingRule, Windows
from infra.stack.child import ChildSpec
from infra.stack.errors import StackError
from infra.stack.guard import RUN
from infra.stack.layout import Layout
from infra.stack.lifecycle import ChildRunner, Timeouts
from infra.stack.lock import held
from infra.stack.ports import PortAllocator
from infra.stack.private import UMASK, private_folder
from infra.stack.probes import ProbeError
from infra.stack.sockets import place_sockets
from infra.stack.state import ChildPhase, StackPhase, StackState, StateFile, read_state
from services.kit.config import disk_reserve
from services.kit.storage.disk import DiskGuard

logger = logging.getLogger(__name__)

_LOG_LIMIT_BYTES = 64 * 2**20


def stop_order(specs: Sequence[ChildSpec]) -> list[list[str]]:
    """Groups of children to stop one after another: dependents before what they depend on.

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
            raise StackError(f"These children depend on each other in a circle: {', '.join(sorted(names - gone))}.")
        order.append(group)
        gone.update(group)
    return order


class Supervisor:
    """Runs a set of children until it is stopped."""

    def __init__(
        self,
        layout: Layout,
        specs: Iterable[ChildSpec],
        timeouts: Timeouts | None = None,
        chores: Sequence[Callable[[], object]] = (),
        scalings: Sequence[Scaling] = (),
        windows: Windows | None = None,
    ) -> None:
        """Starts nothing yet; `run` starts the children.

        Args:
            layout: where files lie.
            specs: the children.
            timeouts: how long to wait for children.
            chores: done about once an hour, in a thread; may fail.
            scalings: services whose number of processes follows their load.
            windows: how long a load must last.
        """
        self._layout = layout
        self._specs = tuple(specs)
        self._order = stop_order(self._specs)
        self._timeouts = timeouts or Timeouts()
        self._chores = tuple(chores)
        self._scalings, self._windows = tuple(scalings), windows or Windows()
        self._stop = asyncio.Event()
        self._failed: asyncio.Future[StackError] | None = None
        self._addresses = Addresses({}, {})
        self._marks: dict[str, str] = {}
        self._phase = StackPhase.STARTING
        self._error = ""
        self._file = StateFile(layout.state.file)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """Those that keep a child running, by its name."""
        self._children = {
            spec.name: ChildRunner(
                spec, layout.state.logs / f"{spec.name}.log", self._timeouts, self._publish, self._fail
            )
            for spec in self._specs
        }

    def request_stop(self) -> None:
        """Requests an orderly stop; returns at once."""
        self._stop.set()

    async def run(self) -> bool:
        """Starts, supervises and stops the children; returns whether they started and were stopped on request.

        Raises:
            AlreadyRunningError: another supervisor has this state folder.
            StackError: no ports.
            OSError: the state folder cannot be written.
        """
        os.umask(UMASK)
        private_folder(self._layout.state.root)
        with held(self._layout.state):
            before = read_state(self._layout)
            if left := await asyncio.to_thread(processes.end_tagged, self._layout.state.root):
                logger.warning("ended %d processes that an earlier supervisor left", left)
            self._layout.state.logs.mkdir(parents=True, exist_ok=True)
            for child in self._children.values():
                processes.rotate(child.log)
            ports = PortAllocator()
            try:
                usual = {use: port for spec in self._specs for use, port in spec.ports.items()}
                folder = place_sockets(self._layout.state)
                sockets = {use: folder / name for spec in self._specs for use, name in spec.sockets.items()}
                self._addresses = Addresses(ports.assign(usual, before.ports), sockets)
                with processes.guarded() as run:
                    self._marks = {processes.TAG: str(self._layout.state.root), RUN: run}
                    return await self._run()
            finally:
                ports.release()

    async def _run(self) -> bool:
        self._publish()
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        # A probe may block for seconds, so each child has its own thread.
        loop.set_default_executor(ThreadPoolExecutor(2 * len(self._specs) + 1, thread_name_prefix="probe"))
        for name, child in self._children.items():
            if not child.spec.standby:
                self._supervise(name)
        tasks = [self._supervised(self._keep_house(), "housekeeping"), self._supervised(self._do_chores(), "chores")]
        tasks += [self._supervised(self._scale(each), f"scaling of {each.service}") for each in self._scalings]
        try:
            error = await self._started()
            if error is None and not self._stop.is_set():
                self._phase = StackPhase.READY
                self._publish()
                error = await self._stop_or_failure()
            if error is not None:
                self._error = error.message
                logger.error("%s", error.message)
        finally:
            await self._shut_down(tasks)
        return error is None

    def _supervise(self, name: str) -> None:
        child = self._children[name]
        needs = [self._children[other].ready for other in child.spec.needs & self._children.keys()]
        self._tasks[name] = self._supervised(child.supervise(self._addresses, self._marks, needs), name)

    def _supervised(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Runs it as a task. Should it ever end by itself, its child would be unsupervised, so the stack stops."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                logger.critical("the supervision of %s ended", name, exc_info=task.exception())
                self._fail(StackError(f"The supervision of {name} ended unexpectedly: {task.exception()}"))

        task = asyncio.create_task(work, name=name)
        task.add_done_callback(ended)
        return task

    async def _started(self) -> StackError | None:
        """Waits until all children are ready, one failed, the timeout passed, or a stop was requested."""
        needed = [child for child in self._children.values() if not child.spec.standby]
        everything = asyncio.gather(*(child.ready.wait() for child in needed))
        error = await self._stop_or_failure(everything, timeout_s=self._timeouts.start_s)
        late = not everything.done() and not self._stop.is_set()
        everything.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await everything
        missing = [child for child in needed if not child.ready.is_set()]
        if error is None and late and missing:
            return missing[0].failure(f"was not ready within {self._timeouts.start_s:.0f} s")
        return error

    async def _stop_or_failure(self, *others: asyncio.Future[Any], timeout_s: float | None = None) -> StackError | None:
        """Waits for a request to stop, a failure or one of `others`; returns the failure."""
        assert self._failed is not None
        stop = asyncio.create_task(self._stop.wait())
        waited: list[asyncio.Future[Any]] = [stop, self._failed, *others]
        await asyncio.wait(waited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        return self._failed.result() if self._failed.done() else None

    async def _keep_house(self) -> None:
        """Writes a state that could not be written before, logs that the disk is low, keeps logs bounded."""
        disk = DiskGuard(self._layout.state.root, disk_reserve())
        while True:
            await asyncio.sleep(self._timeouts.housekeeping_s)
            self._file.retry()
            with contextlib.suppress(OSError):
                disk.look()
            for child in self._children.values():
                processes.trim(child.log, _LOG_LIMIT_BYTES)

    async def _do_chores(self) -> None:
        while True:
            await asyncio.sleep(self._timeouts.chores_s)
            for chore in self._chores:
                try:
                    await asyncio.to_thread(chore)
                except Exception:
                    logger.exception("a chore failed; retrying in %.0f s", self._timeouts.chores_s)

    async def _scale(self, scaling: Scaling) -> None:
        """Starts and stops processes of a service as its load asks, once the stack is ready."""
        rule, demand = ScalingRule(scaling.fewest, len(scaling.children), self._windows), scaling.demand()
        while True:
            await asyncio.sleep(self._windows.look_s)
            running = [name for name in scaling.children if name in self._tasks]
            states = [self._children[name].state for name in running]
            if self._phase is not StackPhase.READY or not all(each.phase is ChildPhase.READY for each in states):
                rule.forget()  # a process that starts does not show its share of the load yet
                continue
            pids = [each.pid for each in states if each.pid is not None]
            try:
                wanted, why = await asyncio.to_thread(demand.processes, self._addresses, pids)
            except ProbeError as error:
                logger.debug("the load of %s is not known: %s", scaling.service, error)
                rule.forget()
                continue
            target = rule.target(time.monotonic(), len(running), wanted)
            if target == len(running):
                continue
            logger.info("%s gets %d processes instead of %d: %s", scaling.service, target, len(running), why)
            if target > len(running):
                self._supervise(next(name for name in scaling.children if name not in self._tasks))
            else:
                await self._stand_by(running[-1])

    async def _stand_by(self, name: str) -> None:
        task = self._tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self._children[name].stand_by()

    def _fail(self, error: StackError) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(error)

    async def _shut_down(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        self._phase = StackPhase.STOPPING
        self._publish()
        # First what starts and stops processes, then what keeps them running.
        for some in (tasks, self._tasks.values()):
            for task in some:
                task.cancel()
            await asyncio.gather(*some, return_exceptions=True)
        for group in self._order:
            await asyncio.gather(*(self._children[name].stop() for name in group))
        self._phase = StackPhase.FAILED if self._error else StackPhase.STOPPED
        self._publish()

    def _publish(self) -> None:
        self._file.publish(
            StackState(
                phase=self._phase,
                home=self._layout.home.root,
                state=self._layout.state.root,
                pid=os.getpid(),
                pid_ticks=processes.start_ticks(os.getpid()),
                error=self._error,
                ports=self._addresses.ports,
                sockets=self._addresses.sockets,
                children={name: child.state for name, child in self._children.items()},
            )
        )
