"""Records that the real Kafka deletes while cleaning is down are noticed, reported as lost, and sent again."""

from __future__ import annotations

import pytest
from tidemill.cleaning.v1 import cleaning_service_pb2 as pb
from tidemill.cleaning.v1 import dataset_pb2
from tidemill.cleaning.v1.cleaning_events_pb2 import RecordsLost

from infra.stack.testing import brokers
from services.kit.bus.kafka import KafkaEventPublisher
from services.kit.bus.losses import noted_losses
from services.kit.bus.topics import CLEANING_EVENTS, RECORDS_RAW
from services.kit.ids import new_id
from tests.integration.cleaning.bus import raw_event
from tests.integration.cleaning.conftest import CleaningProcess
from tests.retention import delete_unread, wait_until_read
from tests.topics import read_all

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


def test_what_the_bus_lost_while_cleaning_was_unavailable_is_reported_and_sent_again(
    cleaning: CleaningProcess, kafka_bootstrap: str
) -> None:
    spec = dataset_pb2.DatasetSpec(sources=["lossy"], operators=[dataset_pb2.OperatorSpec(name="normalize_whitespace")])
    cleaning.stub().PutDataset(pb.PutDatasetRequest(name="datasets/lossy", spec=spec), timeout=20)
    publisher = KafkaEventPublisher(brokers(kafka_bootstrap), "ingest")
    first, again = f"imports/{new_id()}", ""
    wait_until_read(kafka_bootstrap, RECORDS_RAW, "tidemill-cleaning")
    cleaning.kill()
    try:
        publisher.publish(RECORDS_RAW, [raw_event(str(n), "lossy", f"text {n}", first) for n in range(500)])
        assert delete_unread(kafka_bootstrap, RECORDS_RAW, "tidemill-cleaning", 152) == 348
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
