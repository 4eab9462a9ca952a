"""How much may wait for the bus."""

from __future__ import annotations

import asyncio
import threading

import pytest

from services.ingest.entrypoints.accept_pool import AcceptPool
from services.kit.errors import ResourceExhaustedError

MIB = 1024 * 1024


async def test_what_exceeds_the_memory_is_refused_and_taken_again_later() -> None:
    pool, gate, begun = AcceptPool(1, 4 * MIB), threading.Event(), threading.Event()

    def accept() -> str:
        begun.set()
        gate.wait()
        return "taken"

    first = asyncio.create_task(pool.run(2 * MIB, accept))
    await asyncio.to_thread(begun.wait)
    waiting = asyncio.create_task(pool.run(2 * MIB, accept))
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhaustedError) as caught:
        await pool.run(1, accept)
    assert (caught.value.reason, caught.value.retry_after_s) == ("INGEST_BUSY", 1.0)
    # A caller who leaves while it waits takes nothing of the memory with it.
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    third = asyncio.create_task(pool.run(2 * MIB, accept))
    gate.set()
    assert list(await asyncio.gather(first, third)) == ["taken", "taken"]
    pool.close()


async def test_a_batch_larger_than_all_is_taken_alone() -> None:
    pool = AcceptPool(2, 1)
    assert await pool.run(10 * MIB, lambda: "taken") == "taken"

    def fail() -> str:
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        await pool.run(1, fail)
    assert await pool.run(1, lambda: "again") == "again"
    pool.close()
