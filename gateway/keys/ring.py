"""Checks keys without touching the database: a copy in memory that is read again every few seconds.

A revoked key is refused within `refresh_s`; a new key is accepted at once, since an unknown id queries the database.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from gateway.keys.key import ApiKey, id_of, matches
from services.kit.clock import Clock, SystemClock
from services.kit.errors import UnauthenticatedError, UnavailableError
from services.kit.loops import step_forever

logger = logging.getLogger(__name__)

USES_S = 60.0
"""How much newer a time of last use must be than the stored one to be written while the key is in use."""

HOW_TO_GET_ONE = (
    "Send `Authorization: Bearer <key>` (or `x-api-key`): the mesh wrote its first key to <state folder>/api-key, "
    "`tidemill keys create NAME` creates another."
)


class KeyRing:
    """The valid keys."""

    def __init__(
        self,
        load: Callable[[], Sequence[ApiKey]],
        note_uses: Callable[[Mapping[str, datetime]], None] | None = None,
        *,
        refresh_s: float = 5.0,
        min_pause_s: float = 0.5,
        clock: Clock | None = None,
    ) -> None:
        """Args:
        load: reads all keys; it may block, it is called in a thread.
        note_uses: stores when keys were last used; it may block, it is called in a thread.
        refresh_s: how often the copy is read again, and times of last use are written that `USES_S` allows.
        min_pause_s: unknown ids cause at most one read in this time; requests with such ids wait for it.
        """
        self._load = load
        self._note_uses = note_uses
        self._clock = clock or SystemClock()
        self._uses: dict[str, datetime] = {}
        self._refresh_s = refresh_s
        self._min_pause_s = min_pause_s
        self._keys: dict[str, ApiKey] = {}
        self._read_at = float("-inf")
        self._lock = asyncio.Lock()

    async def refresh(self) -> None:
        """Reads the keys; concurrent callers share one read."""
        asked_at = time.monotonic()
        async with self._lock:
            if self._read_at >= asked_at:
                return
            await asyncio.sleep(max(0.0, self._read_at + self._min_pause_s - time.monotonic()))
            self._read_at = time.monotonic()
            keys = await asyncio.to_thread(self._load)
            self._keys = {key.key_id: key for key in keys if key.revoke_time is None}

    async def run(self) -> None:
        """Reads the keys regularly; if the database fails, the last copy stays in use."""

        async def step() -> None:
            await self.refresh()
            await self._write([key_id for key_id, moment in self._uses.items() if self._is_news(key_id, moment)])

        await step_forever(step, "reading the API keys", idle_s=self._refresh_s, survives_defects=True)

    async def write_uses(self) -> None:
        """Stores all times of last use that are newer than the last call; to be called at the end."""
        await self._write(list(self._uses))

    def _is_news(self, key_id: str, moment: datetime) -> bool:
        key = self._keys.get(key_id)
        known = key.last_use_time if key is not None else None
        return known is None or (moment - known).total_seconds() >= USES_S

    async def _write(self, key_ids: Sequence[str]) -> None:
        uses = {key_id: self._uses.pop(key_id) for key_id in key_ids}
        if not uses or self._note_uses is None:
            return
        try:
            await asyncio.to_thread(self._note_uses, uses)
        except Exception:
            # Again at the next step; a use since then is newer.
            self._uses = {**uses, **self._uses}
            raise

    async def check(self, text: str | None) -> ApiKey:
        """The key that a request carries.

        Args:
            text: the key, or None if the request has none.

        Raises:
            UnauthenticatedError: it is missing or not valid; the message says how to get one.
            UnavailableError: it is not among the last known keys, and the database cannot be read now.
        """
        if text is None:
            raise UnauthenticatedError(f"This request has no API key. {HOW_TO_GET_ONE}", reason="API_KEY_MISSING")
        key_id = id_of(text)
        if key_id is not None:
            key = self._keys.get(key_id)
            if key is None:
                await self._look_again()
                key = self._keys.get(key_id)
            if key is not None and matches(key, text):
                now = self._clock.now()
                if key.expired(now):
                    raise UnauthenticatedError(
                        f"This API key expired at {key.expire_time:%Y-%m-%d %H:%M} UTC. {HOW_TO_GET_ONE}",
                        reason="API_KEY_EXPIRED",
                    )
                self._uses[key_id] = now
                return key
        raise UnauthenticatedError(f"This API key is not valid. {HOW_TO_GET_ONE}", reason="API_KEY_INVALID")

    async def holder(self, key_id: str) -> ApiKey:
        """The key of someone who showed it before, and is known by something else now.

        Raises:
            UnauthenticatedError: it is revoked or expired.
            UnavailableError: as `check`.
        """
        key = self._keys.get(key_id)
        if key is None:
            await self._look_again()
            key = self._keys.get(key_id)
        if key is None or key.expired(now := self._clock.now()):
            raise UnauthenticatedError("The API key is revoked or expired.", reason="API_KEY_ENDED")
        self._uses[key_id] = now
        return key

    async def _look_again(self) -> None:
        try:
            await self.refresh()
        except Exception as error:
            logger.exception("cannot read the API keys; using the last known ones")
            raise UnavailableError(
                "The gateway cannot read its API keys. Retry later.", reason="KEYS_UNAVAILABLE", retry_after_s=1.0
            ) from error


def key_text(authorization: str | None, x_api_key: str | None) -> str | None:
    """The key from the two headers that may contain it; `x-api-key` wins."""
    if x_api_key:
        return x_api_key.strip()
    if authorization:
        scheme, _, value = authorization.partition(" ")
        return value.strip() if scheme.lower() == "bearer" else authorization.strip()
    return None
