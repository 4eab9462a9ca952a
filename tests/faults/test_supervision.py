"""The supervisor with full disks, frozen children and bugs of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from pathlib import Path

import pytest

from infra.stack.lifecycle import ChildRunner
from infra.stack.process import start_ticks, trim
from infra.stack.state import ChildPhase, StackPhase, read_state
from infra.stack.supervisor import Supervisor
from tests.faults.disk import small_disk
from tests.integration.stack.test_supervisor import assert_nothing_left, supervised, until
from tests.integration.stack.tiny_stack import QUICK, SERVER, chain, child, layout_of
from tests.waiting import eventually

# Like a broker, it exits at the first write that fails. The file `ballast` simulates a full disk.
WRITER = SERVER.replace(
    "server.serve_forever()",
    """
import pathlib, threading, time
def write():
    data = pathlib.Path(notes).with_name(f"{name}.data")
    try:
        while True:
            data.write_bytes(bytes(1 << 17))
            if data.with_name("ballast").exists() and os.geteuid() != 0:
                raise OSError("the disk is full")
            data.unlink()
            time.sleep(0.02)
    except OSError:
        os._exit(1)
threading.Thread(target=write).start()
server.serve_forever()
""",
)


async def test_what_dies_of_a_full_disk_returns_when_it_is_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", 4, monkeypatch) as disk:
        state = disk.folder
        async with supervised(state, [child(state, "broker", WRITER), child(state, "other")]) as before:
            disk.fill()
            victim = before.children["broker"].pid
            assert victim is not None
            await eventually(lambda: start_ticks(victim) is None, "the end of the broker")
            disk.free()
            after = await until(
                state,
                lambda now: now.children["broker"].restarts > 0 and now.children["broker"].phase is ChildPhase.READY,
            )
            pid = after.children["broker"].pid
            assert pid is not None
            assert start_ticks(pid) is not None, "stack.json names a process that lives"
            assert after.children["other"].pid == before.children["other"].pid
            assert after.children["other"].restarts == 0


async def test_a_child_is_tended_while_its_state_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", 4, monkeypatch) as disk:
        state = disk.folder
        caplog.set_level("INFO")
        async with supervised(state, chain(state)) as before:
            disk.fill()
            for name in ("base", "middle", "top"):
                victim = before.children[name].pid
                assert victim is not None
                os.kill(victim, signal.SIGKILL)
            await eventually(lambda: "cannot write" in caplog.text, "the line of the log")
            assert read_state(layout_of(state)).children["top"].restarts == 0, "the file is out of date"
            disk.free()
            after = await until(
                state,
                lambda now: all(each.restarts > 0 and each.phase is ChildPhase.READY for each in now.children.values()),
            )
            assert all(each.pid and start_ticks(each.pid) for each in after.children.values())
            assert caplog.text.count("cannot write") == 1, "said once, not at each try"
            assert "is written again" in caplog.text


async def test_a_frozen_child_is_killed_and_started_again_with_a_line_that_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = dataclasses.replace(child(tmp_path, "base"), liveness_s=1.0)
    async with supervised(tmp_path, [spec, child(tmp_path, "other")]) as before:
        victim = before.children["base"].pid
        assert victim is not None
        os.kill(victim, signal.SIGSTOP)
        after = await until(
            tmp_path,
            lambda now: now.children["base"].restarts == 1 and now.children["base"].phase is ChildPhase.READY,
        )
        assert start_ticks(victim) is None
        assert after.children["base"].last_error.startswith("did not answer for ")
        assert after.children["base"].last_error.endswith(" and was killed")
        assert "base did not answer for " in caplog.text
        assert after.children["other"].restarts == 0


async def test_a_child_that_is_slow_for_a_while_is_not_killed(tmp_path: Path) -> None:
    spec = dataclasses.replace(child(tmp_path, "base"), liveness_s=3600.0)
    async with supervised(tmp_path, [spec]) as before:
        slow = before.children["base"].pid
        assert slow is not None
        os.kill(slow, signal.SIGSTOP)
        await until(tmp_path, lambda now: now.children["base"].failing_since is not None)
        os.kill(slow, signal.SIGCONT)
        after = await until(tmp_path, lambda now: now.children["base"].failing_since is None)
        assert after.children["base"].pid == slow
        assert after.children["base"].restarts == 0


async def test_a_supervision_that_fails_ends_the_stack_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor(layout_of(tmp_path), chain(tmp_path), QUICK)
    running = asyncio.create_task(supervisor.run())
    stack = await until(tmp_path, lambda now: now.phase is StackPhase.READY)

    def defect(self: ChildRunner) -> float:
        raise RuntimeError("a defect of the supervisor")

    monkeypatch.setattr(ChildRunner, "_pause", defect)
    victim = stack.children["middle"].pid
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    assert await running is False
    after = read_state(layout_of(tmp_path))
    assert after.phase is StackPhase.FAILED
    assert after.error == "The supervision of middle ended unexpectedly: a defect of the supervisor"
    assert "the supervision of middle ended" in caplog.text
    await assert_nothing_left(tmp_path)


def test_a_log_that_grows_too_large_is_emptied_and_its_end_kept(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"old\n" * 1000 + b"new\n" * 100)
        trim(log, 4400)
        assert log.read_bytes() != b"", "it is not larger than the limit"
        trim(log, 3200)
        assert log.read_bytes() == b""
        assert log.with_name("x.log.1").read_bytes() == b"new\n" * 100
        writer.write(b"later\n")
    assert log.read_bytes() == b"later\n"
