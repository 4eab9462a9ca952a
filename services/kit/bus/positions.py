"""Tracks the read position of a group member, to notice messages that were deleted unread.

Kafka does not report this: a committed offset before the log's start, or a fetch of a deleted one, silently continues
at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition

from services.kit.bus.port import LostMessages


class ReadPositions:
    """The next offset in each partition of a member; one instance each time the member joins its group.

    `report` is called with each gap before any later message is handled or committed. If it raises, the next member
    finds the gap again.
    """

    def __init__(
        self, consumer: KafkaConsumer, report: Callable[[LostMessages], None], must_read: Collection[str]
    ) -> None:
        """`must_read`: topics of which the group must read everything, also messages older than the group."""
        self._consumer = consumer
        self._must_read = must_read
        self._report = report
        self._next: dict[TopicPartition, int] = {}

    def follow_assignment(self) -> None:
        """Adds partitions that were newly assigned, and drops those that were revoked."""
        assigned = self._consumer.assignment()
        for gone in self._next.keys() - assigned:
            del self._next[gone]
        fresh = assigned - self._next.keys()
        if not fresh:
            return
        begins = self._consumer.beginning_offsets(list(fresh))
        for place in fresh:
            committed = self._consumer.committed(place)
            expected = committed if committed is not None else 0 if place.topic in self._must_read else begins[place]
            self._check(place, expected, begins[place])
            self._next[place] = max(expected, begins[place])
            if committed is None or committed < begins[place]:
                # From now on the group has a position, so deletions before its first commit are noticed.
                self._commit(place, self._next[place])

    def check_batch(self, first_offsets: Mapping[TopicPartition, int]) -> None:
        """Detects gaps before a batch. Transaction markers leave holes in the offsets, which are not gaps."""
        jumped = [place for place, first in first_offsets.items() if first > self._next.get(place, first)]
        if jumped:
            begins = self._consumer.beginning_offsets(jumped)
            for place in jumped:
                self._check(place, self._next[place], min(begins[place], first_offsets[place]))

    def check_idle(self) -> None:
        """Detects deletions that left nothing to read."""
        if self._next:
            begins = self._consumer.beginning_offsets(list(self._next))
            for place, begin in begins.items():
                if begin > self._next[place]:
                    self._check(place, self._next[place], begin)
                    self._next[place] = begin
                    self._commit(place, begin)

    def advance(self, next_offsets: Mapping[TopicPartition, int]) -> None:
        """The offsets that were handled and committed."""
        self._next.update(next_offsets)

    def _check(self, place: TopicPartition, expected: int, begin: int) -> None:
        if begin > expected:
            self._report(LostMessages(place.topic, place.partition, expected, begin))

    def _commit(self, place: TopicPartition, offset: int) -> None:
        self._consumer.commit({place: OffsetAndMetadata(offset, "", -1)})


def first_offsets(deliveries: Iterable[tuple[TopicPartition, int]]) -> Mapping[TopicPartition, int]:
    """The smallest offset of each partition."""
    found: dict[TopicPartition, int] = {}
    for place, offset in deliveries:
        found[place] = min(offset, found.get(place, offset))
    return found
