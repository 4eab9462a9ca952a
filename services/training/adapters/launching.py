"""How the process of a run is started: as a new one, or as a fork of one that has loaded the libraries (adr/0047)."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from services.training.engine.allocation import ALLOCATOR

logger = logging.getLogger(__name__)

# Threads that spin while they wait starve each other as soon as something else needs a core: beside a busy mesh, a
# training step of 2 threads took 10 s and more; with passive waits it took 1.8 s.
_ENVIRONMENT: Mapping[str, str] = {"OMP_WAIT_POLICY": "PASSIVE", **ALLOCATOR}
_SERVER = "services.training.worker.fork_server"
_IDLE_S = 600.0
_MESSAGE_BYTES = 65_536


def terminate(pid: int) -> None:
    """Sends SIGTERM to a process that may have ended, which its parent reports a moment later."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


class Child(Protocol):
    """The process of a run, as this process sees it."""

    @property
    def followed(self) -> bool:
        """Whether this process will learn how it ends."""

    def code(self) -> int | None:
        """Its exit code once it has ended; negative is a signal."""

    def stop(self) -> None:
        """Sends it SIGTERM, as soon as it has started."""


class Launcher(Protocol):
    """Starts processes of runs."""

    def launch(self, job: Path, log: Path, traceparent: str) -> Child:
        """Starts the process that works on a job, writes to a log and continues a trace, if one is given."""

    def close(self) -> None:
        """Ends what was kept for later launches; processes of runs continue."""


class NewProcesses:
    """Starts every process from the beginning."""

    def launch(self, job: Path, log: Path, traceparent: str) -> Child:
        """See the protocol."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "services.training.worker", "--job", str(job)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**_ENVIRONMENT, **os.environ, **_of_run(traceparent)},
                start_new_session=True,
            )
        return _NewProcess(process)

    def close(self) -> None:
        """Nothing is kept."""


@dataclass(frozen=True, slots=True)
class _NewProcess:
    process: subprocess.Popen[bytes]
    followed: bool = True

    def code(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()


class ForkServer:
    """Starts processes as forks of one that has loaded the libraries (services.training.worker.fork_server).

    That process starts with the first launch and ends after ten minutes without one, or when this process ends.
    """

    def __init__(self, module: str = _SERVER, idle_s: float = _IDLE_S) -> None:
        """`module` is run as the server; it exits after `idle_s` seconds without a running child process."""
        self._module, self._idle_s = module, idle_s
        self._lock = threading.RLock()
        self._server: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        # Those that have not ended, by job.
        self._forks: dict[str, _Fork] = {}
        self._timer: threading.Timer | None = None

    def launch(self, job: Path, log: Path, traceparent: str) -> Child:
        """See the protocol."""
        request = json.dumps({"job": str(job), "log": str(log), "environment": _of_run(traceparent)}).encode()
        with self._lock:
            self._stop_timer()
            self._receive()
            if self._connection is None:
                self._start()
            try:
                self._send(request)
            except OSError:
                # It died since the last launch and has not read the request.
                self._gone()
                self._start()
                self._send(request)
            fork = self._forks[str(job)] = _Fork(self)
            return fork

    def close(self) -> None:
        """See the protocol."""
        with self._lock:
            self._stop_timer()
            self._gone()

    @property
    def pid(self) -> int | None:
        """Process id of the server while it runs."""
        with self._lock:
            return None if self._server is None else self._server.pid

    def receive(self) -> None:
        """Takes note of what the server has reported."""
        with self._lock:
            self._receive()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._server = subprocess.Popen(
                [sys.executable, "-m", self._module, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**_ENVIRONMENT, **os.environ},
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._connection = ours

    def _send(self, message: bytes) -> None:
        assert self._connection is not None
        self._connection.send(message)

    def _receive(self) -> None:
        while self._connection is not None:
            try:
                message = self._connection.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                logger.warning("the process that starts workers has ended; the next run starts another")
                self._gone()
                return
            self._note(json.loads(message))

    def _note(self, report: dict[str, Any]) -> None:
        fork = self._forks.get(report["job"])
        if fork is None:
            return
        if "pid" in report:
            fork.started(report["pid"])
        else:
            fork.ended(report["code"])
            del self._forks[report["job"]]
            if not self._forks:
                self._timer = threading.Timer(self._idle_s, self._idle)
                self._timer.daemon = True
                self._timer.start()

    def _idle(self) -> None:
        with self._lock:
            if not self._forks:
                self._gone()

    def _gone(self) -> None:
        for fork in self._forks.values():
            fork.lose()
        self._forks.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._server is not None:
            # It ends at the end of its connection.
            threading.Thread(target=self._server.wait, name="end of the fork server", daemon=True).start()
            self._server = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Fork:
    """A process that the server was asked for."""

    def __init__(self, server: ForkServer) -> None:
        self._server = server
        self._pid: int | None = None
        self._code: int | None = None
        self._lost = self._stop = False

    @property
    def followed(self) -> bool:
        return not self._lost

    def code(self) -> int | None:
        self._server.receive()
        return self._code

    def stop(self) -> None:
        self._server.receive()
        self._stop = True
        if self._pid is not None and self._code is None and not self._lost:
            terminate(self._pid)

    def started(self, pid: int) -> None:
        self._pid = pid
        if self._stop:
            terminate(pid)

    def ended(self, code: int) -> None:
        self._code = code

    def lose(self) -> None:
        self._lost = True


def _of_run(traceparent: str) -> dict[str, str]:
    return {"TRACEPARENT": traceparent} if traceparent else {}


def launcher() -> Launcher:
    """The quicker one where it is safe: on Linux, and where no library can have touched a GPU before the fork."""
    safe = sys.platform == "linux" and not Path("/dev/nvidiactl").exists()
    return ForkServer() if safe else NewProcesses()
