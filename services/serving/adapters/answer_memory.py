"""Answers in this process's memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from services.serving.app.answer_cache import Kept
from services.serving.domain.answer import Embedded, Scored

# Bytes of a token with its log probability.
_TOKEN = 150
# Bytes of a key, the objects of a value and their place in a dictionary; estimated rather too high.
_OVERHEAD = 400


class AnswerMemory:
    """Implements `services.serving.app.answer_cache.AnswerStore`: bounded in bytes, least recently used go first."""

    def __init__(self, limit: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        limit: bytes of all answers.
        ttl_s: seconds after which an answer is forgotten.
        clock: monotonic, in seconds.
        """
        self._limit = limit
        self._ttl_s = ttl_s
        self._clock = clock
        self._kept: OrderedDict[bytes, tuple[float, int, Kept]] = OrderedDict()
        self.size = 0
        """Bytes of what is kept."""

    async def get(self, keys: Sequence[bytes]) -> Sequence[Kept | None]:
        """See the port."""
        return [self._get(key) for key in keys]

    async def put(self, found: Mapping[bytes, Kept]) -> None:
        """See the port. What is larger than all of the memory is not kept."""
        for key, value in found.items():
            self._put(key, value, _size(value))

    def _get(self, key: bytes) -> Kept | None:
        found = self._kept.get(key)
        if found is None:
            return None
        end, _, value = found
        if end <= self._clock():
            self._forget(key)
            return None
        self._kept.move_to_end(key)
        return value

    def _put(self, key: bytes, value: Kept, size: int) -> None:
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


def _size(value: Kept) -> int:
    """Bytes in memory; an estimate, rather too high."""
    match value:
        case Scored():
            return _OVERHEAD + 32 * len(value.scores)
        case Embedded():
            return _OVERHEAD + value.values.itemsize * len(value.values)
        case _:
            return _OVERHEAD + 4 * len(value.text) + _TOKEN * len(value.tokens)
