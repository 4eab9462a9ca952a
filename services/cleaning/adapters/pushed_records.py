"""What was pushed and has not been read: first on the topic of other producers, then on the one that cleaning reads."""

from __future__ import annotations

import threading

from services.kit.bus.backlog import Backlog, Ends
from services.kit.bus.topics import INBOUND, RECORDS_RAW


class BusPushedRecords:
    """Implements `PushedRecords`; thread-safe.

    Where the topics ended when a build first asked is kept in memory: after a restart a build waits for what has been
    pushed until then, too.
    """

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._lock = threading.Lock()
        self._ends: dict[str, dict[str, Ends]] = {}

    def unread(self, build: str) -> int:
        """See the port."""
        with self._lock:
            ends = self._ends.setdefault(build, {})
        # What ingest has read of other producers it has published, so that the second topic is measured after it.
        for topic in (INBOUND, RECORDS_RAW):
            if topic.name not in ends:
                ends[topic.name] = self._backlog.ends(topic)
            if unread := self._backlog.unread(topic, ends[topic.name]):
                return unread
        return 0

    def forget(self, build: str) -> None:
        """See the port."""
        with self._lock:
            self._ends.pop(build, None)
