"""Answers in a Valkey or Redis server, which gateway processes and machines share.

A server that is unavailable, slow or without a bound of memory keeps nothing: answers are then those of a gateway
without a cache. That is counted and logged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.serving.adapters.answer_codec import decode, encode
from services.serving.app.answer_cache import Kept

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SCHEMES = {"valkey": "redis", "valkeys": "rediss"}
_PREFIX = b"tidemill:answers:"
# A model takes milliseconds at least; a slower server would not be worth asking.
_PATIENCE_S = 0.2
# Not asked again for this long after a failure.
_PAUSE_S = 2.0
_CONNECTIONS = 32
_LARGEST = 1024 * 1024
_LOG_EVERY_S = 60.0
_CHECK_EVERY_S = 60.0


class ValkeyAnswers:
    """Implements `services.serving.app.answer_cache.AnswerStore`. It lives in one event loop."""

    def __init__(self, url: str, ttl_s: float, count_error: Callable[[], None]) -> None:
        """Args:
        url: valkey://, valkeys://, redis:// or rediss://, with user, password and database if there are any.
        ttl_s: seconds after which an answer is forgotten.
        count_error: called for each question or answer that the server did not take.
        """
        scheme, separator, rest = url.partition("://")
        pool = BlockingConnectionPool.from_url(
            f"{_SCHEMES.get(scheme, scheme)}{separator}{rest}",
            max_connections=_CONNECTIONS,
            timeout=_PATIENCE_S,
            socket_timeout=_PATIENCE_S,
            socket_connect_timeout=_PATIENCE_S,
            retry=Retry(NoBackoff(), 0),
        )
        self._client = Redis.from_pool(pool)
        self._ttl_ms = max(1, round(ttl_s * 1000))
        self._count_error = count_error
        self._paused_until = self._checked_at = self._logged_at = -float("inf")
        self._is_bounded = False

    async def get(self, keys: Sequence[bytes]) -> Sequence[Kept | None]:
        """See the port."""
        nothing: Sequence[Kept | None] = [None] * len(keys)
        if not keys:
            return nothing
        client = cast("Any", self._client)
        found = await self._tried(lambda: client.mget([_PREFIX + key for key in keys]))
        return nothing if found is None else [None if data is None else decode(data) for data in found]

    async def put(self, found: Mapping[bytes, Kept]) -> None:
        """See the port. Answers of more than 1 MiB are not kept."""
        if not await self._may_keep():
            return
        pipeline = self._client.pipeline(transaction=False)
        for key, value in found.items():
            if len(data := encode(value)) <= _LARGEST:
                pipeline.set(_PREFIX + key, data, px=self._ttl_ms)
        await self._tried(pipeline.execute)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _may_keep(self) -> bool:
        """Whether the server has a bound of memory, and forgets what was used least when it is full."""
        if time.monotonic() - self._checked_at >= _CHECK_EVERY_S or not self._is_bounded:
            client = cast("Any", self._client)
            memory = await self._tried(lambda: client.info("memory"))
            if memory is None:
                return False
            self._checked_at = time.monotonic()
            self._is_bounded = int(memory["maxmemory"]) > 0 and memory["maxmemory_policy"] != "noeviction"
            if not self._is_bounded:
                self._note("it has no bound of memory: set maxmemory, and maxmemory-policy allkeys-lru")
        return self._is_bounded

    async def _tried(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """What the server says; None if it cannot be asked."""
        if time.monotonic() < self._paused_until:
            self._count_error()
            return None
        try:
            async with asyncio.timeout(2 * _PATIENCE_S):
                return await ask()
        except (RedisError, OSError, TimeoutError) as error:
            self._note(str(error) or type(error).__name__)
            return None

    def _note(self, why: str) -> None:
        now = time.monotonic()
        self._paused_until = now + _PAUSE_S
        self._count_error()
        if now - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = now
            logger.warning("the shared cache of answers keeps nothing: %s", why)
