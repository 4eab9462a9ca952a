"""One child's life: it is started, probed, and started again when it ends or stops answering.

A child that ends unasked is started again on the same ports after a pause that doubles each time. One that was ready
and fails every probe for a while is killed first: a process that is frozen or whose memory is damaged never comes back
by itself. One slow probe on a busy machine is not a failure. Nothing that goes wrong here, a full disk included, ends
the supervision of a child.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.stack import process as processes
from infra.stack.addresses import Addresses
from infra.stack.child import ChildSpec, Program
from infra.stack.errors import StackError
from infra.stack.exit_report import ExitReport, ExitReportFile
from infra.stack.probes import Probe, ProbeError
from infra.stack.read_once import ReadOnce
from infra.stack.state import ChildPhase, ChildState
from services.kit.config import TERMINATION_LOG

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts of the supervisor, in seconds."""

    start_s: float = 180.0
    """Until all children are ready for the first time."""
    child_s: float = 120.0
    """Until one child is ready after its start."""
    probe_s: float = 0.2
    """Between two probes of a starting child."""
    probe_limit_s: float = 10.0
    """For one probe; each probe has shorter limits itself."""
    watch_s: float = 5.0
    """Between two probes of a ready child."""
    least_failures: int = 4
    """Minimum of consecutive failed probes, in addition to the child's `liveness_s`, before it is killed."""
    kill_grace_s: float = 3.0
    """Between SIGTERM and SIGKILL, for a child that does not answer probes."""
    backoff_s: float = 0.5
    """Before the first restart; doubles each time."""
    backoff_limit_s: float = 30.0
    hopeless_s: float = 120.0
    """Before the next start of a child that reported that someone must act first."""
    steady_s: float = 60.0
    """A child that ran this long restarts with the first pause."""
    tries: int = 3
    """This many exits of a child before it was ever ready fail the start of the stack."""
    housekeeping_s: float = 1.0
    """Between two looks at the disk and at a state that could not be written."""
    chores_s: float = 3600.0
    """Between two rounds of background work that is not urgent, such as renewing certificates."""


class ChildFailedError(StackError):
    """A child cannot be started."""

    default_reason = "STACK_CHILD_FAILED"


class ChildRunner:
    """Runs one child; `ready` is set while it is."""

    def __init__(
        self,
        spec: ChildSpec,
        log: Path,
        timeouts: Timeouts,
        changed: Callable[[], None],
        failed: Callable[[StackError], None],
    ) -> None:
        """Creates the runner; `supervise` runs the child.

        Args:
            spec: the child.
            log: where its output goes.
            timeouts: the supervisor's.
            changed: called after each change of `state`; must not raise.
            failed: called when it cannot be started at all.
        """
        self.spec = spec
        self.log = log
        self.state = ChildState(ChildPhase.STANDBY if spec.standby else ChildPhase.WAITING, log=str(log))
        self.ready = asyncio.Event()
        # Whether it failed before it was ever ready matters only for what the stack cannot do without.
        self.was_ready = spec.standby
        self._timeouts = timeouts
        self._changed = changed
        self._failed = failed
        self._process: asyncio.subprocess.Process | None = None
        self._program: Program | None = None
        self._probing: asyncio.Future[None] | None = None
        self._exit_report: ExitReport | None = None
        """The report of its last exit."""
        self._failures = 0
        """Consecutive exits after a short run."""

    async def supervise(self, addresses: Addresses, marks: Mapping[str, str], needs: list[asyncio.Event]) -> None:
        """Keeps the child running until cancelled, whatever fails meanwhile.

        Args:
            addresses: of all children.
            marks: added to the child's environment.
            needs: one event for each child that it needs, set while that one is ready.
        """
        while True:
            self._exit_report = None
            try:
                for need in needs:
                    await need.wait()
                reason = await self._live(addresses, marks)
            except Exception as error:
                reason = f"cannot start: {error}"
                if isinstance(error, StackError) and not self.was_ready:  # a retry changes nothing
                    self._failed(ChildFailedError(f"{self.spec.name} {reason}"))
                elif not isinstance(error, OSError):
                    logger.exception("%s cannot start", self.spec.name)
            self._note_end(reason)
            pause = self._pause()
            logger.warning("%s %s; it starts again in %.1f s", self.spec.name, reason, pause)
            await asyncio.sleep(pause)

    async def stand_by(self) -> None:
        """Stops the child in order until it is supervised again; `supervise` must have been cancelled before."""
        self.ready.clear()
        await self.stop()
        self._process = self._program = None
        self._failures = 0
        self._set(phase=ChildPhase.STANDBY, started_at=None, ready_at=None, failing_since=None)

    async def stop(self) -> None:
        """Stops the child in order; `supervise` must have been cancelled before."""
        if self._process is not None:
            orderly = await processes.stop(self._process, self.spec.stop_grace_s)
            if not orderly:
                logger.warning("%s did not stop in time and was killed", self.spec.name)
        _remove_leftovers(self._program)
        self._set(phase=ChildPhase.STOPPED, pid=None)

    def failure(self, what: str) -> ChildFailedError:
        """The error for this child, with the end of its log."""
        lines = "\n".join(f"  {line}" for line in processes.last_lines(self.log))
        return ChildFailedError(f"{self.spec.name} {what}. The end of {self.log}:\n{lines}")

    async def _live(self, addresses: Addresses, marks: Mapping[str, str]) -> str:
        """Starts the child; returns how it ended, once it has."""
        self._set(phase=ChildPhase.STARTING, started_at=time.time(), ready_at=None, failing_since=None)
        program = self._program = await asyncio.to_thread(self.spec.prepare, addresses)
        if program.before is not None:
            self._process = await processes.spawn(program, program.before, self.log, marks)
            if code := await self._process.wait():
                return f"failed to prepare with code {code}"
        report = ExitReportFile()
        try:
            return await self._run(program, addresses, {**marks, TERMINATION_LOG: report.path}, report)
        finally:
            report.close()

    async def _run(
        self, program: Program, addresses: Addresses, marks: Mapping[str, str], report: ExitReportFile
    ) -> str:
        """Runs the program to its end; returns how it ended."""
        files = ReadOnce(program.read_once)
        self._process = await processes.spawn(program, program.command, self.log, marks, [report.descriptor])
        self._set(pid=self._process.pid)
        ended = asyncio.create_task(self._process.wait())
        try:
            late = await self._until_ready(ended, addresses)
            if late is not None:
                await processes.stop(self._process, self.spec.stop_grace_s)
                return late
            hung = await self._while_alive(ended, addresses, files)
            if hung is None and not ended.done():
                await processes.stop(self._process, self.spec.stop_grace_s)
                return f"was stopped, to read {files} again"
            if hung is not None:
                logger.error("%s %s; killing it", self.spec.name, hung)
                await processes.stop(self._process, self._timeouts.kill_grace_s)
                return f"{hung} and was killed"
            code = await ended
        finally:
            ended.cancel()
        self._exit_report = report.read() if code else None
        if self._exit_report is not None:
            return f"ended: {self._exit_report.message}"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    async def _until_ready(self, ended: asyncio.Task[int], addresses: Addresses) -> str | None:
        """Probes until the child is ready or has ended; returns why it must be stopped, if so."""
        end = time.monotonic() + self._timeouts.child_s
        while not ended.done():
            answer = await self._answer(self.spec.probe, addresses)
            if answer is None:
                if not ended.done():  # otherwise another process answers on its port
                    self.was_ready = True
                    self.ready.set()
                    self._set(phase=ChildPhase.READY, ready_at=time.time())
                return None
            if time.monotonic() > end:
                return f"was not ready within {self._timeouts.child_s:.0f} s ({answer})"
            await asyncio.wait((ended,), timeout=self._timeouts.probe_s)
        return None

    async def _while_alive(self, ended: asyncio.Task[int], addresses: Addresses, files: ReadOnce) -> str | None:
        """Probes a child that is ready until it has ended or its files have changed.

        Returns why it must be killed, if so.

        Every probe during `liveness_s` must fail, and a minimum number of them: while a machine is suspended, time
        passes without probes.
        """
        probe = self.spec.alive or self.spec.probe
        since, failures = 0.0, 0
        while True:
            await asyncio.wait((ended,), timeout=self._timeouts.watch_s)
            if ended.done() or files.changed():
                return None
            began = time.monotonic()
            answer = await self._answer(probe, addresses)
            if ended.done():
                return None
            if answer is None:
                if failures:
                    logger.info("%s answers again after %.0f s", self.spec.name, began - since)
                    self._set(failing_since=None)
                since, failures = 0.0, 0
                continue
            if not failures:
                since = began
                logger.warning("%s does not answer its probe: %s", self.spec.name, answer)
                self._set(failing_since=time.time())
            failures += 1
            lasted = time.monotonic() - since
            if lasted >= self.spec.liveness_s and failures >= self._timeouts.least_failures:
                return f"did not answer for {lasted:.0f} s ({answer})"

    async def _answer(self, probe: Probe, addresses: Addresses) -> str | None:
        """The error of a probe; None if it succeeds."""
        # One thread per child: no further probe starts while one hangs.
        if self._probing is None:
            self._probing = asyncio.ensure_future(asyncio.to_thread(probe, addresses))
        done, _ = await asyncio.wait((self._probing,), timeout=self._timeouts.probe_limit_s)
        if not done:
            return f"the probe did not end within {self._timeouts.probe_limit_s:.0f} s"
        probing, self._probing = self._probing, None
        error = probing.exception()
        if error is None or isinstance(error, ProbeError):
            return None if error is None else str(error)
        return f"{type(error).__name__}: {error}"  # an error of a client library counts as no answer

    def _note_end(self, reason: str) -> None:
        if self._process is not None:
            processes.kill_group(self._process.pid)
        self._process = None
        self.ready.clear()
        _remove_leftovers(self._program)
        lived = time.time() - (self.state.started_at or 0.0)
        self._failures = 1 if lived > self._timeouts.steady_s else self._failures + 1
        self._set(
            phase=ChildPhase.RESTARTING,
            pid=None,
            restarts=self.state.restarts + 1,
            last_error=reason,
            failing_since=None,
        )
        if not self.was_ready and self._exit_report is not None and self._exit_report.permanent:
            self._failed(ChildFailedError(f"{self.spec.name} {reason}", reason=self._exit_report.reason))
        elif not self.was_ready and self._failures >= self._timeouts.tries:
            self._failed(self.failure(f"{reason} before it was ready, {self._failures} times"))

    def _pause(self) -> float:
        if self._exit_report is not None and self._exit_report.permanent:
            return self._timeouts.hopeless_s
        longest = self._timeouts.backoff_s * 2.0 ** min(self._failures - 1, 16)
        # Children that failed together must not restart together.
        return min(longest, self._timeouts.backoff_limit_s) * (0.5 + random.random() / 2)  # noqa: S311

    def _set(self, **changes: object) -> None:
        self.state = dataclasses.replace(self.state, **changes)  # type: ignore[arg-type]
        self._changed()


def _remove_leftovers(program: Program | None) -> None:
    if program is not None and program.leftovers is not None:
        folder, pattern = program.leftovers
        with contextlib.suppress(OSError):
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)
