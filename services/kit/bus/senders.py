"""How a Kafka client makes messages durable. `kafka_python` and `librdkafka` do it; `kafka` chooses one of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from services.kit.bus.cloudevents import EncodedEvent
from services.kit.bus.topics import Topic
from services.kit.deadline import work_deadline

_FINISH_S = 3.0


class NotSentError(Exception):
    """Not all of the messages are known to be durable; send all of them again."""


class MessageTooLargeError(Exception):
    """A message is larger than the topic takes."""


class Sender(Protocol):
    """A producer of one process: acks=all, idempotent, in order for each key. Thread-safe."""

    def send(self, topic: Topic, messages: Sequence[EncodedEvent]) -> None:
        """Returns when all in-sync replicas have the messages.

        Raises:
            UnavailableError: no broker responds.
            NotSentError: not all of them are durable.
            MessageTooLargeError: one is too large.
        """
        ...

    def finish(self) -> None:
        """Announces that the process ends: from now on, nothing waits longer than a few seconds for the broker."""
        ...

    def close(self) -> None:
        """Closes the connections; messages that are still waiting to be sent get an error."""
        ...


class Patience:
    """How long a sender's callers wait: for a limit, or until their call's deadline or the end of the process."""

    def __init__(self) -> None:
        self._finishing: float | None = None
        self.exhausted = False
        """Whether a wait failed while the process ended. None follows it."""

    def finish(self) -> None:
        """Announces that the process ends."""
        self._finishing = time.monotonic()

    def left_s(self, began: float, end: float) -> float:
        """Seconds that are left of a wait that began then, and lasts until `end` at most.

        Raises:
            NotSentError: none are.
        """
        called = work_deadline()
        if called is not None:
            end = min(end, called)
        # While the process ends, each wait is short, and after one failed none follows.
        ending = None
        if self._finishing is not None:
            ending = began if self.exhausted else max(began, self._finishing) + _FINISH_S
            end = min(end, ending)
        left = end - time.monotonic()
        if left <= 0:
            self.exhausted = ending is not None
            raise NotSentError("it did not answer in time")
        return left
