"""Processes of runs as forks: what the service learns about them, whichever process ends first."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from services.training.adapters.job import EXIT_AT_WORK, WorkerLock
from services.training.adapters.launching import Child, ForkServer
from tests.freezing import frozen
from tests.processes import has_ended
from tests.waiting import wait_for

_WAITS = "import time; print('at work', flush=True); time.sleep(600)"


@pytest.fixture
def server() -> Iterator[ForkServer]:
    server = ForkServer("tests.integration.training_workers.quick_fork_server")
    yield server
    server.close()


@pytest.fixture
def launch(server: ForkServer, tmp_path: Path) -> Callable[[str, str], Child]:
    def launch(name: str, program: str, traceparent: str = "") -> Child:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "job").write_text(program)
        return server.launch(folder / "job", folder / "log", traceparent)

    return launch


def _code(child: Child) -> int:
    return wait_for(child.code, lambda code: code is not None, "the end of the process") or 0


def _holder(folder: Path) -> int:
    return wait_for(WorkerLock(folder).holder, bool, "the process at work") or 0


def test_jobs_end_with_their_codes_and_write_to_their_own_logs(
    launch: Callable[..., Child], server: ForkServer, tmp_path: Path
) -> None:
    says = "import os; print(os.environ.get('TRACEPARENT'), os.getppid(), os.getsid(0) == os.getpid(), flush=True)"
    assert _code(launch("a", says, "00-1-2-01")) == 3
    pid = server.pid
    # The next is a fork of the same process, and has nothing of the one before.
    assert _code(launch("b", says)) == 3
    assert _code(launch("c", "raise SystemExit(7)")) == 1
    assert _code(launch("d", f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})")) == -signal.SIGKILL
    assert (tmp_path / "a" / "log").read_text() == f"00-1-2-01 {pid} True\n"
    assert (tmp_path / "b" / "log").read_text() == f"None {pid} True\n"
    assert "SystemExit: 7" in (tmp_path / "c" / "log").read_text()
    assert server.pid == pid


def test_a_process_that_was_asked_to_stop_before_it_started_stops(launch: Callable[..., Child]) -> None:
    child = launch("a", _WAITS)
    child.stop()
    assert _code(child) == -signal.SIGTERM


def test_a_second_process_for_a_job_does_nothing(launch: Callable[..., Child], tmp_path: Path) -> None:
    first = launch("a", _WAITS)
    holder = _holder(tmp_path / "a")
    assert _code(launch("a", "open('/never', 'w')")) == EXIT_AT_WORK
    assert WorkerLock(tmp_path / "a").holder() == holder
    os.kill(holder, signal.SIGKILL)
    assert first.code() in (None, -signal.SIGKILL)


def test_a_job_outlives_the_server_and_the_next_one_starts_another(
    launch: Callable[..., Child], server: ForkServer, tmp_path: Path
) -> None:
    child = launch("a", _WAITS)
    holder, first = _holder(tmp_path / "a"), server.pid
    assert first is not None
    assert child.code() is None
    assert child.followed
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: (child.code(), child.followed), lambda seen: seen == (None, False), "the loss of the server")
    assert WorkerLock(tmp_path / "a").holder() == holder
    assert _code(launch("b", "print()")) == 3
    assert server.pid not in (None, first)
    os.kill(holder, signal.SIGKILL)


def test_a_server_that_died_while_nothing_ran_is_replaced(launch: Callable[..., Child], server: ForkServer) -> None:
    assert _code(launch("a", "print()")) == 3
    first = server.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: has_ended(first), bool, "the end of the server")
    assert _code(launch("b", "print()")) == 3
    assert server.pid != first


def test_the_server_ends_with_its_service_and_when_idle(tmp_path: Path) -> None:
    for closed in (True, False):
        server = ForkServer("tests.integration.training_workers.quick_fork_server", idle_s=600.0 if closed else 0.0)
        (tmp_path / "job").write_text("print()")
        child = server.launch(tmp_path / "job", tmp_path / "log", "")
        pid = server.pid
        assert pid is not None
        assert _code(child) == 3
        if closed:
            server.close()
        wait_for(partial(has_ended, pid), bool, "the end of the server")
        server.close()


def test_a_job_that_was_not_started_when_the_service_ended_is_not_started(
    launch: Callable[..., Child], server: ForkServer, tmp_path: Path
) -> None:
    assert _code(launch("a", "print()")) == 3
    pid = server.pid
    assert pid is not None
    with frozen(pid):
        launch("b", "print()")
        server.close()
    wait_for(lambda: has_ended(pid), bool, "the end of the server")
    assert not (tmp_path / "b" / "log").exists()
