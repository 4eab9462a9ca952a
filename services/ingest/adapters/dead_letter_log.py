"""The topic of dead letters as the use cases see it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from services.ingest.domain.dead_letter import DeadLetter
from services.kit.bus.brokers import Brokers
from services.kit.bus.dead_letters import DeadLetterReader, StoredLetter, open_dead_letters
from services.kit.bus.kafka import KafkaEventPublisher
from services.kit.bus.topics import TOPICS

_BY_NAME = {topic.name: topic for topic in TOPICS}


class KafkaDeadLetterLog:
    """Implements `services.ingest.app.dead_letters.DeadLetterLog`. Thread-safe."""

    def __init__(self, brokers: Brokers, publisher: KafkaEventPublisher) -> None:
        self._brokers = brokers
        self._publisher = publisher

    @property
    def topics(self) -> frozenset[str]:
        """See the port."""
        return frozenset(_BY_NAME)

    @contextmanager
    def open(self) -> Iterator[_OpenLetters]:
        """See the port; a connection of its own each time, since people read dead letters seldom."""
        with open_dead_letters(self._brokers) as reader:
            yield _OpenLetters(reader)

    def send_again(self, letter: DeadLetter) -> None:
        """See the port."""
        self._publisher.send_again(_BY_NAME[letter.topic], letter.key, letter.content, letter.headers)


class _OpenLetters:
    """Implements `services.ingest.app.dead_letters.OpenLetters`."""

    def __init__(self, reader: DeadLetterReader) -> None:
        self._reader = reader
        self.log_id, self.begin, self.end = reader.log_id, reader.begin, reader.end

    def first_at(self, moment: datetime) -> int:
        """See the port."""
        return self._reader.first_at(moment)

    def newest_first(self, begin: int, end: int, *, with_content: bool = False) -> Iterator[DeadLetter]:
        """See the port."""
        for stored in self._reader.newest_first(begin, end, with_values=with_content):
            yield _letter(stored)


def _letter(stored: StoredLetter) -> DeadLetter:
    why, whole = stored.why, stored.why.get("original_bytes", "")
    return DeadLetter(
        stored.offset,
        _time(why.get("time", "")) or stored.append_time,
        reason=why.get("reason", ""),
        message=why.get("message", ""),
        service=why.get("service", ""),
        topic=why.get("topic", ""),
        partition=_number(why.get("partition", "")),
        source_offset=_number(why.get("offset", "")),
        import_name=why.get("import", ""),
        location=why.get("location", ""),
        size=_number(whole) or stored.size,
        truncated=bool(whole),
        key=stored.key,
        content=stored.value,
        headers=stored.headers,
    )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0


def _time(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
