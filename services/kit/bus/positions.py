"""Where a member of a group goes on reading, to notice messages that were deleted before it had read them.

Kafka says nothing of it: a committed offset before the log's start, or a fetch of a deleted one, goes on at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition

from services.kit.bus.port import LostMessages


class ReadPositions:
    """The offset that comes next in each partition of a member; one for each time that it joins its group.

    `report` is called with each gap before anything behind it is done or committed; where it raises, the gap is found
    again by the next member.
    """

    def __init__(
        self, consumer: KafkaConsumer, report: Callable[[LostMessages], None], must_read: Collection[str]
    ) -> None:
        """`must_read`: topics of which the group must read everything, also what came before the group."""
        self._consumer = consumer
        self._must_read = must_read
        self._report = report
        self._next: dict[TopicPartition, int] = {}

    def follow_assignment(self) -> None:
        """Takes up partitions that are new to the member, and forgets those that it has no more."""
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
                # From now on the group has a place, so that what is deleted before its first commit is noticed.
                self._commit(place, self._next[place])

    def check_batch(self, first_offsets: Mapping[TopicPartition, int]) -> None:
        """Notices what is missing before a batch; transactions leave holes in the offsets, which are no gaps."""
        jumped = [place for place, first in first_offsets.items() if first > self._next.get(place, first)]
        if jumped:
            begins = self._consumer.beginning_offsets(jumped)
            for place in jumped:
                self._check(place, self._next[place], min(begins[place], first_offsets[place]))

    def check_idle(self) -> None:
        """Notices what was deleted so that nothing came."""
        if self._next:
            begins = self._consumer.beginning_offsets(list(self._next))
            for place, begin in begins.items():
                if begin > self._next[place]:
                    self._check(place, self._next[place], begin)
                    self._next[place] = begin
                    self._commit(place, begin)

    def advance(self, next_offsets: Mapping[TopicPartition, int]) -> None:
        """What was done and committed."""
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
