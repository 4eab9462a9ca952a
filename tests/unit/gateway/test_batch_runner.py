"""How a batch ends, and in which order requests of several are asked."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.access import BACKGROUND
from gateway.batches.objects import ENDED, KEEP_S, WINDOW_S, Batch
from gateway.batches.runner import BatchRunner, Reply
from gateway.batches.store import BatchStore
from gateway.keys.key import ApiKey
from services.kit.errors import UnauthenticatedError
from tests.waiting import eventually

CHAT = "/v1/chat/completions"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def _no_key(key_id: str) -> ApiKey:
    raise UnauthenticatedError(f"There is no key {key_id}.")


def make(store: BatchStore, lines: int, tenant: str = "t", key_id: str = "") -> str:
    """A batch whose lines say their number; it is answered without a key unless one is named."""
    asked = [{"custom_id": str(n), "url": CHAT, "body": {"n": n, "tenant": tenant}} for n in range(lines)]
    content = "\n".join(map(json.dumps, asked)).encode()
    file = store.put_file(tenant, "f", io.BytesIO(content), len(content), KEEP_S)
    return store.create_batch(tenant, key_id, file.id, CHAT, None, KEEP_S).id


@asynccontextmanager
async def running(
    store: BatchStore,
    ask: Callable[[str, bytes], Awaitable[Reply]],
    clock: Clock,
    at_once: int = 2,
    key_of: Callable[[str], Awaitable[ApiKey]] = _no_key,
) -> AsyncIterator[None]:
    runner = BatchRunner(store, ask, key_of, at_once, asyncio.Event(), clock=clock)
    task = asyncio.create_task(runner.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def ended(store: BatchStore, batch: str, tenant: str = "t") -> Batch:
    await eventually(lambda: store.get_batch(tenant, batch).status in ENDED, "the end of the batch")
    return store.get_batch(tenant, batch)


def lines_of(store: BatchStore, file_id: str | None) -> dict[str, dict[str, dict[str, str]]]:
    assert file_id is not None
    written = [json.loads(line) for line in store.content_of("t", file_id).read_text().splitlines()]
    return {line["custom_id"]: line for line in written}


async def test_what_is_not_answered_in_time_expires_with_an_error_for_each_line(tmp_path: Path) -> None:
    clock = Clock()
    store = BatchStore(tmp_path, 10**6, clock)

    async def ask(path: str, body: bytes) -> Reply:
        if json.loads(body)["n"] >= 3:
            clock.now += WINDOW_S
            await asyncio.sleep(3600)
        return Reply(200, b'{"ok":true}')

    batch = make(store, 8)
    async with running(store, ask, clock):
        found = await ended(store, batch)
    assert (found.status, found.errors) == ("expired", None)
    assert found.expired_at is not None
    assert (found.request_counts.completed, found.request_counts.failed) == (3, 5)
    assert lines_of(store, found.output_file_id).keys() == {"0", "1", "2"}
    failures = lines_of(store, found.error_file_id)
    assert failures.keys() == {"3", "4", "5", "6", "7"}
    assert {line["error"]["code"] for line in failures.values()} == {"batch_expired"}


async def test_a_batch_that_fills_its_tenants_files_fails_and_keeps_what_it_has(tmp_path: Path) -> None:
    clock = Clock()
    store = BatchStore(tmp_path, 200_000, clock)

    async def ask(path: str, body: bytes) -> Reply:
        await asyncio.sleep(0.02)
        return Reply(200, json.dumps("x" * 20_000).encode())

    batch = make(store, 1000)
    async with running(store, ask, clock):
        found = await ended(store, batch)
    assert found.status == "failed"
    assert found.errors is not None
    assert [error.code for error in found.errors.data] == ["files_full"]
    assert len(lines_of(store, found.output_file_id)) == found.request_counts.completed < 1000


async def test_what_passes_is_asked_again_in_the_background(tmp_path: Path) -> None:
    clock = Clock()
    store = BatchStore(tmp_path, 10**6, clock)
    asked: list[bool] = []

    async def ask(path: str, body: bytes) -> Reply:
        asked.append(BACKGROUND.get())
        status = {1: 429, 2: 503, 3: 500}.get(len(asked), 200)
        return Reply(status, b"{}", retry_after_s=0.01)

    batch = make(store, 2)
    async with running(store, ask, clock, at_once=1):
        found = await ended(store, batch)
    assert found.status == "completed"
    assert (found.request_counts.completed, found.request_counts.failed) == (1, 1)
    assert asked == [True] * 4


async def test_batches_of_several_tenants_take_turns(tmp_path: Path) -> None:
    clock = Clock()
    store = BatchStore(tmp_path, 10**6, clock)
    waiting: set[str] = set()
    both = asyncio.Event()
    order: list[str] = []

    async def key_of(key_id: str) -> ApiKey:
        # A request waits for its turn as soon as its key is known.
        waiting.add(key_id)
        if len(waiting) == 2:
            both.set()
        return ApiKey(key_id, "n", "d", datetime.now(UTC))

    async def ask(path: str, body: bytes) -> Reply:
        order.append(json.loads(body)["tenant"])
        await both.wait()
        return Reply(200, b"{}")

    long = make(store, 200, "a", "key of a")
    short = make(store, 5, "b", "key of b")
    async with running(store, ask, clock, at_once=1, key_of=key_of):
        await ended(store, short, "b")
        await ended(store, long, "a")
    # It did not wait for the other's 200.
    assert "".join(order[:10]) in ("ab" * 5, "ba" * 5)
    assert order[10:] == ["a"] * 195


@pytest.mark.parametrize("steps", range(5))
async def test_the_runner_ends_at_whatever_moment_it_is_cancelled(tmp_path: Path, steps: int) -> None:
    """`asyncio.wait_for` of Python 3.11 forgets a cancellation that comes with what it waits for."""
    clock = Clock()
    swept, made = threading.Event(), asyncio.Event()

    class Store(BatchStore):
        def sweep(self) -> None:
            swept.set()

    async def ask(path: str, body: bytes) -> Reply:
        raise AssertionError("there is nothing to ask")

    runner = BatchRunner(Store(tmp_path, 10**6, clock), ask, _no_key, 1, made, clock=clock)
    task = asyncio.create_task(runner.run())
    await eventually(swept.is_set)
    await asyncio.sleep(0.05)  # now it waits
    made.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()


async def test_a_batch_of_a_key_that_is_gone_fails_before_anything_is_asked(tmp_path: Path) -> None:
    clock = Clock()
    store = BatchStore(tmp_path, 10**6, clock)
    content = json.dumps({"custom_id": "a", "url": CHAT, "body": {}}).encode()
    file = store.put_file("t", "f", io.BytesIO(content), len(content), KEEP_S)
    batch = store.create_batch("t", "0123456789ab", file.id, CHAT, None, KEEP_S).id

    async def ask(path: str, body: bytes) -> Reply:
        raise AssertionError("it was asked")

    async with running(store, ask, clock):
        found = await ended(store, batch)
    assert found.errors is not None
    assert (found.status, found.errors.data[0].code, found.output_file_id) == ("failed", "api_key_invalid", None)
