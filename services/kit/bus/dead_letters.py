"""Reads `tidemill.dead-letters` by offset, newest first, and takes the `dlq_*` headers apart. No group, no commits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from services.kit.bus.brokers import Brokers
from services.kit.bus.topics import DEAD_LETTERS, TOPICS, Topic
from services.kit.deadline import work_deadline
from services.kit.errors import bus_away

_PREFIX = "dlq_"
_PLACE = TopicPartition(DEAD_LETTERS.name, 0)
_CHUNK = 200
_PATIENCE_S = 20.0
_BY_NAME: Mapping[str, Topic] = {topic.name: topic for topic in TOPICS}


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A dead letter at its offset: `why` are its `dlq_*` headers without the prefix, `headers` the message's own."""

    offset: int
    append_time: datetime
    key: bytes | None
    value: bytes
    size: int
    why: Mapping[str, str]
    headers: Mapping[str, bytes]

    @property
    def source_topic(self) -> Topic | None:
        """The topic that the message came from; None if it came from none that is declared."""
        return _BY_NAME.get(self.why.get("topic", ""))


class DeadLetterReader:
    """The topic as it was when it was opened; see `open_dead_letters`. For one thread."""

    def __init__(self, consumer: KafkaConsumer, log_id: str) -> None:
        self.log_id = log_id
        """Identifies the topic: offsets of a topic that was made again have another one."""
        self._consumer = consumer
        consumer.assign([_PLACE])
        self.begin: int = consumer.beginning_offsets([_PLACE])[_PLACE]
        """The first offset."""
        self.end: int = consumer.end_offsets([_PLACE])[_PLACE]
        """The offset after the last one."""

    def first_at(self, moment: datetime) -> int:
        """Offset of the first letter that came at a time or later; `end` if none did."""
        found = self._consumer.offsets_for_times({_PLACE: int(moment.timestamp() * 1000)})[_PLACE]
        return self.end if found is None else int(found.offset)

    def newest_first(self, begin: int, end: int, *, with_values: bool = False) -> Iterator[StoredLetter]:
        """Letters of the offsets from `begin` to before `end`, the last one first; a few hundred are in memory.

        Without `with_values` the key and the value are empty, and `size` says how long the value is.

        Raises:
            KafkaError: the broker does not answer.
        """
        begin, end = max(begin, self.begin), min(end, self.end)
        while end > begin:
            start = max(begin, end - _CHUNK)
            yield from reversed(self._between(start, end, with_values))
            end = start

    def _between(self, begin: int, end: int, with_values: bool) -> list[StoredLetter]:
        self._consumer.seek(_PLACE, begin)
        called, until = work_deadline(), time.monotonic() + _PATIENCE_S
        until = until if called is None else min(until, called)
        found: list[StoredLetter] = []
        while self._consumer.position(_PLACE) < end:
            if time.monotonic() > until:
                raise KafkaError("the dead letters were not read in time")
            for record in self._consumer.poll(timeout_ms=200).get(_PLACE, ()):
                if record.offset < end:
                    found.append(_letter(record, with_values))
        return found


@contextmanager
def open_dead_letters(brokers: Brokers) -> Iterator[DeadLetterReader]:
    """The dead letters during the block.

    Raises:
        UnavailableError: no broker answers, or not in time.
    """
    consumer = None
    try:
        options = brokers.options()
        admin = KafkaAdminClient(**options, client_id="tidemill-dead-letters", bootstrap_timeout_ms=5000)
        try:
            (described,) = admin.describe_topics([DEAD_LETTERS.name])
        finally:
            admin.close()
        consumer = KafkaConsumer(
            **options,
            client_id="tidemill-dead-letters",
            enable_auto_commit=False,
            isolation_level="read_committed",
            max_poll_records=50,
        )
        yield DeadLetterReader(consumer, str(described["topic_id"]))
    except (KafkaError, ValueError) as error:
        raise bus_away("The dead letters cannot be read", error) from error
    finally:
        if consumer is not None:
            consumer.close(autocommit=False, timeout_ms=1000)


def _letter(record: Any, with_values: bool) -> StoredLetter:
    headers = {name.lower(): value or b"" for name, value in record.headers or ()}
    why = {
        name.removeprefix(_PREFIX): value.decode("utf-8", "replace")
        for name, value in headers.items()
        if name.startswith(_PREFIX)
    }
    value = record.value or b""
    return StoredLetter(
        record.offset,
        datetime.fromtimestamp(record.timestamp / 1000, UTC),
        record.key if with_values else None,
        value if with_values else b"",
        len(value),
        why,
        {name: value for name, value in headers.items() if not name.startswith(_PREFIX)},
    )
