"""The supervisor with real, tiny processes: order, restarts, failures, and no orphan whatever happens to it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from infra.stack import client
from infra.stack.addresses import Addresses
from infra.stack.autoscaler import Scaling, Windows
from infra.stack.child import ChildSpec, Program
from infra.stack.errors import StackError
from infra.stack.layout import python_path
from infra.stack.lock import AlreadyRunningError
from infra.stack.process import TAG, start_ticks, tagged
from infra.stack.state import ChildPhase, ChildState, StackPhase, StackState, read_state
from infra.stack.supervisor import Supervisor
from tests.integration.stack.tiny_stack import BROKEN, QUICK, SERVER, STUBBORN, chain, child, layout_of, notes_of
from tests.waiting import eventually, eventually_is

_PATIENCE_S = 30.0


async def until(state: Path, holds: Callable[[StackState], bool]) -> StackState:
    async def read() -> StackState:
        return read_state(layout_of(state))

    return await eventually_is(read, holds)


async def assert_nothing_left(state: Path) -> None:
    """A killed process may take an instant to go."""

    def look() -> bool:
        left = tagged(state)
        assert not left, left
        return True

    await eventually(look, "the end of all processes")


def ready(stack: StackState) -> bool:
    return stack.phase is StackPhase.READY


@asynccontextmanager
async def supervised(state: Path, specs: list[ChildSpec]) -> AsyncIterator[StackState]:
    supervisor = Supervisor(layout_of(state), specs, QUICK)
    task = asyncio.create_task(supervisor.run())
    try:
        yield await until(state, ready)
    finally:
        supervisor.request_stop()
        await task
    await assert_nothing_left(state)


async def test_children_start_after_what_they_need_and_stop_before_it(tmp_path: Path) -> None:
    async with supervised(tmp_path, chain(tmp_path)) as stack:
        assert {name: each.phase for name, each in stack.children.items()} == dict.fromkeys(
            ("base", "middle", "top"), ChildPhase.READY
        )
        assert notes_of(tmp_path) == ["start base", "start middle", "start top"]
    assert notes_of(tmp_path)[3:] == ["stop top", "stop middle", "stop base"]
    assert read_state(layout_of(tmp_path)).phase is StackPhase.STOPPED


async def test_a_killed_child_comes_back_on_the_same_port_and_others_stay(tmp_path: Path) -> None:
    async with supervised(tmp_path, chain(tmp_path)) as before:
        victim = before.children["middle"].pid
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        after = await until(
            tmp_path,
            lambda stack: stack.children["middle"].restarts == 1 and stack.children["middle"].phase is ChildPhase.READY,
        )
        assert after.children["middle"].pid != victim
        assert after.children["middle"].last_error == "was killed by SIGKILL"
        assert after.ports == before.ports
        assert after.children["base"].pid == before.children["base"].pid
        assert after.children["top"].pid == before.children["top"].pid
        # What the killed child left in its group went with it: one child and its own child a name.
        assert len(tagged(tmp_path)) == 6


async def test_a_child_that_cannot_start_fails_the_stack_with_the_end_of_its_log(tmp_path: Path) -> None:
    specs = [child(tmp_path, "base"), child(tmp_path, "broken", BROKEN, needs=frozenset({"base"}))]
    supervisor = Supervisor(layout_of(tmp_path), specs, QUICK)
    assert not await supervisor.run()
    stack = read_state(layout_of(tmp_path))
    assert stack.phase is StackPhase.FAILED
    assert "broken ended with code 7 before it was ready, 3 times" in stack.error
    assert "the disk is made of cheese" in stack.error
    await assert_nothing_left(tmp_path)
    assert "stop base" in notes_of(tmp_path)


async def test_a_child_that_can_never_start_fails_the_stack_at_once(tmp_path: Path) -> None:
    def prepare(addresses: Addresses) -> Program:
        raise StackError("The tide tables are missing: fetch them.")

    spec = dataclasses.replace(child(tmp_path, "base"), prepare=prepare)
    assert not await Supervisor(layout_of(tmp_path), [spec], QUICK).run()
    assert read_state(layout_of(tmp_path)).error == "base cannot start: The tide tables are missing: fetch them."


async def test_what_fails_for_a_while_is_tried_until_it_works(tmp_path: Path) -> None:
    spec = child(tmp_path, "base")
    tries: list[int] = []

    def prepare(addresses: Addresses) -> Program:
        tries.append(1)
        if 1 < len(tries) < 6:
            raise OSError("Cannot allocate memory")
        return spec.prepare(addresses)

    async with supervised(tmp_path, [dataclasses.replace(spec, prepare=prepare)]) as stack:
        victim = stack.children["base"].pid
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        after = await until(tmp_path, lambda now: ready(now) and now.children["base"].restarts == 5)
        assert after.children["base"].last_error == "cannot start: Cannot allocate memory"
        await until(tmp_path, lambda now: now.children["base"].phase is ChildPhase.READY)


async def test_a_child_is_started_again_once_the_files_that_it_reads_at_its_start_have_changed(tmp_path: Path) -> None:
    certificate, spec = tmp_path / "certificate.pem", child(tmp_path, "base")
    certificate.write_text("first")

    def prepare(addresses: Addresses) -> Program:
        return dataclasses.replace(spec.prepare(addresses), read_once=(certificate,))

    specs = [dataclasses.replace(spec, prepare=prepare), child(tmp_path, "other")]
    async with supervised(tmp_path, specs) as before:
        certificate.write_text("second")
        after = await until(tmp_path, lambda now: ready(now) and now.children["base"].restarts == 1)
        assert after.children["base"].last_error == f"was stopped, to read {certificate} again"
        assert after.children["other"].pid == before.children["other"].pid
        await until(tmp_path, lambda now: now.children["base"].phase is ChildPhase.READY)
        assert sorted(notes_of(tmp_path)) == ["start base", "start base", "start other", "stop base"]


async def test_a_child_that_ignores_the_request_to_stop_is_killed(tmp_path: Path) -> None:
    async with supervised(tmp_path, [child(tmp_path, "stubborn", STUBBORN)]) as stack:
        pid = stack.children["stubborn"].pid
        assert pid is not None
    assert start_ticks(pid) is None


async def test_another_port_is_taken_when_the_usual_is_in_use_and_kept_for_the_next_time(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        specs = [child(tmp_path, "base", usual_port=taken)]
        async with supervised(tmp_path, specs) as stack:
            chosen = stack.ports["base"]
            assert chosen != taken
    async with supervised(tmp_path, specs) as stack:
        assert stack.ports["base"] == chosen


async def test_two_supervisors_never_share_a_state_folder(tmp_path: Path) -> None:
    async with supervised(tmp_path, [child(tmp_path, "base")]) as stack:
        with pytest.raises(AlreadyRunningError, match="tidemill down"):
            await Supervisor(layout_of(tmp_path), [child(tmp_path, "base")], QUICK).run()
        assert read_state(layout_of(tmp_path)).pid == stack.pid


async def test_a_stop_while_it_starts_is_orderly(tmp_path: Path) -> None:
    never = "import time; time.sleep(300)"
    specs = [child(tmp_path, "base"), child(tmp_path, "never", never)]
    supervisor = Supervisor(layout_of(tmp_path), specs, QUICK)
    task = asyncio.create_task(supervisor.run())
    await until(tmp_path, lambda stack: "base" in stack.children and stack.children["base"].phase is ChildPhase.READY)
    supervisor.request_stop()
    await task
    assert read_state(layout_of(tmp_path)).phase is StackPhase.STOPPED
    await assert_nothing_left(tmp_path)


def start_process(state: Path) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("tiny_stack.py")
    return subprocess.Popen(
        [sys.executable, str(script), str(state)],
        env={**os.environ, "PYTHONPATH": python_path()},
        start_new_session=True,
    )


async def test_a_killed_supervisor_leaves_no_process_and_the_next_one_starts(tmp_path: Path) -> None:
    first = start_process(tmp_path)
    before = await until(tmp_path, ready)
    ours = tagged(tmp_path)
    assert len(ours) == 6, "three children, each with a child of its own"
    first.kill()
    first.wait()
    await assert_nothing_left(tmp_path)
    assert read_state(layout_of(tmp_path)).phase is StackPhase.CRASHED
    async with supervised(tmp_path, chain(tmp_path)) as after:
        assert after.ports == before.ports


async def test_down_reports_on_every_part_that_stopped_also_between_two_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = start_process(tmp_path)
    await until(tmp_path, ready)
    monkeypatch.setattr("infra.stack.client._POLL_S", 3.0)
    phases: dict[str, ChildPhase] = {}

    def note(name: str, now: ChildState) -> None:
        phases[name] = now.phase

    await asyncio.to_thread(client.down, tmp_path, tmp_path / "home", note)
    assert phases == dict.fromkeys(("base", "middle", "top"), ChildPhase.STOPPED)
    supervisor.wait()


def leave_behind(state: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], env={TAG: str(state)})


async def test_the_next_supervisor_ends_what_an_earlier_one_left(tmp_path: Path) -> None:
    left = leave_behind(tmp_path)
    async with supervised(tmp_path, [child(tmp_path, "base")]):
        assert start_ticks(left.pid) is None
    left.wait()


async def test_a_terminated_supervisor_stops_everything_in_order(tmp_path: Path) -> None:
    process = start_process(tmp_path)
    await until(tmp_path, ready)
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait) == 0
    assert notes_of(tmp_path)[3:] == ["stop top", "stop middle", "stop base"]
    await assert_nothing_left(tmp_path)


class Load:
    """Implements `Demand`: the load is what the test says."""

    def __init__(self) -> None:
        self.wanted = 1.0

    def processes(self, addresses: Addresses, pids: Sequence[int]) -> tuple[float, str]:
        return self.wanted, f"the test wants {self.wanted:g}"


@asynccontextmanager
async def scaled(state: Path, load: Load, *others: ChildSpec) -> AsyncIterator[StackState]:
    """`base` and what may stand beside it."""
    scaling = Scaling("base", ("base", *(each.name for each in others)), 1, lambda: load)
    windows = Windows(look_s=0.02, rise_s=0.05, fall_s=0.1)
    supervisor = Supervisor(
        layout_of(state), [child(state, "base"), *others], QUICK, scalings=[scaling], windows=windows
    )
    task = asyncio.create_task(supervisor.run())
    try:
        yield await until(state, ready)
    finally:
        supervisor.request_stop()
        await task
    await assert_nothing_left(state)


def standby(state: Path, name: str, code: str = SERVER) -> ChildSpec:
    return dataclasses.replace(child(state, name, code), standby=True)


async def test_processes_come_and_go_with_the_load(tmp_path: Path) -> None:
    load = Load()
    async with scaled(tmp_path, load, standby(tmp_path, "base-2"), standby(tmp_path, "base-3")) as stack:
        phases = {name: each.phase for name, each in stack.children.items()}
        assert phases == {"base": ChildPhase.READY, "base-2": ChildPhase.STANDBY, "base-3": ChildPhase.STANDBY}
        load.wanted = 2.0
        grown = await until(tmp_path, lambda now: now.children["base-2"].phase is ChildPhase.READY)
        assert grown.children["base-3"].phase is ChildPhase.STANDBY
        load.wanted = 0.0
        shrunk = await until(tmp_path, lambda now: now.children["base-2"].phase is ChildPhase.STANDBY)
        assert shrunk.children["base-2"].pid is None
        assert shrunk.children["base"].phase is ChildPhase.READY
        load.wanted = 3.0
        await until(tmp_path, lambda now: all(each.phase is ChildPhase.READY for each in now.children.values()))
    notes = notes_of(tmp_path)
    assert notes[:4] == ["start base", "start base-2", "stop base-2", "start base-2"]
    assert sorted(notes[4:]) == ["start base-3", "stop base", "stop base-2", "stop base-3"]


async def test_a_process_that_cannot_start_beside_the_others_fails_nothing(tmp_path: Path) -> None:
    load = Load()
    load.wanted = 2.0
    async with scaled(tmp_path, load, standby(tmp_path, "base-2", BROKEN)):
        now = await until(tmp_path, lambda now: now.children["base-2"].restarts > QUICK.tries)
        assert (now.phase, now.children["base"].phase) == (StackPhase.READY, ChildPhase.READY)
        assert now.children["base-2"].last_error == "ended with code 7"
