"""Retries and dead letters at the end of a process; what else they promise is in `tests/contract/bus`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from services.kit.bus.consumer import DeliveryProcessor
from services.kit.bus.port import Delivery
from services.kit.retrying import StoppedError

BATCH = [Delivery("t", 0, offset, None, b"", {}) for offset in range(5)]


class Harness:
    """A handler, the dead letters and the wish to stop."""

    def __init__(self, handle: Callable[[Harness, Sequence[Delivery]], None]) -> None:
        self._handle = handle
        self.stopping = threading.Event()
        self.done: list[int] = []
        self.buried: list[int] = []
        self.processor = DeliveryProcessor(self, self, stop=self.stopping)

    def handle(self, batch: Sequence[Delivery]) -> None:
        self._handle(self, batch)
        self.done += [delivery.offset for delivery in batch]

    def dead_letter(self, delivery: Delivery, error: Exception) -> None:
        self.buried.append(delivery.offset)


def test_asked_to_stop_it_does_not_do_the_rest_of_a_batch_one_by_one() -> None:
    def handle(harness: Harness, batch: Sequence[Delivery]) -> None:
        if len(batch) > 1:
            raise ValueError("one by one, please")
        if batch[0].offset == 1:
            harness.stopping.set()

    harness = Harness(handle)
    with pytest.raises(StoppedError):
        harness.processor.process(BATCH)
    assert harness.done == [0, 1]


def test_what_fails_because_everything_is_closed_is_not_poison() -> None:
    def handle(harness: Harness, batch: Sequence[Delivery]) -> None:
        harness.stopping.set()
        raise RuntimeError("the database is closed")

    harness = Harness(handle)
    with pytest.raises(StoppedError):
        harness.processor.process(BATCH[:1])
    assert harness.buried == []
