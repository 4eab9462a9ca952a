"""Sends what people are to be notified of."""

from __future__ import annotations

import logging
from datetime import timedelta

from services.kit.clock import Clock
from services.kit.errors import TidemillError
from services.pipeline.app.rollout_ports import AuditStore, Notifier

logger = logging.getLogger(__name__)

_PAGE = 50
_GIVE_UP = timedelta(days=1)


class Notices:
    """Thread-safe where the store is."""

    def __init__(self, store: AuditStore, notifier: Notifier, clock: Clock) -> None:
        self._store, self._notifier, self._clock = store, notifier, clock

    def send_pending(self) -> None:
        """Sends what is pending, oldest first; what could not be sent for a day is given up, and said in the log.

        Raises:
            UnavailableError: a receiver does not answer; call it again later.
        """
        while pending := self._store.unsent(_PAGE):
            for entry in pending:
                try:
                    self._notifier.send(entry)
                except TidemillError as error:
                    if self._clock.now() - entry.create_time < _GIVE_UP:
                        raise
                    logger.error("%s (%s) was never sent: %s", entry.name, entry.action, error.message)
                self._store.mark_sent([entry.entry_id])
