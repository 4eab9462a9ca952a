"""Answers in this process's memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class AnswerMemory:
    """Implements `services.serving.app.answer_cache.AnswerStore`: bounded in bytes, least recently used go first."""

    def __init__(self, limit: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        limit: bytes of all answers.
        ttl_s: seconds after which an answer is forgotten.
        clock: seconds that only go forward.
        """
        self._limit = limit
        self._ttl_s = ttl_s
        self._clock = clock
        self._kept: OrderedDict[bytes, tuple[float, int, Any]] = OrderedDict()
        self.size = 0
        """Bytes of what is kept."""

    def get(self, key: bytes) -> Any | None:
        """See the port."""
        found = self._kept.get(key)
        if found is None:
            return None
        end, _, value = found
        if end <= self._clock():
            self._forget(key)
            return None
        self._kept.move_to_end(key)
        return value

    def put(self, key: bytes, value: Any, size: int) -> None:
        """See the port. What is larger than all of the memory is not kept."""
        self._forget(key)
        if size > self._limit:
            return
        self._kept[key] = (self._clock() + self._ttl_s, size, value)
        self.size += size
        while self.size > self._limit:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: bytes) -> None:
        found = self._kept.pop(key, None)
        if found is not None:
            self.size -= found[1]
