"""Retries and the loops of background workers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading

import pytest

from services.kit.errors import FailedPreconditionError, TidemillError, UnavailableError
from services.kit.loops import Wakeup, step_forever
from services.kit.retrying import Backoff, StoppedError, call_with_retries, call_with_retries_async
from tests.waiting import eventually


class Flaky:
    """Raises each of its errors once, in their order, and returns the number of calls from then on."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.calls

    async def on_loop(self) -> int:
        return self()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.kit.retrying.FIRST_PAUSE_S", 0.001)


def test_pauses_double_up_to_the_longest_and_start_again_after_a_success() -> None:
    backoff = Backoff(1.0, longest_s=5.0)
    assert [backoff.next_s() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.reset()
    assert backoff.next_s() == 1.0


async def test_what_may_pass_is_retried_until_it_succeeds() -> None:
    assert call_with_retries(Flaky(UnavailableError("a"), UnavailableError("b")), "x", threading.Event()) == 3
    flaky = Flaky(UnavailableError("a"), UnavailableError("b"))
    assert await call_with_retries_async(lambda: flaky.on_loop(), "x") == 3


async def test_what_cannot_pass_is_raised_at_once() -> None:
    for_threads, for_loops = Flaky(FailedPreconditionError("a")), Flaky(FailedPreconditionError("a"))
    with pytest.raises(FailedPreconditionError):
        call_with_retries(for_threads, "x", threading.Event())
    with pytest.raises(FailedPreconditionError):
        await call_with_retries_async(for_loops.on_loop, "x")
    assert (for_threads.calls, for_loops.calls) == (1, 1)


async def test_the_last_error_is_raised_once_patience_ends() -> None:
    with pytest.raises(UnavailableError, match="first"):
        call_with_retries(Flaky(UnavailableError("first")), "x", threading.Event(), patience_s=0.0)
    with pytest.raises(UnavailableError, match="first"):
        await call_with_retries_async(Flaky(UnavailableError("first")).on_loop, "x", patience_s=0.0)


def test_a_stop_ends_the_retries_and_keeps_the_cause() -> None:
    stop = threading.Event()

    def do() -> None:
        stop.set()
        raise UnavailableError("away")

    with pytest.raises(StoppedError) as stopped:
        call_with_retries(do, "x", stop)
    assert isinstance(stopped.value.__cause__, UnavailableError)
    with pytest.raises(StoppedError):
        call_with_retries(Flaky(), "x", stop)


async def test_a_pause_can_end_the_retries() -> None:
    waited: list[BaseException] = []

    async def pause(_: float) -> None:
        raise asyncio.CancelledError

    async def on_wait(error: BaseException) -> None:
        waited.append(error)

    away = UnavailableError("away")
    with pytest.raises(asyncio.CancelledError):
        await call_with_retries_async(Flaky(away).on_loop, "x", sleep=pause, on_wait=on_wait)
    assert waited == [away]


async def test_a_loop_logs_an_outage_once_and_its_end(caplog: pytest.LogCaptureFixture) -> None:
    steps = Flaky(*[UnavailableError("away", reason="AWAY") for _ in range(4)])
    with caplog.at_level(logging.INFO):
        loop = asyncio.create_task(step_forever(steps.on_loop, "sweeping", idle_s=0.001))
        await eventually(lambda: "sweeping continues" in caplog.messages, "the end of the outage")
        loop.cancel()
    assert caplog.messages == ["sweeping waits: away", "sweeping continues"]


@pytest.mark.parametrize("error", [ValueError("a bug"), FailedPreconditionError("not ready")])
async def test_a_loop_ends_with_a_defect_unless_it_must_survive(error: Exception) -> None:
    with pytest.raises((ValueError, TidemillError)):
        await step_forever(Flaky(error).on_loop, "sweeping")
    steps = Flaky(error)
    loop = asyncio.create_task(step_forever(steps.on_loop, "sweeping", idle_s=0.001, survives_defects=True))
    await eventually(lambda: steps.calls >= 3, "three steps")
    loop.cancel()


async def test_a_wakeup_from_any_thread_ends_a_pause() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())
    steps = asyncio.Queue[None]()

    async def step() -> None:
        steps.put_nowait(None)

    loop = asyncio.create_task(step_forever(step, "publishing", idle_s=3600, wakeup=wakeup))
    async with asyncio.timeout(30):
        await steps.get()
        await asyncio.to_thread(wakeup.set)
        await steps.get()
    loop.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loop
