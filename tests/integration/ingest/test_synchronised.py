"""A file that loses and changes lines between two imports: through ingest, Kafka and cleaning to a data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tidemill.cleaning.v1 import cleaning_service_pb2 as cleaning_pb
from tidemill.cleaning.v1 import dataset_pb2
from tidemill.cleaning.v1.cleaning_events_pb2 import RecordsLost
from tidemill.ingest.v1 import ingest_service_pb2 as pb
from tidemill.ingest.v1 import source_import_pb2
from tidemill.ingest.v1.ingest_events_pb2 import RecordIngested, RecordWithdrawn
from tidemill.ingest.v1.record_pb2 import Record

from infra.stack.testing import brokers
from services.kit.bus.kafka import KafkaEventPublisher
from services.kit.bus.port import OutgoingEvent
from services.kit.bus.topics import CLEANING_EVENTS, RECORDS_RAW
from tests.integration.cleaning.conftest import CleaningProcess
from tests.integration.ingest.conftest import IngestProcess, messages_of
from tests.waiting import wait_until

pytestmark = pytest.mark.real

Import = source_import_pb2.Import
Version = dataset_pb2.DatasetVersion


@pytest.fixture
def cleaning(kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CleaningProcess]:
    process = CleaningProcess(kafka_bootstrap, tmp_path_factory.mktemp("cleaning"))
    process.start()
    yield process
    process.kill()


def write(path: Path, lines: dict[int, str]) -> None:
    path.write_text("".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in lines.items()))


def begin(ingest: IngestProcess, path: Path, *, resend: bool = False) -> Import:
    source = source_import_pb2.JsonLinesSource(uri=str(path), id_field="id")
    spec = source_import_pb2.SourceSpec(source="synchronised", json_lines=source)
    return ingest.stub().CreateImport(pb.CreateImportRequest(spec=spec, resend=resend), timeout=60).source_import


def end(ingest: IngestProcess, begun: Import) -> Import:
    stream = ingest.stub().WatchImport(pb.WatchImportRequest(name=begun.name), timeout=90)
    *_, last = (answer.source_import for answer in stream)
    return last


def build(cleaning: CleaningProcess, *imports: Import) -> Version:
    awaited = [
        cleaning_pb.AwaitedImport(
            name=item.name,
            record_count=item.record_count,
            withdrawn_count=item.withdrawn_count,
            changed_count=item.changed_count,
        )
        for item in imports
    ]
    request = cleaning_pb.BuildDatasetVersionRequest(dataset="datasets/synchronised", awaited_imports=awaited)
    version = cleaning.stub().BuildDatasetVersion(request, timeout=20).dataset_version
    stream = cleaning.stub().WatchDatasetVersion(cleaning_pb.WatchDatasetVersionRequest(name=version.name), timeout=120)
    *_, last = (answer.dataset_version for answer in stream)
    return last


@pytest.mark.slow
def test_what_is_gone_from_a_file_is_gone_from_the_next_version_though_ingest_was_killed(
    ingest: IngestProcess, cleaning: CleaningProcess, kafka_bootstrap: str, tmp_path: Path
) -> None:
    path, count = tmp_path / "s.jsonl", 15_000
    spec = dataset_pb2.DatasetSpec(
        sources=["synchronised"], operators=[dataset_pb2.OperatorSpec(name="normalize_whitespace")]
    )
    cleaning.stub().PutDataset(cleaning_pb.PutDatasetRequest(name="datasets/synchronised", spec=spec), timeout=20)
    pushed = Record(source="synchronised", record_id="0", text="pushed, too")
    ingest.stub().IngestRecords(pb.IngestRecordsRequest(records=[pushed]), timeout=20)
    write(path, {number: f"text {number}" for number in range(count)})
    first = end(ingest, begin(ingest, path))
    assert (first.record_count, first.added_count, first.withdrawn_count) == (count, count, 0)
    assert build(cleaning, first).records_in == count
    # A third is gone, the pushed one among it; every hundredth is changed; one is new.
    lines = {n: f"text {n}" if n % 100 else f"changed {n}" for n in range(count) if n % 3}
    write(path, lines | {count: "new"})
    begun = begin(ingest, path)
    assert not begun.reused
    for answer in ingest.stub().WatchImport(pb.WatchImportRequest(name=begun.name), timeout=60):
        if answer.source_import.record_count > count / 3:
            break
    state = ingest.stub().GetImport(pb.GetImportRequest(name=begun.name), timeout=10).source_import.state
    ingest.kill()
    ingest.start()
    second = end(ingest, begun)
    assert state == Import.STATE_RUNNING, "it was quicker than the killer; give it more to do"
    assert (second.record_count, second.added_count, second.withdrawn_count) == (10_001, 1, 5_000)
    assert second.changed_count == sum(text.startswith("changed") for text in lines.values())
    version = build(cleaning, second)
    assert version.state == Version.STATE_READY, version
    # Those of the file, and the one that was pushed.
    assert version.records_in == 10_002
    assert (version.withdrawn_count, version.changed_count) == (5_000, second.changed_count)
    withdrawn = messages_of(kafka_bootstrap, RECORDS_RAW, RecordWithdrawn, second.name)
    assert {int(message.record_id) for _, message in withdrawn} == set(range(0, count, 3))
    # Asked for again nothing is pulled, but for who has lost it all of it is.
    assert begin(ingest, path).name == second.name
    resent = end(ingest, begin(ingest, path, resend=True))
    assert resent.name != second.name
    assert (resent.record_count, resent.added_count, resent.withdrawn_count) == (10_001, 0, 0)


def test_a_source_is_pulled_again_once_cleaning_has_lost_records(
    ingest: IngestProcess, kafka_bootstrap: str, tmp_path: Path
) -> None:
    path = tmp_path / "lines.jsonl"
    write(path, {1: "one", 2: "two"})
    first = end(ingest, begin(ingest, path))
    assert begin(ingest, path).name == first.name
    publisher = KafkaEventPublisher(brokers(kafka_bootstrap), "cleaning")
    lost = RecordsLost(topic=RECORDS_RAW.name, partition=0, first_offset=0, next_offset=2)
    lost.find_time.GetCurrentTime()
    publisher.publish(CLEANING_EVENTS, [OutgoingEvent(lost.topic, lost)])
    publisher.close()
    again = wait_until(
        lambda: begun if (begun := begin(ingest, path)).name != first.name else None, "an import of its own"
    )
    assert len(messages_of(kafka_bootstrap, RECORDS_RAW, RecordIngested, end(ingest, again).name)) == 2
    # What came after the loss is not lost.
    assert begin(ingest, path).name == again.name
