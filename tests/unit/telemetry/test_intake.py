from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from services.kit.clock import SystemClock
from services.kit.errors import UnavailableError
from services.telemetry.app.intake import Intake, Limits
from services.telemetry.domain.days import Signal
from services.telemetry.domain.document import Document, Outcome, Receipt, WriteStatus


class FakeStore:
    """Keeps what it is given; has one prepared outcome per write."""

    def __init__(self) -> None:
        self.bulks: list[list[str]] = []
        self.tries = asyncio.Semaphore(0)
        self.away = False
        self.fates: dict[str, list[Outcome]] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    async def write(self, documents: Sequence[Document]) -> list[Outcome]:
        self.tries.release()
        await self.gate.wait()
        if self.away:
            raise UnavailableError("nobody there")
        self.bulks.append([document.id for document in documents])
        return [self._fate(document.id) for document in documents]

    def _fate(self, document: str) -> Outcome:
        outcomes = self.fates.get(document)
        return outcomes.pop(0) if outcomes else Outcome(WriteStatus.WRITTEN)


class FakeObserver:
    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = {}
        self.queue: list[int] = []

    def settled(self, signal: str, status: str, count: int) -> None:
        self.counts[signal, status] = self.counts.get((signal, status), 0) + count

    def queued(self, size: int) -> None:
        self.queue.append(size)

    def bulk(self, seconds: float) -> None:
        pass


class Harness:
    def __init__(self, **limits: float) -> None:
        self.store, self.observer = FakeStore(), FakeObserver()
        bounds = Limits(
            queue_bytes=int(limits.get("queue_bytes", 10_000)),
            bulk_documents=int(limits.get("bulk_documents", 10)),
            bulk_bytes=int(limits.get("bulk_bytes", 1000)),
            bulk_wait_s=limits.get("bulk_wait_s", 0.0),
        )
        self.intake = Intake(self.store, bounds, self.observer, SystemClock())

    def send(self, *ids: str, size: int = 10, patience: float = 30.0) -> asyncio.Task[Receipt]:
        documents = [Document("index", each, b"x" * size) for each in ids]
        return asyncio.ensure_future(self.intake.take(Signal.LOGS, documents, patience))


@asynccontextmanager
async def running(harness: Harness) -> AsyncIterator[Harness]:
    task = asyncio.create_task(harness.intake.run())
    try:
        yield harness
        assert not task.done()
    finally:
        task.cancel()


async def _tried(store: FakeStore, times: int) -> None:
    """Waits until the store was given something `times` times more."""
    for _ in range(times):
        await store.tries.acquire()


async def test_an_answer_comes_when_the_documents_are_written() -> None:
    async with running(Harness()) as harness:
        harness.store.gate.clear()
        sent = harness.send("a", "b")
        await _tried(harness.store, 1)
        assert not sent.done()
        harness.store.gate.set()
        assert await sent == Receipt()
        assert harness.store.bulks == [["a", "b"]]
        assert harness.observer.counts == {("logs", "written"): 2}
        assert harness.observer.queue[-1] == 0


async def test_nothing_to_write_is_answered_at_once() -> None:
    harness = Harness()
    assert await harness.send() == Receipt()


async def test_what_arrives_while_a_bulk_is_written_goes_together() -> None:
    async with running(Harness()) as harness:
        harness.store.gate.clear()
        sent = [harness.send("a")]
        await _tried(harness.store, 1)
        sent += [harness.send("b"), harness.send("c", "d")]
        await asyncio.sleep(0)
        harness.store.gate.set()
        await asyncio.gather(*sent)
        assert harness.store.bulks == [["a"], ["b", "c", "d"]]


async def test_a_bulk_waits_a_little_for_others() -> None:
    async with running(Harness(bulk_wait_s=0.2)) as harness:
        first = harness.send("a")
        await asyncio.sleep(0.01)
        await asyncio.gather(first, harness.send("b"))
        assert harness.store.bulks == [["a", "b"]]


async def test_a_full_bulk_waits_for_no_one() -> None:
    async with running(Harness(bulk_wait_s=3600, bulk_documents=2)) as harness:
        await asyncio.gather(harness.send("a"), harness.send("b"))
        assert harness.store.bulks == [["a", "b"]]


async def test_a_large_request_is_written_in_bulks_and_answered_once() -> None:
    async with running(Harness(bulk_documents=2)) as harness:
        harness.store.fates = {"c": [Outcome(WriteStatus.REFUSED, "why")], "e": [Outcome(WriteStatus.REFUSED, "later")]}
        assert await harness.send("a", "b", "c", "d", "e") == Receipt(2, "why")
        assert harness.store.bulks == [["a", "b"], ["c", "d"], ["e"]]


async def test_a_bulk_is_bounded_in_bytes() -> None:
    async with running(Harness(bulk_bytes=25)) as harness:
        await harness.send("a", "b", "c")
        await harness.send("huge", size=1000)
        assert harness.store.bulks == [["a", "b"], ["c"], ["huge"]]


async def test_refused_and_known_documents_are_distinguished() -> None:
    async with running(Harness()) as harness:
        harness.store.fates = {"a": [Outcome(WriteStatus.REFUSED, "why")], "b": [Outcome(WriteStatus.DUPLICATE)]}
        assert await harness.send("a", "b", "c") == Receipt(1, "why")
        assert harness.observer.counts == {("logs", "refused"): 1, ("logs", "duplicate"): 1, ("logs", "written"): 1}


async def test_documents_for_which_the_store_is_busy_are_tried_again() -> None:
    async with running(Harness()) as harness:
        harness.store.fates = {"b": [Outcome(WriteStatus.BUSY)]}
        assert await harness.send("a", "b", "c") == Receipt()
        assert harness.store.bulks == [["a", "b", "c"], ["b"]]


async def test_documents_of_an_index_that_stays_busy_delay_no_others() -> None:
    async with running(Harness()) as harness:
        harness.store.fates = {"a": [Outcome(WriteStatus.BUSY)] * 1000}
        stuck = harness.send("a")
        await _tried(harness.store, 1)
        async with asyncio.timeout(20):
            assert await harness.send("b", "c") == Receipt()
        assert not stuck.done()
        harness.store.fates.clear()
        assert await stuck == Receipt()


async def test_a_busy_store_is_reported_to_a_sender_who_does_not_wait() -> None:
    async with running(Harness()) as harness:
        harness.store.fates = {"a": [Outcome(WriteStatus.BUSY, "disk full")] * 100}
        with pytest.raises(UnavailableError, match="disk full"):
            await harness.send("a", patience=0.05)
        assert await harness.send("b") == Receipt()


async def test_an_outage_shorter_than_the_patience_is_not_noticed() -> None:
    async with running(Harness()) as harness:
        harness.store.away = True
        sent = harness.send("a")
        await _tried(harness.store, 2)
        harness.store.away = False
        assert await sent == Receipt()
        assert harness.store.bulks == [["a"]]


async def test_a_longer_outage_is_reported_and_what_was_given_up_is_not_written() -> None:
    async with running(Harness()) as harness:
        harness.store.away = True
        sent = harness.send("a", patience=0.01)
        with pytest.raises(UnavailableError, match="nobody there") as caught:
            await sent
        assert caught.value.reason == "TELEMETRY_NOT_WRITTEN"
        assert caught.value.retry_after_s
        assert harness.observer.queue[-1] == 0
        harness.store.away = False
        await harness.send("b")
        assert harness.store.bulks == [["b"]]


async def test_a_sender_that_hangs_up_leaves_the_queue() -> None:
    async with running(Harness()) as harness:
        harness.store.away = True
        blocking, sent = harness.send("a"), harness.send("b")
        await _tried(harness.store, 1)
        late = harness.send("c")
        await asyncio.sleep(0)
        late.cancel()
        sent.cancel()
        await asyncio.gather(late, sent, return_exceptions=True)
        harness.store.away = False
        await blocking
        await harness.send("d")
        assert harness.store.bulks == [["a"], ["d"]]


async def test_a_full_queue_refuses_at_once() -> None:
    async with running(Harness(queue_bytes=25)) as harness:
        harness.store.away = True
        first = harness.send("a", "b")
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError) as caught:
            await harness.send("c")
        assert caught.value.reason == "TELEMETRY_QUEUE_FULL"
        assert caught.value.retry_after_s
        harness.store.away = False
        await first
        await harness.send("c")
        assert harness.store.bulks == [["a", "b"], ["c"]]


async def test_a_request_larger_than_the_queue_passes_alone() -> None:
    async with running(Harness(queue_bytes=25)) as harness:
        assert await harness.send("huge", size=1000) == Receipt()
