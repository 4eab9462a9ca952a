"""Records that the real Kafka deletes while cleaning is down are noticed, reported as lost, and sent again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import CoordinatorNotAvailableError
from tidemill.cleaning.v1 import cleaning_service_pb2 as pb
from tidemill.cleaning.v1 import dataset_pb2
from tidemill.cleaning.v1.cleaning_events_pb2 import RecordsLost

from services.kit.bus.kafka import KafkaEventPublisher
from services.kit.bus.losses import noted_losses
from services.kit.bus.topics import CLEANING_EVENTS, RECORDS_RAW
from services.kit.ids import new_id
from tests.integration.cleaning.bus import raw_event
from tests.integration.cleaning.conftest import CleaningProcess
from tests.topics import read_all
from tests.waiting import wait_until

pytestmark = pytest.mark.real

Version = dataset_pb2.DatasetVersion


def build(cleaning: CleaningProcess, import_name: str, count: int) -> Version:
    """The end of a build that awaits an import."""
    awaited = [pb.AwaitedImport(name=import_name, record_count=count)]
    request = pb.BuildDatasetVersionRequest(dataset="datasets/lossy", awaited_imports=awaited)
    version = cleaning.stub().BuildDatasetVersion(request, timeout=20).dataset_version
    stream = cleaning.stub().WatchDatasetVersion(pb.WatchDatasetVersionRequest(name=version.name), timeout=90)
    *_, last = (answer.dataset_version for answer in stream)
    return last


@contextmanager
def broker(bootstrap: str) -> Iterator[tuple[KafkaAdminClient, KafkaConsumer]]:
    """Clients that look at the topic of raw records."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    yield admin, consumer
    consumer.close()
    admin.close()


def places(admin: KafkaAdminClient, consumer: KafkaConsumer) -> dict[TopicPartition, tuple[int, int]]:
    """Of each partition, up to where cleaning has read it, and its end."""
    partitions = [TopicPartition(RECORDS_RAW.name, number) for number in range(RECORDS_RAW.partitions)]

    def offsets() -> Any:
        try:
            return (admin.list_group_offsets({"tidemill-cleaning": None})["tidemill-cleaning"],)
        except CoordinatorNotAvailableError:  # a new broker makes the coordinators' topic when one is first asked for
            return None

    (committed,) = wait_until(offsets, "the offsets of cleaning's group")
    ends: dict[Any, int] = consumer.end_offsets(partitions)
    return {each: (int(committed[each].offset) if each in committed else 0, ends[each]) for each in partitions}


def wait_until_read(bootstrap: str) -> None:
    """Waits until cleaning has committed all that other tests sent."""
    with broker(bootstrap) as clients:
        wait_until(lambda: all(read == end for read, end in places(*clients).values()), "an empty backlog")


def delete_unread(bootstrap: str, kept: int) -> int:
    """Deletes raw records until `kept` remain that cleaning has not read; returns how many went."""
    until, deleted = {}, 0
    with broker(bootstrap) as (admin, consumer):
        for place, (read, end) in places(admin, consumer).items():
            keep = min(kept, end - read)
            kept -= keep
            deleted += end - read - keep
            if end - keep > read:
                until[place] = end - keep
        admin.delete_records(until)
    return deleted


def test_what_the_bus_lost_while_cleaning_was_unavailable_is_reported_and_sent_again(
    cleaning: CleaningProcess, kafka_bootstrap: str
) -> None:
    spec = dataset_pb2.DatasetSpec(sources=["lossy"], operators=[dataset_pb2.OperatorSpec(name="normalize_whitespace")])
    cleaning.stub().PutDataset(pb.PutDatasetRequest(name="datasets/lossy", spec=spec), timeout=20)
    publisher = KafkaEventPublisher(kafka_bootstrap, "ingest")
    first, again = f"imports/{new_id()}", ""
    wait_until_read(kafka_bootstrap)
    cleaning.kill()
    try:
        publisher.publish(RECORDS_RAW, [raw_event(str(n), "lossy", f"text {n}", first) for n in range(500)])
        assert delete_unread(kafka_bootstrap, 152) == 348
        cleaning.start()
        lost = build(cleaning, first, 500)
        assert lost.state == Version.STATE_FAILED
        assert lost.failure.reason == "RECORDS_LOST"
        assert dict(lost.failure.metadata) == {first: "152 of 500", "lost_messages": "348"}
        again = f"imports/{new_id()}"
        publisher.publish(RECORDS_RAW, [raw_event(str(n), "lossy", f"text {n}", again) for n in range(500)])
    finally:
        publisher.close()
    whole = build(cleaning, again, 500)
    assert (whole.state, whole.records_in) == (Version.STATE_READY, 500)
    gaps = {
        headers["ce_id"]: RecordsLost.FromString(value)
        for headers, value in read_all(kafka_bootstrap, CLEANING_EVENTS)
        if headers["ce_type"] == RecordsLost.DESCRIPTOR.full_name.encode()
    }
    assert sum(gap.next_offset - gap.first_offset for gap in gaps.values()) == 348
    (noted,) = noted_losses(cleaning.folder)
    assert (noted.topic, noted.group, noted.messages) == (RECORDS_RAW.name, "tidemill-cleaning", 348)
    warnings = [line for line in cleaning.log.read_text().splitlines() if "were deleted before" in line]
    assert warnings, "the loss was not logged"
